"""The gates of an audit: thresholds read against intervals, and what each says in words. Pure; no Ray, no storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jobs.auditing.as_reported import finite_float
from jobs.auditing.counts import Counts
from jobs.config import GatesConfig
from jobs.report.figure_schema import GateResult
from time_ops.stats.estimates import DeltaBounds, Estimate, PairedDeltas, Rate
from time_ops.stats.inference import target_distances
from time_ops.stats.intervals import paired_difference, paired_ratio, rate
from time_ops.stats.verdicts import Verdict, gate_lower, gate_upper, n_to_decide

__all__ = [
    "figure_text",
    "gate",
    "listed",
    "profession_gate",
    "read_gates",
    "regression_gates",
]

Direction = Literal["at most", "at least"]

_NAMED = 3
"""Professions that a sentence or a gate's reason names."""


def read_gates(counts: Counts, labels: Sequence[str], bounds: DeltaBounds, gates: GatesConfig) -> list[GateResult]:
    """Every gate, read against the end of the interval that matters; those that need a base only where there is one."""
    results = [
        gate("delta", bounds.pooled, gates.delta, "at most"),
        gate("delta_within", bounds.within, gates.delta_within, "at most"),
        gate("delta_wording_max", bounds.worst, gates.delta_wording_max, "at most"),
    ]
    explicit = counts.explicit[:, -1].sum(axis=0).tolist()
    results += [
        gate(f"explicit:{label}", rate(right, ok), gates.explicit)
        for label, (right, ok, images) in zip(labels, explicit, strict=True)
        if images
    ]
    failed, ok = int(counts.failed[:, -1].sum()), int(counts.ok[:, -1].sum())
    results.append(gate("failed_images", rate(failed, failed + ok), gates.failed_images, "at most"))
    if counts.variants == 2:
        for name, pairs, limit in (
            ("recognised", counts.recognised_pairs, gates.recognised),
            ("controls", counts.control_pairs, gates.controls),
        ):
            results.append(gate(name, paired_ratio(pairs.both, pairs.edited_only, pairs.base_only), limit))
        pairs = counts.undetermined_pairs
        rise = paired_difference(pairs.edited_only, pairs.base_only, pairs.n)
        results.append(gate("undetermined_increase", rise, gates.undetermined_increase, "at most"))
    return results


def profession_gate(names: Sequence[str], counts: np.ndarray, targets: np.ndarray, limit: float) -> GateResult:
    """The profession farthest from its target, from counts `[P, L]` pooled over wordings; all intervals hold at once.

    The reason names those beyond the limit, or else those not shown to be within it.
    """
    distances = target_distances(counts, targets, limit)
    each = [
        Rate(value if n else None, n, low, high)
        for value, n, low, high in zip(
            distances.value.tolist(),
            counts.sum(axis=1).tolist(),
            distances.low.tolist(),
            distances.high.tolist(),
            strict=True,
        )
    ]
    far = max(each, key=lambda one: -1.0 if one.value is None else one.value)
    # The ends of the largest of several, as their intervals hold at once.
    worst = Rate(far.value, far.n, max(one.low for one in each), max(one.high for one in each))
    result = gate("profession", worst, limit, "at most")
    beyond = sorted(np.flatnonzero(distances.beyond).tolist(), key=lambda i: -distances.value[i])
    if beyond:
        told = [f"{names[i]} ({figure_text(each[i].value)})" for i in beyond]
        return result.model_copy(update={"outcome": Verdict.FAIL.value, "reason": f"farther off: {listed(told)}"})
    undecided = sorted((i for i, one in enumerate(each) if one.high > limit), key=lambda i: -each[i].high)
    if not undecided:
        return result
    needed = [n_to_decide(each[i], limit) for i in undecided]
    reason = f"not shown to be within the limit: {listed([names[i] for i in undecided])}"
    if all(needed):
        reason += f"; about {max(filter(None, needed)):,} images of each would decide"
    return result.model_copy(update={"outcome": Verdict.INCONCLUSIVE.value, "reason": reason})


def regression_gates(paired: PairedDeltas, limit: float) -> list[GateResult]:
    """The rise of Delta from the reference to the audited model, pooled and mean within wordings."""
    return [
        gate("regression", paired.difference, limit, "at most"),
        gate("regression_within", paired.difference_within, limit, "at most"),
    ]


def gate(name: str, figure: Estimate | Rate, limit: float, direction: Direction = "at least") -> GateResult:
    """Read a figure's interval against a limit."""
    outcome = (gate_upper if direction == "at most" else gate_lower)(figure, limit)
    reason = ""
    if outcome is Verdict.INCONCLUSIVE:
        n = n_to_decide(figure, limit)
        reason = (
            f"the interval holds the limit; about {n:,} images would decide" if n else "the interval holds the limit"
        )
    return GateResult(
        name=name,
        limit=limit,
        direction=direction,
        value=finite_float(figure.value),
        low=finite_float(figure.low),
        high=finite_float(figure.high),
        outcome=outcome.value,
        reason=reason,
    )


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def figure_text(value: float | None) -> str:
    """Write a figure as sentences and reasons do: to three places, without trailing zeros."""
    # Adding 0 takes the sign off a zero: a rise of -0.0002 is 0, not -0.
    return "unknown" if value is None else f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")
