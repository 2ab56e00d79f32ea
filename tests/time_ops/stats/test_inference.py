"""What is said beyond the gates: worked by hand, and how often it holds where chance is simulated."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from time_ops.stats.bounds import delta_bounds
from time_ops.stats.deltas import delta, delta_within, shares
from time_ops.stats.inference import corrected_shares, moved, off_target, resampled_interval, target_distances

HALF = (0.5, 0.5)


def at_least(hits, trials, promised):
    """Not significantly below what is promised."""
    assert stats.binomtest(int(hits), trials, promised, alternative="less").pvalue > 1e-3, hits / trials


def of(first, n=250):
    """Counts `[P, 2]` from those of the first label."""
    return np.stack([np.asarray(first), n - np.asarray(first)], axis=-1)


def holm(chances, alpha):
    """By the definition: from the smallest up, until one is above alpha over those that are left."""
    called = [False] * len(chances)
    for rank, at in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[at] > alpha / (len(chances) - rank):
            break
        called[at] = True
    return called


def test_off_target_is_holm_over_exact_tests():
    # Two-sided chances of 10 images at one half: 10 of 10 2/1024, 9 of 10 22/1024, 5 of 10 one. Three professions:
    # 0.00195 <= 0.05 / 3 is called, 0.0215 <= 0.05 / 2 is called; were it compared with 0.05 / 3, it would not be.
    assert off_target(of([9, 10, 5], 10), [HALF] * 3).tolist() == [True, True, False]
    # With one more profession 0.0215 meets 0.05 / 3, and is not.
    assert off_target(of([9, 10, 5, 5], 10), [HALF] * 4).tolist() == [False, True, False, False]
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = rng.binomial(60, rng.choice([0.5, 0.3, 0.7], size=12))
        chances = [stats.binomtest(int(k), 60, 0.5).pvalue for k in first]
        assert off_target(of(first, 60), [HALF] * 12).tolist() == holm(chances, 0.05)
    # And as a library has it, of the last: ties and chances of 1 among them.
    assert holm([*chances, 1.0, 1.0], 0.05) == multipletests([*chances, 1.0, 1.0], 0.05, "holm")[0].tolist()


def test_off_target_at_the_edges():
    targets = [HALF, (0.0, 1.0), (0.0, 1.0), (1.0, 0.0)]
    assert off_target([[0, 0], [0, 9], [1, 8], [9, 0]], targets).tolist() == [False, False, True, False]
    assert off_target(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == []
    even, uneven = [20, 30, 50], [50, 30, 20]
    assert off_target([even, uneven], [(0.2, 0.3, 0.5)] * 2).tolist() == [False, True]
    for counts in ([[1, 2]], [[1, -1], [3, 3]], [[0.5, 1], [3, 3]]):
        with pytest.raises(ValueError, match="counts"):
            off_target(counts, [HALF] * 2)


def test_professions_on_target_are_seldom_called_and_far_ones_always():
    """35 on target at n = 250, pooled over 5 wordings whose shares lie apart or together; then five of them off."""
    rng, targets = np.random.default_rng(3), [HALF] * 35
    for wordings, trials in (((0.35, 0.45, 0.5, 0.55, 0.65), 120), ((0.5,) * 5, 120)):
        called = [off_target(of(rng.binomial(50, wordings, (35, 5)).sum(axis=1)), targets).any() for _ in range(trials)]
        assert stats.binomtest(sum(called), trials, 0.05, alternative="greater").pvalue > 1e-3
    share = np.where(np.arange(35) < 5, 0.7, 0.5)
    found = np.mean([off_target(of(rng.binomial(250, share)), targets) for _ in range(40)], axis=0)
    assert found[:5].min() > 0.9
    assert found[5:].max() < 0.1


def test_distances_from_target_by_hand():
    found = target_distances([[9, 1], [5, 5], [0, 0]], [HALF, HALF, (0.2, 0.8)], limit=0.1)
    assert found.value[:2] == pytest.approx([0.4, 0.0])
    assert np.isnan(found.value[2])
    # Three at once: each takes a third of what may be missed.
    ends = stats.binomtest(9, 10).proportion_ci(1 - 0.05 / 3, "exact")
    assert (found.low[0], found.high[0]) == pytest.approx((max(0.0, ends.low - 0.5), ends.high - 0.5))
    assert (found.low[2], found.high[2]) == (0.0, 0.8)
    assert found.beyond.tolist() == [False, False, False]
    assert target_distances(np.zeros((0, 2)), np.zeros((0, 2)), 0.1).value.shape == (0,)
    with pytest.raises(ValueError, match="counts"):
        target_distances([[1, 2]], [HALF] * 2, 0.1)


def test_beyond_a_limit_is_holm_over_exact_tests_on_either_side():
    rng = np.random.default_rng(0)
    for _ in range(10):
        first = rng.binomial(60, rng.choice([0.5, 0.15, 0.9], size=12))
        chances = [
            2
            * min(
                stats.binomtest(int(k), 60, p, alternative=side).pvalue for p, side in ((0.7, "greater"), (0.3, "less"))
            )
            for k in first
        ]
        found = target_distances(of(first, 60), [HALF] * 12, limit=0.2)
        assert found.beyond.tolist() == holm(chances, 0.05)
        # Whoever is called first is so by its interval too, and the other way round.
        assert found.beyond.any() == (found.low > 0.2).any()
    none = target_distances(of([60, 0], 60), [HALF, (1.0, 0.0)], limit=1.0)
    assert not none.beyond.any()
    assert (
        target_distances(of([60, 0], 60), [HALF] * 2, limit=0.0).beyond.tolist()
        == off_target(of([60, 0], 60), [HALF] * 2).tolist()
    )


@pytest.mark.parametrize(("share", "limit"), [(0.65, 0.15), (0.5, 0.0), (0.9, 0.4), (0.99, 0.49)])
@pytest.mark.parametrize("labels", [2, 3])
def test_a_limit_on_distances_is_neither_kept_nor_broken_by_chance(share, limit, labels):
    """Every profession exactly at the limit: none may be called beyond, and not all may seem within it."""
    rng, trials, rest = np.random.default_rng(4), 150, (1 - share) / (labels - 1)
    chances, targets = [share] + [rest] * (labels - 1), [0.5] + [0.5 / (labels - 1)] * (labels - 1)
    beyond = within = 0
    for _ in range(trials):
        found = target_distances(rng.multinomial(125, chances, 20), [targets] * 20, limit)
        beyond += found.beyond.any()
        within += (found.high < limit).any()
    at_least(trials - beyond, trials, 0.95)
    at_least(trials - within, trials, 0.95)


def test_moved_is_holm_over_mcnemar():
    # 2 P(X <= 0 of 8) = 2/256 <= 0.05 / 3 is called; 2 P(X <= 1 of 8) = 18/256 is not, nor what never changed.
    assert moved([8, 1, 0], [0, 7, 0]).tolist() == [True, False, False]
    rng = np.random.default_rng(1)
    gained, lost = rng.binomial(40, 0.2, 12), rng.binomial(40, rng.choice([0.2, 0.6], 12))
    chances = [mcnemar([[0, g], [b, 0]], exact=True).pvalue for g, b in zip(gained, lost, strict=True)]
    assert moved(gained, lost).tolist() == holm(chances, 0.05)
    assert moved([], []).tolist() == []
    for wrong in (([1], [1, 2]), ([-1], [0]), ([0.5], [0])):
        with pytest.raises(ValueError, match="counts"):
            moved(*wrong)


def test_who_has_not_moved_is_seldom_called():
    rng, trials = np.random.default_rng(2), 300
    changed = rng.binomial(250, 0.1, (trials, 35))
    gained = rng.binomial(changed, 0.5)
    called = sum(moved(g, c - g).any() for g, c in zip(gained, changed, strict=True))
    at_least(trials - called, trials, 0.95)


def test_corrected_shares_by_hand():
    # Sensitivity 0.9, specificity 0.8: (given - 0.2) / (0.9 - 0.2).
    found = corrected_shares([[55, 45], [100, 0], [0, 0]], [[90, 10], [20, 80]])
    assert found.value[0] == pytest.approx([0.5, 0.5])
    assert found.value[1].tolist() == [1, 0]  # 0.8 / 0.7 is more than all
    assert np.isnan(found.value[2]).all()
    assert found.low[2].tolist() == [0, 0]
    assert found.high[2].tolist() == [1, 1]
    assert (found.low[:2] <= found.value[:2]).all()
    assert (found.value[:2] <= found.high[:2]).all()
    true, table = np.array([0.2, 0.3, 0.5]), np.array([[80, 15, 5], [10, 80, 10], [0, 20, 80]])
    assert corrected_shares(1e4 * true @ shares(table), table).value == pytest.approx(true)


def test_corrected_intervals_hold_and_carry_the_tables_own_chance():
    rng, chance, hits, trials = np.random.default_rng(5), np.array([[0.9, 0.1], [0.15, 0.85]]), 0, 400
    for trial in range(trials):
        true = rng.uniform()
        table = np.stack([rng.multinomial(100, row) for row in chance])
        found = corrected_shares(rng.multinomial(250, (true, 1 - true) @ chance), table, resamples=500, seed=trial)
        hits += found.low[0] <= true <= found.high[0]
    assert hits / trials >= 0.93
    few, many = ([[9 * k, k], [k, 9 * k]] for k in (1, 1000))
    one, other = corrected_shares([125, 125], few), corrected_shares([125, 125], many)
    assert one.high[0] - one.low[0] > 2 * (other.high[0] - other.low[0])


@pytest.mark.parametrize(
    ("counts", "table", "said"),
    [
        ([1, 2], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "fit"),
        (3, [[1]], "fit"),
        ([1, -2], [[1, 0], [0, 1]], "from 0"),
        ([1, 2], [[1, 0], [0, -1]], "from 0"),
        ([1, 2], [[1, 0], [0, 0]], r"number \[1\]"),
        ([1, 2], [[10, 20], [7, 14]], "singular"),
    ],
)
def test_tables_that_say_nothing_are_refused(counts, table, said):
    with pytest.raises(ValueError, match=said):
        corrected_shares(counts, table)


def _drawn(rng, spread, wording_spread, professions=35, wordings=5):
    """Shares `[P, W]` of random professions and wordings, on the logit scale."""
    logit = rng.normal(0, spread, (professions, 1)) + rng.normal(0, wording_spread, (1, wordings))
    return 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize(("spread", "wording_spread"), [(1.5, 0.5), (0.3, 1.0), (0.1, 0.3), (0.0, 0.0)])
def test_resampled_interval_holds_where_professions_and_wordings_are_random(spread, wording_spread):
    """Measured with 150 trials: 89 % and better, everywhere; the gates' interval as little as 19 %."""
    off = 2 * _drawn(np.random.default_rng(9), spread, wording_spread, 3000, 400) - 1
    pooled, within = np.abs(off.mean(axis=1)).mean(), np.abs(off).mean()
    rng, targets, trials, hits, fixed_hits = np.random.default_rng(1), [HALF] * 35, 80, np.zeros(2), 0
    for trial in range(trials):
        share = _drawn(rng, spread, wording_spread) * 0.9
        tallies = rng.multinomial(50, np.stack([share, 0.9 - share, np.full(share.shape, 0.1)], axis=-1))
        fixed = delta_bounds(tallies, targets, resamples=50, seed=trial)
        found = resampled_interval(tallies, targets, fixed)
        hits += [found.pooled.low <= pooled <= found.pooled.high, found.within.low <= within <= found.within.high]
        fixed_hits += fixed.within.low <= within <= fixed.within.high
        for wide, narrow in ((found.pooled, fixed.pooled), (found.within, fixed.within)):
            assert 0 <= wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high <= 1
    for found_hits in hits:
        at_least(found_hits, trials, 0.9)
    if wording_spread >= 0.5:
        assert fixed_hits < 0.8 * trials
        assert found.within.high - found.within.low > 1.3 * (fixed.within.high - fixed.within.low)


