"""How shards are put together into the calls that make them."""

from collections.abc import Sequence

import pytest

from jobs.cluster.pool import _pieces
from jobs.images.recipe import Recipe
from jobs.images.shards import BASE, ShardSpec

RECIPE = Recipe("m", "c", "ddim", 1, 1.0, 8, 8, "float32", "", False, 0, ())


def shards(count: int, images: int) -> list[ShardSpec]:
    return [ShardSpec(RECIPE, BASE, "audit", f"prompt {i}", 0, images) for i in range(count)]


def sizes(pieces: Sequence[tuple[ShardSpec, ...]]) -> list[int]:
    return [sum(spec.count for spec in piece) for piece in pieces]


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [(10, 60, {110}), (12, 60, {120}), (50, 50, {100}), (10, 10, {70}), (7, 64, {119})],
)
def test_a_call_holds_whole_batches_of_several_shards(images: int, batch: int, expected: set[int]) -> None:
    found = sizes(list(_pieces(shards(240, images), lambda: batch)))
    assert sum(found) == 240 * images
    assert set(found[:-1]) == expected
    # What is padded is at most a tenth of what is drawn, but in the last call.
    assert all((-n % batch) / n <= 0.1 or n >= 256 for n in found[:-1])


def test_the_batch_that_workers_chose_counts_from_when_it_is_known() -> None:
    known = [10]
    found = []
    for piece in _pieces(shards(60, 10), lambda: known[-1]):
        found.append(sizes([piece])[0])
        known.append(60)
    assert found[0] == 70
    assert set(found[1:-1]) == {110}
