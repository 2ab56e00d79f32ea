"""Efficacy, generality, specificity: the choice, the means, and intervals that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from time_ops.stats.evaluation import (
    chooses_destination,
    evaluate,
    harmonic_mean,
    kept,
    mean_over_edits,
    resampled_edits,
)
from time_ops.stats.intervals import exact_interval


def test_a_tie_is_the_sources() -> None:
    source, destination = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    images = np.array([[0.8, 0.6], [0.6, 0.8], [math.sqrt(0.5), math.sqrt(0.5)]])
    assert chooses_destination(images, source, destination).tolist() == [False, True, False]


def test_every_edit_counts_alike_and_one_without_images_not_at_all() -> None:
    successes = [[24, 0, 0], [60, 30, 0], [0, 10, 0]]
    images = [[24, 24, 24], [120, 40, 120], [0, 20, 0]]
    found = evaluate(successes, images, resampled_edits(3, 200))
    assert found.efficacy.value == pytest.approx(1 / 3)
    assert found.generality.value == pytest.approx((0.5 + 0.75 + 0) / 3)
    assert found.specificity.value == pytest.approx(0.5)
    assert (found.efficacy.n, found.specificity.n) == (72, 20)
    assert found.harmonic.value == pytest.approx(3 / (3 + 3 / 1.25 + 2))
    assert found.f1.value == pytest.approx(2 / (3 / 1.25 + 2))


def test_harmonic_means() -> None:
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0]) == 0.0
    assert math.isnan(harmonic_mean([1.0, math.nan]))


def test_edits_without_negatives_have_no_specificity_and_no_mean_with_it() -> None:
    found = evaluate([[3, 4], [5, 6], [0, 0]], [[4, 4], [8, 8], [0, 0]], resampled_edits(2, 100))
    assert found.specificity.value is None
    assert found.harmonic.value is None
    assert found.f1.value is None
    assert found.generality.value == pytest.approx((5 / 8 + 6 / 8) / 2)


def test_an_interval_is_never_a_point_where_every_image_is_a_success() -> None:
    n = np.array([[24] * 5, [120] * 5, [120] * 5])
    found = evaluate(n, n, resampled_edits(5))
    low, _ = exact_interval(120, 120)
    assert found.efficacy.low == pytest.approx(float(low))
    assert found.efficacy.high == 1.0
    assert found.harmonic.low < 1.0


def test_one_edit_alone_has_the_exact_interval() -> None:
    found = evaluate([[20], [0], [0]], [[24], [0], [0]], resampled_edits(1, 50))
    assert (found.efficacy.low, found.efficacy.high) == pytest.approx(tuple(map(float, exact_interval(20, 24))))


@pytest.mark.parametrize(("edits", "a", "b", "least"), [(8, 2.0, 2.0, 0.88), (40, 3.0, 1.0, 0.90)])
def test_intervals_hold_where_edits_differ(edits: int, a: float, b: float, least: float) -> None:
    rng = np.random.default_rng(3)
    truth, held = a / (a + b), []
    for trial in range(150):
        chance = rng.beta(a, b, size=(3, edits))
        n = np.tile([[24], [120], [120]], (1, edits))
        found = evaluate(rng.binomial(n, chance), n, resampled_edits(edits, 400, trial))
        held += [rate.low <= truth <= rate.high for rate in (found.efficacy, found.generality, found.harmonic)]
    assert np.mean(held) >= least


def test_what_is_kept_is_a_ratio_on_the_same_seeds() -> None:
    draws = resampled_edits(3)
    joint = np.array([[90, 0, 10, 120], [100, 5, 0, 120], [50, 0, 50, 120]])
    found = kept(joint, draws)
    assert found.value == pytest.approx((90 + 105 + 50) / (100 + 100 + 100))
    assert 0.3 < found.low < found.value < found.high
    unmoved = kept(np.array([[120, 0, 0, 120]] * 4), resampled_edits(4))
    assert (unmoved.value, unmoved.low < 1.0, unmoved.high > 1.0) == (1.0, True, True)
    assert kept(np.array([[0, 3, 0, 24]] * 2), resampled_edits(2)).value is None


def test_a_mean_over_edits_leaves_out_those_without_one() -> None:
    draws = resampled_edits(4)
    found = mean_over_edits([1.0, 2.0, math.nan, 6.0], draws)
    assert found.value == pytest.approx(3.0)
    assert found.low is not None
    assert found.high is not None
    assert 1.0 <= found.low < 3.0 < found.high <= 6.0
    assert mean_over_edits([math.nan] * 4, draws).value is None
    assert mean_over_edits([5.0, *[math.nan] * 3], draws) == (type(found))(5.0, None, None)


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        evaluate([[1, 2]], [[1, 2]], resampled_edits(2, 10))
    with pytest.raises(ValueError, match="don't fit"):
        kept([[1, 2, 3, 4]], resampled_edits(2, 10))
    with pytest.raises(ValueError, match="don't fit"):
        mean_over_edits([1.0], resampled_edits(2, 10))
