"""Confidence sequences: the mathematics on a grid, and the chance of ever missing, worked out over all paths."""

import numpy as np
import pytest
from scipy import integrate, stats

from time_ops.stats.intervals import wilson
from time_ops.stats.sequences import confidence_sequence

ALPHA = 0.05


def ever_missed(interval, batch, looks, p):
    """Exact chance that a look leaves out the mean of p; a batch has equally many images of each share in p."""
    step = np.ones(1)
    for one in p:
        step = np.convolve(step, stats.binom.pmf(np.arange(batch + 1), batch, one))
    size, chance = len(step) - 1, np.ones(1)
    for look in range(1, looks + 1):
        chance = np.convolve(chance, step)
        low, high = interval(np.arange(look * size + 1), look * size)
        chance[(low > np.mean(p)) | (high < np.mean(p))] = 0.0
    return 1 - chance.sum()


@pytest.mark.parametrize("p", [0.5, 0.62, 0.9, 0.98, 0.01])
@pytest.mark.parametrize(("batch", "looks"), [(1, 300), (25, 80)])
def test_holds_at_all_looks_together_where_wilson_does_not(p, batch, looks):
    assert ever_missed(confidence_sequence, batch, looks, [p]) <= ALPHA
    assert ever_missed(wilson, batch, looks, [p]) > 3 * ALPHA


@pytest.mark.parametrize("p", [(0.1, 0.3, 0.5, 0.7, 0.9), (0.02, 0.04, 0.5), (0.9, 0.99)])
def test_holds_for_the_mean_share_of_wordings_in_equal_numbers(p):
    assert ever_missed(confidence_sequence, 4, 40, p) <= ALPHA


def test_simulated_stopping_as_soon_as_a_share_looks_decided():
    """Professions on target, seen after every batch: how many are ever called off it."""
    k = np.random.default_rng(0).binomial(20, 0.5, size=(2000, 60)).cumsum(axis=1)
    n = 20 * np.arange(1, 61)
    for interval, least, most in ((confidence_sequence, 0.95, 1.0), (wilson, 0.0, 0.8)):
        low, high = interval(k, n)
        assert least <= ((low <= 0.5) & (high >= 0.5)).all(axis=1).mean() <= most


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (3, 10), (7, 9), (1, 400), (250, 500), (40, 40)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_is_where_the_mixture_has_not_reached_its_limit(k, n, confidence):
    """By direct evaluation: the mixture integrated numerically, the set read off a grid of shares."""
    grid = np.linspace(0, 1, 20_001)
    mixture = integrate.quad(lambda q: stats.binom.pmf(k, n, q), 0, 1, points=[k / n], epsabs=0, epsrel=1e-10)[0]
    inside = grid[mixture * (1 - confidence) < stats.binom.pmf(k, n, grid)]
    low, high = confidence_sequence(k, n, confidence)
    assert low == pytest.approx(inside.min(), abs=1e-4)
    assert high == pytest.approx(inside.max(), abs=1e-4)


def test_edges_and_symmetry():
    k, n = np.array([0, 0, 5, 10, 1]), np.array([0, 10, 10, 10, 10**6])
    low, high = confidence_sequence(k, n)
    assert low[:2] == pytest.approx([0, 0])
    assert (high[0], high[3]) == (1.0, 1.0)
    assert high[1] == pytest.approx(1 - (0.05 / 11) ** 0.1)  # k = 0: 1 / (n + 1) = (1 - p)^n / alpha
    assert 0 < low[4] < 1e-6 < high[4]
    other_low, other_high = confidence_sequence(n - k, n)
    np.testing.assert_allclose(other_low, 1 - high, rtol=0, atol=1e-12)
    np.testing.assert_allclose(other_high, 1 - low, rtol=0, atol=1e-12)
    assert confidence_sequence(3, 10)[0].shape == ()
    assert confidence_sequence(np.zeros((0, 2)), 10)[1].shape == (0, 2)


def test_is_wider_than_wilson_and_shrinks():
    n = 10 ** np.arange(1, 10)
    low, high = confidence_sequence(n * 3 // 10, n)
    wilson_low, wilson_high = wilson(n * 3 // 10, n)
    assert (low < wilson_low).all()
    assert (high > wilson_high).all()
    assert (np.diff(high - low) < 0).all()
    assert high[-1] - low[-1] < 2e-4


def test_refuses_what_is_no_count():
    for k, n, confidence in ((3, 2, 0.95), (-1, 2, 0.95), (float("nan"), 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)):
        with pytest.raises(ValueError, match="must"):
            confidence_sequence(k, n, confidence)
