"""What a mixture draws: the seeds that its route gives, as many as its weights say, in shards that only append."""

import io
from itertools import chain, islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.config import RunConfig
from jobs.images.cells import Cell, audit_cells, cut_cell, cut_parts, shards_of
from jobs.images.edits import operators_of, variant_of
from jobs.images.shards import BASE, Shard, ShardError, ShardSpec, image_seed
from jobs.images.variants import Draw, Part, Variant
from tests.jobs.helpers import RECIPE, config, manifest, spec
from time_ops import EditOperator, Mixture
from time_ops.route import ROUTE_VERSION, UNEDITED, WeightTable, apportion, route

PROMPT = "A painting of a CEO"


def mixed(*weights: float, professions: dict[str, tuple[float, ...]] | None = None) -> Variant:
    parts = tuple(Part(f"label {k}", f"operator {k}") for k in range(len(weights)))
    return Variant("mixture", parts, WeightTable(weights, professions))


def cell(images: int, prompt: str = PROMPT) -> Cell:
    return Cell("audit", "CEO", "A painting of {source}", prompt, images)


def blocks(size: int, kept: int = 0) -> RunConfig:
    return config(shard_images=size, pictures={"per_cell": kept})


def routed_seeds(weights: tuple[float, ...], component: int, count: int, prompt: str = PROMPT) -> list[int]:
    """One after the other, as production would meet them."""
    seeds = (image_seed(RECIPE.seed, "audit", prompt, i) for i in range(100_000))
    return list(islice((seed for seed in seeds if route(seed, weights) == component), count))


# Draws


def test_a_plain_variant_draws_every_seed() -> None:
    assert Variant.plain().digest == BASE
    assert Variant.plain("o").parts == (Part("", "o"),)
    assert Variant.plain("o").labels == ()
    assert Variant.plain("o").draws(PROMPT, 7, 3) == [Draw(0, 7, None, 3)]


def test_counts_are_the_weights_parts_and_ends_meet() -> None:
    variant = mixed(0.25, 0.375, 0.375)
    draws = variant.draws(PROMPT, 80, 16)
    assert variant.labels == ("label 0", "label 1", "label 2")
    assert [(d.part, d.count, d.block) for d in draws] == [(0, 20, 4), (1, 30, 6), (2, 30, 6)]
    assert [d.route for d in draws] == [(0.0, 0.25), (0.25, 0.625), (0.625, 1.0)]


@pytest.mark.parametrize("images", [1, 2, 7, 50, 101])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (1 / 3, 1 / 3, 1 / 3), (0.01, 0.99), (0.11, 0.22, 0.67)])
def test_no_image_is_lost_in_rounding(weights: tuple[float, ...], images: int) -> None:
    draws = mixed(*weights).draws(PROMPT, images, 50)
    assert sum(d.count for d in draws) == images
    assert all(d.count > 0 and d.block > 0 for d in draws)
    assert all(abs(d.count - weights[d.part] * images) < 1 for d in draws)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_component_without_weight_draws_nothing(place: int) -> None:
    weights = [0.5, 0.5]
    weights.insert(place, 0.0)
    draws = mixed(*weights).draws(PROMPT, 9, 4)
    assert [d.part for d in draws] == [k for k in range(3) if k != place]
    assert [d.count for d in draws] == [5, 4]
    assert [d.route for d in draws] == [(0.0, 0.5), (0.5, 1.0)]


def test_all_weight_on_one_component_is_every_seed_of_it() -> None:
    (only,) = mixed(0.0, 1.0).draws(PROMPT, 6, 4)
    assert (only.part, only.count, only.block, only.route) == (1, 6, 4, (0.0, 1.0))
    (shards,) = cut_parts(cell(6), RECIPE, mixed(0.0, 1.0), blocks(4))
    assert [s.indices for s in shards] == [(0, 1, 2, 3), (4, 5)]


def test_a_profession_may_have_weights_of_its_own() -> None:
    variant = mixed(0.5, 0.5, professions={"a CEO": (0.25, 0.75), "a nurse": (1.0, 0.0)})

    def counts(prompt: str) -> list[tuple[int, int]]:
        return [(d.part, d.count) for d in variant.draws(prompt, 20, 8)]

    assert counts("A painting of a CEO") == [(0, 5), (1, 15)]
    assert counts("The CEO, laughing") == [(0, 5), (1, 15)]
    assert counts("a nurse at night") == [(0, 20)]
    assert counts("a photo of a tree") == counts("a CEOs car") == [(0, 10), (1, 10)]
    shown = cut_parts(cell(20), RECIPE, variant, blocks(8))
    assert [[s.count for s in shards] for shards in shown] == [[2, 2, 1], [6, 6, 3]]


