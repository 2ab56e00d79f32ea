"""What stages cost in time, and whether other settings would cost less."""

from __future__ import annotations

import math
from collections.abc import Iterable

from jobs.config import RunConfig
from jobs.images.compiling import for_images
from jobs.planning.schema import StagePlan

__all__ = ["advice_of", "compile_note", "hours_of", "timed", "total_of"]

_SHORT_SHARD_S, _LONG_SHARD_S = 2.0, 600.0


def timed(stage: StagePlan, rate: float, workers: int | None) -> StagePlan:
    """With its time: a stage begins when the one before has ended, and ends with its last round of shards."""
    worker_s = stage.images_to_make / rate
    wall_s = None
    if workers:
        each_s = worker_s / stage.shards_to_make if stage.shards_to_make else 0.0
        # Rounds of the calibration follow one another, too.
        per_round = math.ceil(stage.shards_to_make / stage.rounds_at_most / workers)
        wall_s = stage.rounds_at_most * per_round * each_s
    return stage.model_copy(update={"worker_s": worker_s, "wall_s": wall_s})


def total_of(values: Iterable[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    known = list(values)
    return None if None in known else math.fsum(v for v in known if v is not None)


def compile_note(config: RunConfig, images: int, workers: int | None, dtype: str) -> str | None:
    """Whether `sampler.compile: auto` would compile on a GPU; None: it would not, or it is not left to the worker."""
    if config.sampler.compile != "auto" or dtype == "float32":
        return None
    if for_images(config, images / (workers or 1)).sampler.compile != "auto":
        return None
    return (
        "each worker draws enough images to compile the UNet, which takes a minute and needs a C compiler on the node"
    )


def hours_of(seconds: float | None) -> float | None:
    """Seconds in hours."""
    return None if seconds is None else seconds / 3600


def advice_of(config: RunConfig, rate: float | None) -> list[str]:
    """Whether another block size would serve better. Only said: shards of another size are other shards."""
    advice = []
    block = config.shard_images
    fit = "; shards that are stored under the present one can't be reused then"
    if rate and block / rate < _SHORT_SHARD_S:
        advice.append(
            f"a shard takes {block / rate:.1f} s: a larger shard_images than {block} would spend less on storing{fit}"
        )
    if rate and block / rate > _LONG_SHARD_S:
        advice.append(
            f"a shard takes {block / rate / 60:.0f} min, which a lost worker loses: take a smaller shard_images than "
            f"{block}{fit}"
        )
    if 2 * config.images_per_cell <= block:
        advice.append(
            f"images_per_cell ({config.images_per_cell}) is far below shard_images ({block}): shards hold "
            f"{config.images_per_cell} images, and more images later will not reuse them. Set "
            f"shard_images={config.images_per_cell} if you mean to enlarge the run"
        )
    return advice
