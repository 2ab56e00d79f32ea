"""From tallies to the report's figures: rates, Deltas, gates, verdict. Pure; no Ray, no storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from jobs.auditing.counts import joint_counts, label_counts
from jobs.auditing.gates import (
    Found,
    finite,
    is_recognised,
    is_undetermined,
    profession_gate,
    read_gates,
    regression_gates,
    shows_its_label,
)
from jobs.auditing.judged_rows import MARGINS
from jobs.auditing.tally import Judging, Tallies
from jobs.config import GatesConfig
from jobs.images.judging import ONE_CLASSIFIER, PanelKind
from jobs.report.figure_schema import ComponentEdit, DeltaFigure, GateResult, Parity, RateFigure, ShareFigure
from jobs.report.schema import Control, LabelCounts, Movement, ProfessionReport, Summary, VariantSummary, WordingReport
from time_ops.stats.bounds import delta_bounds, paired_deltas
from time_ops.stats.deltas import delta, delta_within, rms_deviation
from time_ops.stats.estimates import DeltaBounds, Estimate, PairedDeltas, Rate
from time_ops.stats.inference import Interval, corrected_shares, moved, off_target, resampled_interval
from time_ops.stats.intervals import paired_difference, rate, wilson, worst_case
from time_ops.stats.parity import ParityFigure, demographic_parity
from time_ops.stats.verdicts import Verdict, combine

__all__ = ["AuditResult", "EditedProfession", "evaluate", "with_gate"]


@dataclass(frozen=True)
class EditedProfession:
    """What was asked and done for one profession."""

    name: str
    source: str
    target: Mapping[str, float]
    lam: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, ComponentEdit] | None = None


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


def evaluate(
    tallies: Tallies,
    professions: Sequence[EditedProfession],
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
    index = {label: i for i, label in enumerate(labels)}
    found = [
        Found(task, tally, index.get(task.cell.label or ""), len(labels))
        for task, tally in zip(tallies.tasks, tallies, strict=True)
    ]
    audit = {(f.task.cell.subject, f.task.cell.wording): f for f in found if f.task.cell.kind == "audit"}
    variants = tallies.variants
    names = [p.name for p in professions]
    targets = np.array([[p.target[label] for label in labels] for p in professions])
    width = len(labels)
    cells = [[audit[name, wording].tally.codes for wording in wordings] for name in names]
    paired: PairedDeltas | None = None
    if variants == 2:
        joint = np.stack([[joint_counts(codes, width) for codes in row] for row in cells])
        paired = paired_deltas(joint, targets, seed=seed)
        bounds = [paired.base, paired.edited]
        counted = [joint.sum(axis=-1), joint.sum(axis=-2)]
    else:
        counts = np.stack([[label_counts(codes[0], width) for codes in row] for row in cells])
        bounds = [delta_bounds(counts, targets, seed=seed)]
        counted = [counts]
    summaries = [
        _summary(found, labels, wordings, bounds[v], counted[v], targets, v, float(tallies.seconds[v])).model_copy(
            update={"off_target": _off_target(cells, v, targets), **_panel_rates(found, v, panel)}
        )
        for v in range(variants)
    ]
    results = read_gates(found, labels, bounds[-1], gates)
    if gates.profession is not None:
        results.append(profession_gate(names, counted[-1][..., :-1].sum(axis=1), targets, gates.profession))
    if compared and paired is not None and gates.regression is not None:
        results += regression_gates(paired, gates.regression)
    return AuditResult(
        Summary(base=summaries[0], edited=summaries[1] if variants == 2 else None),
        results,
        combine(Verdict(g.outcome) for g in results),
        [
            WordingReport(
                wording=wording,
                base=_delta(bounds[0].wordings[w]),
                edited=_delta(bounds[1].wordings[w]) if variants == 2 else None,
            )
            for w, wording in enumerate(wordings)
        ],
        _beyond_gates(
            [_profession(p, [audit[p.name, w] for w in wordings], labels, variants) for p in professions],
            labels,
            targets,
            confusion,
            seed,
        ),
        [_control(f, variants) for f in found if f.task.cell.kind == "control"],
        _margins(audit, names, wordings, targets, variants),
        compared,
        _movements(names, joint.sum(axis=1), targets[:, 0]) if compared else [],
    )


def with_gate(result: AuditResult, gate: GateResult) -> AuditResult:
    """The result with one more gate, and the verdict of all."""
    gates = [*result.gates, gate]
    return replace(result, gates=gates, verdict=combine(Verdict(g.outcome) for g in gates))


def _delta(found: Estimate, wording: str | None = None, resampled: Interval | None = None) -> DeltaFigure:
    return DeltaFigure(
        value=finite(found.value),
        low=finite(found.low),
        high=finite(found.high),
        floor=finite(found.floor),
        n=found.n,
        wording=wording,
        resampled_low=None if resampled is None else finite(resampled.low),
        resampled_high=None if resampled is None else finite(resampled.high),
    )


def _share(found: ParityFigure | Rate) -> ShareFigure:
    return ShareFigure(value=finite(found.value), low=finite(found.low), high=finite(found.high))


def _rate(found: Rate, worst: str | None = None) -> RateFigure:
    return RateFigure(value=finite(found.value), n=found.n, low=finite(found.low), high=finite(found.high), worst=worst)


def _pooled(
    found: Sequence[Found], v: int, hits: Callable[[Found, int], np.ndarray], *, largest_is_worst: bool = False
) -> RateFigure:
    """A rate over the labelled images of some cells, with the worst subject named."""
    sums: dict[str, list[int]] = {}
    for f in found:
        ok = f.tally.ok[v]
        k, n = sums.setdefault(f.task.cell.subject, [0, 0])
        sums[f.task.cell.subject] = [k + int((hits(f, v) & ok).sum()), n + int(ok.sum())]
    shares = {name: k / n for name, (k, n) in sums.items() if n}
    worst = (max if largest_is_worst else min)(shares, key=lambda name: shares[name]) if shares else None
    return _rate(rate(sum(k for k, _ in sums.values()), sum(n for _, n in sums.values())), worst)


def _summary(
    found: Sequence[Found],
    labels: Sequence[str],
    wordings: Sequence[str],
    bounds: DeltaBounds,
    counted: np.ndarray,
    targets: np.ndarray,
    v: int,
    seconds: float,
) -> VariantSummary:
    kinds = {kind: [f for f in found if f.task.cell.kind == kind] for kind in ("audit", "explicit", "control")}
    worst = bounds.worst.wording
    resampled = resampled_interval(counted, targets, bounds)
    pooled = counted[..., :-1].sum(axis=1)
    parity = demographic_parity(pooled[:, 0], pooled.sum(axis=1))
    return VariantSummary(
        delta=_delta(bounds.pooled, resampled=resampled.pooled),
        delta_within=_delta(bounds.within, resampled=resampled.within),
        delta_wording_max=_delta(bounds.worst, None if worst is None else wordings[worst]),
        rms=finite(rms_deviation(pooled, targets)),
        rms_within=finite(rms_deviation(counted[..., :-1], targets)),
        explicit=_pooled(kinds["explicit"], v, shows_its_label),
        explicit_by_label={
            label: _pooled(named, v, shows_its_label)
            for code, label in enumerate(labels)
            if (named := [f for f in kinds["explicit"] if f.named == code])
        },
        recognised=_pooled(kinds["audit"], v, is_recognised),
        controls=_pooled(kinds["control"], v, is_recognised),
        undetermined=_pooled(kinds["audit"], v, is_undetermined, largest_is_worst=True),
        parity=Parity(difference=_share(parity.difference), ratio=_share(parity.ratio), reason=parity.reason),
        images=sum(f.task.cell.images for f in found),
        seconds=round(seconds, 2),
    )


def _panel_rates(found: Sequence[Found], v: int, panel: PanelKind) -> dict[str, RateFigure]:
    """How often classifiers disagree, and how often one finds no face; over the audit's images."""
    wanted = {"disagreement": (panel.several, Judging.DIFFER, Judging.COMPARED)}
    wanted["no_face"] = panel.on_faces, Judging.BLIND, Judging.LABELLED
    rates = {}
    for name, (asked, hit, of) in wanted.items():
        if not asked:
            continue
        sums: dict[str, np.ndarray] = {}
        for f in found:
            if f.task.cell.kind == "audit":
                sums[f.task.cell.subject] = sums.get(f.task.cell.subject, 0) + f.tally.judged[v, [hit, of]]
        shares = {subject: k / n for subject, (k, n) in sums.items() if n}
        k, n = np.sum(list(sums.values()), axis=0).tolist() if sums else (0, 0)
        rates[name] = _rate(rate(k, n), max(shares, key=lambda each: shares[each]) if k else None)
    return rates


