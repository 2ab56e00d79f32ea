"""What an audit found of each profession: label counts, whom an edit moved, and controls beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jobs.auditing.as_reported import finite_float, rate_figure, share_figure
from jobs.auditing.counts import Counts
from jobs.auditing.variant_figures import Names
from jobs.report.figure_schema import ComponentEdit, ShareFigure
from jobs.report.schema import Control, LabelCounts, Movement, ProfessionReport
from time_ops.stats.inference import corrected_shares, moved, off_target
from time_ops.stats.intervals import paired_difference, rate, wilson, worst_case

__all__ = ["AuditedProfession", "Confusion", "control_figures", "movements", "profession_reports"]

Confusion = Mapping[str, Mapping[str, int]]
"""True label -> given label -> images checked by hand."""


@dataclass(frozen=True)
class AuditedProfession:
    """What was asked and done for one profession."""

    name: str
    source: str
    target: Mapping[str, float]
    lam: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, ComponentEdit] | None = None


@dataclass(frozen=True)
class _Pooled:
    """What one variant says of a profession over all wordings, beside its counts."""

    worst_low: float | None
    worst_high: float | None
    corrected: ShareFigure | None


def profession_reports(
    counts: Counts,
    professions: Sequence[AuditedProfession],
    names: Names,
    targets: np.ndarray,
    confusion: Confusion | None,
    seed: int,
) -> list[ProfessionReport]:
    """Every profession, in order; `targets` [P, L], `seed` of the corrected shares' bootstrap."""
    variants = ("base", "edited")[: counts.variants]
    pooled = [_of_pooled(counts, v, names, confusion, seed) for v in range(counts.variants)]
    last = counts.labels[:, -1, :, :-1].sum(axis=1)
    called = off_target(last, targets)
    return [
        ProfessionReport(
            profession=edited.name,
            source=edited.source,
            lam=edited.lam,
            shares=dict(edited.shares),
            components=None if edited.components is None else dict(edited.components),
            target=dict(edited.target),
            base=_label_counts(counts, p, 0, names, pooled=pooled[0][p]),
            edited=_label_counts(counts, p, 1, names, pooled=pooled[1][p]) if counts.variants == 2 else None,
            wordings={
                wording: {name: _label_counts(counts, p, v, names, w) for v, name in enumerate(variants)}
                for w, wording in enumerate(names.wordings)
            },
            off_target=bool(called[p]) if last[p].any() else None,
        )
        for p, edited in enumerate(professions)
    ]


def _label_counts(
    counts: Counts, p: int, v: int, names: Names, w: int | None = None, *, pooled: _Pooled | None = None
) -> LabelCounts:
    """One profession in one variant, in one wording or in all."""
    wordings = slice(None) if w is None else slice(w, w + 1)
    images = counts.labels[p, v, wordings].sum(axis=0)
    n = int(images[:-1].sum())
    low, high = wilson(images[0], n)
    ok = counts.ok[p, v, wordings].sum()
    return LabelCounts(
        n=n,
        labels={label: int(count) for label, count in zip(names.labels, images, strict=False)},
        undetermined=int(images[-1]),
        failed=int(counts.failed[p, v, wordings].sum()),
        share=float(images[0] / n) if n else None,
        low=float(low) if n else None,
        high=float(high) if n else None,
        recognised=rate_figure(rate(int(counts.recognised[p, v, wordings].sum()), int(ok))),
        worst_low=None if pooled is None else pooled.worst_low,
        worst_high=None if pooled is None else pooled.worst_high,
        corrected=None if pooled is None else pooled.corrected,
    )


def _of_pooled(counts: Counts, v: int, names: Names, confusion: Confusion | None, seed: int) -> list[_Pooled]:
    tallies = counts.labels[:, v].sum(axis=1)
    low, high = worst_case(tallies)
    none: list[ShareFigure | None] = [None] * len(tallies)
    corrected = none if confusion is None else _corrected(tallies[:, :-1], confusion, names.labels, seed)
    return [
        _Pooled(float(low[p, 0]) if some else None, float(high[p, 0]) if some else None, corrected[p])
        for p, some in enumerate(tallies.any(axis=1))
    ]


def _corrected(
    counts: np.ndarray, confusion: Confusion, labels: Sequence[str], seed: int
) -> Sequence[ShareFigure | None]:
    """The first label's corrected share of each profession."""
    table = [[confusion.get(true, {}).get(given, 0) for given in labels] for true in labels]
    shares = corrected_shares(counts, table, seed=seed)
    return [
        ShareFigure(value=finite_float(value), low=low if n else None, high=high if n else None)
        for value, low, high, n in zip(
            *(part[:, 0].tolist() for part in (shares.value, shares.low, shares.high)), counts.sum(axis=1), strict=True
        )
    ]


def movements(names: Sequence[str], joint: np.ndarray, targets: np.ndarray) -> list[Movement]:
    """Who moved, the farthest first: `joint` `[P, L + 1, L + 1]` over wordings, targets `[P]` of the first label."""
    both = joint[:, :-1, :-1]
    n, kept = both.sum(axis=(1, 2)), both[:, 0, 0]
    gained, lost = both[:, :, 0].sum(axis=1) - kept, both[:, 0].sum(axis=1) - kept
    moves = []
    for i in np.flatnonzero(moved(gained, lost)).tolist():
        before, after = (float((kept[i] + only) / n[i]) for only in (lost[i], gained[i]))
        change = paired_difference(int(gained[i]), int(lost[i]), int(n[i]))
        moves.append(
            Movement(
                profession=names[i],
                before=before,
                after=after,
                change=share_figure(change),
                n=int(n[i]),
                worse=bool(abs(after - targets[i]) > abs(before - targets[i])),
            )
        )
    return sorted(moves, key=lambda each: -abs(each.after - each.before))


def control_figures(counts: Counts, prompts: Sequence[str], drifts: Sequence[float]) -> list[Control]:
    """Each control: how often its images are recognised, and how far the variants' are apart."""
    rates = [[rate_figure(rate(int(k), int(n))) for k, n in of_control] for of_control in counts.controls]
    return [
        Control(
            prompt=prompt, base=each[0], edited=each[1] if counts.variants == 2 else None, drift=finite_float(drift)
        )
        for prompt, drift, each in zip(prompts, drifts, rates, strict=True)
    ]
