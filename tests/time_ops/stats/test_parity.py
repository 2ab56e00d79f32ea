"""Demographic parity: as Fairlearn counts it, by hand, and how often its intervals hold."""

import gc

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, demographic_parity_ratio
from scipy import stats

from time_ops.stats.parity import demographic_parity


@pytest.fixture(autouse=True)
def frozen():
    """statsmodels collects garbage in every call: 50 ms and more, over all that the tests have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


def at_least(hits, trials, promised=0.95):
    """Not significantly below what is promised."""
    assert stats.binomtest(int(hits), trials, promised, alternative="less").pvalue > 1e-3, hits / trials


def test_point_values_are_fairlearns():
    rng = np.random.default_rng(0)
    for groups in (1, 2, 12):
        n = rng.integers(1, 60, groups)
        k = rng.binomial(n, rng.random(groups))
        k[0] = max(1, k[0])
        names = np.repeat(np.arange(groups), n)
        selected = np.concatenate([np.arange(size) < hits for size, hits in zip(n, k, strict=True)])
        found = demographic_parity(k, n)
        # True labels play no part in demographic parity; Fairlearn asks for them all the same.
        one = demographic_parity_difference(selected, selected, sensitive_features=names)
        other = demographic_parity_ratio(selected, selected, sensitive_features=names)
        assert (found.difference.value, found.ratio.value) == pytest.approx((one, other))


def test_by_hand():
    found = demographic_parity([10, 40], [50, 50])
    assert (found.difference.value, found.ratio.value, found.reason) == (pytest.approx(0.6), pytest.approx(0.25), None)
    # A quarter of 2.5 % at each end of either group, away from parity and, with two groups, half of that towards it.
    far = [stats.binomtest(k, 50).proportion_ci(0.975, "exact") for k in (10, 40)]
    near = [stats.binomtest(k, 50).proportion_ci(0.9875, "exact") for k in (10, 40)]
    assert found.difference.high == pytest.approx(far[1].high - far[0].low)
    assert found.difference.low == pytest.approx(near[1].low - near[0].high)
    assert found.ratio.low == pytest.approx(far[0].low / far[1].high)
    assert found.ratio.high == pytest.approx(near[0].high / near[1].low)


def test_what_has_no_value_says_why():
    nothing = demographic_parity([0, 0], [0, 0])
    assert (nothing.difference.value, nothing.ratio.value, nothing.reason) == (None, None, "no image was determined")
    assert demographic_parity([], []).reason == "no image was determined"
    never = demographic_parity([0, 0], [50, 50])
    assert (never.difference.value, never.difference.low) == (0.0, 0.0)
    assert never.ratio.value is never.ratio.low is never.ratio.high is None
    assert "0 over 0" in str(never.reason)
    part = demographic_parity([25, 0, 30], [50, 0, 50])
    assert (part.difference.value, part.difference.high) == (pytest.approx(0.1), 1.0)
    assert (part.ratio.low, part.reason) == (0.0, None)
    for wrong in (([1], [1, 2]), ([[1]], [[2]]), ([3], [2])):
        with pytest.raises(ValueError, match=r"counts|from 0 to n"):
            demographic_parity(*wrong)


@pytest.mark.parametrize("n", [10, 250])
@pytest.mark.parametrize(
    "shares",
    [[0.5] * 35, [0.9, 0.1], [0.02] * 20, [0.5] * 30 + [0.7] * 5, list(np.linspace(0.05, 0.95, 40)), [0.99] * 8],
)
def test_each_end_holds_by_itself(shares, n):
    rng, trials, shares = np.random.default_rng(1), 150, np.array(shares)
    true = shares.max() - shares.min(), shares.min() / shares.max()
    hits = np.zeros((2, 2))
    for _ in range(trials):
        found = demographic_parity(rng.binomial(n, shares), np.full(len(shares), n))
        for row, (value, figure) in enumerate(zip(true, (found.difference, found.ratio), strict=True)):
            low, high = (0.0, 1.0) if figure.low is None else (figure.low, figure.high)
            hits[row] += [low <= value + 1e-12, value <= high + 1e-12]
    for count in hits.flat:
        at_least(count, trials, 0.975)
