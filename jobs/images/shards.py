"""Shards: the unit of work, commit, retry, resume and cache.

A shard is one rendered prompt, one operator (or the base) and one block of seed indices. Its digest covers all that
decides its pixels and its embeddings, and nothing else; batch size, device and threads are provenance inside it.
It is one Parquet object, PUT whole, with its key and its payload's checksum in the footer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import ObjectStore
from jobs.errors import ExitCode, JobError
from jobs.images.recipe import Recipe
from jobs.images.tables import bounded_table
from time_ops.files import json_of
from time_ops.route import ROUTE_VERSION, routed

__all__ = ["BASE", "STATUSES", "Shard", "ShardError", "ShardOutcome", "ShardSpec", "image_seed", "stored_keys"]

BASE = "base"
"""The operator's name where there is none."""
STATUSES = ("ok", "black", "nan", "undecodable")
"""ok; blacked out by the safety checker; not finite; the VAE raised. Only `ok` images are ever labelled."""
_COLUMNS = ("embedding", "status", "picture")
_MENDED = "the same command makes it again"
_LOOK_UPS = 1000
"""Up to so many objects are looked up one by one; more are found by listing the folders they would lie in."""
_LOOK_UP_THREADS = 16
_LIST_THREADS = 8


class ShardError(JobError, ValueError):
    """An object that is not the shard it should be: truncated, altered, or made under another key."""

    code = ExitCode.STORAGE


