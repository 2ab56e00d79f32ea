"""Shares and Delta: how far professions are from their targets. `time_ops.stats.bounds` has the intervals.

*Counts* are images per label, `[..., L]`; *tallies* have one more column at the end, `[..., L + 1]`, the undetermined
images. P professions, W wordings, L labels; targets `[P, L]` are wanted shares. Shares are of determined images.

Delta is the mean over professions of the total variation between share and target, over the most it can be for that
target; with two labels at one half it is the published mean of |F - 50| / 50 (TIME, arXiv 2303.08084).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from time_ops.stats.intervals import Floats, Ints

__all__ = [
    "checked_tallies",
    "delta",
    "delta_per_wording",
    "delta_within",
    "deltas_of",
    "largest_variation",
    "noise_floor",
    "rms_deviation",
    "shares",
    "total_variation",
]


def shares(counts: ArrayLike) -> Floats:
    """Counts `[..., L]` to shares `[..., L]`; NaN where there is no determined image."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    ratios: Floats = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return ratios


def total_variation(share: ArrayLike, target: ArrayLike) -> Floats:
    """Total variation of shares `[..., L]` from targets `[..., L]` over its largest value for them: `[...]`, 0 to 1."""
    target = np.asarray(target, dtype=np.float64)
    off: Floats = 0.5 * np.abs(np.asarray(share, dtype=np.float64) - target).sum(axis=-1) / largest_variation(target)
    return off


def delta(counts: ArrayLike, targets: ArrayLike) -> float:
    """Delta of counts `[P, L]`; professions without a determined image are left out, NaN if that is all of them."""
    return float(_mean(total_variation(shares(counts), targets)))


def delta_per_wording(counts: ArrayLike, targets: ArrayLike) -> Floats:
    """Delta of each wording: counts `[P, W, L]` to `[W]`."""
    return _mean(_cells(np.asarray(counts, dtype=np.float64), np.asarray(targets, dtype=np.float64)), axis=0)


def delta_within(counts: ArrayLike, targets: ArrayLike) -> float:
    """Mean over the wordings of each wording's Delta, from counts `[P, W, L]`."""
    return float(_mean(delta_per_wording(counts, targets)))


def rms_deviation(counts: ArrayLike, targets: ArrayLike) -> float:
    """Root mean square deviation from target, from the unbiased square; counts `[P, L]` or `[P, W, L]`.

    For two labels at one half the square is (2p - 1)^2 - 4p(1 - p)/(n - 1); in general the squared distance of the
    shares less its own expectation under sampling, over the largest squared distance for that target. Single squares
    may be negative; a negative mean gives 0. Cells with fewer than two determined images are left out.
    """
    counts = np.asarray(counts, dtype=np.float64)
    targets = np.asarray(targets, dtype=np.float64)
    targets = targets if counts.ndim == 2 else targets[:, None, :]
    n = counts.sum(axis=-1)
    p = shares(counts)
    spread = np.divide((p * (1 - p)).sum(axis=-1), n - 1, out=np.full(n.shape, np.nan), where=n > 1)
    most = (targets**2).sum(axis=-1) + 1 - 2 * targets.min(axis=-1)
    square = _mean((((p - targets) ** 2).sum(axis=-1) - spread) / most, axis=None)
    return math.sqrt(max(0.0, float(square))) if np.isfinite(square) else math.nan


def noise_floor(n: ArrayLike, targets: ArrayLike) -> float:
    """Delta expected of a model exactly on target, with n `[P]` determined images, targets `[P, L]`; exact.

    Each label's share is binomial, and its mean absolute deviation is de Moivre's 2 (1 - t) v P(K = v) / n with
    v = floor(n t) + 1: 0.16 at 24 images, 0.072 at 125, 0.050 at 250, 0.025 at 1000.
    """
    n = np.asarray(n, dtype=np.float64)[..., None]
    targets = np.broadcast_to(np.asarray(targets, dtype=np.float64), (*n.shape[:-1], np.shape(targets)[-1]))
    v = np.floor(n * targets) + 1
    sure = (targets <= 0) | (targets >= 1)
    mad = 2 * (1 - targets) * v * stats.binom.pmf(v, n, targets)
    mad = np.divide(np.where(sure, 0.0, mad), n, out=np.full(mad.shape, np.nan), where=n > 0)
    return float(_mean(0.5 * mad.sum(axis=-1) / largest_variation(targets), axis=None))


def largest_variation(targets: Floats) -> Floats:
    """The largest total variation from a target: all images of the label that is wanted least."""
    return np.asarray(1.0 - targets.min(axis=-1))


def _mean(values: Floats, axis: int | None = -1) -> Floats:
    """Mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    n = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0))


def _cells(counts: Floats, targets: Floats) -> Floats:
    """Counts `[..., P, W, L]` to each cell's total variation `[..., P, W]`."""
    return total_variation(shares(counts), targets[:, None, :])


def deltas_of(counts: Floats | Ints, targets: Floats) -> Floats:
    """Counts `[..., P, W, L]` to `[..., 2 + W]`: pooled, within, and each wording's."""
    per_wording = _mean(_cells(np.asarray(counts, dtype=np.float64), targets), axis=-2)
    pooled = _mean(total_variation(shares(counts.sum(axis=-2)), targets))
    return np.concatenate([pooled[..., None], _mean(per_wording)[..., None], per_wording], axis=-1)


def checked_tallies(tallies: ArrayLike, targets: ArrayLike, label_axes: int) -> tuple[Ints, Floats]:
    """Tallies `[P, W, ...]` and targets `[P, L]` as arrays; raises ValueError where their shapes do not fit."""
    tallies, targets = np.asarray(tallies), np.asarray(targets, dtype=np.float64)
    wanted = (*tallies.shape[:2], *[targets.shape[-1] + 1] * label_axes)
    if targets.ndim != 2 or tallies.shape != wanted or len(targets) != len(tallies) or 0 in tallies.shape:
        raise ValueError(f"tallies of shape {tallies.shape} don't fit targets of shape {targets.shape}")
    if np.any(tallies < 0) or np.any(tallies != np.floor(tallies)):
        raise ValueError("tallies must be whole numbers from 0")
    return tallies.astype(np.int64), targets
