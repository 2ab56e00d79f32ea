"""Bounds of Deltas: properties, and simulated coverage of every bound a verdict uses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from time_ops.stats import bounds
from time_ops.stats.bounds import delta_bounds, paired_deltas
from time_ops.stats.deltas import (
    delta,
    delta_within,
    total_variation,
)

HALF = (0.5, 0.5)
PROMISED = 0.95


def at_least(hits, trials, promised=PROMISED):
    """Not significantly below what is promised."""
    assert stats.binomtest(int(hits), trials, promised, alternative="less").pvalue > 1e-3, hits / trials


_tallies = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).integers(0, 30, (9, 3, 3)))


@settings(max_examples=25, deadline=None)
@given(_tallies)
def test_bounds_are_in_order_and_labels_are_symmetric(tallies):
    found = delta_bounds(tallies, [HALF] * 9, resamples=50)
    swapped = delta_bounds(tallies[..., [1, 0, 2]], [HALF] * 9, resamples=50)
    for one, other in zip(
        [found.pooled, found.within, *found.wordings, found.worst],
        [swapped.pooled, swapped.within, *swapped.wordings, swapped.worst],
        strict=True,
    ):
        assert 0 <= one.low <= one.value <= one.high <= 1
        assert (one.value, one.low) == pytest.approx((other.value, other.low))
        assert one.n == other.n
    assert found.pooled.value == pytest.approx(delta(tallies.sum(axis=1)[..., :2], [HALF] * 9))
    assert found.within.value == pytest.approx(delta_within(tallies[..., :2], [HALF] * 9))
    assert found.worst.value == max(one.value for one in found.wordings)
    assert found.pooled.value <= found.within.value + 0.5


@settings(max_examples=25, deadline=None)
@given(_tallies)
def test_professions_on_target_lower_delta(tallies):
    counts = tallies[..., :2] + 1
    more = np.concatenate([counts, np.full((1, 3, 2), 7)])
    assert delta_within(more, [HALF] * 10) <= delta_within(counts, [HALF] * 9) + 1e-12


def test_bounds_do_not_depend_on_chunks(monkeypatch):
    tallies = np.random.default_rng(0).integers(0, 40, (10, 4, 3))
    whole = delta_bounds(tallies, [HALF] * 10, resamples=300, seed=3)
    assert delta_bounds(tallies, [HALF] * 10, resamples=300, seed=3) == whole
    assert delta_bounds(tallies, [HALF] * 10, resamples=300, seed=4) != whole
    monkeypatch.setattr(bounds, "_CHUNK_BYTES", 20_000)
    assert delta_bounds(tallies, [HALF] * 10, resamples=300, seed=3) == whole


def test_shapes_are_checked():
    for tallies in (np.zeros((3, 2, 2)), np.zeros((2, 2, 3)), -np.ones((3, 2, 3)), np.full((3, 2, 3), 0.5)):
        with pytest.raises(ValueError, match="tallies"):
            delta_bounds(tallies, [HALF] * 3)


def _truth(true, professions, wordings, far):
    """Shares of the first label; all professions equally far from one half, or a few wholly and the rest not at all."""
    off = np.full((professions, wordings), true)
    if far:
        off = (
            (np.arange(professions * wordings) < round(true * professions * wordings)).reshape(off.shape).astype(float)
        )
    return 0.5 + np.where(np.arange(professions) % 2, 0.5, -0.5)[:, None] * off


@pytest.mark.parametrize("n", [50, 10])
@pytest.mark.parametrize(
    ("professions", "true", "far"),
    [(35, 0, False), (35, 0.05, False), (35, 0.16, False), (35, 0.16, True), (35, 0.5, False), (3, 0.16, False)],
)
def test_coverage_of_the_bounds_that_verdicts_use(professions, n, true, far):
    """Of 5 wordings and 10 % undetermined; measured with 400 and more trials: 97 % and better everywhere."""
    share, trials = _truth(true, professions, 5, far), 80
    chance = np.stack([share * 0.9, (1 - share) * 0.9, np.full(share.shape, 0.1)], axis=-1)
    each = np.abs(2 * share - 1).mean(axis=0)
    truths = np.array([np.abs(2 * share.mean(axis=1) - 1).mean(), each.mean(), each[0], each.max()])
    rng = np.random.default_rng(7)
    lows, highs = np.zeros(4), np.zeros(4)
    for trial in range(trials):
        found = delta_bounds(rng.multinomial(n, chance), [HALF] * professions, resamples=25, seed=trial)
        bounds = [found.pooled, found.within, found.wordings[0], found.worst]
        lows += [one.low for one in bounds] <= truths + 1e-12
        highs += [one.high for one in bounds] >= truths - 1e-12
    for hits in (*lows, *highs):
        at_least(hits, trials)


def test_coverage_with_three_labels_and_uneven_targets():
    targets = np.tile([0.2, 0.3, 0.5], (20, 1))
    share = np.tile([0.1, 0.3, 0.6], (20, 1)) * 0.9
    chance = np.concatenate([share, np.full((20, 1), 0.1)], axis=1)[:, None, :]
    rng, true = np.random.default_rng(5), 0.1 / 0.8
    found = [delta_bounds(rng.multinomial(50, chance), targets, resamples=25).pooled for _ in range(120)]
    at_least(sum(one.low <= true for one in found), 120)
    at_least(sum(one.high >= true for one in found), 120)


def test_paired_difference_of_deltas():
    rng, true = np.random.default_rng(2), []
    base, edited = np.array([0.9, 0.1] * 10), np.array([0.65, 0.35] * 10)
    joint_p = np.zeros((20, 3, 3))  # common noise: the edited label follows the base's where it can
    joint_p[:, 0, 0], joint_p[:, 1, 1] = np.minimum(base, edited), np.minimum(1 - base, 1 - edited)
    joint_p[:, 0, 1], joint_p[:, 1, 0] = np.maximum(base - edited, 0), np.maximum(edited - base, 0)
    true = np.abs(2 * edited - 1).mean() - np.abs(2 * base - 1).mean()
    hits = 0
    for trial in range(60):
        joint = rng.multinomial(50, joint_p.reshape(20, 1, 9), size=(20, 5)).reshape(20, 5, 3, 3)
        found = paired_deltas(joint, [HALF] * 20, resamples=100, seed=trial)
        hits += found.difference_within.low <= true <= found.difference_within.high
        assert found.difference.low <= found.difference.value <= found.difference.high < 0
    at_least(hits, 60, 0.9)
    marginal = delta_bounds(joint.sum(axis=-1), [HALF] * 20, resamples=50)
    assert found.base.pooled.value == marginal.pooled.value
    assert found.base.pooled.low == pytest.approx(marginal.pooled.low)


def common(base, edited, rho):
    """Chances `[P, 3, 3]` of (base's label, edited's): of all images `rho` share their noise, the others nothing."""
    found = np.zeros((len(base), 3, 3))
    same = np.zeros((len(base), 2, 2))
    same[:, 0, 0], same[:, 1, 1] = np.minimum(base, edited), np.minimum(1 - base, 1 - edited)
    same[:, 0, 1], same[:, 1, 0] = np.maximum(base - edited, 0), np.maximum(edited - base, 0)
    one, other = np.stack([base, 1 - base], axis=-1), np.stack([edited, 1 - edited], axis=-1)
    found[:, :2, :2] = 0.94 * (rho * same + (1 - rho) * one[:, :, None] * other[:, None, :])
    found[:, 2, :2], found[:, :2, 2], found[:, 2, 2] = 0.02 * other, 0.02 * one, 0.02
    return found


SIGNS = np.where(np.arange(35) % 2, 1, -1)


FEW = np.arange(35) < 3


@pytest.mark.parametrize("rho", [0.0, 0.97])
@pytest.mark.parametrize(
    ("base", "edited"),
    [
        (0.0, 0.03), (0.0, 0.1), (0.05, 0.0), (0.05, -0.05), (0.1, 0.15), (0.4, 0.1),
        (0.0, 0.4 * FEW), (0.4, 0.4 * ~FEW),
    ],
)  # fmt: skip
def test_both_bounds_of_a_difference_hold(base, edited, rho):
    """Above all where one of the two is balanced: there chance hides a rise, and a bootstrap with it."""
    base, edited = 0.5 + base * SIGNS, 0.5 + edited * SIGNS
    rng, chances, trials = np.random.default_rng(5), common(base, edited, rho), 40
    true = np.abs(2 * edited - 1).mean() - np.abs(2 * base - 1).mean()
    found = [
        paired_deltas(rng.multinomial(40, chances.reshape(35, 1, 9), (35, 2)).reshape(35, 2, 3, 3), [HALF] * 35,
                      resamples=2, seed=trial)
        for trial in range(trials)
    ]  # fmt: skip
    for one in ([each.difference for each in found], [each.difference_within for each in found]):
        at_least(sum(each.low <= true for each in one), trials)
        at_least(sum(each.high >= true for each in one), trials)


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("professions", [1, 4, 12])
def test_bounds_of_a_difference_hold_for_few_cells_and_more_labels(professions, labels):
    rng, trials = np.random.default_rng(6), 50
    targets = np.broadcast_to([1 / labels] * labels if labels == 2 else [0.2, 0.3, 0.5], (professions, labels))
    base = targets
    edited = np.roll(targets, 1, axis=1) if labels > 2 else np.broadcast_to([0.6, 0.4], targets.shape)
    true = total_variation(edited, targets).mean()
    hits = np.zeros(2)
    for trial in range(trials):
        joint = np.zeros((professions, 1, labels + 1, labels + 1), int)
        for p in range(professions):
            one, other = rng.choice(labels, 90, p=base[p]), rng.choice(labels, 90, p=edited[p])
            np.add.at(joint[p, 0], (one, other), 1)
        found = paired_deltas(joint, targets, resamples=2, seed=trial).difference
        hits += [found.low <= true, found.high >= true]
    at_least(hits[0], trials)
    at_least(hits[1], trials)


@pytest.mark.parametrize("rho", [0.9, 0.99])
def test_few_cells_on_common_seeds_are_bounded_by_what_changed(rho):
    rng, trials = np.random.default_rng(7), 80
    base, edited = np.array([0.5, 0.3]), np.array([0.52, 0.3])
    true = (np.abs(2 * edited - 1) - np.abs(2 * base - 1)).mean()
    chances = common(base, edited, rho).reshape(2, 1, 9)
    found = [
        paired_deltas(rng.multinomial(250, chances, (2, 1)).reshape(2, 1, 3, 3), [HALF] * 2, resamples=2).difference
        for _ in range(trials)
    ]
    at_least(sum(one.low <= true for one in found), trials)
    at_least(sum(one.high >= true for one in found), trials)
    same = np.zeros((2, 1, 3, 3), int)
    same[..., 0, 0], same[..., 1, 1] = 150, 100
    assert paired_deltas(same, [HALF] * 2, resamples=2).difference.high < 0.05


def test_a_difference_is_narrow_where_little_changed_and_open_where_nothing_was_seen():
    joint = np.zeros((35, 5, 3, 3), int)
    joint[..., 0, 0] = joint[..., 1, 1] = 25
    same = paired_deltas(joint, [HALF] * 35, resamples=2).difference
    assert (same.value, same.low, same.high) == (0, pytest.approx(-same.high), pytest.approx(0.0, abs=1e-3))
    assert same.high > 0
    joint[:5, :, :, :] = 0
    joint[:5, :, 2, 0] = 50  # determined in edited only: from either end to where it is
    part = paired_deltas(joint, [HALF] * 35, resamples=2).difference
    assert part.high == pytest.approx(5 / 35, abs=2e-3)
    joint[..., 0], joint[..., 1] = 0, 0
    none = paired_deltas(joint, [HALF] * 35, resamples=2).difference
    assert (math.isnan(none.value), none.low, none.high) == (True, -1.0, 1.0)
