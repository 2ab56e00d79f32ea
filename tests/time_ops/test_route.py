"""The route: a pure function with published vectors; shares follow the weights, which a prompt's words find."""

import hashlib
import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from time_ops.errors import EditError
from time_ops.route import (
    ROUTE_VECTORS,
    ROUTE_VERSION,
    WeightTable,
    apportion,
    checked_weights,
    interval,
    prompt_words,
    route,
    routed,
    unit,
)

WEIGHTS = st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any).map(lambda w: [x / sum(w) for x in w])


def test_the_published_vectors_hold_for_ever() -> None:
    assert ROUTE_VERSION == 1  # another u for the same seed is another version, and other images in production
    assert [unit(seed, place) for seed, place, _ in ROUTE_VECTORS] == [u for _, _, u in ROUTE_VECTORS]
    # As the docstring says it, written anew: BLAKE2b of both numbers, 53 bits of it.
    told = (42).to_bytes(8, "little") + (1).to_bytes(8, "little")
    high = int(hashlib.blake2b(told, digest_size=8).hexdigest(), 16)
    assert unit(42, 1) == (high // 2**11) / 2**53
    assert unit(-1, 7) == unit(2**64 - 1, 7)


@given(weights=WEIGHTS, seed=st.integers(0, 2**64 - 1), place=st.integers(0, 1000))
def test_each_seed_has_one_component_and_it_is_the_interval_that_holds_it(
    weights: list[float], seed: int, place: int
) -> None:
    chosen = route(seed, weights, place)
    u = unit(seed, place)
    holding = [k for k in range(len(weights)) if interval(weights, k)[0] <= u < interval(weights, k)[1]]
    assert holding == [chosen]
    assert weights[chosen] > 0
    assert interval(weights, 0)[0] == 0
    assert max(high for _, high in (interval(weights, k) for k in range(len(weights)))) == 1


def test_components_draw_as_often_as_their_weights_say() -> None:
    weights = (0.2, 0.0, 0.5, 0.3)
    counts = np.bincount([route(seed, weights) for seed in range(20_000)], minlength=4)
    assert counts[1] == 0
    assert np.abs(counts / 20_000 - weights).max() < 0.012  # 3.5 standard errors
    places = np.bincount([route(7, weights, place) for place in range(20_000)], minlength=4)
    assert np.abs(places / 20_000 - weights).max() < 0.012


def test_routed_seeds_are_those_of_the_interval_in_order() -> None:
    seeds = [3 * i + 1 for i in range(200)]
    found = [list(routed(iter(seeds), *interval((0.25, 0.75), k))) for k in (0, 1)]
    assert found[0] == [i for i, seed in enumerate(seeds) if route(seed, (0.25, 0.75)) == 0]
    assert sorted(found[0] + found[1]) == list(range(200))
    endless = routed(count(), 0.0, 0.5)
    assert next(endless) == 0  # u of seed 0 is 0.32


@given(weights=WEIGHTS, n=st.integers(0, 500), prompt=st.text(max_size=20))
def test_images_are_apportioned_to_the_last_one(weights: list[float], n: int, prompt: str) -> None:
    counts = apportion(weights, n, prompt)
    assert sum(counts) == n
    assert all(abs(c - w * n) < 1 + 1e-6 for c, w in zip(counts, weights, strict=True))
    assert all(c == 0 for c, w in zip(counts, weights, strict=True) if w == 0)


def test_whole_numbers_stay_and_others_are_rounded_either_way_evenly_over_prompts() -> None:
    assert apportion((0.1, 0.2, 0.3, 0.4), 10, "any") == [1, 2, 3, 4]
    assert apportion((0.5, 0.5), 50, "any") == [25, 25]
    prompts = [f"a painting of profession {i}" for i in range(2000)]
    for weights, n in (((0.5, 0.5), 5), ((0.25, 0.25, 0.25, 0.25), 50), ((0.54, 0.46), 12), ((0.9, 0.1), 1)):
        mean = np.mean([apportion(weights, n, prompt) for prompt in prompts], axis=0)
        assert np.abs(mean - np.multiply(weights, n)).max() < 0.05  # 4 standard errors


@pytest.mark.parametrize("wrong", [(0.5,), (0.5, 0.6), (-0.1, 1.1), (math.nan, 1.0), (0.5, 0.25, 0.25)])
def test_weights_that_are_none_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(EditError, match="'a CEO'"):
        checked_weights(wrong, 2, "'a CEO'")


def test_a_prompt_is_looked_up_by_the_longest_source_that_it_names() -> None:
    table = WeightTable(
        (0.5, 0.5), {"a worker": (0.9, 0.1), "a construction worker": (0.2, 0.8), "the chief of staff": (1.0, 0.0)}
    )
    assert table.of("A painting of a female worker, at night") == (0.9, 0.1)
    assert table.of("a Construction WORKER working") == (0.2, 0.8)
    assert table.of("chief of staff") == (1.0, 0.0)
    assert table.of("a coworker") == table.of("construction") == table.of("") == (0.5, 0.5)
    assert prompt_words("A nurse's hat—red") == ("a", "nurse", "s", "hat", "red")
    assert WeightTable((1.0,)).of("a CEO") == (1.0,)


def test_a_table_names_all_that_is_wrong_with_it() -> None:
    with pytest.raises(EditError) as caught:
        WeightTable((0.5, 0.5), {"a CEO": (0.5,), "the CEO": (0.1, 0.9), "CEO": (0.9, 0.1), "...": (0.5, 0.5)})
    assert str(caught.value).count("\n  - ") == 3
    for part in ("'a CEO': 1 weights for 2", "'CEO' has the words of another source", "'...' has no word"):
        assert part in str(caught.value)
