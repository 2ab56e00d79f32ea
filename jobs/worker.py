"""The worker: one process with a resident pipeline and classifier, that makes shards and stores them itself.

`AuditWorker` is a plain class; `jobs.pool` runs it as Ray actors.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.storage import ObjectMissing, ObjectStore, StorageSettings, open_store
from jobs.classifier import Classifier, TextEmbeddings
from jobs.config import RunConfig
from jobs.generator import Generator, ImageRequest, encode_picture
from jobs.identity import KEYED_LIBRARIES, Probe
from jobs.models import cache_folder, content_digest, resolve_dtype, stage
from jobs.pipelines import load_pipeline
from jobs.shards import STATUSES, Shard, ShardError, ShardSpec
from time_ops import EditOperator, ModelError, PromptEdit, TokenPairs, encode_edits, encode_preserved

__all__ = ["AuditWorker", "Probe", "ShardOutcome"]


@dataclass(frozen=True)
class ShardOutcome:
    """One shard, done: made now, or found in the store."""

    digest: str
    images: int
    failed_images: int
    reused: bool
    seconds: float


def _keyed_versions() -> dict[str, str]:
    return {name: version(name) for name in KEYED_LIBRARIES}


class AuditWorker:
    """Makes shards. The models load on first need: a run that finds all its shards done loads none.

    Args:
        config: the run's configuration.
        settings: how to reach object storage from this node.
        token: names this run's staging folder, so that models of an earlier run are never taken for this one's.
        threads: CPU threads; None leaves torch's own choice.
        expected: what the plan was made with, or None for the worker that says it.
    """

    def __init__(
        self,
        config: RunConfig,
        settings: StorageSettings,
        token: str,
        threads: int | None = None,
        expected: Probe | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._config = config
        self._settings = settings
        self._cache = cache_folder() / token
        self._expected = expected
        self._store: ObjectStore = open_store(config.output, settings)
        self._uploads = ThreadPoolExecutor(max_workers=2)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _model_folder(self) -> Path:
        return stage(self._config.model, self._settings, self._cache, pipeline=True)

    @cached_property
    def _classifier_folder(self) -> Path:
        return stage(self._config.classifier, self._settings, self._cache, pipeline=False)

    @cached_property
    def _digests(self) -> tuple[str, str]:
        return content_digest(self._model_folder), content_digest(self._classifier_folder)

    def _dtype(self) -> str:
        return str(resolve_dtype(self._config.sampler.dtype, self._device)).removeprefix("torch.")

    def _check_plan(self) -> None:
        """Refuse to store under the plan's key what other tensors, another dtype or other libraries made."""
        if self._expected is None:
            return
        planned = self._expected
        mine = {"model": self._digests[0], "classifier": self._digests[1], "dtype": self._dtype(), **_keyed_versions()}
        wanted = {"model": planned.model, "classifier": planned.classifier, "dtype": planned.dtype}
        wanted |= {name: planned.versions[name] for name in KEYED_LIBRARIES}
        other = [f"{name} is {mine[name]}, planned {wanted[name]}" for name in wanted if mine[name] != wanted[name]]
        if other:
            raise ModelError(
                f"the worker on {platform.node()} differs from the plan: {'; '.join(other)}. Every node must reach the "
                "same model and have the same versions; with mixed devices set sampler.dtype"
            )

    @cached_property
    def _pipe(self) -> Any:
        self._check_plan()
        dtype = resolve_dtype(self._config.sampler.dtype, self._device)
        return load_pipeline(self._model_folder, self._config.sampler, self._device, dtype)

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self._pipe, self._config.sampler)

    @cached_property
    def _classifier(self) -> Classifier:
        return Classifier(self._classifier_folder, self._device)

    def pid(self) -> int:
        """Process id; also the sign that the worker has started."""
        return os.getpid()

    def probe(self) -> Probe:
        """Identity of the models and of this machine; loads no weights into memory."""
        model, classifier = self._digests
        name = torch.cuda.get_device_name() if self._device.type == "cuda" else platform.machine()
        return Probe(
            model,
            classifier,
            self._dtype(),
            f"{self._device.type} {name}",
            torch.get_num_threads(),
            platform.node(),
            {name: version(name) for name in (*KEYED_LIBRARIES, "ray", "evenhand")},
        )

    def encode(
        self, edits: Sequence[PromptEdit], preserved: Sequence[str], wordings: Sequence[str]
    ) -> tuple[list[TokenPairs], list[TokenPairs]]:
        """Token pairs of the edits and of the preserved prompts."""
        pairs = encode_edits(self._pipe, list(edits), augmentations=tuple(wordings))
        return pairs, encode_preserved(self._pipe, list(preserved))

    def texts(self, professions: Sequence[tuple[str, str]], controls: Sequence[str]) -> TextEmbeddings:
        """Embeddings of the zero-shot prompts."""
        config = self._config
        return TextEmbeddings.of(self._classifier, config.attribute, config.recognition, professions, controls)

    def run(self, specs: Sequence[ShardSpec], operator: EditOperator | None = None) -> list[ShardOutcome]:
        """Make these shards, or find them done. Returns when all of them are committed.

        A shard that is already stored is read and verified; one that is damaged or was made under another key is
        made again.
        """
        outcomes, missing = [], []
        for spec in specs:
            done = self._stored(spec)
            if done is None:
                missing.append(spec)
            else:
                outcomes.append(done)
        if missing:
            if operator is not None and not self._generator.knows(operator.digest):
                self._generator.add_operator(operator)
            outcomes += self._make(missing)
        return outcomes

    def _stored(self, spec: ShardSpec) -> ShardOutcome | None:
        try:
            shard = Shard.from_bytes(self._store.get(spec.object_key), spec)
        except (ObjectMissing, ShardError):
            return None
        failed = int((shard.statuses != 0).sum())
        return ShardOutcome(spec.digest, spec.count, failed, True, float(shard.provenance.get("seconds", 0.0)))

    def _batch_size(self) -> int:
        wanted = self._config.sampler.batch_size
        if wanted != "auto":
            return int(wanted)
        # A CPU gains nothing past what fills its caches; a GPU is filled by pixels, whatever their shape.
        pixels = self._config.sampler.height * self._config.sampler.width
        budget = 8 * 512 * 512 if self._device.type == "cuda" else 64 * 32 * 32
        return max(1, min(64, budget // pixels))

    def _make(self, specs: Sequence[ShardSpec]) -> list[ShardOutcome]:
        """Batches run across shards; a shard is put as soon as its last image is done, beside the next batch."""
        queue = [
            (k, ImageRequest(spec.prompt, spec.operator, seed)) for k, spec in enumerate(specs) for seed in spec.seeds()
        ]
        size = self._batch_size()
        parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in specs]
        made, seconds = [0] * len(specs), [0.0] * len(specs)
        uploads: list[Future[ShardOutcome]] = []
        for at in range(0, len(queue), size):
            batch = queue[at : at + size]
            start = time.perf_counter()
            images = self._generator.draw([request for _, request in batch])
            ok = images.statuses == STATUSES.index("ok")
            embeddings = np.zeros((len(batch), self._classifier.width), np.float32)
            if ok.any():
                embeddings[ok] = self._classifier.images(images.pixels[ok])
            spent = (time.perf_counter() - start) / len(batch)
            owners = np.array([k for k, _ in batch])
            for k in np.unique(owners):
                mine = owners == k
                parts[k].append((images.pixels[mine], images.statuses[mine], embeddings[mine]))
                made[k] += int(mine.sum())
                seconds[k] += spent * int(mine.sum())
                if made[k] == specs[k].count:
                    uploads.append(self._uploads.submit(self._commit, specs[k], parts[k], seconds[k], size))
                    parts[k] = []
        return [upload.result() for upload in uploads]

    def _commit(
        self, spec: ShardSpec, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], seconds: float, batch: int
    ) -> ShardOutcome:
        pixels, statuses, embeddings = (np.concatenate(column) for column in zip(*parts, strict=True))
        pictures = [
            encode_picture(pixels[i], spec.picture_format) if i < spec.pictures and statuses[i] == 0 else None
            for i in range(spec.count)
        ]
        provenance = {
            "seconds": round(seconds, 4),
            "batch_size": batch,
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "versions": _keyed_versions(),
        }
        shard = Shard(spec, embeddings, statuses, pictures, provenance)
        self._store.put(spec.object_key, shard.to_bytes(), content_type="application/vnd.apache.parquet")
        return ShardOutcome(spec.digest, spec.count, int((statuses != 0).sum()), False, seconds)
