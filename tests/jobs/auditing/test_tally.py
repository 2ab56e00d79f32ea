"""From shards to bytes per image and rows: nothing lost, nothing labelled that is no image."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.storage import LocalStore
from jobs.auditing.blocks import places_of
from jobs.auditing.tally import CellTally, Drawn, Tallies, TallyFrame, TallyTask, pack, parts_of
from jobs.auditing.tally_part import tally_part
from jobs.images.cells import Cell, cut_cell, cut_parts
from jobs.images.labels import FAILED, TextEmbeddings
from jobs.images.shards import BASE, STATUSES, Shard, ShardError, ShardSpec, image_seed
from jobs.images.variants import Part, Variant
from tests.jobs.helpers import RECIPE, config
from time_ops.route import WeightTable, route

CONFIG = config(images_per_cell=8, explicit_images=4, control_images=4, shard_images=4)
CELLS = [Cell("audit", "CEO", "at night", "a CEO at night", 8), Cell("control", "a tree", "a tree", "a tree", 4)]
TASKS = [TallyTask(CELLS[0], 0, 0), TallyTask(CELLS[1], None, 1)]
# Labels along the first two axes; the CEO along the third, the tree along the fourth.
TEXTS = TextEmbeddings(np.eye(4, dtype=np.float32)[None, :2], np.eye(4, dtype=np.float32)[2:], 20.0)
FEMALE_CEO, MALE_CEO, EITHER_CEO, TREE = np.array(
    [[0.5, 0, 0.8, 0], [0, 0.5, 0.8, 0], [0.4, 0.4, 0.8, 0], [0, 0, 0, 1]], np.float32
)
FRAME = TallyFrame(RECIPE, {"base": Variant.plain(), "edited": Variant.plain("o")})


def put(
    store: LocalStore, spec: ShardSpec, images: list[np.ndarray], statuses: str = "ok ok ok ok", **made: object
) -> None:
    codes = np.array([STATUSES.index(s) for s in statuses.split()], np.uint8)
    embeddings = np.stack(images) / np.linalg.norm(images, axis=1, keepdims=True)
    embeddings[codes != 0] = 0
    shard = Shard(spec, embeddings.astype(np.float32), codes, [None] * 4, {"seconds": 2.0, "batch_size": [4], **made})
    store.put(spec.object_key, shard.to_bytes())


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path)
    for operator in (BASE, "o"):
        first, second = cut_cell(CELLS[0], RECIPE, operator, CONFIG)
        put(made, first, [FEMALE_CEO, MALE_CEO, EITHER_CEO, TREE])
        put(made, second, [FEMALE_CEO] * 4, "ok black nan undecodable", device="other")
        (tree,) = cut_cell(CELLS[1], RECIPE, operator, CONFIG)
        put(made, tree, [TREE, TREE, FEMALE_CEO, TREE])
    return made


def test_labels_counts_and_rows(store: LocalStore) -> None:
    part = tally_part(TASKS, FRAME, TEXTS, CONFIG, store, "rows.parquet")
    tallies = Tallies(TASKS, [part])
    ceo, tree = tallies
    assert ceo.codes.tolist() == [[0, 1, 2, 2, 0, FAILED, FAILED, FAILED]] * 2
    assert ceo.recognised.tolist() == [[True, True, True, False, True, False, False, False]] * 2
    assert ceo.ok.tolist() == [[True] * 5 + [False] * 3] * 2
    assert tree.codes.tolist() == [[FAILED] * 4] * 2
    assert tree.ok.all()
    assert tree.recognised.tolist() == [[True, True, False, True]] * 2
    assert tallies.seconds.tolist() == [6.0, 6.0]
    assert part.statuses == {"black": 2, "nan": 2, "undecodable": 2}
    assert sorted(part.makers.values()) == [8, 16]
    assert ceo.drift == pytest.approx(0, abs=1e-6)
    assert ceo.swept[0, 0].tolist() == [4, 1, 0]  # a margin of nothing leaves nobody undetermined

    rows = pq.read_table(io.BytesIO(store.get("rows.parquet"))).to_pylist()
    assert len(rows) == 2 * (8 + 4)
    mine = [r for r in rows if r["variant"] == "edited" and r["profession"] == "CEO"]
    assert [r["index"] for r in mine] == list(range(8))
    names = ["female", "male", "undetermined", "undetermined", "female", None, None, None]
    assert [r["label"] for r in mine] == names
    assert [r["status"] for r in mine] == ["ok"] * 5 + ["black", "nan", "undecodable"]
    assert [r["seed"] for r in mine] == [s for spec in cut_cell(CELLS[0], RECIPE, "o", CONFIG) for s in spec.seeds()]
    assert {r["label"] for r in rows if r["kind"] == "control"} == {None}


def test_a_shard_that_was_given_up_is_a_gap_that_counts(store: LocalStore) -> None:
    gap = cut_cell(CELLS[0], RECIPE, "o", CONFIG)[0]
    store.delete(gap.object_key)
    frame = TallyFrame(RECIPE, FRAME.variants, frozenset([gap.digest]))
    part = tally_part(TASKS, frame, TEXTS, CONFIG, store, "rows.parquet")
    ceo = Tallies(TASKS, [part])[0]
    assert ceo.ok.sum(axis=1).tolist() == [5, 1]
    assert part.statuses["missing"] == 4
    rows = pq.read_table(io.BytesIO(store.get("rows.parquet"))).to_pylist()
    assert Counter(r["status"] for r in rows if r["shard"] == gap.digest) == {"missing": 4}


def test_a_damaged_shard_is_never_counted(store: LocalStore) -> None:
    spec = cut_cell(CELLS[0], RECIPE, BASE, CONFIG)[0]
    store.put(spec.object_key, store.get(spec.object_key)[:-9])
    with pytest.raises(ShardError):
        tally_part(TASKS, FRAME, TEXTS, CONFIG, store, None)


def test_parts_keep_all_cells_in_order() -> None:
    many = [TallyTask(Cell("audit", str(i), "w", str(i), 900), 0, 0) for i in range(50)]
    parts = list(parts_of(many, 2))
    assert [task for part in parts for task in part] == many
    assert [sum(2 * t.cell.images for t in part) for part in parts][:-1] == [19_800] * (len(parts) - 1)


def test_a_byte_says_it_all() -> None:
    codes = np.array([0, 59, FAILED, FAILED, 1])
    recognised = np.array([True, False, True, True, True])
    ok = np.array([True, True, True, False, False])
    packed = pack(codes, recognised, ok)
    assert len(set(packed.tolist())) == 4  # an image that is none says no more than that
    cell = CellTally(packed[None], np.zeros(1), np.nan, np.zeros((0, 63), np.int32))
    assert cell.codes.tolist() == [[0, 59, FAILED, FAILED, FAILED]]
    assert cell.recognised.tolist() == [[True, False, True, False, False]]
    assert cell.ok.tolist() == [[True, True, True, False, False]]


# Mixtures

WEIGHTS = (0.25, 0.75)
LAUGHING = "a CEO laughing"
MIXED = Variant("mixture", (Part("female", "f"), Part("male", "m")), WeightTable(WEIGHTS))
MANY = config(images_per_cell=12, explicit_images=4, control_images=4, shard_images=8)
SEXES = [TallyTask(Cell("audit", "CEO", "laughing", LAUGHING, 12), 0, 0), TASKS[1]]


def seed_of(prompt: str, index: int) -> int:
    return image_seed(RECIPE.seed, "audit", prompt, index)


def look(index: int) -> np.ndarray:
    """Another image for each index."""
    return np.array([np.cos(index), np.sin(index), 0.8, 0], np.float32)


def draw(store: LocalStore, spec: ShardSpec, **black: int) -> None:
    """What the base and the components draw: `look` at every index, the male component's of the other label."""
    seen = np.stack([TREE if spec.prompt == "a tree" else look(i) for i in spec.indices])
    if spec.operator == "m" and spec.prompt != "a tree":
        seen[:, :2] = 0, 1
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    is_black = [spec.prompt != "a tree" and black.get(spec.operator) == i for i in spec.indices]
    codes = np.array(is_black, np.uint8)
    seen[codes != 0] = 0
    shard = Shard(spec, seen.astype(np.float32), codes, [None] * spec.count, {"seconds": 2.0})
    store.put(spec.object_key, shard.to_bytes())


