"""Intervals of rates: hand-computed values, and exact or simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from time_ops.stats.estimates import Rate
from time_ops.stats.intervals import paired_difference, paired_ratio, rate, wilson, worst_case

PROMISED = 0.95


def at_least(hits, trials, promised=PROMISED):
    """Not significantly below what is promised."""
    assert stats.binomtest(int(hits), trials, promised, alternative="less").pvalue > 1e-3, hits / trials


def test_wilson_by_hand():
    low, high = wilson([0, 5, 10, 0], [10, 10, 10, 0])
    assert low == pytest.approx([0, 0.2366, 0.7225, 0], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.7634, 1, 1], abs=1e-4)
    with pytest.raises(ValueError, match="0 to n"):
        wilson(3, 2)


def test_rate():
    assert rate(0, 0) == Rate(None, 0, 0.0, 1.0)
    found = rate(9, 10)
    assert (found.value, found.n) == (0.9, 10)
    assert (found.low, found.high) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    assert rate(10, 10).high == 1.0


def test_worst_case():
    low, high = worst_case([[3, 5, 2], [0, 0, 0]])
    assert low == pytest.approx(np.array([[0.3, 0.5], [0, 0]]))
    assert high == pytest.approx(np.array([[0.5, 0.7], [1, 1]]))


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("chance", [(0.9, 0.03, 0.05, 0.02), (0.97, 0.0, 0.02, 0.01), (0.5, 0.1, 0.2, 0.2)])
def test_coverage_of_paired_ratio_and_difference(n, chance):
    draws = np.random.default_rng(3).multinomial(n, chance, size=1000)
    both, edited_only, base_only = chance[:3]
    ratio, off = (both + edited_only) / (both + base_only), edited_only - base_only
    ratios_found = [paired_ratio(*map(int, draw[:3])) for draw in draws]
    differences = [paired_difference(int(draw[1]), int(draw[2]), n) for draw in draws]
    for true, found in ((ratio, ratios_found), (off, differences)):
        at_least(sum(one.low <= true for one in found), 1000)
        at_least(sum(one.high >= true for one in found), 1000)


def test_paired_by_hand():
    found = paired_ratio(90, 0, 10)
    assert found.value == 0.9
    assert 0.8 < found.low < 0.9 < found.high < 1
    assert paired_ratio(0, 0, 0) == Rate(None, 0, 0.0, math.inf)
    assert paired_ratio(0, 3, 0).value is None
    same = paired_difference(0, 0, 100)
    assert same.low < 0 == same.value < same.high
    assert paired_difference(0, 0, 0) == Rate(None, 0, -1.0, 1.0)


@pytest.mark.parametrize(("n", "p"), [(20, 0.9), (100, 0.9), (100, 0.99), (1750, 0.95), (50, 0.05)])
def test_coverage_of_rates_exactly(n, p):
    found = [rate(k, n) for k in range(n + 1)]
    chance = stats.binom.pmf(np.arange(n + 1), n, p)
    assert chance[[one.low <= p for one in found]].sum() >= 0.975
    assert chance[[one.high >= p for one in found]].sum() >= 0.975
