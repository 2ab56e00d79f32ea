"""Shards across batches: every image in its place, whatever the sizes; the store and the memory at their worst."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.storage import LocalStore, StorageError
from jobs.images.generator import ImageRequest, Images
from jobs.images.shard_maker import ShardMaker
from jobs.images.shards import Shard, ShardSpec
from tests.jobs.helpers import spec


class Painter:
    """Draws each request's seed into its image; batches larger than `fits` are too much."""

    def __init__(self, fits: int = 99) -> None:
        self.fits, self.sizes, self.threads = fits, list[int](), set[int]()

    def draw(self, requests: Sequence[ImageRequest], batch_size: int) -> Images:
        if batch_size > self.fits:
            raise torch.OutOfMemoryError
        self.sizes.append(batch_size)
        self.threads.add(threading.get_ident())
        pixels = np.stack([np.full((8, 8, 3), r.seed % 251, np.uint8) for r in requests])
        statuses = np.array([1 if r.prompt == "black" else 0 for r in requests], np.uint8)
        return Images(pixels, statuses)


class Reader:
    """Embeds an image as what is drawn in it."""

    def __init__(self, fits: int = 99) -> None:
        self.fits = fits

    def images(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        if batch_size > self.fits:
            raise torch.OutOfMemoryError
        return pixels[:, 0, 0, :2].astype(np.float32) + 1


def maker(folder: Path, painter: Any, size: int, reader: Any = None, **options: Any) -> ShardMaker:
    store = options.pop("store", LocalStore(folder))
    options = {"auto": False, "provenance": {"device": "d"}} | options
    return ShardMaker(painter, reader or Reader(), store, threading.RLock(), size, **options)


def stored(folder: Path, of: ShardSpec) -> Shard:
    return Shard.from_bytes(LocalStore(folder).get(of.object_key), of)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 50])
def test_every_image_is_in_its_place(tmp_path: Path, size: int) -> None:
    specs = [spec(prompt=str(i), first=10 * i, count=i + 2, pictures=1) for i in range(5)]
    outcomes = maker(tmp_path, Painter(), size).make(specs)
    assert [(o.digest, o.images, o.failed_images, o.reused) for o in outcomes] == [
        (s.digest, s.count, 0, False) for s in specs
    ]
    for one in specs:
        shard = stored(tmp_path, one)
        assert shard.embeddings[:, 0].tolist() == [seed % 251 + 1 for seed in one.seeds()]
        assert [p is not None for p in shard.pictures] == [True] + [False] * (one.count - 1)
        assert shard.provenance["batch_size"] == [size]
        assert shard.provenance["seconds"] >= 0


def test_images_that_are_none_keep_nothing(tmp_path: Path) -> None:
    bad = spec(prompt="black")
    (outcome,) = maker(tmp_path, Painter(), 4).make([bad])
    assert outcome.failed_images == 4
    shard = stored(tmp_path, bad)
    assert not shard.embeddings.any()
    assert set(shard.statuses) == {1}
    assert set(shard.pictures) == {None}


def test_an_automatic_batch_is_halved_where_memory_runs_out(tmp_path: Path) -> None:
    painter = Painter(fits=3)
    makes = maker(tmp_path, painter, 8, Reader(fits=1), auto=True)
    specs = [spec(first=4 * i) for i in range(3)]
    makes.make(specs)
    assert set(painter.sizes) == {2}
    for one in specs:
        assert stored(tmp_path, one).embeddings[:, 0].tolist() == [seed % 251 + 1 for seed in one.seeds()]
    with pytest.raises(torch.OutOfMemoryError):
        maker(tmp_path, Painter(fits=3), 8).make(specs)


def test_two_callers_share_one_device(tmp_path: Path) -> None:
    makes = maker(tmp_path, Painter(), 3)
    halves = [[spec(prompt=f"{k}-{i}") for i in range(6)] for k in range(2)]
    threads = [threading.Thread(target=makes.make, args=(half,)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in [*halves[0], *halves[1]]:
        assert stored(tmp_path, one).embeddings[:, 0].tolist() == [seed % 251 + 1 for seed in one.seeds()]


def test_a_store_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file where a folder should be")
    with pytest.raises(StorageError):
        maker(tmp_path, Painter(), 4).make([spec()])
