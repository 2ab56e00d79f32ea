"""What a driver of a very large mixture holds and does: its own code on all shards, with workers that answer at once.

    python -m tests.bench.bench_mixture_driver                          # 100 million images on 1,000 GPUs
    python -m tests.bench.bench_mixture_driver --professions 100        # a hundredth of it

Real are the manifest, the cells, the cut into shards and their keys, the dispatch, the counts and COMPLETE. Ray and the
workers are stand-ins: what Ray's calls cost the driver is in the tables of docs/scaling.md, and is added from there.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from rich.console import Console

from infra.storage import LocalStore
from jobs.auditing.session import Session
from jobs.auditing.tally import PartTally, Tallies, TallyTask, parts_of
from jobs.cluster import dispatch, pool
from jobs.cluster.crew import CONCURRENCY
from jobs.cluster.pool import Pool, Spent
from jobs.cluster.progress import Reporter
from jobs.images.cells import audit_cells
from jobs.images.shards import ShardOutcome, ShardSpec
from jobs.runs.folder import RunFolder
from tests.bench.bench_engine import WORDINGS, config, manifest
from tests.bench.common import conditions, table
from tests.jobs.helpers import RECIPE
from time_ops import EditOperator, Mixture

__all__ = ["main"]

AT_ONCE = 20
"""Calls that end between two turns of the driver's loop."""


@dataclass
class Crew:
    """So many workers, each proved; a call's result is its shards' outcomes."""

    size: int
    proved: set[int] = field(default_factory=set)
    calls: int = 0

    def __post_init__(self) -> None:
        self.largest, self._ready = self.size, list(range(self.size))
        self.proved.update(self._ready)

    def ready(self) -> list[int]:
        """All of them."""
        return self._ready

    def grow(self) -> None:
        """Nobody comes."""

    def settle(self) -> None:
        """Nobody goes."""

    def send(self, worker: int, method: str, items: Sequence[ShardSpec], *_: Any) -> tuple[object, object]:
        """A call that is done as soon as it is asked for; its answer is made then, as Ray's store would hold it."""
        del worker, method
        self.calls += 1
        return object(), tuple(items)


def _wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
    """The oldest calls are done."""
    del timeout
    done = min(num_returns, AT_ONCE)
    return refs[:done], refs[done:]


def _get(ref: Any) -> list[ShardOutcome] | None:
    if not isinstance(ref, tuple):
        return None
    return [ShardOutcome(spec.digest, spec.count, 0, reused=False, seconds=1.0) for spec in ref]


class Meter:
    """Resident memory and CPU seconds, step by step."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}
        self._process = psutil.Process()
        self.peak = self._process.memory_info().rss
        self._cpu = time.process_time()

    def step(self, name: str, note: str = "") -> float:
        """Note what has come since the last step; returns its CPU seconds."""
        resident = self._process.memory_info().rss
        self.peak = max(self.peak, resident)
        cpu, self._cpu = time.process_time() - self._cpu, time.process_time()
        self.rows[name] = [f"{resident / 1e9:.2f} GB", f"{cpu:.0f}", note]
        return cpu


def _session(settings: Any, rows: Any, gpus: int) -> tuple[Session, Crew]:
    """A session without servers."""
    crew, workers, session = Crew(gpus), Pool.__new__(Pool), Session.__new__(Session)
    vars(workers).update(_config=settings, _crew=crew)
    reporter = Reporter(Console(file=io.StringIO()))
    vars(session).update(config=settings, manifest=rows, recipe=RECIPE, pool=workers, reporter=reporter)
    vars(session).update(spent=Spent(), used=[])
    return session, crew


def _counted(part: Sequence[TallyTask], random: np.random.Generator) -> PartTally:
    """What a worker hands back of a part, with labels of no meaning."""
    cells, images = len(part), sum(task.images for task in part)
    return PartTally(
        random.integers(0, 3, (2, images), dtype=np.uint8),
        np.zeros((cells, 5, 2, 3), np.int32),
        np.zeros(cells),
        np.zeros((cells, 2, 5), np.int32),
        np.zeros(2),
        Counter(),
        Counter(),
        "0" * 64,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--professions", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=1250, help="per cell; of two variants in four wordings each")
    parser.add_argument("--gpus", type=int, default=1000)
    options = parser.parse_args(arguments)
    meter = Meter()
    meter.step("imports")
    with tempfile.TemporaryDirectory() as scratch:
        rows = manifest(options.professions)
        settings = config(Path(scratch), "out", options.professions, options.images)
        settings = settings.model_copy(update={"form": "mixture"})
        session, crew = _session(settings, rows, options.gpus)
        cells = audit_cells(rows, settings)
        meter.step("manifest and cells", f"{len(cells):,} cells")
        labels = {"female": EditOperator.identity(128), "male": EditOperator.identity(128)}
        edit = Mixture.of(labels, [0.5, 0.5])
        stand_in = SimpleNamespace(wait=_wait, get=_get, put=lambda value: value)
        with patch.object(dispatch, "ray", stand_in), patch.object(pool, "ray", stand_in):
            for name, under in (("base", None), ("edited, two components", edit)):
                shards, calls = len(session.used), crew.calls
                session.generate(cells, under, name)
                shards, calls = len(session.used) - shards, crew.calls - calls
                cpu = meter.step(f"{name} handed out", "")
                note = f"{shards:,} shards in {calls:,} calls, {shards / cpu:,.0f} shards/s"
                meter.rows[f"{name} handed out"][2] = note
        tasks = [TallyTask(cell, None, 0) for cell in cells]
        random = np.random.default_rng(0)
        tallies = Tallies(tasks, [_counted(part, random) for part in parts_of(tasks, 2)])
        images = 2 * sum(cell.images for cell in cells)
        meter.step("counts of all images", f"{images:,} images")
        folder = RunFolder(LocalStore(Path(scratch) / "out"), "r")
        folder.open("identity", {})
        folder.complete("pass", 0, session.used)
        size = (Path(scratch) / "out" / "runs" / "r" / "COMPLETE").stat().st_size
        meter.step("COMPLETE written", f"{size / 1e6:,.0f} MB")
        del tallies
    columns = ["driver's memory then", "CPU seconds", ""]
    lines = [table(columns, meter.rows), "", f"At most {_peak_gb():.2f} GB."]
    shape = {"professions": f"{options.professions:,}", "wordings": len(WORDINGS), "images_per_cell": options.images}
    under_way = f"{CONCURRENCY * options.gpus:,}"
    lines.append(conditions(**shape, gpus=f"{options.gpus:,}", calls_under_way=under_way))
    sys.stdout.write("\n".join(lines) + "\n")


def _peak_gb() -> float:
    """The kernel's high-water mark of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