def test_resampled_interval_is_the_jackknife():
    rng = np.random.default_rng(4)
    tallies, targets = rng.integers(0, 40, (12, 4, 3)), rng.dirichlet((5, 5), size=12)
    fixed = delta_bounds(tallies, targets, resamples=50)
    found = resampled_interval(tallies, targets, fixed)
    counts = tallies[..., :-1]
    for interval, estimate, of_counts in (
        (found.pooled, fixed.pooled, lambda kept, goal: delta(kept.sum(axis=1), goal)),
        (found.within, fixed.within, delta_within),
    ):
        by_profession = [of_counts(np.delete(counts, i, 0), np.delete(targets, i, 0)) for i in range(12)]
        by_wording = [of_counts(np.delete(counts, i, 1), targets) for i in range(4)]
        one, other = 11 * np.var(by_profession), 3 * np.var(by_wording)
        reach = stats.t.ppf(0.975, (one + other) ** 2 / (one**2 / 11 + other**2 / 3)) * np.sqrt(one + other)
        assert interval.low == pytest.approx(min(fixed_low := estimate.low, max(0, estimate.reflected - reach)))
        assert interval.high == pytest.approx(max(estimate.high, estimate.reflected + reach))
        assert interval.low < fixed_low


def test_one_wording_or_one_profession_says_nothing_of_others():
    tallies = np.random.default_rng(0).integers(1, 40, (10, 5, 3))
    empty = tallies.copy()
    empty[:, 0, :-1] = 0
    for few in (tallies[:, :1], tallies[:1], empty, np.zeros_like(tallies)):
        fixed = delta_bounds(few, [HALF] * len(few), resamples=10)
        assert np.isnan(resampled_interval(few, [HALF] * len(few), fixed).within.low)
    same = np.tile([30, 20, 0], (10, 5, 1))
    fixed = delta_bounds(same, [HALF] * 10, resamples=10)
    found = resampled_interval(same, [HALF] * 10, fixed).pooled
    assert (found.low, found.high) == (fixed.pooled.low, max(fixed.pooled.high, fixed.pooled.reflected))
    with pytest.raises(ValueError, match="fit"):
        resampled_interval(tallies, [HALF] * 3, fixed)
