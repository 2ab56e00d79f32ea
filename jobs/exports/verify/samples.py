"""The images in which an export is compared with the edit that was audited, what is counted in them, and its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from jobs.auditing.gates import gate
from jobs.auditing.tally import TallyTask
from jobs.images.cells import Cell
from jobs.images.shards import image_seed
from jobs.report.figure_schema import RateFigure
from jobs.report.schema import Shipped
from time_ops.stats.intervals import rate

__all__ = ["Compared", "Sample", "samples", "shipped"]

_FULL_PRECISION = 0.02
"""Most that the mean pixel may differ in full precision; leaving the empty prompt unedited comes to more."""


@dataclass(frozen=True)
class Sample:
    """One image to compare: its prompt and seed, and its rows in the text embeddings."""

    prompt: str
    seed: int
    subject: int | None
    concept: int


@dataclass(frozen=True)
class Compared:
    """What came of some images.

    Attributes:
        images: how many were drawn with both.
        failed: of these, how many were no image in either.
        largest: difference of one channel, 0 to 1.
        total: sum over images of their mean difference.
        same: images of one label in both.
        labelled: images that have a label, undetermined included; controls have none.
    """

    images: int = 0
    failed: int = 0
    largest: float = 0.0
    total: float = 0.0
    same: int = 0
    labelled: int = 0

    def __add__(self, other: Compared) -> Compared:
        return Compared(
            self.images + other.images,
            self.failed + other.failed,
            max(self.largest, other.largest),
            self.total + other.total,
            self.same + other.same,
            self.labelled + other.labelled,
        )


def samples(tasks: Sequence[TallyTask], seed: int, count: int) -> list[Sample]:
    """The audit's first images, one of each cell, then the second of each, until there are so many; controls apart.

    Where the audit has fewer, further seeds of the same prompts follow.
    """
    labelled = [task for task in tasks if task.subject is not None]
    most = max((task.cell.images for task in labelled), default=0)

    def sample(task: TallyTask, index: int) -> Sample:
        cell: Cell = task.cell
        drawn = image_seed(seed, cell.stream, cell.prompt, cell.first + index)
        return Sample(cell.prompt, drawn, task.subject, task.concept)

    audited = (sample(task, i) for i in range(most) for task in labelled if i < task.cell.images)
    further = (sample(task, task.cell.images + i) for i in range(count) for task in labelled)
    return list(islice(chain(audited, further), count))


def shipped(
    compared: Compared, dtype: str, *, half: bool, limit: float, parts: Mapping[str, Compared] | None = None
) -> Shipped:
    """The figures and their gate.

    Args:
        compared: of all images.
        parts: of these, of each part by its name, where there are several: none may fail by itself.
        dtype: as stored.
        half: whether half precision or a LoRA's rank is in play: labels are then gated at `limit`, else all of them
            and the pixels.
        limit: see `gates.shipped`.
    """
    kept = rate(compared.same, compared.labelled)
    whole = compared.images - compared.failed
    mean = compared.total / whole if whole else None
    result = gate("shipped", kept, limit if half else 1.0)
    if not half:
        exact = mean is not None and mean <= _FULL_PRECISION and compared.same == compared.labelled
        reason = "every label is the same" if exact else "in full precision every image must be the same"
        result = result.model_copy(update={"outcome": "pass" if exact else "fail", "reason": reason})
    for name, part in (parts or {}).items():
        alone = shipped(part, dtype, half=half, limit=limit).gate
        if alone.outcome == "fail":
            result = result.model_copy(update={"outcome": "fail", "reason": f"{name}: {alone.reason}"})
    return Shipped(
        dtype=dtype,
        images=compared.images,
        failed=compared.failed,
        largest_difference=compared.largest if whole else None,
        mean_difference=mean,
        same_label=RateFigure(value=kept.value, n=kept.n, low=kept.low, high=kept.high),
        gate=result,
    )
