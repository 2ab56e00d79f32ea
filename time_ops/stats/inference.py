"""What an audit says of single professions, and beyond its gates. Pure: numpy, scipy, statsmodels.

Single professions called off target, their distances from it (which a gate may read), and those that moved; shares
corrected for the classifier's errors; Delta's interval were professions and wordings a sample. Names are as in
`time_ops.stats.deltas`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from time_ops.stats.deltas import delta_per_wording, shares, total_variation
from time_ops.stats.estimates import DeltaBounds, Estimate
from time_ops.stats.intervals import exact_interval

__all__ = [
    "CorrectedShares",
    "Interval",
    "ResampledDeltas",
    "TargetDistances",
    "corrected_shares",
    "moved",
    "off_target",
    "resampled_interval",
    "target_distances",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CorrectedShares:
    """True shares `[..., L]` behind the given labels, each with its interval; NaN and (0, 1) without an image."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Interval:
    """Two ends, from 0 to 1; NaN where there is nothing to say."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ResampledDeltas:
    """Intervals of an audit's two Deltas that carry the choice of professions and wordings; not what gates read."""

    pooled: Interval
    within: Interval


@dataclass(frozen=True, slots=True)
class TargetDistances:
    """How far each profession's shares lie from its targets at most over the labels: `[P]` each, 0 to 1."""

    value: Floats
    """NaN without a determined image."""
    low: Floats
    high: Floats
    """All professions' intervals hold together."""
    beyond: Bools
    """Shown to be farther off than the limit."""


def off_target(counts: ArrayLike, targets: ArrayLike, confidence: float = 0.95) -> Bools:
    """Which professions are off target, from counts `[P, L]` pooled over wordings and targets `[P, L]`: `[P]`.

    Exact binomial tests of each label's share, the smaller tail doubled (as Clopper and Pearson's interval), times the
    labels where they are more than two (Bonferroni); then Holm's step-down over the professions: with `confidence`, not
    one that is on target is called off. The share tested is the mean over the determined images. That wordings differ
    in theirs only makes the test stricter: a sum of unequal chances is spread less than a binomial (Hoeffding 1956).
    A profession without a determined image is never called off.

    Raises:
        ValueError: if the shapes don't fit, or a count is no whole number from 0.
    """
    return _beyond(*_counted(counts, targets), 0.0, confidence)


def target_distances(counts: ArrayLike, targets: ArrayLike, limit: float, confidence: float = 0.95) -> TargetDistances:
    """Distances from target, and which are beyond `limit`, from counts `[P, L]` pooled over wordings, targets `[P, L]`.

    The intervals are exact (Clopper and Pearson) and hold for all professions together (Bonferroni), so a limit above
    all of them is kept by every profession. `beyond` is called as in `off_target`, by tests against the limit on
    either side of the target in place of the target: with `confidence`, not one within the limit is.

    Raises:
        ValueError: if the shapes don't fit, or a count is no whole number from 0.
    """
    counts, targets = _counted(counts, targets)
    tests = max(1, len(counts)) * _label_tests(counts)
    low, high = exact_interval(counts, counts.sum(axis=-1, keepdims=True), 1 - (1 - confidence) / tests)
    return TargetDistances(
        np.abs(shares(counts) - targets).max(axis=-1),
        np.maximum(0.0, np.maximum(low - targets, targets - high)).max(axis=-1),
        np.maximum(high - targets, targets - low).max(axis=-1),
        _beyond(counts, targets, limit, confidence),
    )


def moved(gained: ArrayLike, lost: ArrayLike, confidence: float = 0.95) -> Bools:
    """Which professions moved between two variants on common seeds: `[P]`, from images that changed, `[P]` each.

    `gained` show a label in the second variant only, `lost` in the first only, of the images determined in both.
    McNemar's exact test: were nothing moved, half of the changed images would be of either kind. Holm's step-down over
    the professions: with `confidence`, not one that has not moved is called.

    Raises:
        ValueError: if the shapes differ, or a count is no whole number from 0.
    """
    gained, lost = np.asarray(gained, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    if gained.ndim != 1 or gained.shape != lost.shape:
        raise ValueError(f"counts of shapes {gained.shape} and {lost.shape} don't fit")
    _check_whole(gained, lost)
    return _holm(2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5), confidence)


