"""The split deviation: exact by enumeration, and its moments bounded."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from time_ops.stats import splits
from time_ops.stats.splits import split_deviation


def test_split_deviation_is_the_mean_over_splits():
    def by_hand(k, n, t):
        images, found = [1] * k + [0] * (n - k), []
        for m in (n // 2, (n + 1) // 2):
            ones = [sum(images[i] for i in half) for half in combinations(range(n), m)]
            found.append(np.mean([np.sign(round(a / m - t, 9)) * ((k - a) / (n - m) - t) for a in ones]))
        return np.mean(found)

    for n in (2, 3, 6, 7):
        for t in (0.5, 0.3, 1 / 3, 0.0, 1.0):
            for k in range(n + 1):
                assert float(split_deviation(k, n, t)) == pytest.approx(by_hand(k, n, t), abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 9, 12, 20, 30, 39, 40, 41, 50, 100, 250])
def test_split_deviation_is_never_too_large_and_its_moments_are_bounded(n):
    k = np.arange(n + 1)
    size = int(np.digitize(n, splits._SPLIT_SIZES))
    for t in (0.5, 0.4, 1 / 3, 0.3, 0.25, 0.2, 0.1, 0.05, 0.02):
        p = np.unique([*np.linspace(0.005, 0.995, 199), t])
        chance = stats.binom.pmf(k[:, None], n, p)
        split = split_deviation(k, n, t)
        mean = split @ chance
        assert (mean <= np.abs(p - t) + 1e-12).all()
        off = split[:, None] - mean
        assert 4 * n * ((off**2) * chance).sum(axis=0).max() <= splits._SPLIT_VARIANCE[size]
        assert (4 * n) ** 1.5 * ((off**3) * chance).sum(axis=0).max() <= splits._SPLIT_THIRD[size]
