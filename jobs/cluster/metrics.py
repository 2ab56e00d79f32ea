"""A run's progress as Ray metrics, which Ray exports to Prometheus at each node's metrics port as `ray_evenhand_...`.

Counters and gauges only: the sum of a Ray histogram is that of bucket midpoints, not of what was observed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge

from jobs.cluster.progress import Counts, Stage

__all__ = ["Metrics"]

_LOG = logging.getLogger(__name__)


class Metrics:
    """Reports one run. `progress` listens to a `Reporter`; `beat` is called every few seconds, from any thread.

    Whatever goes wrong with metrics is logged once and ends them, never the run.

    Exported, each with labels `run` and `stage`:
        ray_evenhand_images_total: images by `outcome` (made, reused, failed), which do not overlap.
        ray_evenhand_shards_failed_total: shards given up.
        ray_evenhand_stage_images: images that the stage under way is to come to.
        ray_evenhand_images_per_second: images made per second of late.
        ray_evenhand_seconds_left: of the stage under way; absent while there is nothing to tell from.

    Args:
        run: the run's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._stage: Stage | None = None
        self._broken = False
        self._guard(self._create)

    def progress(self, stage: Stage, delta: Counts) -> None:
        """Count what was added, and show the stage while it is under way."""
        self._stage = stage if stage.state == "running" else None
        self._guard(lambda: self._count(stage, delta))
        self.beat()

    def beat(self) -> None:
        """Set the gauges again: Ray drops one that is not set anew in every two of its report intervals (10 s)."""
        stage = self._stage
        if stage is not None:
            self._guard(lambda: self._set(stage))

    def _create(self) -> None:
        # Ray appends "_total" to a counter's name.
        self._images = Counter("evenhand_images", "Images by outcome.", ("run", "stage", "outcome"))
        self._shards_failed = Counter("evenhand_shards_failed", "Shards given up.", ("run", "stage"))
        self._total = Gauge("evenhand_stage_images", "Images of the stage under way.", ("run", "stage"))
        self._per_s = Gauge("evenhand_images_per_second", "Images made per second of late.", ("run", "stage"))
        self._left_s = Gauge("evenhand_seconds_left", "Seconds left of the stage under way.", ("run", "stage"))

    def _count(self, stage: Stage, delta: Counts) -> None:
        tags = {"run": self._run, "stage": stage.name}
        outcomes = {"made": delta.images_made, "reused": delta.images_reused, "failed": delta.images_failed}
        for outcome, images in outcomes.items():
            if images:
                self._images.inc(images, tags | {"outcome": outcome})
        if delta.shards_failed:
            self._shards_failed.inc(delta.shards_failed, tags)

    def _set(self, stage: Stage) -> None:
        tags = {"run": self._run, "stage": stage.name}
        self._total.set(stage.total, tags)
        self._per_s.set(stage.rate, tags)
        self._left_s.set(stage.left_s, tags)

    def _guard(self, report: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            report()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is worth more than its metrics
            self._broken = True
            _LOG.warning("no more metrics of this run: %s: %s", type(error).__name__, error)
