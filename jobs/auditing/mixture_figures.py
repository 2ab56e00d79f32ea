"""From tallies to what a report says of a mixture: each component's own images, its weights, whom it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.auditing.as_reported import rate_figure
from jobs.auditing.tally import Drawn, Tallies
from jobs.report.figure_schema import RateFigure
from jobs.report.mixture_schema import ComponentReport, ComponentWording, MixtureReport, ProfessionWeights
from manifests import Manifest
from time_ops import Component, Mixture
from time_ops.mixture import UNEDITED
from time_ops.route import ROUTE_VERSION
from time_ops.stats.intervals import rate, wilson

__all__ = ["left_alone", "mixture_report"]


def mixture_report(mixture: Mixture, tallies: Tallies, manifest: Manifest, labels: Sequence[str]) -> MixtureReport:
    """What a mixture is, and what each of its components drew in an audit.

    Args:
        mixture: that the last variant was drawn with.
        tallies: of the audit.
        manifest: the run's.
        labels: the attribute's.
    """
    alone = left_alone(mixture.labels, manifest)
    professions = [
        ProfessionWeights(profession=p.name, source=p.source, weights=_named(mixture, weights))
        for p in manifest.professions
        if (weights := mixture.table.professions.get(p.source)) is not None
    ]
    return MixtureReport(
        digest=mixture.digest,
        route=ROUTE_VERSION,
        weights=_named(mixture, mixture.table.default),
        professions=professions,
        components=[
            _component(component, weight, k, tallies, labels, frozenset(alone.get(component.label, ())))
            for k, (component, weight) in enumerate(zip(mixture.components, mixture.table.default, strict=True))
        ],
        left_alone=alone,
    )


def left_alone(components: Sequence[str], manifest: Manifest) -> dict[str, list[str]]:
    """Component's label -> professions without a destination of it; labels that all professions have are left out."""
    lacking = {
        label: [p.name for p in manifest.professions if label not in p.labels]
        for label in components
        if label != UNEDITED
    }
    return {label: names for label, names in lacking.items() if names}


def _named(mixture: Mixture, weights: Sequence[float]) -> dict[str, float]:
    return dict(zip(mixture.labels, weights, strict=True))


def _component(
    component: Component, weight: float, k: int, tallies: Tallies, labels: Sequence[str], alone: frozenset[str]
) -> ComponentReport:
    """One component; professions that it leaves alone say nothing of how it sends others to its label."""
    own = labels.index(component.label) if component.label in labels else None
    counts = tallies.components[:, k]
    cells = [task.cell for task in tallies.tasks]
    kinds = np.array([cell.kind for cell in cells])
    named = np.array([labels.index(cell.label) if cell.label in labels else -1 for cell in cells])
    audit = kinds == "audit"
    wordings = list(dict.fromkeys(cell.wording for cell in cells if cell.kind == "audit"))
    places = np.array([cell.wording for cell in cells])
    sent = audit & np.array([cell.subject not in alone for cell in cells])
    explicit = {
        label: _explicit(counts, [int(i) for i in np.flatnonzero((kinds == "explicit") & (named == code))], code)
        for code, label in enumerate(labels)
        if (named[kinds == "explicit"] == code).any()
    }
    all_explicit = rate(sum(hits for hits, _ in explicit.values()), sum(n for _, n in explicit.values()))
    undetermined = counts[audit, len(labels)].sum()
    return ComponentReport(
        label=component.label,
        operator=None if component.is_identity else component.operator.digest,
        weight=weight,
        images=int(counts[:, Drawn.OK].sum()),
        own=_own(
            counts[sent], [c.subject for c, is_sent in zip(cells, sent, strict=True) if is_sent], own, len(labels)
        ),
        wordings=[
            _wording(wording, counts[sent & (places == wording)].sum(axis=0), own, labels) for wording in wordings
        ],
        explicit=rate_figure(all_explicit),
        explicit_by_label={label: rate_figure(rate(*counts_of_label)) for label, counts_of_label in explicit.items()},
        recognised=rate_figure(rate(*_recognised(counts[audit]))),
        controls=rate_figure(rate(*_recognised(counts[kinds == "control"]))),
        undetermined=rate_figure(rate(int(undetermined), int(counts[audit, Drawn.OK].sum()))),
    )


def _explicit(counts: np.ndarray, rows: Sequence[int], code: int) -> tuple[int, int]:
    """(right, images) of the explicit prompts that name one label."""
    return int(counts[rows, code].sum()), int(counts[rows, Drawn.OK].sum())


def _recognised(counts: np.ndarray) -> tuple[int, int]:
    return int(counts[:, Drawn.RECOGNISED].sum()), int(counts[:, Drawn.OK].sum())


def _own(counts: np.ndarray, subjects: Sequence[str], own: int | None, labels: int) -> RateFigure:
    """Images that show the component's label, and the profession that shows it least; the unedited model has none."""
    if own is None:
        return RateFigure(value=None, n=0, low=0.0, high=1.0)
    sums: dict[str, list[int]] = {}
    for subject, of_cell in zip(subjects, counts, strict=True):
        sum_of = sums.setdefault(subject, [0, 0])
        sum_of[0] += int(of_cell[own])
        sum_of[1] += int(of_cell[:labels].sum())
    worst = min(
        (name for name, (_, n) in sums.items() if n), key=lambda name: sums[name][0] / sums[name][1], default=None
    )
    exact = rate(sum(hits for hits, _ in sums.values()), sum(n for _, n in sums.values()))
    return rate_figure(exact, worst)


def _wording(wording: str, counts: np.ndarray, own: int | None, labels: Sequence[str]) -> ComponentWording:
    n = int(counts[: len(labels)].sum())
    hits = 0 if own is None else int(counts[own])
    low, high = wilson(hits, n)
    known = bool(n) and own is not None
    return ComponentWording(
        wording=wording,
        n=n,
        labels={label: int(count) for label, count in zip(labels, counts, strict=False)},
        undetermined=int(counts[len(labels)]),
        share=hits / n if known else None,
        low=float(low) if known else None,
        high=float(high) if known else None,
    )
