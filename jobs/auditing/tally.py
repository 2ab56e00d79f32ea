"""The tally: shards read back from the store, labelled, counted, and written out one row per image.

Workers do it part by part; the driver gets one byte per image and variant, in the cells' order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeVar

import numpy as np

from jobs.auditing.judged_rows import MARGINS
from jobs.images.cells import Cell
from jobs.images.labels import FAILED
from jobs.images.recipe import Recipe
from jobs.images.variants import Variant

__all__ = [
    "MARGINS",
    "CellTally",
    "Drawn",
    "Judging",
    "PartTally",
    "Tallies",
    "TallyFrame",
    "TallyTask",
    "part_name",
    "parts_of",
]

_PART_IMAGES = 20_000
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
class TallyFrame:
    """What all parts of one tally share.

    Attributes:
        recipe: of the shards.
        variants: by name; the first is the base or what is compared with, where there are two.
        missing: digests of shards that were given up; their images are counted as failed.
    """

    recipe: Recipe
    variants: dict[str, Variant]
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CellTally:
    """One cell's images in V variants (base, then edited where there is one).

    Attributes:
        packed: [V, n] uint8, see `pack`.
        swept: [M, V, L + 1] counts of the labels, undetermined last, under each of `MARGINS`.
        drift: mean cosine distance of the variants' embeddings at equal seeds; NaN with one variant.
        components: [K, L + 3] counts of what each component of the last variant drew, see `Drawn`; K is 0 without one.
        judged: [V, 4] counts of how classifiers judged them, see `Judging`.
    """

    packed: np.ndarray
    swept: np.ndarray
    drift: float
    components: np.ndarray
    judged: np.ndarray = field(default_factory=lambda: np.zeros((0, len(Judging)), np.int32))

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


class Drawn(IntEnum):
    """The last columns of a component's counts, behind those of the labels and of the undetermined."""

    RECOGNISED = -2
    OK = -1


class Judging(IntEnum):
    """Counts of a cell's images that have a label or are undetermined; all 0 of a control, which is given none."""

    LABELLED = 0
    COMPARED = 1
    """Two or more classifiers give a label."""
    DIFFER = 2
    """And not the same one."""
    BLIND = 3
    """Some classifier that looks at faces found none."""


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
        components: [C, K, L + 3] int32, see `CellTally`.
        seconds: [V], worker seconds that the shards took when they were made.
        statuses: images of each status but ok.
        makers: JSON of what decides an image's last bits (device, threads, batch size, versions) -> images.
        sha256: of the rows written, or None.
        judged: [C, V, 4] int32, see `Judging`; None: not counted.
    """

    packed: np.ndarray
    swept: np.ndarray
    drift: np.ndarray
    components: np.ndarray
    seconds: np.ndarray
    statuses: Counter[str]
    makers: Counter[str]
    sha256: str | None
    judged: np.ndarray | None = None

    @property
    def judgings(self) -> np.ndarray:
        """`judged`, zeros where nobody counted."""
        shape = len(self.drift), len(self.packed), len(Judging)
        return np.zeros(shape, np.int32) if self.judged is None else self.judged


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
        self.components = np.concatenate([p.components for p in parts])
        self._judged = np.concatenate([p.judgings for p in parts])
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
            self.components,
            np.concatenate([reference.seconds, self.seconds]),
            reference.statuses + self.statuses,
            self.makers,
            None,
            np.concatenate([reference.judgings, self._judged], axis=1),
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
        return CellTally(packed, self._swept[i], float(self._drift[i]), self.components[i], self._judged[i])


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
