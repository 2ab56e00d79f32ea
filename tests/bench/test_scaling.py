"""The model of docs/scaling.md says what was measured, and what follows from it without a simulation."""

import math
from collections import Counter

import pytest

from tests.bench.scaling import CORES, SHARD_IMAGES, Measured, limits, measured, simulate
from tests.jobs.helpers import spec


@pytest.fixture(scope="module")
def figures() -> Measured:
    return measured()


def test_one_node_that_draws(figures: Measured) -> None:
    """What storing costs the workers takes as little off the demo model's images per CPU second as was measured."""
    predicted = 1 / (1 + figures.cpu_us["workers"] / 1e6 / figures.bare_cpu_s)
    least, most = figures.engine_to_bare
    assert least - 0.005 <= predicted <= most + 0.005


def test_one_node_with_all_that_runs_there(figures: Measured) -> None:
    """And what all processes cost, off its images per second, where they share the cores with the models."""
    drawing_s = CORES / figures.bare_images_per_s
    predicted = 1 / (1 + sum(figures.cpu_us.values()) / 1e6 / drawing_s)
    least, most = figures.engine_to_bare_images
    assert least - 0.005 <= predicted <= most + 0.005


def test_one_node_simulated(figures: Measured) -> None:
    """The simulation, of workers slowed by what they share the cores with, gives the measured images per second."""
    others = sum(figures.cpu_us.values()) / 1e6
    rate = 1 / (CORES / figures.bare_images_per_s + others)
    found = simulate(100_000, CORES, rate, figures)
    least, most = figures.engine_to_bare_images
    measured_least, measured_most = (end * figures.bare_images_per_s for end in (least, most))
    assert 0.99 * measured_least <= 100_000 / found.seconds <= 1.01 * measured_most


def test_a_driver_with_time_to_spare_keeps_gpus_busy(figures: Measured) -> None:
    found = simulate(20_000, 8, 1.0, figures)
    rounds = math.ceil(20_000 / 100 / 8)
    assert found.seconds == pytest.approx(rounds * 100, rel=0.002)
    assert found.gpu_busy == pytest.approx(20_000 / (rounds * 100 * 8), rel=0.002)


def test_a_driver_that_is_full_is_the_rate(figures: Measured) -> None:
    full = limits(figures)["driver, one core"]
    found = simulate(400_000, 500, full / 100, figures)  # five times what it can take
    assert 0.8 * full < 400_000 / found.seconds < full
    assert found.gpu_busy < 0.25


def test_more_gpus_are_never_slower_until_then(figures: Measured) -> None:
    seconds = [simulate(100_000, gpus, 5.0, figures).seconds for gpus in (1, 4, 16, 64, 256)]
    assert seconds == sorted(seconds, reverse=True)


def test_a_turn_grows_with_the_calls_under_way(figures: Measured) -> None:
    assert figures.turn(10) <= figures.turn(500) <= figures.turn(2000) < figures.turn(4000)
    assert figures.turn(2000) == max(figures.turn_s.values())


def test_the_digest_spreads_the_shards() -> None:
    keys = [spec(first=SHARD_IMAGES * i).object_key for i in range(5_120)]
    folders = Counter(key.rpartition("/")[0] for key in keys)
    assert len(folders) == 256
    assert max(folders.values()) < 60, "20 each, give or take chance"