def drawn(store: LocalStore, variant: Variant, **black: int) -> None:
    for task in SEXES:
        for shards in cut_parts(task.cell, RECIPE, variant, MANY):
            for spec in shards:
                draw(store, spec, **black)


def table_of(store: LocalStore) -> list[dict[str, object]]:
    rows = pq.read_table(io.BytesIO(store.get("rows.parquet"))).to_pylist()
    return [row for row in rows if row["kind"] == "audit"]


def component_of(index: int) -> int:
    return route(seed_of(LAUGHING, index), WEIGHTS)


@pytest.mark.parametrize(
    ("indices", "first", "order"),
    [
        ([0, 1, 2], 0, [0, 1, 2]),
        ([2, 0, 1], 0, [1, 2, 0]),
        # Two and four are lacking: six and nine stand in their places.
        ([1, 6, 0, 9, 3], 0, [2, 0, 1, 4, 3]),
        ([9, 3, 0, 6, 1], 0, [2, 4, 3, 1, 0]),
        ([7, 8], 6, [1, 0]),
    ],
)
def test_equal_seeds_have_one_place_and_later_ones_fill_the_gaps(
    indices: list[int], first: int, order: list[int]
) -> None:
    found = places_of(np.array(indices), first)
    assert found.tolist() == order
    assert sorted(found) == list(range(len(indices)))
    for place, image in enumerate(found):
        inside = indices[image] < first + len(indices)
        assert not inside or indices[image] == first + place


