"""Intervals of rates and of paired rates, and the least and most that undetermined images leave open."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from time_ops.stats.estimates import Rate

__all__ = [
    "Floats",
    "Ints",
    "exact_interval",
    "paired_difference",
    "paired_ratio",
    "rate",
    "wilson",
    "worst_case",
    "z_of",
]

Floats = NDArray[np.float64]


Ints = NDArray[np.int64]


def wilson(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's interval for k of n, elementwise; (0, 1) where n is 0. For showing shares; gates use `rate`."""
    return _interval(k, n, confidence, "wilson")


def rate(k: int, n: int, confidence: float = 0.95) -> Rate:
    """Give k of n its Clopper-Pearson interval, whose bounds hold at every n and rate, as a gate needs.

    Wilson's own miss more often than they should near 0 and 1, where the gates are.
    """
    low, high = exact_interval(k, n, confidence)
    return Rate(k / n if n else None, int(n), float(low), float(high))


def exact_interval(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Clopper and Pearson's interval for k of n, elementwise; (0, 1) where n is 0."""
    return _interval(k, n, confidence, "beta")


def paired_ratio(both: int, edited_only: int, base_only: int, confidence: float = 0.95) -> Rate:
    """Rate of edited over rate of base on paired images, with an interval whose bounds hold at every n.

    Of the n pairs in which either holds (the others say nothing about a ratio), the ratio is (1 - base_only / n) /
    (1 - edited_only / n); the bounds join exact ones of the two parts (Clopper-Pearson, Bonferroni). A score interval
    is narrower, but near 1 its lower bound held only 92 % of the time (Bonett and Price, simulated). The upper bound is
    infinite, and the value None, where base never holds.
    """
    n, base = both + edited_only + base_only, both + base_only
    if n == 0:
        return Rate(None, 0, 0.0, math.inf)
    (up_low, up_high), (down_low, down_high) = _two_exact(edited_only, base_only, n, confidence)
    high = (1 - down_low) / (1 - up_high) if up_high < 1 else math.inf
    return Rate((both + edited_only) / base if base else None, n, (1 - down_high) / (1 - up_low), high)


def paired_difference(edited_only: int, base_only: int, n: int, confidence: float = 0.95) -> Rate:
    """Rate of edited less rate of base over n paired images, -1 to 1; bounds as in `paired_ratio`.

    For the rise in undetermined: pairs undetermined only in edited, only in base.
    """
    if n == 0:
        return Rate(None, 0, -1.0, 1.0)
    (up_low, up_high), (down_low, down_high) = _two_exact(edited_only, base_only, n, confidence)
    return Rate((edited_only - base_only) / n, n, up_low - down_high, up_high - down_low)


def _two_exact(one: int, other: int, n: int, confidence: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Exact intervals of two rates that hold together: each takes half of what may be missed."""
    low, high = exact_interval([one, other], n, 1 - (1 - confidence) / 2)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def worst_case(tallies: ArrayLike) -> tuple[Floats, Floats]:
    """Least and greatest share of each label, `[..., L]`: were none, or all, of the undetermined of tallies its own.

    (0, 1) where there are no images.
    """
    tallies = np.asarray(tallies, dtype=np.float64)
    total = tallies.sum(axis=-1, keepdims=True)
    low = np.divide(tallies[..., :-1], total, out=np.zeros(tallies[..., :-1].shape), where=total > 0)
    high = np.divide(tallies[..., :-1] + tallies[..., -1:], total, out=np.ones(low.shape), where=total > 0)
    return low, high


def _interval(k: ArrayLike, n: ArrayLike, confidence: float, method: str) -> tuple[Floats, Floats]:
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("k must be from 0 to n")
    # Not above: statsmodels brings pandas, half a second in each worker, none of which counts anything.
    from statsmodels.stats.proportion import proportion_confint

    some = n > 0
    low, high = proportion_confint(np.where(some, k, 0.0), np.where(some, n, 1.0), alpha=1 - confidence, method=method)
    low, high = np.nan_to_num(np.asarray(low), nan=0.0), np.nan_to_num(np.asarray(high), nan=1.0)
    low, high = np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)
    return np.where(some, np.clip(low, 0, 1), 0.0), np.where(some, np.clip(high, 0, 1), 1.0)


def z_of(confidence: float) -> float:
    """The normal quantile of a two-sided interval."""
    return float(stats.norm.ppf(0.5 + confidence / 2))