def _off_target(cells: Sequence[Sequence[np.ndarray]], v: int, targets: np.ndarray) -> int | None:
    """How many professions one variant is called off target in; `cells` holds label codes `[V, images]`."""
    width = targets.shape[1]
    counts = np.array([sum(label_counts(codes[v], width) for codes in row) for row in cells])[:, :-1]
    return int(off_target(counts, targets).sum()) if counts.any() else None


def _movements(names: Sequence[str], joint: np.ndarray, targets: np.ndarray) -> list[Movement]:
    """Who moved, the farthest first: `joint` `[P, L + 1, L + 1]` over wordings, targets `[P]` of the first label."""
    both = joint[:, :-1, :-1]
    n, kept = both.sum(axis=(1, 2)), both[:, 0, 0]
    gained, lost = both[:, :, 0].sum(axis=1) - kept, both[:, 0].sum(axis=1) - kept
    found = []
    for i in np.flatnonzero(moved(gained, lost)).tolist():
        before, after = (float((kept[i] + only) / n[i]) for only in (lost[i], gained[i]))
        change = paired_difference(int(gained[i]), int(lost[i]), int(n[i]))
        found.append(
            Movement(
                profession=names[i],
                before=before,
                after=after,
                change=_share(change),
                n=int(n[i]),
                worse=bool(abs(after - targets[i]) > abs(before - targets[i])),
            )
        )
    return sorted(found, key=lambda each: -abs(each.after - each.before))


