"""Edits as prompts, and what a tokenizer alone can say of them. Without torch: a plan checks prompts in little memory.

faults = check_prompts(tokenizer, [PromptEdit("a CEO", {"a female CEO": 0.5, "a male CEO": 0.5})])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from time_ops.alignment import Alignment, align_prompts, token_ids
from time_ops.errors import EditError

__all__ = [
    "DEFAULT_AUGMENTATIONS",
    "MOST_OVERSHOOT",
    "PromptEdit",
    "PromptFault",
    "augment",
    "check_prompts",
    "checked_templates",
]

# As published: the pair itself, and both prompts behind three prefixes.
DEFAULT_AUGMENTATIONS = ("{source}", "A photo of {source}", "An image of {source}", "A picture of {source}")

VARIED_AUGMENTATIONS = (
    "{source}",
    "A photo of {source}",
    "An image of {source}",
    "A picture of {source}",
    "A portrait of {source}",
    "A drawing of {source}",
    "A sketch of {source}",
    "A close-up of {source}",
    "A poster of {source}",
    "A cartoon of {source}",
    "{source} smiling",
    "{source} at night",
    "{source} outdoors",
    "{source} in the rain",
    "{source} in the snow",
    "A photograph of {source}",
    "A black and white photo of {source}",
    "A statue of {source}",
    "A watercolor of {source}",
    "A scene with {source}",
    "The face of {source}",
    "A movie still of {source}",
    "{source} reading",
    "{source} walking",
    "{source} sitting on a chair",
    "{source} talking",
    "{source} standing",
    "{source} looking at the camera",
    "{source} in a city",
    "{source} on a beach",
    "{source} with a child",
    "{source} wearing glasses",
    "{source} in a kitchen",
    "{source} eating lunch",
    "{source} at home",
)
"""What a mixture is solved on: variety in front of the noun and behind it, and none of the paper's five test wordings.

A mixture takes no share from its wordings, so more of them cost only their encoding; docs/decisions/0011 has what they
do to wordings that nobody has tried."""

NEUTRAL_PROMPTS = tuple(
    f"{medium} of {subject}"
    for medium, subjects in (
        (
            "a photo",
            "a red bicycle|a wooden table|a bowl of soup|a dog|a horse|a bird|a fish|a bridge|a church|a train|a beach|"
            "a forest|a river|a desert|a castle|a garden|a road|a lamp|a clock|a book|a guitar|a pizza|an apple|a cake|"
            "a bottle|a window|a door|a ship|an airplane|a truck|a village|a waterfall",
        ),
        ("an image", "a bus|a butterfly|a tower|a chair"),
        ("a picture", "a lake|a candle|a sheep|a landscape"),
    )
    for subject in subjects.split("|")
)
"""Prompts about no people, which a mixture's components leave as they are; none is a default control."""

MOST_OVERSHOOT = 4.0
"""The largest sum of an edit's shares. Far beyond 1 an edit leaves the line between its prompts for nowhere."""