def test_an_edit_says_what_it_draws_and_with_which_operators() -> None:
    one, other = EditOperator(2 * torch.eye(4)), EditOperator(3 * torch.eye(4))
    assert (variant_of(None).digest, list(operators_of(None))) == (BASE, [])
    assert (variant_of(one).digest, list(operators_of(one))) == (one.digest, [one])
    mixture = Mixture.of({"female": one, "male": other}, [0.3, 0.7], {"a CEO": [0.6, 0.4]})
    variant = variant_of(mixture)
    assert (variant.digest, variant.labels) == (mixture.digest, ("female", "male"))
    assert [p.operator for p in variant.parts] == [one.digest, other.digest]
    assert [d.count for d in variant.draws("a CEO", 10, 10)] == [6, 4]
    assert list(operators_of(mixture)) == [one, other]
    # What leaves the model as it is draws the base model's images, and needs no operator.
    half = Mixture.of({"female": one, UNEDITED: EditOperator.identity(4)})
    assert [p.operator for p in variant_of(half).parts] == [one.digest, BASE]
    assert list(operators_of(half)) == [one]


# Shards of a mixture


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (0.2, 0.5, 0.3), (0.9, 0.0, 0.1)])
def test_each_component_draws_the_first_seeds_that_the_route_gives_it(weights: tuple[float, ...]) -> None:
    variant, images = mixed(*weights), 40
    cut = cut_parts(cell(images), RECIPE, variant, blocks(15))
    draws = variant.draws(PROMPT, images, 15)
    assert [d.count for d in draws] == [c for c in apportion(weights, images) if c]
    assert len(cut) == len(draws)
    for draw, shards in zip(draws, cut, strict=True):
        seeds = list(chain.from_iterable(s.seeds() for s in shards))
        assert seeds == routed_seeds(weights, draw.part, draw.count)
        assert {s.operator for s in shards} == {variant.parts[draw.part].operator}
        assert {s.route for s in shards} == {draw.route}
        indices = list(chain.from_iterable(s.indices for s in shards))
        assert seeds == [image_seed(RECIPE.seed, "audit", PROMPT, i) for i in indices]
        assert indices == sorted(set(indices))
    drawn = [i for shards in cut for s in shards for i in s.indices]
    assert len(set(drawn)) == images


def test_base_and_mixture_are_pairs_but_for_a_few_last_seeds() -> None:
    base = cut_cell(cell(200), RECIPE, BASE, blocks(50))
    edited = cut_parts(cell(200), RECIPE, mixed(0.5, 0.5), blocks(50))
    seeds = {seed for s in base for seed in s.seeds()}
    shared = seeds & {seed for shards in edited for s in shards for seed in s.seeds()}
    assert 170 < len(shared) < 200


def test_more_images_append_blocks_and_make_at_most_the_last_one_again() -> None:
    variant = mixed(0.3, 0.7)

    def digests(images: int) -> list[set[str]]:
        return [{s.digest for s in shards} for shards in cut_parts(cell(images), RECIPE, variant, blocks(20))]

    counts = [[s.count for s in shards] for shards in cut_parts(cell(50), RECIPE, variant, blocks(20))]
    assert counts == [[6, 6, 3], [14, 14, 7]]
    for few, many in ((40, 120), (20, 21), (60, 200)):
        # Whole blocks are found again, each in the component that made it.
        whole = few % 20 == 0
        for before, after in zip(digests(few), digests(many), strict=True):
            assert len(before - after) == 0 if whole else len(before - after) <= 1
    for before, after in zip(digests(50), digests(120), strict=True):
        assert len(before - after) == 1


def test_a_light_component_has_small_blocks_of_its_own() -> None:
    light, heavy = cut_parts(cell(200), RECIPE, mixed(0.01, 0.99), blocks(20))
    assert [s.count for s in light] == [1, 1]
    assert [s.count for s in heavy] == [20] * 9 + [18]
    assert [len(set(s.seeds())) for s in light] == [1, 1]


def test_pictures_are_each_components_first() -> None:
    cut = cut_parts(cell(20), RECIPE, mixed(0.3, 0.7), blocks(10, kept=4))
    assert [[(s.count, s.pictures) for s in shards] for shards in cut] == [[(3, 3), (3, 1)], [(7, 4), (7, 0)]]
    bare = cut_parts(cell(20), RECIPE, mixed(0.3, 0.7), blocks(10, kept=4), pictures=False)
    assert {s.pictures for shards in bare for s in shards} == {0}
    assert [[s.digest for s in shards] for shards in bare] == [[s.digest for s in shards] for shards in cut]