def _counts(found: Sequence[Found], v: int, labels: Sequence[str]) -> LabelCounts:
    counts = sum(
        (label_counts(f.tally.codes[v], len(labels)) for f in found), np.zeros(len(labels) + 1, dtype=np.int64)
    )
    n = int(counts[:-1].sum())
    low, high = wilson(counts[0], n)
    recognised = sum(int(f.tally.recognised[v].sum()) for f in found)
    ok = sum(int(f.tally.ok[v].sum()) for f in found)
    return LabelCounts(
        n=n,
        labels={label: int(count) for label, count in zip(labels, counts, strict=False)},
        undetermined=int(counts[-1]),
        failed=sum(int((~f.tally.ok[v]).sum()) for f in found),
        share=float(counts[0] / n) if n else None,
        low=float(low) if n else None,
        high=float(high) if n else None,
        recognised=_rate(rate(recognised, ok)),
    )


def _profession(
    edited: EditedProfession, found: Sequence[Found], labels: Sequence[str], variants: int
) -> ProfessionReport:
    names: tuple[Literal["base"], Literal["edited"]] = ("base", "edited")
    return ProfessionReport(
        profession=edited.name,
        source=edited.source,
        lam=edited.lam,
        shares=dict(edited.shares),
        components=None if edited.components is None else dict(edited.components),
        target=dict(edited.target),
        base=_counts(found, 0, labels),
        edited=_counts(found, 1, labels) if variants == 2 else None,
        wordings={f.task.cell.wording: {names[v]: _counts([f], v, labels) for v in range(variants)} for f in found},
    )


def _beyond_gates(
    professions: Sequence[ProfessionReport],
    labels: Sequence[str],
    targets: np.ndarray,
    confusion: Mapping[str, Mapping[str, int]] | None,
    seed: int,
) -> list[ProfessionReport]:
    """The professions with worst cases, corrected shares, and who is called off target in the last variant."""
    variants: list[dict[str, LabelCounts]] = [{} for _ in professions]
    last = np.zeros((len(professions), len(labels)), dtype=np.int64)
    for name in ("base", "edited"):
        found: list[LabelCounts] = [c for p in professions if (c := getattr(p, name)) is not None]
        if not found:
            continue
        tallies = np.array([[*(c.labels[label] for label in labels), c.undetermined] for c in found])
        last = tallies[:, :-1]
        low, high = worst_case(tallies)
        corrected = [None] * len(found) if confusion is None else _corrected(last, confusion, labels, seed)
        for i, counts in enumerate(found):
            some = bool(tallies[i].sum())
            variants[i][name] = counts.model_copy(
                update={
                    "worst_low": float(low[i, 0]) if some else None,
                    "worst_high": float(high[i, 0]) if some else None,
                    "corrected": corrected[i],
                }
            )
    called = off_target(last, targets)
    return [
        each.model_copy(update={**variants[i], "off_target": bool(called[i]) if last[i].any() else None})
        for i, each in enumerate(professions)
    ]


def _corrected(
    counts: np.ndarray, confusion: Mapping[str, Mapping[str, int]], labels: Sequence[str], seed: int
) -> list[ShareFigure]:
    """The first label's corrected share of each profession."""
    table = [[confusion.get(true, {}).get(given, 0) for given in labels] for true in labels]
    found = corrected_shares(counts, table, seed=seed)
    return [
        ShareFigure(value=finite(value), low=low if n else None, high=high if n else None)
        for value, low, high, n in zip(
            *(part[:, 0].tolist() for part in (found.value, found.low, found.high)), counts.sum(axis=1), strict=True
        )
    ]


def _control(f: Found, variants: int) -> Control:
    rates = [_rate(rate(int(f.tally.recognised[v].sum()), int(f.tally.ok[v].sum()))) for v in range(variants)]
    return Control(
        prompt=f.task.cell.prompt,
        base=rates[0],
        edited=rates[1] if variants == 2 else None,
        drift=finite(f.tally.drift),
    )


def _margins(
    audit: Mapping[tuple[str, str], Found],
    names: Sequence[str],
    wordings: Sequence[str],
    targets: np.ndarray,
    variants: int,
) -> list[dict[str, float | None]]:
    """Delta and undetermined share under other margins than the run's."""
    rows = []
    for m, margin in enumerate(MARGINS):
        row: dict[str, float | None] = {"margin": margin}
        counts = np.stack([[audit[name, wording].tally.swept[m] for wording in wordings] for name in names])
        for v, variant in enumerate(("base", "edited")[:variants]):
            mine = counts[:, :, v]
            row[f"delta_{variant}"] = finite(delta(mine[..., :-1].sum(axis=1), targets))
            row[f"delta_within_{variant}"] = finite(delta_within(mine[..., :-1], targets))
            row[f"undetermined_{variant}"] = float(mine[..., -1].sum() / mine.sum()) if mine.sum() else None
        rows.append(row)
    return rows
