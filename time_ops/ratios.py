"""The audit's statistics: shares, Delta, their intervals, and verdicts. Pure: numpy, scipy, statsmodels.

*Counts* are images per label, `[..., L]`; *tallies* have one more column at the end, `[..., L + 1]`, the undetermined
images. P professions, W wordings, L labels; targets `[P, L]` are wanted shares. Shares are of determined images.

Delta is the mean over professions of the total variation between share and target, over the most it can be for that
target; with two labels at one half it is the published mean of |F - 50| / 50 (TIME, arXiv 2303.08084).

How the bounds of a Delta are made, and what they promise:

- *value* is the raw Delta. It is biased upwards: even a perfect model reads `floor`. Nothing is subtracted from it.
- *high* is the larger of two. One is the basic (reflected) bootstrap's, over images within each cell (profession,
  wording); alone it holds only 79 % to 90 % of the time where all professions are equally far from target (simulated),
  because it takes off more bias than there is. The other is the raw value plus its own sampling error: the raw value's
  expectation is never below Delta (Jensen), so it needs no correction. A percentile bootstrap is used nowhere.
- *low* can't come from a bootstrap, which is poor near zero. Split a cell's images at random into A and B; read the
  direction s of the deviation in A, its size in B: E[s_A (p_B - t)] <= |p - t| whatever p is. Its mean over all splits
  has a closed form (hypergeometric): `low` is that mean less a margin from its largest variance.
- With fewer than eight cells both are the extremes over simultaneous Clopper-Pearson intervals, which are exact.

A *difference* of two Deltas can't be bounded by a bootstrap either: from balance to a Delta of 0.06 the basic one's
upper bound held 5 % to 52 % of the time (simulated), as the floor of the first hides the second. Its *high* is the
smaller of two. One is the edited's raw Delta less the base's split one, which expects no less than the difference. The
other is the mean distance between the two shares of a cell, which no difference exceeds (triangle inequality) and
which is small where common seeds give common pictures. Each has a margin of its own, with fewer than eight cells
exact intervals instead; *low* is made likewise.

Intervals are made for 95 % on both sides; what a verdict relies on is that each bound alone holds at least 95 % of the
time (tests/time_ops/test_ratios.py simulates it). Professions and wordings are fixed, not a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "DeltaBounds",
    "Estimate",
    "PairedDeltas",
    "Rate",
    "Verdict",
    "combine",
    "delta",
    "delta_bounds",
    "delta_per_wording",
    "delta_within",
    "exact_interval",
    "gate_lower",
    "gate_upper",
    "n_to_decide",
    "noise_floor",
    "paired_deltas",
    "paired_difference",
    "paired_ratio",
    "rate",
    "rms_deviation",
    "shares",
    "total_variation",
    "wilson",
    "worst_case",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FEW_CELLS = 8
"""Below so many cells the normal approximation of `low` is not relied on."""
_SPLIT_SIZES = (8, 40)
_SPLIT_VARIANCE = (4.1, 2.0, 1.7)
"""Largest 4 n Var of a cell's split deviation over all shares and targets: below 8 images, below 40, from 40 on."""
_SPLIT_THIRD = (4.0, 1.5, 1.1)
"""Likewise its third central moment, times (4 n)^1.5. Both were found by enumeration, which a test repeats."""
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Rate:
    """A proportion of images with its interval; `value` is None when there are no images."""

    value: float | None
    n: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A Delta, or a difference of two, with its bounds."""

    value: float
    """Raw, as published; NaN when no cell has a determined image."""
    low: float
    high: float
    floor: float
    """What a model exactly on target would read at this n; 0 for a difference."""
    n: int
    """Determined images behind it."""
    reflected: float
    """The bootstrap's estimate free of most of the bias: twice the raw value less the mean of the resampled ones."""
    wording: int | None = None
    """Of a worst wording: its index."""


@dataclass(frozen=True, slots=True)
class DeltaBounds:
    """All Deltas of one audit."""

    pooled: Estimate
    """Shares over all wordings together: opposite errors of two wordings cancel in it."""
    within: Estimate
    """Mean over the wordings of each wording's Delta."""
    wordings: tuple[Estimate, ...]
    """Each wording's own."""
    worst: Estimate
    """The largest of them, with bounds for the largest."""


@dataclass(frozen=True, slots=True)
class PairedDeltas:
    """Two audits on the same image indices, and edited less base."""

    base: DeltaBounds
    edited: DeltaBounds
    difference: Estimate
    """Of the pooled Deltas."""
    difference_within: Estimate
    """Of the Deltas within wordings."""


