"""A mixture from a notebook: every component solved from one encoding of the prompts, at one strength for all.

    mixture = solve_mixture(pipe, {
        "female": {"a CEO": "a female CEO", "a nurse": "a female nurse"},
        "male": {"a CEO": "a male CEO", "a nurse": "a male nurse"},
    })

The main job finds a strength for each profession and component, and weights, from images; this takes what it is given.
Its defaults are for few edits: with dozens, `overshoot` 1.5, `ratio` 3 and `push` 1 hold better in unseen wordings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from time_ops.edit_statistics import solve_statistics
from time_ops.errors import EditError
from time_ops.lams import POOLED_RATIO, scale_of
from time_ops.mixture import Mixture
from time_ops.operator import EditOperator
from time_ops.prompts import NEUTRAL_PROMPTS, VARIED_AUGMENTATIONS, PromptEdit, augment
from time_ops.route import UNEDITED
from time_ops.row_encoding import encode_rows
from time_ops.rows import TokenRows
from time_ops.strengths import Strengths

__all__ = ["solve_mixture"]


def solve_mixture(
    pipe: Any,
    edits: Mapping[str, Mapping[str, str]],
    lam: float = 0.1,
    *,
    overshoot: float = 1.4,
    ratio: float = 1.0,
    push: float = 0.6,
    weights: Sequence[float] | None = None,
    professions: Mapping[str, Sequence[float]] | None = None,
    preserve: Sequence[str] = (*NEUTRAL_PROMPTS,),
    augmentations: Sequence[str] = VARIED_AUGMENTATIONS,
    pooled: float = POOLED_RATIO,
) -> Mixture:
    """Solve one component for each label, all from the same tokens.

    A component sends its sources to its own destinations, and holds the other labels' destinations. Sources
    without a destination of its label are preserved in it. The empty prompt is held twice as heavily as all edits
    together, since guidance subtracts it from every image.

    Args:
        pipe: as for `encode_edits`.
        edits: label -> source prompt -> destination prompt. With one label, the unedited model is the second component.
        lam: strength, in units of the edits' own scale (`time_ops.lams.scale_of`); smaller is stronger.
        overshoot: how far an edit goes; 1 is the destination itself.
        ratio: how much weaker than the edit other labels' destinations are held.
        push: how far other labels' destinations are pushed away from their source, see `Strengths`.
        weights: of the components; None: equal ones.
        professions: weights by source prompt, of those that have their own.
        preserve: further prompts to be left as they are.
        augmentations: as for `encode_edits`.
        pooled: lam of pooled embeddings in units of the token states', each in its own scale; see `solve`.

    Raises:
        EditError: no edit, a prompt that can't be used, or bad weights; all faults of a kind are named.
        ModelError: as for `encode_edits`.
    """
    labels = list(edits)
    sources = list(dict.fromkeys(source for of_label in edits.values() for source in of_label))
    if not sources:
        raise EditError("no edits: give a destination for some source, by label")
    named = {source: [edits[label][source] for label in labels if source in edits[label]] for source in sources}
    prompts = [PromptEdit(source, {d: 1 / len(ds) for d in ds}) for source, ds in named.items()]
    explicit = [augment(t, d) for ds in named.values() for d in ds for t in augmentations]
    rows = encode_rows(pipe, prompts, ["", *preserve, *explicit], augmentations=augmentations)
    strength = lam * scale_of(rows.norms())
    asked = [_strengths(rows, edits, label, strength, overshoot, ratio, push, set(preserve)) for label in labels]
    asked = [replace(one, ratio=pooled * rows.pooled_ratio) for one in asked]
    solved = [solve_statistics(statistics) for statistics in rows.component_statistics(asked)]
    operators = dict(zip(labels, solved, strict=True))
    if len(operators) == 1:
        operators[UNEDITED] = EditOperator.identity(solved[0].d)
    return Mixture.of(operators, weights, professions)


def _strengths(
    rows: TokenRows,
    edits: Mapping[str, Mapping[str, str]],
    label: str,
    lam: float,
    overshoot: float,
    ratio: float,
    push: float,
    preserve: set[str],
) -> Strengths:
    """How one component is solved."""
    shares: list[list[float]] = []
    pushes: list[list[float]] = []
    held = {"": 1 / (2 * len(rows.augmentations) * len(rows.edits) / lam)}
    for edit in rows.edits:
        own = edits[label].get(edit.source)
        shares.append([overshoot if destination == own else 0.0 for destination in edit.destinations])
        pushes.append([0.0 if destination == own else push for destination in edit.destinations])
        others = [destination for destination in edit.destinations if destination != own]
        held |= {augment(t, destination): ratio * lam for destination in others for t in rows.augmentations}
    kept = [held.get(prompt, lam if prompt in preserve else math.inf) for prompt in rows.preserved]
    return Strengths([lam] * len(rows.edits), shares, kept, pushes)