def image_seed(seed: int, stream: str, prompt: str, index: int) -> int:
    """The seed of one image's own generator, in [0, 2**63).

    A prompt stands for its profession and wording. Base and edited images of one index share their seed; those of
    different prompts never do, so that one lucky draw can't move all professions at once.
    """
    text = json.dumps([seed, stream, prompt, index], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class ShardSpec:
    """One shard to make: `count` images of `prompt` from index `first` on.

    A component of a mixture draws only the seeds that the route gives it: there `first` and `count` are places among
    those, and the indices have gaps.

    Attributes:
        stream: which family of seeds; calibration's are never the audit's.
        operator: digest of the edit, or `BASE`.
        pictures: how many of the first images are kept; not in the key, a shard with too few is made again.
        route: [low, high) of the numbers that the route gives to its seeds (`time_ops.route`); None: every seed.
    """

    recipe: Recipe
    operator: str
    stream: str
    prompt: str
    first: int
    count: int
    pictures: int = field(default=0, compare=False)
    picture_format: str = field(default="webp", compare=False)
    route: tuple[float, float] | None = None

    @cached_property
    def key(self) -> str:
        """Canonical JSON of all that decides the shard's content."""
        content = {
            "recipe": self.recipe.content,
            "operator": self.operator,
            "stream": self.stream,
            "prompt": self.prompt,
            "first": self.first,
            "count": self.count,
        }
        if self.route is not None:
            content["route"] = [ROUTE_VERSION, *self.route]
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """sha256 of the key, in hex."""
        return hashlib.sha256(self.key.encode()).hexdigest()

    @property
    def object_key(self) -> str:
        """Where the shard lies, below the output prefix."""
        return f"shards/{self.digest[:2]}/{self.digest}.parquet"

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """One index for each image: the place of its seed among all of the prompt's."""
        end = self.first + self.count
        if self.route is None:
            return tuple(range(self.first, end))
        seeds = (image_seed(self.recipe.seed, self.stream, self.prompt, i) for i in count())
        return tuple(islice(routed(seeds, *self.route), self.first, end))

    def seeds(self) -> list[int]:
        """One seed for each image."""
        return [image_seed(self.recipe.seed, self.stream, self.prompt, i) for i in self.indices]


@dataclass(frozen=True)
class ShardOutcome:
    """One shard, done: made now, or found in the store."""

    digest: str
    images: int
    failed_images: int
    reused: bool
    seconds: float
    batch: int = 0
    """Images drawn at once; 0 where it was found in the store."""


@dataclass(frozen=True)
class Shard:
    """What a shard holds.

    Attributes:
        embeddings: [n, D] float32, the classifier's unit image embeddings; zeros where the status is not ok.
        statuses: [n] uint8, index into `STATUSES`.
        pictures: encoded images of the first indices; None where not kept.
        provenance: where and how it was made: device, batch size, threads, seconds, versions.
    """

    spec: ShardSpec
    embeddings: np.ndarray
    statuses: np.ndarray
    pictures: Sequence[bytes | None]
    provenance: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The Parquet object."""
        width = self.embeddings.shape[1]
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(self.embeddings.reshape(-1), pa.float32()), width)
        table = pa.table(
            {
                "index": pa.array(self.spec.indices, pa.int64()),
                "seed": pa.array(self.spec.seeds(), pa.int64()),
                "status": pa.array([STATUSES[s] for s in self.statuses], pa.string()),
                "embedding": embeddings,
                "picture": pa.array(list(self.pictures), pa.binary()),
            }
        )
        footer = {
            "evenhand.key": self.spec.key,
            "evenhand.payload_sha256": self._checksum(),
            "evenhand.pictures": f"{self.spec.pictures} {self.spec.picture_format}",
            "evenhand.provenance": json.dumps(dict(self.provenance), sort_keys=True),
        }
        footer["evenhand.footer_sha256"] = _footer_checksum(footer)
        sink = pa.BufferOutputStream()
        # No dictionaries or statistics: embeddings do not repeat, and of pictures they would hold copies.
        pq.write_table(
            table.replace_schema_metadata(footer),
            sink,
            compression="zstd",
            use_dictionary=["status"],
            write_statistics=False,
        )
        return bytes(sink.getvalue())

    def _checksum(self) -> str:
        sha = hashlib.sha256()
        sha.update(np.ascontiguousarray(self.embeddings, dtype="<f4").tobytes())
        sha.update(np.ascontiguousarray(self.statuses, dtype=np.uint8).tobytes())
        for picture in self.pictures:
            sha.update(hashlib.sha256(picture or b"").digest())
        return sha.hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes, spec: ShardSpec) -> Shard:
        """Read a shard back, verified.

        Raises:
            ShardError: the object is truncated or altered, was made under another key, or keeps too few pictures.
        """
        try:
            schema = pq.read_schema(pa.BufferReader(data))
            footer = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if k.startswith(b"evenhand.")}
            own = footer.get("evenhand.footer_sha256")  # none in shards of before there was one
            if own is not None and own != _footer_checksum(footer):
                raise ShardError(f"shard {spec.digest}: the footer does not match its checksum; {_MENDED}")
            if footer.get("evenhand.key") != spec.key:
                raise ShardError(f"shard {spec.digest} was made under another key")
            kept, _, kind = footer.get("evenhand.pictures", "0").partition(" ")
            if spec.pictures and (int(kept) < min(spec.pictures, spec.count) or kind != spec.picture_format):
                raise ShardError(f"shard {spec.digest} keeps {kept} pictures ({kind}), {spec.pictures} are asked for")
            table = bounded_table(data, _COLUMNS, spec.count)
            column = table.column("embedding").combine_chunks()
            embeddings = np.asarray(column.flatten(), dtype=np.float32).reshape(spec.count, -1)
            statuses = np.array([STATUSES.index(s) for s in table.column("status").to_pylist()], dtype=np.uint8)
            pictures = table.column("picture").to_pylist()
            provenance = json_of(footer.get("evenhand.provenance", "{}"))
            if not isinstance(provenance, dict) or not all(isinstance(p, bytes | None) for p in pictures):
                raise ShardError(f"shard {spec.digest} holds pictures or a provenance of another type")
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, ShardError):
                raise
            raise ShardError(f"shard {spec.digest} can't be read: {error}; {_MENDED}") from error
        shard = cls(spec, embeddings, statuses, pictures, provenance)
        if shard._checksum() != footer.get("evenhand.payload_sha256"):
            raise ShardError(f"shard {spec.digest}: the payload does not match its checksum; {_MENDED}")
        return shard


def _footer_checksum(footer: Mapping[str, str]) -> str:
    """Of what stands beside the images: a bit of the provenance would change a report, not a picture."""
    names = ("key", "payload_sha256", "pictures", "provenance")
    return hashlib.sha256("\n".join(footer.get(f"evenhand.{name}", "") for name in names).encode()).hexdigest()


def stored_keys(store: ObjectStore, wanted: Iterable[str]) -> set[str]:
    """Those of the objects that exist: few are looked up, of many their folders are listed, never one by one.

    Raises:
        StorageError: the store can't be read.
    """
    keys = set(wanted)
    if len(keys) <= _LOOK_UPS:
        with ThreadPoolExecutor(_LOOK_UP_THREADS, thread_name_prefix="evenhand-stored") as pool:
            ordered = sorted(keys)
            return {key for key, there in zip(ordered, pool.map(store.exists, ordered), strict=True) if there}
    folders = sorted({key.rpartition("/")[0] for key in keys})
    stored: set[str] = set()
    with ThreadPoolExecutor(_LIST_THREADS, thread_name_prefix="evenhand-stored") as pool:
        for part in pool.map(_list_keys, repeat(store), folders, repeat(keys)):
            stored |= part
    return stored


def _list_keys(store: ObjectStore, folder: str, keys: set[str]) -> set[str]:
    return keys.intersection(store.list(folder))
