"""A block of images as it is counted: read from its shard, or missing where that was given up."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import ObjectStore
from jobs.auditing.judged_rows import MARGINS
from jobs.images.shards import STATUSES, Shard, ShardSpec

__all__ = ["MISSING", "OK", "Block", "places_of", "swept_counts", "write_table"]

MISSING = "missing"
"""Status of images whose shard was given up."""
OK = STATUSES.index("ok")


def places_of(indices: np.ndarray, first: int) -> np.ndarray:
    """[n] which of n images is in each place of a cell, by the indices of their seeds; see `_Drawing.order`."""
    n = len(indices)
    by_index = np.argsort(indices, kind="stable")
    inside = indices[by_index] < first + n
    order = np.full(n, -1)
    order[indices[by_index[inside]] - first] = by_index[inside]
    order[order < 0] = by_index[~inside]
    return order


@dataclass(frozen=True)
class Block:
    """A shard as the tally sees it, or the place where one should be."""

    spec: ShardSpec
    embeddings: np.ndarray
    statuses: list[str]
    seconds: float = 0.0
    maker: str = ""

    @property
    def ok(self) -> np.ndarray:
        """[n] bool, images that are no failures."""
        return np.array([status == STATUSES[OK] for status in self.statuses])

    @classmethod
    def read(cls, store: ObjectStore, spec: ShardSpec, missing: frozenset[str], width: int) -> Block:
        """A shard from the store; of one that was given up, zeros [n, width] and the status `MISSING`.

        Raises:
            ShardError: the object is not what was stored.
            StorageError: it can't be read.
        """
        if spec.digest in missing:
            return cls(spec, np.zeros((spec.count, width), np.float32), [MISSING] * spec.count)
        shard = Shard.from_bytes(store.get(spec.object_key), spec)
        made = dict(shard.provenance)
        seconds = float(made.pop("seconds", 0.0))
        statuses = [STATUSES[s] for s in shard.statuses]
        return cls(spec, shard.embeddings, statuses, seconds, json.dumps(made, sort_keys=True))


def swept_counts(scores: np.ndarray) -> np.ndarray:
    """[M, L + 1] int32 counts of the labels, undetermined last, under each of `MARGINS`.

    Args:
        scores: [n, L] probabilities of images that are no failures.
    """
    width = scores.shape[1]
    ranked = np.sort(scores, axis=1)
    lead = ranked[:, -1] - ranked[:, -2]
    codes = scores.argmax(axis=1)
    return np.stack(
        [np.bincount(np.where(lead < margin, width, codes), minlength=width + 1) for margin in MARGINS]
    ).astype(np.int32)


def write_table(store: ObjectStore, key: str, table: pa.Table) -> str:
    """Write rows as a Parquet object; its sha256."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = bytes(sink.getvalue())
    store.put(key, data, content_type="application/vnd.apache.parquet")
    return hashlib.sha256(data).hexdigest()
