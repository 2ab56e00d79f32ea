"""Shares and Delta: hand-computed values."""

import math

import numpy as np
import pytest

from time_ops.stats.bounds import delta_bounds
from time_ops.stats.deltas import (
    delta,
    delta_per_wording,
    delta_within,
    noise_floor,
    rms_deviation,
    shares,
    total_variation,
)

HALF = (0.5, 0.5)


def test_delta_by_hand():
    counts = [[[10, 0], [0, 10]], [[5, 5], [8, 2]]]
    targets = [HALF, HALF]
    assert delta(np.sum(counts, axis=1), targets) == pytest.approx((0 + 0.3) / 2)
    assert delta_per_wording(counts, targets) == pytest.approx([0.5, 0.8])
    assert delta_within(counts, targets) == pytest.approx(0.65)
    assert total_variation([0.2, 0.3, 0.5], [0.2, 0.2, 0.6]) == pytest.approx(0.1 / 0.8)
    assert total_variation([1, 0, 0], [0.2, 0.2, 0.6]) == pytest.approx(1.0)


def test_cells_without_determined_images():
    assert np.isnan(shares([0, 0])).all()
    assert delta([[0, 0], [3, 1]], [HALF, HALF]) == pytest.approx(0.5)
    assert math.isnan(delta([[0, 0]], [HALF]))
    empty = np.tile([0, 0, 5], (10, 1, 1))
    found = delta_bounds(empty, [HALF] * 10, resamples=10).pooled
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)
    assert math.isnan(found.value)
    half = np.concatenate([empty, np.tile([50, 50, 0], (10, 1, 1))])
    assert delta_bounds(half, [HALF] * 20, resamples=10).pooled.high > 0.5


@pytest.mark.parametrize(("n", "floor"), [(24, 0.16), (125, 0.072), (250, 0.050), (1000, 0.025)])
def test_noise_floor_as_published(n, floor):
    assert noise_floor([n] * 3, [HALF] * 3) == pytest.approx(floor, abs=0.0015)


def test_noise_floor_is_the_expectation():
    targets = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    draws = np.random.default_rng(0).multinomial([30, 50], targets, size=(20_000, 2))
    drawn = total_variation(draws / [[30], [50]], targets).mean()
    assert noise_floor([30, 50], targets) == pytest.approx(drawn, rel=0.01)
    assert noise_floor([7], [(0.0, 1.0)]) == 0


def test_rms_deviation():
    assert rms_deviation([[75, 25]], [HALF]) == pytest.approx(math.sqrt(0.25 - 0.75 / 99))
    assert rms_deviation([[50, 50]], [HALF]) == 0
    assert math.isnan(rms_deviation([[1, 0]], [HALF]))
    draws = np.random.default_rng(1).multinomial(10, (0.6, 0.4), size=(4000, 5))
    assert rms_deviation(draws, [HALF] * 4000) == pytest.approx(0.2, abs=0.01)