def _counted(counts: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    counts, targets = np.asarray(counts, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if counts.ndim != 2 or counts.shape != targets.shape:
        raise ValueError(f"counts of shape {counts.shape} don't fit targets of shape {targets.shape}")
    _check_whole(counts)
    return counts, targets


def _check_whole(*counts: Floats) -> None:
    if any(np.any(each < 0) or np.any(each != np.floor(each)) for each in counts):
        raise ValueError("counts must be whole numbers from 0")


def _label_tests(counts: Floats) -> int:
    """Tests that one profession takes: with two labels, what is said of one share says it of the other."""
    return counts.shape[-1] if counts.shape[-1] > 2 else 1


def _beyond(counts: Floats, targets: Floats, limit: float, confidence: float) -> Bools:
    n = counts.sum(axis=-1, keepdims=True)
    below = stats.binom.cdf(counts, n, np.maximum(0.0, targets - limit))
    above = stats.binom.sf(counts - 1, n, np.minimum(1.0, targets + limit))
    return _holm(2 * _label_tests(counts) * np.minimum(below, above).min(axis=-1), confidence)


def _holm(chances: Floats, confidence: float) -> Bools:
    """Which of several p-values `[P]` are called at once; none of none.

    The step-down of Holm 1979, "A simple sequentially rejective multiple test procedure": from the least on, each has
    to pass at alpha by the number that are left, and the first that fails ends it. statsmodels' `multipletests` calls
    the same, and collects the process's garbage each time, which takes longer than a whole report's other figures.
    """
    order = np.argsort(chances, kind="stable")
    left = np.arange(len(chances), 0, -1)
    passing = np.minimum(1.0, chances[order]) <= (1 - confidence) / left
    called = np.zeros(len(chances), dtype=bool)
    called[order] = np.logical_and.accumulate(passing)
    return called


def corrected_shares(
    counts: ArrayLike, confusion: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> CorrectedShares:
    """Shares of true labels from counts `[..., L]` of given ones and a confusion table `[L, L]` of checked images.

    The table's rows are true labels, its columns given ones, in images. With C the table whose rows add up to 1, the
    given shares are q = C^T p. p solves that; its negative entries are set to 0, the rest scaled to add up to 1 (with
    two labels: Rogan and Gladen 1978, "Estimating prevalence from the results of a screening test").

    The interval carries both samplings, the images' and the table's: quantiles of p over draws of q and of C's rows
    from their Jeffreys posteriors (Dirichlet, counts + 1/2). Those spread even where a count is 0, as a bootstrap's
    don't. One table serves all of `counts`: its error is common to them. Undetermined images are in neither, so the
    correction supposes that they hide no label more than another.

    Raises:
        ValueError: if the shapes don't fit, a count is negative, a label was never checked, or the table is singular:
            then given labels say nothing about true ones.
    """
    counts, table = np.asarray(counts, dtype=np.float64), np.asarray(confusion, dtype=np.float64)
    labels = counts.shape[-1] if counts.ndim else 0
    if table.shape != (labels, labels) or labels < 2:
        raise ValueError(f"a confusion table of shape {table.shape} doesn't fit counts of shape {counts.shape}")
    if not (np.all(counts >= 0) and np.all(table >= 0)):
        raise ValueError("counts and the confusion table must be numbers of images from 0")
    unchecked = np.flatnonzero(table.sum(axis=1) == 0)
    if len(unchecked):
        raise ValueError(f"the confusion table has no image whose true label is number {unchecked.tolist()}")
    if np.linalg.matrix_rank(shares(table)) < labels:
        raise ValueError("the confusion table is singular: given labels don't tell true ones apart")
    value = _solved(shares(counts), np.linalg.inv(shares(table)))
    rng = np.random.default_rng(seed)
    inverse = np.linalg.inv(_posterior(rng, table, resamples))
    ends = [0.5 - confidence / 2, 0.5 + confidence / 2]
    # One row at a time: all draws of a thousand professions at once would take gigabytes.
    rows = [
        np.quantile(_solved(_posterior(rng, row, resamples), inverse), ends, axis=0)
        for row in counts.reshape(-1, labels)
    ]
    low, high = np.moveaxis(np.reshape(rows, (*counts.shape[:-1], 2, labels)), -2, 0)
    none = np.isnan(value)
    return CorrectedShares(value, np.where(none, 0.0, np.fmin(low, value)), np.where(none, 1.0, np.fmax(high, value)))


def resampled_interval(
    tallies: ArrayLike, targets: ArrayLike, fixed: DeltaBounds, confidence: float = 0.95
) -> ResampledDeltas:
    """Intervals of Delta were professions and wordings drawn at random too, from tallies `[P, W, L + 1]`.

    `fixed` are the same audit's bounds for the professions and wordings at hand. The interval is their estimate free of
    most of the bias, and around it the jackknife's error: of leaving out one profession after another, and one wording
    after another, each of which carries the images' chance as well; the quantile is Student's, with Welch and
    Satterthwaite's degrees of freedom, because wordings are few. It is joined with the fixed one, which it can't be
    narrower than. Simulated with 35 professions and 5 wordings it held 89 % of the time where it was worst; a bootstrap
    of professions, wordings and images (Owen 2007, "The pigeonhole bootstrap") only 74 %.

    NaN with fewer than two professions or wordings, or where no image of one is determined: then nothing says how far
    another would be.

    Raises:
        ValueError: if the shapes don't fit.
    """
    counts, targets = np.asarray(tallies, dtype=np.float64)[..., :-1], np.asarray(targets, dtype=np.float64)
    if counts.ndim != 3 or targets.shape != (counts.shape[0], counts.shape[2]) or 0 in counts.shape:
        raise ValueError(f"tallies of shape {np.shape(tallies)} don't fit targets of shape {targets.shape}")
    wordings, pooled = counts.shape[1], counts.sum(axis=1, keepdims=True)
    each = delta_per_wording(counts, targets)
    fewer = max(1, wordings - 1)
    without_wording = (delta_per_wording(pooled - counts, targets), (each.sum() - each) / fewer)
    without_profession = (_without_each(pooled, targets), _without_each(counts, targets))
    return ResampledDeltas(
        *(
            _jackknife(estimate, [one, other], confidence)
            for estimate, one, other in zip(
                (fixed.pooled, fixed.within), without_wording, without_profession, strict=True
            )
        )
    )


def _without_each(counts: Floats, targets: Floats) -> Floats:
    """Mean of the columns' Deltas without each profession in turn: counts `[P, C, L]` to `[P]`."""
    off = total_variation(shares(counts), targets[:, None, :])
    known = ~np.isnan(off)
    off = np.where(known, off, 0.0)
    n = known.sum(axis=0) - known
    left = np.divide(off.sum(axis=0) - off, n, out=np.full(off.shape, np.nan), where=n > 0)
    return np.asarray(left.mean(axis=1))


def _jackknife(fixed: Estimate, left_out: list[Floats], confidence: float) -> Interval:
    """Around `fixed`, from the estimates `[m]` without each of m, for several ways to leave one out."""
    freedom = np.array([len(replicates) - 1 for replicates in left_out])
    if not freedom.all() or any(np.isnan(replicates).any() for replicates in left_out):
        return Interval(math.nan, math.nan)
    variances = freedom * [replicates.var() for replicates in left_out]
    variance = float(variances.sum())
    reach = 0.0
    if variance > 0:
        quantile = stats.t.ppf(0.5 + confidence / 2, variance**2 / (variances**2 / freedom).sum())
        reach = float(quantile) * math.sqrt(variance)
    low, high = max(0.0, fixed.reflected - reach), min(1.0, fixed.reflected + reach)
    return Interval(min(low, fixed.low), max(high, fixed.high))


def _posterior(rng: np.random.Generator, counts: Floats, size: int) -> Floats:
    """Draws `[size, ..., L]` of the shares behind counts `[..., L]`, from Jeffreys' prior."""
    return shares(rng.standard_gamma(counts + 0.5, size=(size, *counts.shape)))


def _solved(given: Floats, inverse: NDArray[np.floating]) -> Floats:
    """True shares `[..., L]` from given ones and the inverse `[..., L, L]` of a table with rows that add up to 1."""
    clipped = np.clip((given[..., None, :] @ inverse)[..., 0, :], 0, None)
    solved: Floats = clipped / clipped.sum(axis=-1, keepdims=True)
    return solved
