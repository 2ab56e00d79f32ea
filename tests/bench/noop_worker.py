"""A worker whose models cost nothing: what is left is the engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np

from jobs.images.generator import ImageRequest, Images
from jobs.images.labels import TextEmbeddings
from jobs.images.shard_maker import ShardMaker
from jobs.worker.worker import Worker

__all__ = ["CELL", "WIDTH", "NoopWorker"]

WIDTH = 64
CELL = 50


class NoGenerator:
    """Blank images at once."""

    def knows(self, digest: str) -> bool:
        """Any operator will do."""
        del digest
        return True

    def knowing(self, operators: object) -> AbstractContextManager[None]:
        """Likewise."""
        del operators
        return nullcontext()

    def draw(self, requests: Sequence[ImageRequest], batch_size: int) -> Images:
        """White images [n, 8, 8, 3]."""
        del batch_size
        n = len(requests)
        return Images(np.full((n, 8, 8, 3), 255, np.uint8), np.zeros(n, np.uint8))


class NoClassifier:
    """Random unit embeddings at once."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def images(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        """[n, D] float32."""
        del batch_size
        values = self._random.standard_normal((len(pixels), WIDTH), dtype=np.float32)
        return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


class NoopWorker(Worker):
    """A worker whose models cost nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.resident.generator = cast("Any", NoGenerator())
        self.shards.maker = self._maker()

    def _maker(self) -> ShardMaker:
        here = self.resident
        generator: Any = here.generator
        classifier: Any = NoClassifier()
        return ShardMaker(generator, classifier, here.store, here.models, CELL, auto=False, provenance={})

    def texts(self, professions: Sequence[tuple[str, str]], controls: Sequence[str]) -> TextEmbeddings:
        """Random directions."""
        random = np.random.default_rng(1)
        labels = random.standard_normal((len(professions), 2, WIDTH), dtype=np.float32)
        concepts = random.standard_normal((len(professions) + len(controls), WIDTH), dtype=np.float32)
        return TextEmbeddings(labels, concepts, 10.0)
