"""The summary of one variant of an audit: its Deltas, and rates with whom each is worst for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.auditing.as_reported import delta_figure, finite_float, rate_figure, share_figure
from jobs.auditing.counts import Counts
from jobs.auditing.tally import Judging
from jobs.images.judging import PanelKind
from jobs.report.figure_schema import Parity, RateFigure
from jobs.report.schema import VariantSummary
from time_ops.stats.deltas import rms_deviation
from time_ops.stats.estimates import DeltaBounds
from time_ops.stats.inference import off_target, resampled_interval
from time_ops.stats.intervals import rate
from time_ops.stats.parity import demographic_parity

__all__ = ["Names", "variant_summary"]


@dataclass(frozen=True)
class Names:
    """What the axes of `Counts` are called: professions, wordings, labels and, cell by cell, controls."""

    professions: Sequence[str]
    wordings: Sequence[str]
    labels: Sequence[str]
    controls: Sequence[str]


def variant_summary(
    counts: Counts,
    v: int,
    names: Names,
    targets: np.ndarray,
    bounds: DeltaBounds,
    panel: PanelKind,
    seconds: float,
) -> VariantSummary:
    """Everything that is told of one variant.

    Args:
        counts: of all variants.
        v: which.
        names: of what is counted.
        targets: [P, L] wanted shares.
        bounds: of its Deltas.
        panel: of the classifiers that labelled.
        seconds: worker seconds that its images took.
    """
    cells, of_variant = counts.compared(v), counts.labels[:, v].sum(axis=1)
    pooled = cells[..., :-1].sum(axis=1)
    resampled = resampled_interval(cells, targets, bounds)
    parity = demographic_parity(pooled[:, 0], pooled.sum(axis=1))
    ok = counts.ok[:, v].sum(axis=1)
    explicit = counts.explicit[:, v]
    worst = bounds.worst.wording
    return VariantSummary(
        delta=delta_figure(bounds.pooled, resampled=resampled.pooled),
        delta_within=delta_figure(bounds.within, resampled=resampled.within),
        delta_wording_max=delta_figure(bounds.worst, None if worst is None else names.wordings[worst]),
        rms=finite_float(rms_deviation(pooled, targets)),
        rms_within=finite_float(rms_deviation(cells[..., :-1], targets)),
        explicit=_pooled(explicit[..., 0].sum(axis=1), explicit[..., 1].sum(axis=1), names.professions),
        explicit_by_label={
            label: _pooled(of_label[:, 0], of_label[:, 1], names.professions)
            for label, of_label in zip(names.labels, explicit.swapaxes(0, 1), strict=True)
            if of_label[:, 2].any()
        },
        recognised=_pooled(counts.recognised[:, v].sum(axis=1), ok, names.professions),
        controls=_pooled(counts.controls[:, v, 0], counts.controls[:, v, 1], names.controls),
        undetermined=_pooled(of_variant[:, -1], ok, names.professions, largest_is_worst=True),
        parity=Parity(
            difference=share_figure(parity.difference), ratio=share_figure(parity.ratio), reason=parity.reason
        ),
        images=counts.images,
        seconds=round(seconds, 2),
        off_target=int(off_target(of_variant[:, :-1], targets).sum()) if of_variant[:, :-1].any() else None,
        disagreement=_judged(counts.judged[:, v], Judging.DIFFER, Judging.COMPARED, names) if panel.several else None,
        no_face=_judged(counts.judged[:, v], Judging.BLIND, Judging.LABELLED, names) if panel.on_faces else None,
    )


def _pooled(hits: np.ndarray, n: np.ndarray, names: Sequence[str], *, largest_is_worst: bool = False) -> RateFigure:
    """A rate over all subjects, hits and images [S] of each, with the worst one named."""
    return rate_figure(rate(int(hits.sum()), int(n.sum())), _worst(hits, n, names, largest_is_worst=largest_is_worst))


def _worst(hits: np.ndarray, n: np.ndarray, names: Sequence[str], *, largest_is_worst: bool) -> str | None:
    """The first of the subjects with the worst rate; None where there are no images."""
    seen = np.flatnonzero(n)
    if not len(seen):
        return None
    shares = hits[seen] / n[seen]
    return names[int(seen[shares.argmax() if largest_is_worst else shares.argmin()])]


def _judged(judged: np.ndarray, hit: Judging, of: Judging, names: Names) -> RateFigure:
    """How often classifiers say something, over the audit's images; nobody is worst where they never do."""
    hits, n = judged[:, hit], judged[:, of]
    worst = _worst(hits, n, names.professions, largest_is_worst=True) if hits.any() else None
    return rate_figure(rate(int(hits.sum()), int(n.sum())), worst)
