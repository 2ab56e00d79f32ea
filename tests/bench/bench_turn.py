"""What one turn of the driver's loop costs in Ray, by how many calls are under way.

    python -m tests.bench.bench_turn

`jobs.cluster.dispatch` asks Ray twice a turn which of its calls are done, and has two calls under way per worker: with
1,000 workers they are 2,000. The calls here wait in one actor and none ends, as on GPUs that take seconds for a piece.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import psutil
import ray

from tests.bench.common import conditions, table

__all__ = ["main"]


@ray.remote(num_cpus=0)
class _Busy:
    """Takes one call at a time and does not end it."""

    def work(self, seconds: float) -> None:
        """Be a piece in the making."""
        time.sleep(seconds)


def _turn_s(calls: int, turns: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of the driver for one turn with so many calls under way, median and mean."""
    actor = _Busy.remote()  # type: ignore[attr-defined]
    under_way = [actor.work.remote(3600.0) for _ in range(calls)]
    ray.wait(under_way, num_returns=1, timeout=1.0)
    taken, process = [], psutil.Process()
    before = process.cpu_times()
    for _ in range(turns):
        start = time.perf_counter()
        ray.wait(under_way, num_returns=1, timeout=0)
        ray.wait(under_way, num_returns=len(under_way), timeout=0)
        taken.append(time.perf_counter() - start)
    after = process.cpu_times()
    ray.kill(actor)
    return statistics.median(taken), (after.user + after.system - before.user - before.system) / turns


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args(arguments)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    rows = {}
    for workers in options.workers:
        seconds, cpu = _turn_s(2 * workers, options.turns)
        rows[f"{workers:,} workers, {2 * workers:,} calls"] = [f"{seconds * 1e3:.3g}", f"{cpu * 1e3:.3g}"]
    ray.shutdown()
    lines = [table(["milliseconds per turn, median", "of the driver's CPU, mean"], rows), ""]
    sys.stdout.write("\n".join([*lines, conditions(turns=options.turns)]) + "\n")


if __name__ == "__main__":
    main()
