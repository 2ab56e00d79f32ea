"""Bounds of a Delta and of the difference of two.

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
time (tests/time_ops/stats/test_bounds.py simulates it). Professions and wordings are fixed, not a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from time_ops.stats.deltas import checked_tallies, deltas_of, largest_variation, noise_floor, shares, total_variation
from time_ops.stats.estimates import DeltaBounds, Estimate, PairedDeltas
from time_ops.stats.intervals import Floats, Ints, exact_interval, z_of
from time_ops.stats.splits import split, split_low, split_margin

__all__ = ["delta_bounds", "paired_deltas"]

_FEW_CELLS = 8
"""Below so many cells the normal approximation of `low` is not relied on."""


_CHUNK_BYTES = 1 << 22


def delta_bounds(
    tallies: ArrayLike, targets: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> DeltaBounds:
    """Every Delta of an audit with its bounds, from tallies `[P, W, L + 1]` and targets `[P, L]`.

    Cells are resampled with their undetermined images, so that the number of determined ones varies as it does.

    Raises:
        ValueError: if the shapes don't fit, or a count is negative.
    """
    tallies, targets = checked_tallies(tallies, targets, 1)

    def statistic(draw: Ints) -> Floats:
        return deltas_of(draw[..., :-1], targets)

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
    joint, targets = checked_tallies(joint, targets, 2)

    def statistic(draw: Ints) -> Floats:
        base, edited = draw.sum(axis=-1)[..., :-1], draw.sum(axis=-2)[..., :-1]
        return np.stack([deltas_of(base, targets), deltas_of(edited, targets)])

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


def _resample(tallies: Ints, statistic: Callable[[Ints], Floats], resamples: int, seed: int) -> Floats:
    """`statistic` of resampled tallies, stacked along its last axis but one; in chunks, so memory is bounded."""
    rng = np.random.default_rng(seed)
    flat = tallies.reshape(*tallies.shape[:2], -1)
    n = flat.sum(axis=-1)
    p = np.where(n[..., None] > 0, flat / np.maximum(n, 1)[..., None], 1 / flat.shape[-1])
    chunk = max(1, _CHUNK_BYTES // (8 * flat.size))
    statistics = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draw = rng.multinomial(n, p, size=(size, *n.shape))
        statistics.append(statistic(draw.reshape(size, *tallies.shape)))
    return np.concatenate(statistics, axis=-2)


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
    values = deltas_of(counts, targets)
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
        high = max(basic, value + z_of(confidence) * _raw_error(counts[some], targets[some]))
    high = min(1.0, max(high, value)) * (1 - empty) + empty
    floor = noise_floor(n[some], targets[some])
    return Estimate(value, min(low, value), high, floor, int(n.sum()), min(1.0, max(0.0, reflected)))


def _low(counts: Ints, targets: Floats, confidence: float) -> float:
    """Lower bound of Delta over cells; one without a determined image may be anything from 0 to 1, here 0."""
    some = counts.sum(axis=-1) > 0
    if not some.any():
        return 0.0
    few = some.sum() < _FEW_CELLS
    bound = (
        (_box(counts[some], targets[some], confidence)[0])
        if few
        else split_low(counts[some], targets[some], confidence)
    )
    return max(0.0, bound) * float(some.mean())


def _box(counts: Ints, targets: Floats, confidence: float) -> tuple[float, float]:
    """Bounds from simultaneous exact intervals: all cells' (and, beyond two, all labels') at once."""
    cells, labels = counts.shape
    tests = cells * (labels if labels > 2 else 1)
    below, above = exact_interval(counts, counts.sum(axis=-1, keepdims=True), 1 - (1 - confidence) / 2 / tests)
    near = np.maximum(0.0, np.maximum(below - targets, targets - above))
    far = np.maximum(above - targets, targets - below)
    most = largest_variation(targets)
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
    each = total_variation(shares(edited), targets) - split(base, targets)
    apart = z_of(confidence) * _raw_error(edited, targets) + split_margin(base, targets, confidence)
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
    most = largest_variation(targets)
    raw = 0.5 * np.abs(shares(edited) - shares(base)).sum(axis=-1) / most
    margin = z_of(confidence) * float(np.linalg.norm(0.5 * error.sum(axis=-1) / most)) / len(joint)
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
    return float(np.minimum(1.0, changed / largest_variation(targets)).mean())


def _influence(counts: Ints) -> Floats:
    """What an image of each label, or of none, adds to each share: counts `[C, L]` to `[C, L + 1, L]`."""
    cells, labels = counts.shape
    influence = np.zeros((cells, labels + 1, labels))
    influence[:, :-1] = (np.eye(labels) - shares(counts)[:, None, :]) / counts.sum(axis=-1)[:, None, None]
    return influence


def _raw_error(counts: Ints, targets: Floats) -> float:
    """Bound the raw Delta's standard error, from shares with one image added to each side (Agresti and Coull)."""
    n = counts.sum(axis=-1, keepdims=True)
    p = (counts + 1) / (n + 2)
    each = 0.5 * np.sqrt(p * (1 - p) / n).sum(axis=-1) / largest_variation(targets)
    return math.sqrt(float((each**2).sum())) / len(counts)