def test_a_mixtures_images_stand_by_their_index_beside_the_bases(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    drawn(store, Variant.plain())
    drawn(store, MIXED)
    frame = TallyFrame(RECIPE, {"base": Variant.plain(), "edited": MIXED})
    tallies = Tallies(SEXES, [tally_part(SEXES, frame, TEXTS, MANY, store, "rows.parquet")])
    ceo, tree = tallies

    own = {k: [i for i in range(99) if component_of(i) == k] for k in (0, 1)}
    female, male = own[0][:3], own[1][:9]
    inside = {i for i in (*female, *male) if i < 12}
    assert 9 <= len(inside) < 12, "some seeds are common, and not all"
    base = ceo.codes[0].tolist()
    for i in inside:
        assert ceo.codes[1, i] == (base[i] if i in female else 1)
    # The places of seeds that only the base has hold those that only the mixture has.
    alone = [i for i in range(12) if i not in inside]
    others = [i for i in sorted((*female, *male)) if i >= 12]
    expected = []
    for i in others:
        x, y = look(i)[:2]
        undetermined = abs(2 / (1 + np.exp(-20 * (x - y) / np.linalg.norm(look(i)))) - 1) < 0.1
        expected.append(1 if i in male else 2 if undetermined else int(y > x))
    assert ceo.codes[1, alone].tolist() == expected
    # Both variants' images of every kind: controls are drawn alike by base and components.
    assert tree.recognised.all()
    assert tree.drift == pytest.approx(0, abs=1e-6)

    rows = [row for row in table_of(store) if row["variant"] == "edited"]
    assert [row["component"] for row in rows] == ["female"] * 3 + ["male"] * 9
    assert [row["index"] for row in rows] == [*female, *male]
    assert [row["seed"] for row in rows] == [seed_of(LAUGHING, i) for i in (*female, *male)]
    specs = [spec for shards in cut_parts(SEXES[0].cell, RECIPE, MIXED, MANY) for spec in shards]
    assert [row["shard"] for row in rows] == [s.digest for s in specs for _ in range(s.count)]
    plain = [row for row in table_of(store) if row["variant"] == "base"]
    assert [row["index"] for row in plain] == list(range(12))
    assert {row["component"] for row in plain} == {None}
    # A label of a row is the image's own, not that of its place.
    names = ["female", "male", "undetermined"]
    by_index = {row["index"]: row["label"] for row in rows}
    assert [by_index[i] for i in sorted(inside)] == [names[ceo.codes[1, i]] for i in sorted(inside)]


def test_a_component_counts_what_it_drew_and_no_failed_image(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    black = next(i for i in range(99) if component_of(i) == 1)
    drawn(store, MIXED, m=black)
    part = tally_part(SEXES, TallyFrame(RECIPE, {"edited": MIXED}), TEXTS, MANY, store, "rows.parquet")
    assert part.components.shape == (2, 2, 5)
    ceo, tree = Tallies(SEXES, [part])
    labels = Counter(str(row["label"]) for row in table_of(store) if row["component"] == "female")
    female, male = ceo.components
    assert female[:3].tolist() == [labels["female"], labels["male"], labels["undetermined"]]
    assert (female[Drawn.OK], male[Drawn.OK]) == (3, 8)
    assert male.tolist() == [0, 8, 0, 8, 8]
    assert female[Drawn.RECOGNISED] == 3
    assert ceo.components[:, :3].sum() == (ceo.codes[0] != FAILED).sum() == 11
    assert ceo.ok[0].tolist() == [i != black for i in range(12)]
    # A control has no label, but may be recognised.
    assert tree.components.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 3, 3]]
    assert np.isnan(ceo.drift)