def test_a_mixtures_cell_begins_at_its_first_image() -> None:
    later = Cell("audit", "CEO", "w", PROMPT, 4, first=4)
    assert cut_cell(later, RECIPE, "o", blocks(4))[0].first == 4
    with pytest.raises(ValueError, match="begins at image 4"):
        cut_parts(later, RECIPE, mixed(0.5, 0.5), blocks(4))


def test_all_shards_of_a_mixture_are_those_of_its_cells_each_once() -> None:
    run = config(images_per_cell=12, explicit_images=5, control_images=5, shard_images=8)
    cells = audit_cells(manifest("CEO", "nurse"), run)
    found = list(shards_of([*cells, *cells], RECIPE, mixed(0.3, 0.7), run))
    cut = [s for c in cells for shards in cut_parts(c, RECIPE, mixed(0.3, 0.7), run) for s in shards]
    assert [s.digest for s in found] == [s.digest for s in cut]
    assert len({s.digest for s in found}) == len(found)
    assert sum(s.count for s in found) == sum(c.images for c in cells)


def test_components_of_one_operator_draw_their_own_seeds() -> None:
    """Two labels may come to one operator: what tells their shards apart is the route."""
    parts = (Part("female", "o"), Part("male", "o"))
    variant = Variant("mixture", parts, WeightTable([0.5, 0.5]))
    found = list(shards_of([cell(8)], RECIPE, variant, blocks(8)))
    assert [(s.operator, s.count) for s in found] == [("o", 4), ("o", 4)]
    assert len({seed for s in found for seed in s.seeds()}) == 8


# Their keys


def test_a_route_is_in_the_key_and_nothing_else_changes() -> None:
    routed = spec(route=(0.0, 0.5))
    assert "route" not in spec().key
    assert f'"route":[{ROUTE_VERSION},0.0,0.5]' in routed.key
    assert len({spec().digest, routed.digest, spec(route=(0.5, 1.0)).digest, spec(route=(0.0, 0.4)).digest}) == 4
    # Also where it lets every seed through: then indices are equal, but not what they stand for.
    assert spec(route=(0.0, 1.0)).digest != spec().digest
    assert spec(route=(0.0, 1.0)).seeds() == spec().seeds()


def test_a_routed_shards_digest_is_stable_across_machines_and_releases() -> None:
    # A golden value, as of a plain shard.
    assert spec(route=(0.25, 0.75)).digest == "9366a0a094e1ff5164d2b48201b13e56ae9c509e231fad94b1241479ff096930"
    assert spec(route=(0.25, 0.75)).indices == (1, 2, 3, 5)


def routed_shard(of: ShardSpec) -> Shard:
    embeddings = np.random.default_rng(0).normal(size=(of.count, 8)).astype(np.float32)
    pictures = [bytes([i]) * 9 if i < of.pictures else None for i in range(of.count)]
    return Shard(of, embeddings, np.array([0, 1, 0, 2], np.uint8), pictures, {"seconds": 1.5})


def test_a_routed_shard_reads_back_and_is_no_other_routes() -> None:
    of = spec(route=(0.5, 1.0), first=3)
    assert list(of.indices) != list(range(3, 7))
    assert list(np.diff(of.indices) > 0) == [True] * 3
    written = routed_shard(of)
    data = written.to_bytes()
    read = Shard.from_bytes(data, of)
    np.testing.assert_array_equal(read.embeddings, written.embeddings)
    np.testing.assert_array_equal(read.statuses, written.statuses)
    assert list(read.pictures) == list(written.pictures)
    assert read.spec.seeds() == [image_seed(RECIPE.seed, of.stream, of.prompt, i) for i in of.indices]
    for other in (spec(first=3), spec(route=(0.0, 0.5), first=3), spec(route=(0.5, 1.0))):
        with pytest.raises(ShardError, match="another key"):
            Shard.from_bytes(data, other)


def test_the_objects_rows_name_real_indices_and_seeds() -> None:
    of = spec(route=(0.5, 1.0))
    table = pq.read_table(io.BytesIO(routed_shard(of).to_bytes()))
    assert table.column("index").to_pylist() == list(of.indices)
    assert table.column("seed").to_pylist() == of.seeds()
    weights = (0.5, 0.5)
    assert [route(seed, weights) for seed in of.seeds()] == [1] * 4