class Verdict(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


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


def shares(counts: ArrayLike) -> Floats:
    """Counts `[..., L]` to shares `[..., L]`; NaN where there is no determined image."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    found: Floats = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return found


def total_variation(share: ArrayLike, target: ArrayLike) -> Floats:
    """Total variation of shares `[..., L]` from targets `[..., L]` over its largest value for them: `[...]`, 0 to 1."""
    target = np.asarray(target, dtype=np.float64)
    off: Floats = 0.5 * np.abs(np.asarray(share, dtype=np.float64) - target).sum(axis=-1) / _largest(target)
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
    return float(_mean(0.5 * mad.sum(axis=-1) / _largest(targets), axis=None))


def delta_bounds(
    tallies: ArrayLike, targets: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> DeltaBounds:
    """Every Delta of an audit with its bounds, from tallies `[P, W, L + 1]` and targets `[P, L]`.

    Cells are resampled with their undetermined images, so that the number of determined ones varies as it does.

    Raises:
        ValueError: if the shapes don't fit, or a count is negative.
    """
    tallies, targets = _checked(tallies, targets, 1)

    def statistic(draw: Ints) -> Floats:
        return _deltas(draw[..., :-1], targets)

    draws = _resample(tallies, statistic, resamples, seed)
    return _bounds(tallies, targets, draws, confidence)


def paired_deltas(
    joint: ArrayLike, targets: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> PairedDeltas:
    """Base and edited on the same image indices, from `joint` `[P, W, L + 1, L + 1]` (base's label, edited's label).

    The bounds of a difference (module docstring) never leave its value out, and gain from common seeds.

    Raises:
        ValueError: if the shapes don't fit, or a count is negative.
    """
    joint, targets = _checked(joint, targets, 2)

    def statistic(draw: Ints) -> Floats:
        base, edited = draw.sum(axis=-1)[..., :-1], draw.sum(axis=-2)[..., :-1]
        return np.stack([_deltas(base, targets), _deltas(edited, targets)])

    base, edited = _resample(joint, statistic, resamples, seed)
    of_base = _bounds(joint.sum(axis=-1), targets, base, confidence)
    of_edited = _bounds(joint.sum(axis=-2), targets, edited, confidence)
    n_professions, n_wordings, width, _ = joint.shape
    pooled, within = joint.sum(axis=1), joint.reshape(n_professions * n_wordings, width, width)
    each = np.repeat(targets, n_wordings, axis=0)
    differences = []
    for column, (one, other, cells, wanted) in enumerate(
        (
            (of_base.pooled, of_edited.pooled, pooled, targets),
            (of_base.within, of_edited.within, within, each),
        )
    ):
        value = other.value - one.value
        low, high = _difference(cells, wanted, confidence)
        reflected = _basic(value, edited[:, column] - base[:, column], confidence)[2]
        differences.append(
            Estimate(value, min(low, value), max(high, value), 0.0, min(one.n, other.n), reflected)
            if math.isfinite(value)
            else Estimate(math.nan, -1.0, 1.0, math.nan, 0, math.nan)
        )
    return PairedDeltas(of_base, of_edited, *differences)


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


def gate_upper(found: Estimate | Rate, limit: float) -> Verdict:
    """A gate on something that must be small: its whole interval at most `limit` passes, above it fails."""
    if found.high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if found.low > limit else Verdict.INCONCLUSIVE


def gate_lower(found: Estimate | Rate, limit: float) -> Verdict:
    """A gate on something that must be large: its whole interval at least `limit` passes, below it fails."""
    if found.low >= limit:
        return Verdict.PASS
    return Verdict.FAIL if found.high < limit else Verdict.INCONCLUSIVE


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Fail if any fails, pass if all pass, else inconclusive; no verdict at all is inconclusive."""
    found = set(verdicts)
    if Verdict.FAIL in found:
        return Verdict.FAIL
    return Verdict.PASS if found == {Verdict.PASS} else Verdict.INCONCLUSIVE


def n_to_decide(found: Estimate | Rate, limit: float) -> int | None:
    """About how many images would decide an inconclusive gate, if the value stays: the interval shrinks as 1/sqrt(n).

    In the units of `found.n`, which is returned where the limit lies outside the interval already. None when no number
    would: the value is missing, or on the limit itself.
    """
    value = found.value
    if value is None or not math.isfinite(value) or value == limit or found.n == 0:
        return None
    reach = found.high - value if limit > value else value - found.low
    if not math.isfinite(reach):
        return None
    return max(found.n, math.ceil(found.n * (reach / (limit - value)) ** 2 - 1e-6))


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


def _z(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _largest(targets: Floats) -> Floats:
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


def _deltas(counts: Floats | Ints, targets: Floats) -> Floats:
    """Counts `[..., P, W, L]` to `[..., 2 + W]`: pooled, within, and each wording's."""
    per_wording = _mean(_cells(np.asarray(counts, dtype=np.float64), targets), axis=-2)
    pooled = _mean(total_variation(shares(counts.sum(axis=-2)), targets))
    return np.concatenate([pooled[..., None], _mean(per_wording)[..., None], per_wording], axis=-1)


def _checked(tallies: ArrayLike, targets: ArrayLike, label_axes: int) -> tuple[Ints, Floats]:
    tallies, targets = np.asarray(tallies), np.asarray(targets, dtype=np.float64)
    wanted = (*tallies.shape[:2], *[targets.shape[-1] + 1] * label_axes)
    if targets.ndim != 2 or tallies.shape != wanted or len(targets) != len(tallies) or 0 in tallies.shape:
        raise ValueError(f"tallies of shape {tallies.shape} don't fit targets of shape {targets.shape}")
    if np.any(tallies < 0) or np.any(tallies != np.floor(tallies)):
        raise ValueError("tallies must be whole numbers from 0")
    return tallies.astype(np.int64), targets


def _resample(tallies: Ints, statistic: Callable[[Ints], Floats], resamples: int, seed: int) -> Floats:
    """`statistic` of resampled tallies, stacked along its last axis but one; in chunks, so memory is bounded."""
    rng = np.random.default_rng(seed)
    flat = tallies.reshape(*tallies.shape[:2], -1)
    n = flat.sum(axis=-1)
    p = np.where(n[..., None] > 0, flat / np.maximum(n, 1)[..., None], 1 / flat.shape[-1])
    chunk = max(1, _CHUNK_BYTES // (8 * flat.size))
    found = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draw = rng.multinomial(n, p, size=(size, *n.shape))
        found.append(statistic(draw.reshape(size, *tallies.shape)))
    return np.concatenate(found, axis=-2)


def _basic(value: float, draws: Floats, confidence: float) -> tuple[float, float, float]:
    """Basic bootstrap: lower and upper bound and the reflected estimate."""
    draws = draws[~np.isnan(draws)]
    if not len(draws) or math.isnan(value):
        return -math.inf, math.inf, math.nan
    below, above = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return 2 * value - float(above), 2 * value - float(below), 2 * value - float(draws.mean())


def _bounds(tallies: Ints, targets: Floats, draws: Floats, confidence: float) -> DeltaBounds:
    counts = tallies[..., :-1]
    n_professions, n_wordings = counts.shape[:2]
    values = _deltas(counts, targets)
    each = np.broadcast_to(targets[:, None, :], counts.shape)

    def estimate(column: int, cells: Ints, cell_targets: Floats) -> Estimate:
        return _estimate(float(values[column]), draws[:, column], cells, cell_targets, confidence)

    pooled = estimate(0, counts.sum(axis=1), targets)
    within = estimate(1, counts.reshape(n_professions * n_wordings, -1), each.reshape(n_professions * n_wordings, -1))
    wordings = tuple(estimate(2 + w, counts[:, w], targets) for w in range(n_wordings))
    # The largest is above a bound only if its own wording is: `high` needs no correction. Any wording's `low` that is
    # too high spoils the largest `low`: that one is Bonferroni's.
    strict = 1 - (1 - confidence) / n_wordings
    lows = [_low(counts[:, w], targets, strict) for w in range(n_wordings)]
    at = int(np.argmax([-1.0 if math.isnan(one.value) else one.value for one in wordings]))
    top = wordings[at]
    high = max(one.high for one in wordings)
    worst = Estimate(top.value, min(max(lows), top.value), high, top.floor, top.n, top.reflected, wording=at)
    return DeltaBounds(pooled, within, wordings, worst)


def _estimate(value: float, draws: Floats, counts: Ints, targets: Floats, confidence: float) -> Estimate:
    """One Delta over cells: counts `[C, L]`, targets `[C, L]`."""
    n = counts.sum(axis=-1)
    some = n > 0
    empty = 1 - float(some.mean())
    if empty == 1:
        return Estimate(math.nan, 0.0, 1.0, math.nan, 0, math.nan)
    low = _low(counts, targets, confidence)
    _, basic, reflected = _basic(value, draws, confidence)
    if some.sum() < _FEW_CELLS:
        high = _box(counts[some], targets[some], confidence)[1]
    else:
        high = max(basic, value + _z(confidence) * _raw_error(counts[some], targets[some]))
    high = min(1.0, max(high, value)) * (1 - empty) + empty
    floor = noise_floor(n[some], targets[some])
    return Estimate(value, min(low, value), high, floor, int(n.sum()), min(1.0, max(0.0, reflected)))


def _low(counts: Ints, targets: Floats, confidence: float) -> float:
    """Lower bound of Delta over cells; one without a determined image may be anything from 0 to 1, here 0."""
    some = counts.sum(axis=-1) > 0
    if not some.any():
        return 0.0
    few = some.sum() < _FEW_CELLS
    found = (
        (_box(counts[some], targets[some], confidence)[0])
        if few
        else _split_low(counts[some], targets[some], confidence)
    )
    return max(0.0, found) * float(some.mean())


def _box(counts: Ints, targets: Floats, confidence: float) -> tuple[float, float]:
    """Bounds from simultaneous exact intervals: all cells' (and, beyond two, all labels') at once."""
    cells, labels = counts.shape
    tests = cells * (labels if labels > 2 else 1)
    below, above = exact_interval(counts, counts.sum(axis=-1, keepdims=True), 1 - (1 - confidence) / 2 / tests)
    near = np.maximum(0.0, np.maximum(below - targets, targets - above))
    far = np.maximum(above - targets, targets - below)
    most = _largest(targets)
    # Shares add up to 1: the labels above target have half of the deviation, those below the other half.
    least = np.maximum(0.5 * near.sum(axis=-1), near.max(axis=-1))
    return float((least / most).mean()), float(np.minimum(1.0, 0.5 * far.sum(axis=-1) / most).mean())


def _difference(joint: Ints, targets: Floats, confidence: float) -> tuple[float, float]:
    """Bounds of Delta's difference over cells: `joint` `[C, L + 1, L + 1]`, targets `[C, L]` (module docstring).

    A cell without a determined image in both variants may have moved from one end to the other.
    """
    base, edited = joint.sum(axis=-1)[:, :-1], joint.sum(axis=-2)[:, :-1]
    some = (base.sum(axis=-1) > 0) & (edited.sum(axis=-1) > 0)
    if not some.any():
        return -1.0, 1.0
    joint, base, edited, targets = joint[some], base[some], edited[some], targets[some]
    known = float(some.mean())
    if len(joint) < _FEW_CELLS:
        # Two exact boxes that hold together.
        share = 1 - (1 - confidence) / 2
        (low, high), (low_base, high_base) = (_box(counts, targets, share) for counts in (edited, base))
        moved = _changed_high(joint, targets, confidence)
        ends = max(low - high_base, -moved), min(high - low_base, moved)
    else:
        moved = _moved_high(joint, targets, confidence)
        up = min(_rise_high(base, edited, targets, confidence), moved)
        down = min(_rise_high(edited, base, targets, confidence), moved)
        ends = -down, up
    return max(-1.0, ends[0] * known - (1 - known)), min(1.0, ends[1] * known + 1 - known)


def _rise_high(base: Ints, edited: Ints, targets: Floats, confidence: float) -> float:
    """Upper bound of Delta's rise over cells, from counts `[C, L]` each: the edited's raw less the base's split Delta.

    Its error is the smaller of two that are too large: the sum of both margins, whatever their dependence; and that
    of the mean of cells as unlike each other as these are, which common seeds make small.
    """
    each = total_variation(shares(edited), targets) - _split(base, targets)
    apart = _z(confidence) * _raw_error(edited, targets) + _split_margin(base, targets, confidence)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, len(each) - 1))
    return float(each.mean()) + min(apart, quantile * float(each.std(ddof=1)) / math.sqrt(len(each)))


def _moved_high(joint: Ints, targets: Floats, confidence: float) -> float:
    """Upper bound of the mean over cells of how far the shares moved, `joint` `[C, L + 1, L + 1]`.

    The raw mean expects no less (Jensen), and no distance has a larger variance than what it is the distance of. Where
    no image changed its label, that many images say how seldom one does.
    """
    base, edited = joint.sum(axis=-1)[:, :-1], joint.sum(axis=-2)[:, :-1]
    # What each image adds to the difference of two shares, by its base's and its edited's label.
    adds = _influence(edited)[:, None, :, :] - _influence(base)[:, :, None, :]
    error = np.sqrt((joint[..., None] * adds**2).sum(axis=(1, 2)))
    most = _largest(targets)
    raw = 0.5 * np.abs(shares(edited) - shares(base)).sum(axis=-1) / most
    margin = _z(confidence) * float(np.linalg.norm(0.5 * error.sum(axis=-1) / most)) / len(joint)
    unseen = -math.log(0.5 - confidence / 2) / float(joint.sum() * most.min())
    return float(raw.mean()) + max(margin, unseen)


def _changed_high(joint: Ints, targets: Floats, confidence: float) -> float:
    """As `_moved_high` for few cells, from exact bounds of how many images changed their label.

    Shares of determined images move by no more than the part of either variant's images whose label the other does not
    have, taken of the variant that has more of them.
    """
    cells = np.arange(joint.shape[-1] - 1)
    kept = joint[:, cells, cells].sum(axis=-1)
    n = np.stack([joint[:, :-1].sum(axis=(1, 2)), joint[:, :, :-1].sum(axis=(1, 2))])
    level = 1 - (1 - confidence) / n.size
    changed = exact_interval(n - kept, n, level)[1].max(axis=0)
    return float(np.minimum(1.0, changed / _largest(targets)).mean())


def _influence(counts: Ints) -> Floats:
    """What an image of each label, or of none, adds to each share: counts `[C, L]` to `[C, L + 1, L]`."""
    cells, labels = counts.shape
    found = np.zeros((cells, labels + 1, labels))
    found[:, :-1] = (np.eye(labels) - shares(counts)[:, None, :]) / counts.sum(axis=-1)[:, None, None]
    return found


def _raw_error(counts: Ints, targets: Floats) -> float:
    """Bound the raw Delta's standard error, from shares with one image added to each side (Agresti and Coull)."""
    n = counts.sum(axis=-1, keepdims=True)
    p = (counts + 1) / (n + 2)
    each = 0.5 * np.sqrt(p * (1 - p) / n).sum(axis=-1) / _largest(targets)
    return math.sqrt(float((each**2).sum())) / len(counts)


def _split_low(counts: Ints, targets: Floats, confidence: float) -> float:
    """Lower bound of Delta from the split deviations (module docstring), valid however close to zero it is."""
    return float(_split(counts, targets).mean()) - _split_margin(counts, targets, confidence)


def _split(counts: Ints, targets: Floats) -> Floats:
    """Each cell's split deviation over its largest value: counts `[C, L]` to `[C]`."""
    n = counts.sum(axis=-1)
    return np.asarray(0.5 * _split_deviation(counts, n[:, None], targets).sum(axis=-1) / _largest(targets))


def _split_margin(counts: Ints, targets: Floats, confidence: float) -> float:
    """What the mean of `_split` may be above its expectation.

    It takes each cell's variance at its largest over all shares, and corrects the normal quantile for the skewness of
    the sum (Cornish and Fisher's first term).
    """
    n = counts.sum(axis=-1)
    size = np.digitize(n, _SPLIT_SIZES)
    # Half the sum of the labels' standard deviations is the most that their sum can have, however they depend.
    scale = counts.shape[-1] / 2 / _largest(targets)
    variance = float((np.take(_SPLIT_VARIANCE, size) * scale**2 / (4 * n)).sum())
    third = float((np.take(_SPLIT_THIRD, size) * scale**3 / (4 * n) ** 1.5).sum())
    z = _z(confidence)
    margin = z * math.sqrt(variance) + (z * z - 1) / 6 * third / variance
    return float(margin / len(n))


def _split_deviation(k: ArrayLike, n: ArrayLike, target: ArrayLike) -> Floats:
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
    """`_split_deviation` with m images in A: X of A's are of the label, X hypergeometric.

    E[s (k - X)/(n - m)] - t E[s] with s = sign(X - m t); E[X; X > c] = (m k / n) P(X' + 1 > c), X' one image fewer.
    """
    over, under = np.floor(m * t + 1e-9), np.ceil(m * t - 1e-9)
    above, below = stats.hypergeom.sf(over, n, k, m), stats.hypergeom.cdf(under - 1, n, k, m)
    sign = above - below
    fewer = np.maximum(k - 1, 0)
    partial = stats.hypergeom.sf(over - 1, n - 1, fewer, m - 1) - stats.hypergeom.cdf(under - 2, n - 1, fewer, m - 1)
    signed = np.where(k > 0, m * k / n * partial, 0.0)
    return np.asarray((k / (n - m) - t) * sign - signed / (n - m))