def test_components_are_the_last_variants(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for variant in (Variant.plain(), MIXED):
        drawn(store, variant)
    of_base = tally_part(SEXES, TallyFrame(RECIPE, {"base": Variant.plain()}), TEXTS, MANY, store, None)
    assert of_base.components.shape == (2, 0, 5)
    mixed = tally_part(SEXES, TallyFrame(RECIPE, {"edited": MIXED}), TEXTS, MANY, store, None)
    both = Tallies(SEXES, [mixed]).after(of_base)
    assert both.variants == 2
    assert np.array_equal(both.components, mixed.components)
    assert np.array_equal(both[0].packed, np.concatenate([of_base.packed, mixed.packed])[:, :12])


def test_drift_is_over_equal_seeds_only(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    drawn(store, Variant.plain())
    # Both components draw what the base draws at each seed; places of other seeds are no pairs.
    alike = Variant("mixture", (Part("female", "f"), Part("male", "f2")), WeightTable(WEIGHTS))
    drawn(store, alike)
    frame = TallyFrame(RECIPE, {"base": Variant.plain(), "edited": alike})
    found = tally_part(SEXES, frame, TEXTS, MANY, store, None)
    assert found.drift == pytest.approx([0, 0], abs=1e-6)

    drawn(store, MIXED)
    found = tally_part(SEXES, TallyFrame(RECIPE, {"base": Variant.plain(), "edited": MIXED}), TEXTS, MANY, store, None)
    female = [i for i in range(99) if component_of(i) == 0][:3]
    male = [i for i in range(99) if component_of(i) == 1][:9]
    far = []
    for i in (*female, *male):
        if i < 12:
            one, other = look(i), look(i)
            if i in male:
                other[:2] = 0, 1
            far.append(1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert found.drift[0] == pytest.approx(np.mean(far), abs=1e-6)


def test_a_mixtures_shard_that_was_given_up_is_a_gap_in_its_component(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    drawn(store, MIXED)
    gap = cut_parts(SEXES[0].cell, RECIPE, MIXED, MANY)[1][0]
    store.delete(gap.object_key)
    frame = TallyFrame(RECIPE, {"edited": MIXED}, frozenset([gap.digest]))
    ceo = Tallies(SEXES, [tally_part(SEXES, frame, TEXTS, MANY, store, "rows.parquet")])[0]
    assert ceo.components[:, Drawn.OK].tolist() == [3, 9 - gap.count]
    rows = [row for row in table_of(store) if row["status"] == "missing"]
    assert [row["index"] for row in rows] == list(gap.indices)
    assert {row["component"] for row in rows} == {"male"}
