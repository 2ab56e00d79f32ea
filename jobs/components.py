"""Which components a manifest's mixture has, and in which wordings their strengths are tried. Without torch."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config import RunConfig
from manifests import Manifest
from time_ops.route import UNEDITED

__all__ = ["components_of", "tried_wordings"]


def components_of(manifest: Manifest, labels: Sequence[str]) -> list[str]:
    """The components of a manifest's mixture: its destinations' labels, in the attribute's order.

    With one label only, the second component is the unedited model.
    """
    named = {d.label for p in manifest.professions for d in p.destinations}
    found = [label for label in labels if label in named]
    return found if len(found) > 1 else [*found, UNEDITED]


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
