"""Verdicts: an interval read against a limit, and how many images would decide."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

from time_ops.stats.estimates import Estimate, Rate

__all__ = ["Verdict", "combine", "gate_lower", "gate_upper", "n_to_decide"]


class Verdict(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def gate_upper(estimate: Estimate | Rate, limit: float) -> Verdict:
    """A gate on something that must be small: its whole interval at most `limit` passes, above it fails."""
    if estimate.high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if estimate.low > limit else Verdict.INCONCLUSIVE


def gate_lower(estimate: Estimate | Rate, limit: float) -> Verdict:
    """A gate on something that must be large: its whole interval at least `limit` passes, below it fails."""
    if estimate.low >= limit:
        return Verdict.PASS
    return Verdict.FAIL if estimate.high < limit else Verdict.INCONCLUSIVE


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Fail if any fails, pass if all pass, else inconclusive; no verdict at all is inconclusive."""
    kinds = set(verdicts)
    if Verdict.FAIL in kinds:
        return Verdict.FAIL
    return Verdict.PASS if kinds == {Verdict.PASS} else Verdict.INCONCLUSIVE


def n_to_decide(estimate: Estimate | Rate, limit: float) -> int | None:
    """About how many images would decide an inconclusive gate, if the value stays: the interval shrinks as 1/sqrt(n).

    In the units of `found.n`, which is returned where the limit lies outside the interval already. None when no number
    would: the value is missing, or on the limit itself.
    """
    value = estimate.value
    if value is None or not math.isfinite(value) or value == limit or estimate.n == 0:
        return None
    reach = estimate.high - value if limit > value else value - estimate.low
    if not math.isfinite(reach):
        return None
    return max(estimate.n, math.ceil(estimate.n * (reach / (limit - value)) ** 2 - 1e-6))
