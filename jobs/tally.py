"""The tally: shards read back from the store, labelled, counted, and written out one row per image.

Runs as Ray tasks over chunks of cells; the driver gets one byte per image and variant, in fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from infra.storage import StorageSettings, open_store
from jobs.cells import Cell
from jobs.classifier import FAILED, Labels, TextEmbeddings
from jobs.remote import fetch
from jobs.shards import STATUSES, Shard, ShardSpec

__all__ = ["MARGINS", "CellTally", "TallyTask", "tally"]

MARGINS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Undetermined margins that the report sweeps."""
_PART_IMAGES = 20_000


@dataclass(frozen=True)
class CellTally:
    """One cell's images in V variants (base, then edited where there is one).

    Attributes:
        codes: [V, n] uint8 label codes, see `Labels`.
        recognised: [V, n] bool.
        ok: [V, n] bool, images that are no failures.
        swept: [M, V, L + 1] counts of the labels, undetermined last, under each of `MARGINS`.
        seconds: [V] worker seconds that the shards took when they were made.
        drift: mean cosine distance of the variants' embeddings at equal seeds; None with one variant.
    """

    codes: np.ndarray
    recognised: np.ndarray
    ok: np.ndarray
    swept: np.ndarray
    seconds: tuple[float, ...]
    drift: float | None


@dataclass(frozen=True)
class TallyTask:
    """A cell, its shards per variant, and its rows in the text embeddings."""

    cell: Cell
    shards: tuple[tuple[ShardSpec, ...], ...]
    subject: int | None
    concept: int


def _tally_part(
    tasks: Sequence[TallyTask],
    output: str,
    settings: StorageSettings,
    texts: TextEmbeddings,
    labels: Sequence[str],
    variants: Sequence[str],
    margin: float,
    part_key: str | None,
) -> list[CellTally]:
    store = open_store(output, settings)
    results, rows = [], []
    for task in tasks:
        shards = [[Shard.from_bytes(store.get(s.object_key), s) for s in specs] for specs in task.shards]
        embeddings = [np.concatenate([s.embeddings for s in made]) for made in shards]
        statuses = [np.concatenate([s.statuses for s in made]) for made in shards]
        ok = [status == STATUSES.index("ok") for status in statuses]
        found = [
            Labels.of(e, fine, texts, task.subject, task.concept, margin)
            for e, fine in zip(embeddings, ok, strict=True)
        ]
        drift = None
        if len(found) == 2 and (both := ok[0] & ok[1]).any():
            drift = float(1 - (embeddings[0][both] * embeddings[1][both]).sum(axis=1).mean())
        results.append(
            CellTally(
                np.stack([f.codes for f in found]),
                np.stack([f.recognised for f in found]),
                np.stack(ok),
                np.stack([[_swept(f, fine, m) for f, fine in zip(found, ok, strict=True)] for m in MARGINS]),
                tuple(float(sum(s.provenance.get("seconds", 0.0) for s in made)) for made in shards),
                drift,
            )
        )
        if part_key is not None:
            for variant, made, label, status in zip(variants, shards, found, statuses, strict=True):
                rows.append(_rows(task, variant, made, label, status, labels))
    if part_key is not None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(rows), sink, compression="zstd")
        store.put(part_key, bytes(sink.getvalue()), content_type="application/vnd.apache.parquet")
    return results


def _swept(found: Labels, ok: np.ndarray, margin: float) -> np.ndarray:
    """[L + 1] counts under another margin."""
    width = found.scores.shape[1]
    ranked = np.sort(found.scores, axis=1)
    codes = found.scores.argmax(axis=1)
    codes[ranked[:, -1] - ranked[:, -2] < margin] = width
    return np.bincount(codes[ok], minlength=width + 1)


def _rows(
    task: TallyTask, variant: str, shards: Sequence[Shard], found: Labels, statuses: np.ndarray, labels: Sequence[str]
) -> pa.Table:
    names = {**dict(enumerate(labels)), len(labels): "undetermined", FAILED: None}
    n = len(statuses)
    cell = task.cell
    labelled = task.subject is not None
    return pa.table(
        {
            "kind": pa.array([cell.kind] * n, pa.string()),
            "profession": pa.array([cell.subject] * n, pa.string()),
            "wording": pa.array([cell.wording] * n, pa.string()),
            "prompt": pa.array([cell.prompt] * n, pa.string()),
            "variant": pa.array([variant] * n, pa.string()),
            "index": pa.array([s.spec.first + i for s in shards for i in range(s.spec.count)], pa.int64()),
            "seed": pa.array([seed for s in shards for seed in s.spec.seeds()], pa.int64()),
            "label": pa.array([names[int(code)] if labelled else None for code in found.codes], pa.string()),
            "scores": pa.array(found.scores.tolist() if labelled else [None] * n, pa.list_(pa.float32())),
            "recognised": pa.array(found.recognised.tolist(), pa.bool_()),
            "status": pa.array([STATUSES[s] for s in statuses], pa.string()),
            "shard": pa.array([s.spec.digest for s in shards for _ in range(s.spec.count)], pa.string()),
        }
    )


def tally(
    tasks: Sequence[TallyTask],
    *,
    output: str,
    settings: StorageSettings,
    texts: TextEmbeddings,
    labels: Sequence[str],
    variants: Sequence[str],
    margin: float,
    parts_prefix: str | None,
) -> tuple[list[CellTally], list[str]]:
    """Label and count every cell, in order; with a prefix also write `part-*.parquet` below it.

    Returns:
        One `CellTally` per task, and the keys of the parts written.
    """
    chunks: list[list[TallyTask]] = [[]]
    size = 0
    for task in tasks:
        images = task.cell.images * len(task.shards)
        if chunks[-1] and size + images > _PART_IMAGES:
            chunks.append([])
            size = 0
        chunks[-1].append(task)
        size += images
    keys = [f"{parts_prefix}/part-{i:05d}.parquet" if parts_prefix else None for i in range(len(chunks))]
    shared: Mapping[str, Any] = {"texts": ray.put(texts)}
    # No CPU is asked for: the generators may hold them all, and a task that waits for one would wait for ever.
    remote = ray.remote(_tally_part).options(num_cpus=0, max_retries=3)
    pending = [
        remote.remote(chunk, output, settings, shared["texts"], labels, variants, margin, key)
        for chunk, key in zip(chunks, keys, strict=True)
    ]
    results = [result for part in fetch(pending) for result in part]
    return results, [key for key in keys if key]
