"""A lower bound of a distance that no resampling gives: images split at random, the direction read in one half."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from time_ops.stats.deltas import largest_variation
from time_ops.stats.intervals import Floats, Ints, z_of

__all__ = ["split", "split_deviation", "split_low", "split_margin"]

_SPLIT_SIZES = (8, 40)


_SPLIT_VARIANCE = (4.1, 2.0, 1.7)
"""Largest 4 n Var of a cell's split deviation over all shares and targets: below 8 images, below 40, from 40 on."""


_SPLIT_THIRD = (4.0, 1.5, 1.1)
"""Likewise its third central moment, times (4 n)^1.5. Both were found by enumeration, which a test repeats."""


def split_low(counts: Ints, targets: Floats, confidence: float) -> float:
    """Lower bound of Delta from the split deviations (`time_ops.stats.bounds`), valid however close to zero it is."""
    return float(split(counts, targets).mean()) - split_margin(counts, targets, confidence)


def split(counts: Ints, targets: Floats) -> Floats:
    """Each cell's split deviation over its largest value: counts `[C, L]` to `[C]`."""
    n = counts.sum(axis=-1)
    return np.asarray(0.5 * split_deviation(counts, n[:, None], targets).sum(axis=-1) / largest_variation(targets))


def split_margin(counts: Ints, targets: Floats, confidence: float) -> float:
    """What the mean of `split` may be above its expectation.

    It takes each cell's variance at its largest over all shares, and corrects the normal quantile for the skewness of
    the sum (Cornish and Fisher's first term).
    """
    n = counts.sum(axis=-1)
    size = np.digitize(n, _SPLIT_SIZES)
    # Half the sum of the labels' standard deviations is the most that their sum can have, however they depend.
    scale = counts.shape[-1] / 2 / largest_variation(targets)
    variance = float((np.take(_SPLIT_VARIANCE, size) * scale**2 / (4 * n)).sum())
    third = float((np.take(_SPLIT_THIRD, size) * scale**3 / (4 * n) ** 1.5).sum())
    z = z_of(confidence)
    margin = z * math.sqrt(variance) + (z * z - 1) / 6 * third / variance
    return float(margin / len(n))


def split_deviation(k: ArrayLike, n: ArrayLike, target: ArrayLike) -> Floats:
    """E[sign(A's share - t) (B's share - t)] over all splits of n images, k of them of a label, in two halves A and B.

    Its expectation is at most |p - t|. Elementwise; 0 for fewer than two images. Odd n: the mean of the two splits.
    """
    k, n, target = np.broadcast_arrays(
        np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64), np.asarray(target, dtype=np.float64)
    )
    some = n >= 2
    n = np.where(some, n, 2.0)
    k = np.where(some, k, 0.0)
    halves = [_one_split(k, n, m, target) for m in (np.floor(n / 2), np.ceil(n / 2))]
    return np.where(some, (halves[0] + halves[1]) / 2, 0.0)


def _one_split(k: Floats, n: Floats, m: Floats, t: Floats) -> Floats:
    """`split_deviation` with m images in A: X of A's are of the label, X hypergeometric.

    E[s (k - X)/(n - m)] - t E[s] with s = sign(X - m t); E[X; X > c] = (m k / n) P(X' + 1 > c), X' one image fewer.
    """
    over, under = np.floor(m * t + 1e-9), np.ceil(m * t - 1e-9)
    above, below = stats.hypergeom.sf(over, n, k, m), stats.hypergeom.cdf(under - 1, n, k, m)
    sign = above - below
    fewer = np.maximum(k - 1, 0)
    partial = stats.hypergeom.sf(over - 1, n - 1, fewer, m - 1) - stats.hypergeom.cdf(under - 2, n - 1, fewer, m - 1)
    signed = np.where(k > 0, m * k / n * partial, 0.0)
    return np.asarray((k / (n - m) - t) * sign - signed / (n - m))
