"""The maker: from shards to do to shards stored. While one batch is drawn, the one before is embedded and stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from infra.storage import ObjectStore
from jobs.images.generator import Generator, ImageRequest, Images, encode_picture
from jobs.images.panel import Panel
from jobs.images.shards import STATUSES, Shard, ShardOutcome, ShardSpec

__all__ = ["ShardMaker"]

OK = STATUSES.index("ok")
# Batches drawn and not yet labelled; more would only hold memory.
_AHEAD = 2


@dataclass
class _Parts:
    """A shard whose images come in."""

    spec: ShardSpec
    pixels: list[np.ndarray] = field(default_factory=list)
    statuses: list[np.ndarray] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    batch_sizes: set[int] = field(default_factory=set)
    made: int = 0
    seconds: float = 0.0


class ShardMaker:
    """Makes shards on one device. Two threads may call `make`; one draws at a time.

    Args:
        generator: draws images.
        classifier: says what is stored of them.
        store: where shards go.
        models: held while the pipeline is in use.
        batch_size: images drawn at a time; short batches are padded, so that an image's bits never depend on which
            others were due with it.
        auto: the batch may be halved where memory runs out.
        provenance: what each shard says of where it was made.
    """

    def __init__(
        self,
        generator: Generator,
        classifier: Panel,
        store: ObjectStore,
        models: AbstractContextManager[Any],
        batch_size: int,
        *,
        auto: bool,
        provenance: Mapping[str, Any],
    ) -> None:
        self._generator, self._classifier, self._store, self._models = generator, classifier, store, models
        self._batch_size, self._auto, self._provenance = batch_size, auto, provenance
        # One thread that labels, in the order of the drawing; several that wait for the store.
        self._labelling = ThreadPoolExecutor(1, "evenhand-label")
        self._uploads = ThreadPoolExecutor(4, "evenhand-upload")

    def make(self, specs: Sequence[ShardSpec]) -> list[ShardOutcome]:
        """Make these shards. Returns when all of them are committed."""
        parts = [_Parts(spec) for spec in specs]
        queue = [
            (part, ImageRequest(part.spec.prompt, part.spec.operator, seed))
            for part in parts
            for seed in part.spec.seeds()
        ]
        labelled: list[Future[list[Future[ShardOutcome]]]] = []
        with self._models:
            at = 0
            while at < len(queue):
                size = self._batch_size
                batch = queue[at : at + size]
                start = time.perf_counter()
                try:
                    images = self._generator.draw([request for _, request in batch], size)
                except torch.OutOfMemoryError:
                    if not self._auto or size == 1:
                        raise
                    self._batch_size = size // 2
                    continue
                spent = time.perf_counter() - start
                if len(labelled) >= _AHEAD:
                    labelled[-_AHEAD].result()
                labelled.append(self._labelling.submit(self._label, [part for part, _ in batch], images, size, spent))
                at += len(batch)
        uploads = [upload for future in labelled for upload in future.result()]
        return [upload.result() for upload in uploads]

    def _label(
        self, owners: Sequence[_Parts], images: Images, batch_size: int, seconds: float
    ) -> list[Future[ShardOutcome]]:
        """Embed one batch; shards that are whole with it go to the store."""
        start = time.perf_counter()
        embeddings = self._embed(images.pixels, batch_size)
        embeddings[images.statuses != OK] = 0
        each = (seconds + time.perf_counter() - start) / len(owners)
        uploads = []
        at = 0
        while at < len(owners):
            part = owners[at]
            end = at + min(part.spec.count - part.made, len(owners) - at)
            part.pixels.append(images.pixels[at:end])
            part.statuses.append(images.statuses[at:end])
            part.embeddings.append(embeddings[at:end])
            part.made += end - at
            part.batch_sizes.add(batch_size)
            part.seconds += each * (end - at)
            if part.made == part.spec.count:
                uploads.append(self._uploads.submit(self._commit, part))
            at = end
        return uploads

    def _embed(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        """All of them, failed ones too: the classifier's batch keeps its size, and with it each image its bits."""
        try:
            return self._classifier.images(pixels, batch_size)
        except torch.OutOfMemoryError:
            if not self._auto or batch_size == 1:
                raise
            half = -(-batch_size // 2)
            return np.concatenate([self._embed(pixels[:half], half), self._embed(pixels[half:], half)])

    def _commit(self, part: _Parts) -> ShardOutcome:
        spec = part.spec
        pixels, statuses, embeddings = (np.concatenate(c) for c in (part.pixels, part.statuses, part.embeddings))
        pictures = [
            encode_picture(pixels[i], spec.picture_format) if i < spec.pictures and statuses[i] == OK else None
            for i in range(spec.count)
        ]
        provenance = {**self._provenance, "seconds": round(part.seconds, 4), "batch_size": sorted(part.batch_sizes)}
        shard = Shard(spec, embeddings, statuses, pictures, provenance)
        self._store.put(spec.object_key, shard.to_bytes(), content_type="application/vnd.apache.parquet")
        part.pixels.clear()
        failed, batch = int((statuses != OK).sum()), max(part.batch_sizes)
        return ShardOutcome(spec.digest, spec.count, failed, False, part.seconds, batch)
