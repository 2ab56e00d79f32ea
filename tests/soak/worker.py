"""A worker whose models cost nothing, and whose images are their seeds': any worker makes the same ones.

`tests.soak.driver` runs the audit with it.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from jobs.images.generator import ImageRequest, Images
from jobs.images.recipe import KEYED_LIBRARIES, Probe
from jobs.images.shard_maker import ShardMaker
from tests.bench.noop_worker import WIDTH, NoGenerator, NoopWorker

__all__ = ["SeededWorker"]


class SeededGenerator(NoGenerator):
    """Noise of 8 x 8 pixels, drawn from each image's seed."""

    def draw(self, requests: Sequence[ImageRequest], batch_size: int) -> Images:
        """Images [n, 8, 8, 3]."""
        del batch_size
        pixels = [np.random.default_rng(r.seed).integers(0, 256, (8, 8, 3), np.uint8) for r in requests]
        return Images(np.stack(pixels), np.zeros(len(pixels), np.uint8))


class PixelClassifier:
    """Unit embeddings that are drawn from an image's pixels."""

    def images(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        """[n, D] float32."""
        del batch_size
        seeds = [int.from_bytes(image.tobytes()[:8], "big") for image in pixels]
        values = np.stack([np.random.default_rng(s).standard_normal(WIDTH, dtype=np.float32) for s in seeds])
        return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


class SeededWorker(NoopWorker):
    """As `NoopWorker`, the same whichever worker makes a shard and in which order."""

    def probe(self) -> Probe:
        """As a `Worker`'s, without a look at the weights, which takes the models' libraries."""
        versions = {name: version(name) for name in (*KEYED_LIBRARIES, "ray", "evenhand")}
        return Probe(*self.resident.digests, self.resident.dtype, "none", 1, platform.node(), versions)

    def _maker(self) -> ShardMaker:
        here = self.resident
        generator: Any = SeededGenerator()
        classifier: Any = PixelClassifier()
        size = int(here.config.sampler.batch_size)
        where = {"device": "none"}
        return ShardMaker(generator, classifier, here.store, here.models, size, auto=False, provenance=where)
