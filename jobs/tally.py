"""The tally: shards read back from the store, labelled, counted, and written out one row per image.

Workers do it part by part; the driver gets one byte per image and variant, in the cells' order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import ObjectStore
from jobs.cells import Cell, cut_cell
from jobs.config import RunConfig
from jobs.labels import FAILED, Labels, TextEmbeddings
from jobs.shards import STATUSES, Recipe, Shard, ShardSpec

__all__ = [
    "MARGINS",
    "MISSING",
    "Block",
    "CellTally",
    "Frame",
    "PartTally",
    "Tallies",
    "TallyTask",
    "part_name",
    "parts_of",
    "swept_counts",
    "tally_part",
    "write_table",
]

MARGINS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Undetermined margins that the report sweeps."""
MISSING = "missing"
"""Status of images whose shard was given up."""

_PART_IMAGES = 20_000
_OK = STATUSES.index("ok")
# One byte says it all: the label in the low six bits (60 at most), whether its subject was recognised in the highest.
_CODE, _NO_LABEL, _FAILED, _RECOGNISED = 0x3F, 62, 63, 0x80


@dataclass(frozen=True, slots=True)
class TallyTask:
    """A cell, and its rows in the text embeddings."""

    cell: Cell
    subject: int | None
    concept: int

    @property
    def images(self) -> int:
        """How many the cell has, of each variant."""
        return self.cell.images


class _Counted(Protocol):
    @property
    def images(self) -> int: ...


_Task = TypeVar("_Task", bound=_Counted)


@dataclass(frozen=True)
class Frame:
    """What all parts of one tally share.

    Attributes:
        recipe: of the shards.
        variants: name -> digest of the operator, or `BASE`.
        missing: digests of shards that were given up; their images are counted as failed.
    """

    recipe: Recipe
    variants: dict[str, str]
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CellTally:
    """One cell's images in V variants (base, then edited where there is one).

    Attributes:
        packed: [V, n] uint8, see `pack`.
        swept: [M, V, L + 1] counts of the labels, undetermined last, under each of `MARGINS`.
        drift: mean cosine distance of the variants' embeddings at equal seeds; NaN with one variant.
    """

    packed: np.ndarray
    swept: np.ndarray
    drift: float

    @property
    def codes(self) -> np.ndarray:
        """[V, n] uint8 label codes, see `Labels`; `FAILED` also where the cell has no label."""
        codes: np.ndarray = self.packed & _CODE
        codes[codes >= _NO_LABEL] = FAILED
        return codes

    @property
    def recognised(self) -> np.ndarray:
        """[V, n] bool."""
        return np.asarray((self.packed & _RECOGNISED) != 0)

    @property
    def ok(self) -> np.ndarray:
        """[V, n] bool, images that are no failures."""
        return np.asarray((self.packed & _CODE) != _FAILED)


