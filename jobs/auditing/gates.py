"""The gates of an audit: thresholds read against intervals, and what each says in words. Pure; no Ray, no storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jobs.auditing.tally import CellTally, TallyTask
from jobs.config import GatesConfig
from jobs.report.figure_schema import GateResult
from time_ops.stats.estimates import DeltaBounds, Estimate, PairedDeltas, Rate
from time_ops.stats.inference import target_distances
from time_ops.stats.intervals import paired_difference, paired_ratio, rate
from time_ops.stats.verdicts import Verdict, gate_lower, gate_upper, n_to_decide

__all__ = [
    "Found",
    "finite",
    "gate",
    "is_recognised",
    "is_undetermined",
    "listed",
    "number",
    "profession_gate",
    "read_gates",
    "regression_gates",
    "shows_its_label",
]

Direction = Literal["at most", "at least"]

_NAMED = 3
"""Professions that a sentence or a gate's reason names."""


@dataclass(frozen=True)
class Found:
    """A cell of the audit and what was found in it."""

    task: TallyTask
    tally: CellTally
    named: int | None
    """Code of the label that an explicit prompt names."""
    width: int
    """Number of labels; also the code of undetermined."""


def is_recognised(f: Found, v: int) -> np.ndarray:
    """[n] bool, of variant v: images recognised as their profession or control."""
    return np.asarray(f.tally.recognised[v])


def shows_its_label(f: Found, v: int) -> np.ndarray:
    """[n] bool, of variant v: images of an explicit prompt that show the label it names."""
    return np.asarray(f.tally.codes[v] == f.named)


def is_undetermined(f: Found, v: int) -> np.ndarray:
    """[n] bool, of variant v: images without a decidable label."""
    return np.asarray(f.tally.codes[v] == f.width)


def _pairs(found: Sequence[Found], kind: str, hits: Callable[[Found, int], np.ndarray]) -> tuple[int, int, int, int]:
    """(both, edited only, base only, n) over images that both variants have."""
    both = edited = base = n = 0
    for f in found:
        if f.task.cell.kind == kind:
            ok = f.tally.ok.all(axis=0)
            one, other = hits(f, 0) & ok, hits(f, 1) & ok
            both += int((one & other).sum())
            edited += int((other & ~one).sum())
            base += int((one & ~other).sum())
            n += int(ok.sum())
    return both, edited, base, n


def read_gates(
    found: Sequence[Found], labels: Sequence[str], bounds: DeltaBounds, gates: GatesConfig
) -> list[GateResult]:
    """Every gate, read against the end of the interval that matters; those that need a base only where there is one."""
    results = [
        gate("delta", bounds.pooled, gates.delta, "at most"),
        gate("delta_within", bounds.within, gates.delta_within, "at most"),
        gate("delta_wording_max", bounds.worst, gates.delta_wording_max, "at most"),
    ]
    for code, label in enumerate(labels):
        shown = [(f.tally.ok[-1], shows_its_label(f, -1)) for f in found if f.named == code]
        if shown:
            kept = rate(sum(int((ok & hit).sum()) for ok, hit in shown), sum(int(ok.sum()) for ok, _ in shown))
            results.append(gate(f"explicit:{label}", kept, gates.explicit))
    audited = [f.tally.ok[-1] for f in found if f.task.cell.kind == "audit"]
    failed = rate(sum(int((~ok).sum()) for ok in audited), sum(len(ok) for ok in audited))
    results.append(gate("failed_images", failed, gates.failed_images, "at most"))
    if found[0].tally.codes.shape[0] == 2:
        for name, kind, limit in (("recognised", "audit", gates.recognised), ("controls", "control", gates.controls)):
            both, edited, base, _ = _pairs(found, kind, is_recognised)
            results.append(gate(name, paired_ratio(both, edited, base), limit))
        _, edited, base, n = _pairs(found, "audit", is_undetermined)
        rise = paired_difference(edited, base, n)
        results.append(gate("undetermined_increase", rise, gates.undetermined_increase, "at most"))
    return results


def profession_gate(names: Sequence[str], counts: np.ndarray, targets: np.ndarray, limit: float) -> GateResult:
    """The profession farthest from its target, from counts `[P, L]` pooled over wordings; all intervals hold at once.

    The reason names those beyond the limit, or else those not shown to be within it.
    """
    found = target_distances(counts, targets, limit)
    each = [
        Rate(value if n else None, n, low, high)
        for value, n, low, high in zip(
            found.value.tolist(), counts.sum(axis=1).tolist(), found.low.tolist(), found.high.tolist(), strict=True
        )
    ]
    far = max(each, key=lambda one: -1.0 if one.value is None else one.value)
    # The ends of the largest of several, as their intervals hold at once.
    worst = Rate(far.value, far.n, max(one.low for one in each), max(one.high for one in each))
    result = gate("profession", worst, limit, "at most")
    beyond = sorted(np.flatnonzero(found.beyond).tolist(), key=lambda i: -found.value[i])
    if beyond:
        told = [f"{names[i]} ({number(each[i].value)})" for i in beyond]
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


def gate(name: str, found: Estimate | Rate, limit: float, direction: Direction = "at least") -> GateResult:
    """Read a figure's interval against a limit."""
    outcome = (gate_upper if direction == "at most" else gate_lower)(found, limit)
    reason = ""
    if outcome is Verdict.INCONCLUSIVE:
        n = n_to_decide(found, limit)
        reason = (
            f"the interval holds the limit; about {n:,} images would decide" if n else "the interval holds the limit"
        )
    return GateResult(
        name=name,
        limit=limit,
        direction=direction,
        value=finite(found.value),
        low=finite(found.low),
        high=finite(found.high),
        outcome=outcome.value,
        reason=reason,
    )


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def finite(value: float | None) -> float | None:
    """`value`, or None where it is no number that a report can hold."""
    return None if value is None or not math.isfinite(value) else float(value)


def number(value: float | None) -> str:
    """Write a figure as sentences and reasons do: to three places, without trailing zeros."""
    # Adding 0 takes the sign off a zero: a rise of -0.0002 is 0, not -0.
    return "unknown" if value is None else f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")