# Shares are written by people and by calibration: a sum is 1 if it is within this of 1.
_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PromptEdit:
    """One edit: the source prompt is to be read as a blend of destination prompts.

    Attributes:
        source: source prompt, "a CEO".
        destinations: share of each destination prompt, {"a female CEO": 1.0}; finite, none negative, sum 1.

    Raises:
        EditError: the destinations or their shares are not as above.
    """

    source: str
    destinations: dict[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise EditError(f"source must be a prompt, not {self.source!r}")
        if not isinstance(self.destinations, Mapping) or not all(isinstance(p, str) for p in self.destinations):
            raise EditError(f"edit of {self.source!r}: destinations must map prompts to shares")
        shares = _checked_shares(self.source, list(self.destinations.values()))
        object.__setattr__(self, "destinations", dict(zip(self.destinations, shares, strict=True)))

    def __hash__(self) -> int:
        return hash((self.source, frozenset(self.destinations.items())))


@dataclass(frozen=True)
class PromptFault:
    """A prompt that can't be used.

    Attributes:
        kind: "length": longer than the encoder's positions; "alignment": can't be aligned.
        reason: the whole sentence for a person.
        prompt: the prompt at fault, as rendered (for "alignment" the destination).
        edit: index of the edit, None for a prompt that belongs to none.
        destination: the edit's destination prompt at fault, None where it is the source.
    """

    kind: Literal["length", "alignment"]
    reason: str
    prompt: str
    edit: int | None = None
    destination: str | None = None


def augment(template: str, prompt: str) -> str:
    """Put a prompt in a template's place for it. Behind a prefix a leading "A" becomes "a", as published.

    Args:
        template: text with "{source}" once.
        prompt: what stands there.
    """
    behind_prefix = not template.startswith("{source}")
    return template.replace("{source}", "a" + prompt[1:] if behind_prefix and prompt.startswith("A") else prompt)


def check_prompts(
    tokenizer: Any,
    edits: Sequence[PromptEdit],
    *,
    prompts: Sequence[str] = (),
    augmentations: Sequence[str] = DEFAULT_AUGMENTATIONS,
    alignment: Alignment = "published",
) -> list[PromptFault]:
    """All that is wrong with edits and prompts, as far as a tokenizer can tell.

    Args:
        tokenizer: the text encoder's tokenizer.
        edits: edits; every augmentation of every prompt is checked.
        prompts: further prompts, preserved or audited, as they are encoded.
        augmentations: templates with "{source}".
        alignment: rule of the alignment.

    Returns:
        The faults, one for each prompt that is too long and for each destination that can't be aligned; empty if good.

    Raises:
        EditError: the augmentations are not usable.
    """
    templates = checked_templates(augmentations)
    faults: dict[tuple[object, ...], PromptFault] = {}
    for index, edit in enumerate(edits):
        for template in templates:
            source = augment(template, edit.source)
            long = _too_long(tokenizer, source, index, None)
            if long:
                faults.setdefault((index, None, "length"), long)
            for name in edit.destinations:
                destination = augment(template, name)
                too_long = _too_long(tokenizer, destination, index, name)
                if too_long:
                    faults.setdefault((index, name, "length"), too_long)
                elif not long and (template == templates[0] or _is_glued(template)):
                    try:
                        align_prompts(tokenizer, source, destination, alignment=alignment)
                    except EditError as error:
                        fault = PromptFault("alignment", str(error), destination, index, name)
                        faults.setdefault((index, name, "alignment"), fault)
    for prompt in dict.fromkeys(prompts):
        long = _too_long(tokenizer, prompt, None, None)
        if long:
            faults.setdefault((None, prompt, "length"), long)
    return list(faults.values())


def _is_glued(template: str) -> bool:
    """Whether the template's text touches the prompt's, so that a word of both may be one.

    Elsewhere a template adds the same words to source and destination, so one that aligns bare aligns in it too.
    """
    before, _, after = template.partition("{source}")
    return bool(before and not before[-1].isspace()) or bool(after and not after[0].isspace())


def _quoted(prompts: Sequence[str]) -> list[str]:
    return [repr(p) for p in prompts]


def _too_long(tokenizer: Any, prompt: str, edit: int | None, destination: str | None) -> PromptFault | None:
    n, limit = len(token_ids(tokenizer, prompt)), int(tokenizer.model_max_length)
    if n <= limit:
        return None
    reason = f"prompt {prompt!r} has {n} tokens, the text encoder {limit} positions: shorten it"
    return PromptFault("length", reason, prompt, edit, destination)


def checked_templates(augmentations: Sequence[str]) -> tuple[str, ...]:
    """The templates, once each is known to be usable; see `check_prompts`."""
    templates = (augmentations,) if isinstance(augmentations, str) else tuple(augmentations)
    bad = [t for t in templates if t.count("{source}") != 1]
    if bad or not templates:
        raise EditError.listing('every augmentation holds "{source}" once, and there is at least one:', _quoted(bad))
    if len(set(templates)) < len(templates):
        raise EditError(f"augmentations are repeated: {list(templates)}")
    return templates


def _checked_shares(source: str, shares: Sequence[Any]) -> list[float]:
    if not shares:
        raise EditError(f"edit of {source!r} has no destination")
    try:
        values = [float(s) for s in shares]
    except (TypeError, ValueError) as error:
        raise EditError(f"edit of {source!r}: shares must be numbers, not {list(shares)}") from error
    if not all(math.isfinite(s) and s >= 0 for s in values) or abs(math.fsum(values) - 1) > _SHARE_TOLERANCE:
        raise EditError(f"edit of {source!r}: shares must be finite, not negative and sum to 1, not {values}")
    return values