def pack(codes: np.ndarray, recognised: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """A byte per image of label codes (`FAILED`: none), whether recognised, and whether there is an image at all."""
    packed = np.where(codes == FAILED, _NO_LABEL, codes).astype(np.uint8)
    packed[~ok] = _FAILED
    packed[recognised & ok] |= _RECOGNISED
    return packed


@dataclass(frozen=True)
class PartTally:
    """What a worker hands back of one part: C cells, n images in all.

    Attributes:
        packed: [V, n] uint8, cell after cell.
        swept: [C, M, V, L + 1] int32.
        drift: [C] float64.
        seconds: [V], worker seconds that the shards took when they were made.
        statuses: images of each status but ok.
        makers: JSON of what decides an image's last bits (device, threads, batch size, versions) -> images.
        sha256: of the rows written, or None.
    """

    packed: np.ndarray
    swept: np.ndarray
    drift: np.ndarray
    seconds: np.ndarray
    statuses: Counter[str]
    makers: Counter[str]
    sha256: str | None


class Tallies:
    """All cells of an audit, as small as can be: a byte per image and variant, and the counts under each margin.

    Args:
        tasks: the cells, in order.
        parts: their tallies, in the same order, each of as many cells as it says.
    """

    def __init__(self, tasks: Sequence[TallyTask], parts: Iterable[PartTally]) -> None:
        self.tasks = tasks
        parts = list(parts)
        self._packed = np.concatenate([p.packed for p in parts], axis=1)
        self._swept = np.concatenate([p.swept for p in parts])
        self._drift = np.concatenate([p.drift for p in parts])
        self._starts = np.cumsum([0, *(task.cell.images for task in tasks)])
        self.seconds: np.ndarray = sum((p.seconds for p in parts), np.zeros(len(self._packed)))
        self.statuses: Counter[str] = sum((p.statuses for p in parts), Counter())
        self.makers: Counter[str] = sum((p.makers for p in parts), Counter())
        if self._starts[-1] != self._packed.shape[1] or len(tasks) != len(self._swept):
            raise ValueError(f"parts hold {self._packed.shape[1]} images, the cells {self._starts[-1]}")

    def after(self, reference: PartTally) -> Tallies:
        """These, of one variant, as the second one beside another's as the first.

        Args:
            reference: of the same cells in the same order, one variant, the same images in each. Images of both are
                then paired by their place; drift stays as it is there.
        """
        both = PartTally(
            np.concatenate([reference.packed, self._packed]),
            np.concatenate([reference.swept, self._swept], axis=2),
            reference.drift,
            np.concatenate([reference.seconds, self.seconds]),
            reference.statuses + self.statuses,
            self.makers,
            None,
        )
        return Tallies(self.tasks, [both])

    @property
    def variants(self) -> int:
        """V."""
        return len(self._packed)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[CellTally]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> CellTally:
        if not 0 <= i < len(self):
            raise IndexError(i)
        packed = self._packed[:, self._starts[i] : self._starts[i + 1]]
        return CellTally(packed, self._swept[i], float(self._drift[i]))


def part_name(number: int) -> str:
    """Where a run's folder keeps a part's rows."""
    return f"images/part-{number:05d}.parquet"


def parts_of(tasks: Iterable[_Task], variants: int) -> Iterator[tuple[_Task, ...]]:
    """The tasks in parts of some twenty thousand images."""
    part: list[_Task] = []
    size = 0
    for task in tasks:
        images = task.images * variants
        if part and size + images > _PART_IMAGES:
            yield tuple(part)
            part, size = [], 0
        part.append(task)
        size += images
    if part:
        yield tuple(part)


def tally_part(
    tasks: Sequence[TallyTask],
    frame: Frame,
    texts: TextEmbeddings,
    config: RunConfig,
    store: ObjectStore,
    key: str | None,
) -> PartTally:
    """Label and count these cells; with a key also write one row per image there.

    Raises:
        ShardError: a shard in the store is not what was stored.
        StorageError: one can't be read.
    """
    results: list[CellTally] = []
    rows: list[pa.Table] = []
    seconds = np.zeros(len(frame.variants))
    bad: Counter[str] = Counter()
    makers: Counter[str] = Counter()
    for task in tasks:
        found = []
        embeddings = []
        for v, (variant, operator) in enumerate(frame.variants.items()):
            made = [
                Block.read(store, spec, frame.missing, texts.labels.shape[-1])
                for spec in cut_cell(task.cell, frame.recipe, operator, config, pictures=False)
            ]
            embeddings.append(np.concatenate([b.embeddings for b in made]))
            ok = np.concatenate([b.ok for b in made])
            labels = Labels.of(embeddings[-1], ok, texts, task.subject, task.concept, config.undetermined_margin)
            found.append((labels, ok))
            seconds[v] += sum(b.seconds for b in made)
            for block in made:
                bad.update(s for s in block.statuses if s != STATUSES[_OK])
                makers[block.maker] += block.spec.count
            if key is not None:
                rows.append(_rows(task, variant, made, labels, list(config.attribute)))
        drift = np.nan
        if len(found) == 2 and (both := found[0][1] & found[1][1]).any():
            drift = float(1 - (embeddings[0][both] * embeddings[1][both]).sum(axis=1).mean())
        packed = np.stack([pack(f.codes, f.recognised, ok) for f, ok in found])
        swept = np.stack([swept_counts(f.scores[ok]) for f, ok in found], axis=1)
        results.append(CellTally(packed, swept, drift))
    makers.pop("", None)
    return PartTally(
        np.concatenate([r.packed for r in results], axis=1),
        np.stack([r.swept for r in results]),
        np.array([r.drift for r in results]),
        seconds,
        bad,
        makers,
        None if key is None else write_table(store, key, pa.concat_tables(rows)),
    )


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
        return np.array([status == STATUSES[_OK] for status in self.statuses])

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


def _rows(task: TallyTask, variant: str, blocks: Sequence[Block], found: Labels, labels: Sequence[str]) -> pa.Table:
    names = np.array([*labels, "undetermined", *[None] * (FAILED - len(labels))], dtype=object)
    cell = task.cell
    n = cell.images
    labelled = task.subject is not None
    indices = np.concatenate([np.arange(b.spec.first, b.spec.first + b.spec.count) for b in blocks])
    scores = pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1) * found.scores.shape[1], pa.int32()), pa.array(found.scores.reshape(-1), pa.float32())
    )
    return pa.table(
        {
            "kind": pa.repeat(cell.kind, n),
            "profession": pa.repeat(cell.subject, n),
            "wording": pa.repeat(cell.wording, n),
            "prompt": pa.repeat(cell.prompt, n),
            "variant": pa.repeat(variant, n),
            "index": pa.array(indices, pa.int64()),
            "seed": pa.array([seed for b in blocks for seed in b.spec.seeds()], pa.int64()),
            "label": pa.array(names[found.codes] if labelled else [None] * n, pa.string()),
            "scores": scores if labelled else pa.nulls(n, pa.list_(pa.float32())),
            "recognised": pa.array(found.recognised, pa.bool_()),
            "status": pa.array([s for b in blocks for s in b.statuses], pa.string()),
            "shard": pa.array([b.spec.digest for b in blocks for _ in range(b.spec.count)], pa.string()),
        }
    )


def write_table(store: ObjectStore, key: str, table: pa.Table) -> str:
    """Write rows as a Parquet object; its sha256."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = bytes(sink.getvalue())
    store.put(key, data, content_type="application/vnd.apache.parquet")
    return hashlib.sha256(data).hexdigest()
