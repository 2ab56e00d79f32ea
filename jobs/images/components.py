"""Which components a manifest's mixture has, and in which wordings their strengths are tried. Without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.config import RunConfig
from jobs.errors import ConfigError
from manifests import Manifest, Profession
from time_ops.prompts import augment
from time_ops.route import UNEDITED, source_words

__all__ = ["check_mixture", "components_of", "tried_wordings"]


def components_of(manifest: Manifest, labels: Sequence[str]) -> list[str]:
    """The components of a manifest's mixture: its destinations' labels, in the attribute's order.

    With one label only, the second component is the unedited model.
    """
    named = {d.label for p in manifest.professions for d in p.destinations}
    components = [label for label in labels if label in named]
    return components if len(components) > 1 else [*components, UNEDITED]


def tried_wordings(config: RunConfig) -> tuple[list[bool], list[str]]:
    """Which of the edit's wordings the tried edits are solved on, and the wordings that they are tried on.

    Those are `wordings.calibration`. Where that would leave nothing to solve on, every other wording of the edit's.
    """
    edit, tried = config.wordings.edit, list(config.wordings.calibration)
    used = [wording not in tried for wording in edit]
    if any(used):
        return used, tried
    used = [i % 2 == 0 for i in range(len(edit))]
    held_out = [wording for wording, is_used in zip(edit, used, strict=True) if not is_used]
    return used, [*held_out, *(w for w in tried if w not in edit)] or tried


def check_mixture(manifest: Manifest, config: RunConfig) -> None:
    """Refuse what a mixture of this manifest could not end well with, before anything is drawn; nothing of other forms.

    Raises:
        ConfigError: naming every fault.
    """
    if config.form != "mixture":
        return
    faults = [*_neutral_faults(manifest, config), *_source_faults(manifest)]
    components = components_of(manifest, list(config.attribute))
    lacking = [p.name for p in manifest.professions if any(c not in p.labels for c in components)]
    if lacking and not config.mixture.rounds_of(len(components)):
        faults.append(
            f"{', '.join(lacking[:3])}{' and others' if len(lacking) > 3 else ''}: a component leaves them alone, so "
            "their weights come from images; raise mixture.budget and mixture.rounds above 0"
        )
    if faults:
        raise ConfigError("a mixture of this manifest can't be made:\n" + "\n".join(f"  {fault}" for fault in faults))


def _neutral_faults(manifest: Manifest, config: RunConfig) -> Iterator[str]:
    neutral = {prompt.casefold(): prompt for prompt in config.mixture.neutral}
    for control in config.controls:
        if control.casefold() in neutral:
            yield f"control {control!r} is in mixture.neutral, which the edit keeps: take it out of one of the lists"
    for profession in manifest.professions:
        for wording in config.wordings.edit:
            prompt = augment(wording, profession.source)
            if prompt.casefold() in neutral:
                yield f"{prompt!r} is to be edited, and mixture.neutral keeps it: take it out of mixture.neutral"


def _source_faults(manifest: Manifest) -> Iterator[str]:
    """Weights are found by a source's words, so sources of the same words can't want different ones."""
    known: dict[tuple[str, ...], Profession] = {}
    for profession in manifest.professions:
        words = source_words(profession.source)
        if not words:
            yield f"source {profession.source!r} has no word that its weights could be found by: put it in words"
            continue
        other = known.setdefault(words, profession)
        wanted = [{d.label: (d.target, d.share) for d in p.destinations} for p in (profession, other)]
        if wanted[0] != wanted[1]:
            yield (
                f"sources {other.source!r} and {profession.source!r} have the same words, and other targets or shares: "
                "a prompt can't tell them apart; give them the same, or other words"
            )
