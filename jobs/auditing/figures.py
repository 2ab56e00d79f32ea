"""From tallies to the report's figures: rates, Deltas, gates, verdict. Pure; no Ray, no storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.auditing.as_reported import delta_figure, finite_float
from jobs.auditing.counts import Counts, count_cells
from jobs.auditing.gates import profession_gate, read_gates, regression_gates
from jobs.auditing.judged_rows import MARGINS
from jobs.auditing.profession_figures import AuditedProfession, control_figures, movements, profession_reports
from jobs.auditing.tally import Tallies
from jobs.auditing.variant_figures import Names, variant_summary
from jobs.config import GatesConfig
from jobs.images.judging import ONE_CLASSIFIER, PanelKind
from jobs.report.figure_schema import GateResult
from jobs.report.schema import Control, Movement, ProfessionReport, Summary, WordingReport
from time_ops.stats.bounds import delta_bounds, paired_deltas
from time_ops.stats.deltas import delta, delta_within
from time_ops.stats.estimates import DeltaBounds, PairedDeltas
from time_ops.stats.verdicts import Verdict, combine

__all__ = ["AuditResult", "AuditedProfession", "audit_figures", "with_gate"]


@dataclass(frozen=True)
class AuditResult:
    """All figures of an audit."""

    summary: Summary
    gates: list[GateResult]
    verdict: Verdict
    wordings: list[WordingReport]
    professions: list[ProfessionReport]
    controls: list[Control]
    margin_sweep: list[dict[str, float | None]]
    compared: bool = False
    """Whether base is what an audited model was compared with, not what it was edited from."""
    moved: list[Movement] = field(default_factory=list)
    """Professions that moved between the two, the farthest first; only where compared."""


def audit_figures(
    tallies: Tallies,
    professions: Sequence[AuditedProfession],
    labels: Sequence[str],
    wordings: Sequence[str],
    gates: GatesConfig,
    seed: int,
    *,
    confusion: Mapping[str, Mapping[str, int]] | None = None,
    compared: bool = False,
    panel: PanelKind = ONE_CLASSIFIER,
) -> AuditResult:
    """Figures, gates and verdict of a base audit and, where there is a second variant, of the edit.

    Where the second variant is a model that is compared with another one on common seeds, gates on the rise of Delta
    come on top, and the professions that moved.

    Args:
        tallies: what was found in each cell.
        professions: in the manifest's order.
        labels: the attribute's labels.
        wordings: the audit's.
        gates: the limits.
        seed: of the bootstrap.
        confusion: true label -> given label -> images checked by hand; None: no share is corrected.
        compared: whether the first variant is the reference of a comparison.
        panel: of the classifiers that labelled.

    Raises:
        ValueError: one variant is compared with nothing.
    """
    if compared and tallies.variants != 2:
        raise ValueError("a comparison needs two variants")
    counts = count_cells(tallies, len(professions), wordings, labels)
    controls = [(task.cell, tally) for task, tally in zip(tallies.tasks, tallies, strict=True) if task.subject is None]
    prompts = [cell.prompt for cell, _ in controls]
    names = Names([p.name for p in professions], wordings, labels, prompts)
    targets = np.array([[p.target[label] for label in labels] for p in professions])
    bounds, paired = _bounds(counts, targets, seed)
    summaries = [
        variant_summary(counts, v, names, targets, bounds[v], panel, float(tallies.seconds[v]))
        for v in range(counts.variants)
    ]
    results = _gates(counts, names, targets, bounds[-1], paired if compared else None, gates)
    return AuditResult(
        Summary(base=summaries[0], edited=summaries[1] if counts.variants == 2 else None),
        results,
        combine(Verdict(g.outcome) for g in results),
        _wordings(wordings, bounds),
        profession_reports(counts, professions, names, targets, confusion, seed),
        control_figures(counts, prompts, [tally.drift for _, tally in controls]),
        _margins(counts, targets),
        compared,
        movements(names.professions, counts.joint.sum(axis=1), targets[:, 0]) if compared else [],
    )


def _bounds(counts: Counts, targets: np.ndarray, seed: int) -> tuple[list[DeltaBounds], PairedDeltas | None]:
    """Of each variant; with two, over the images that both have, and of what changed between them."""
    if counts.variants == 1:
        return [delta_bounds(counts.compared(0), targets, seed=seed)], None
    paired = paired_deltas(counts.joint, targets, seed=seed)
    return [paired.base, paired.edited], paired


def _gates(
    counts: Counts,
    names: Names,
    targets: np.ndarray,
    bounds: DeltaBounds,
    paired: PairedDeltas | None,
    gates: GatesConfig,
) -> list[GateResult]:
    """Every gate; `paired` is of a comparison."""
    results = read_gates(counts, names.labels, bounds, gates)
    if gates.profession is not None:
        pooled = counts.compared(counts.variants - 1)[..., :-1].sum(axis=1)
        results.append(profession_gate(names.professions, pooled, targets, gates.profession))
    if paired is not None and gates.regression is not None:
        results += regression_gates(paired, gates.regression)
    return results


def _wordings(wordings: Sequence[str], bounds: Sequence[DeltaBounds]) -> list[WordingReport]:
    return [
        WordingReport(
            wording=wording,
            base=delta_figure(bounds[0].wordings[w]),
            edited=delta_figure(bounds[1].wordings[w]) if len(bounds) == 2 else None,
        )
        for w, wording in enumerate(wordings)
    ]


def with_gate(result: AuditResult, gate: GateResult) -> AuditResult:
    """The result with one more gate, and the verdict of all."""
    gates = [*result.gates, gate]
    return replace(result, gates=gates, verdict=combine(Verdict(g.outcome) for g in gates))


def _margins(counts: Counts, targets: np.ndarray) -> list[dict[str, float | None]]:
    """Delta and undetermined share under other margins than the run's."""
    rows = []
    for margin, swept in zip(MARGINS, counts.swept, strict=True):
        row: dict[str, float | None] = {"margin": margin}
        for v, variant in enumerate(("base", "edited")[: counts.variants]):
            mine = swept[:, v]
            row[f"delta_{variant}"] = finite_float(delta(mine[..., :-1].sum(axis=1), targets))
            row[f"delta_within_{variant}"] = finite_float(delta_within(mine[..., :-1], targets))
            row[f"undetermined_{variant}"] = float(mine[..., -1].sum() / mine.sum()) if mine.sum() else None
        rows.append(row)
    return rows
