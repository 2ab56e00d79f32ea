"""From shards to bytes per image and rows: nothing lost, nothing labelled that is no image."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.storage import LocalStore
from jobs.cells import Cell, cut_cell
from jobs.labels import FAILED, TextEmbeddings
from jobs.shards import BASE, STATUSES, Shard, ShardError, ShardSpec
from jobs.tally import CellTally, Frame, Tallies, TallyTask, pack, parts_of, tally_part
from jobs.variants import Variant
from tests.jobs.helpers import RECIPE, config

CONFIG = config(images_per_cell=8, explicit_images=4, control_images=4, shard_images=4)
CELLS = [Cell("audit", "CEO", "at night", "a CEO at night", 8), Cell("control", "a tree", "a tree", "a tree", 4)]
TASKS = [TallyTask(CELLS[0], 0, 0), TallyTask(CELLS[1], None, 1)]
# Labels along the first two axes; the CEO along the third, the tree along the fourth.
TEXTS = TextEmbeddings(np.eye(4, dtype=np.float32)[None, :2], np.eye(4, dtype=np.float32)[2:], 20.0)
FEMALE_CEO, MALE_CEO, EITHER_CEO, TREE = np.array(
    [[0.5, 0, 0.8, 0], [0, 0.5, 0.8, 0], [0.4, 0.4, 0.8, 0], [0, 0, 0, 1]], np.float32
)
FRAME = Frame(RECIPE, {"base": Variant.plain(), "edited": Variant.plain("o")})


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
    frame = Frame(RECIPE, FRAME.variants, frozenset([gap.digest]))
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
