"""Which processes the engine's own cost falls on: driver, workers, Ray's head, the object store.

    python -m tests.bench.bench_processes         # some minutes

`bench_engine` with models that do nothing, once small and once large; the difference of the processes' CPU time, per
image row, is free of what starting costs. On a busy machine all CPU times grow, as cores share caches and pipelines: so
docs/scaling.md takes the shares from here, and their sum from `bench_engine` on a quiet one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

import psutil

from tests.bench.common import conditions

__all__ = ["main"]

ROLES = ("driver", "workers", "gcs_server", "raylet", "dashboard and agents", "object store")
_POLL_S = 0.2


def _role(process: psutil.Process) -> str | None:
    """What a process is to a run, by its name and command line."""
    name, line = process.name(), " ".join(process.cmdline())
    if name in ("gcs_server", "raylet"):  # before the workers, whose command line a raylet holds in its own
        return name
    if "--inside" in line:
        return "driver"
    if "weed" in name:
        return "object store"
    if line.startswith("ray::") or "default_worker.py" in line or name.startswith("ray::"):
        return "workers"
    return "dashboard and agents" if "ray" in line and "dashboard" in line else None


def _watch(images: int) -> Counter[str]:
    """CPU seconds of each role in one `bench_engine` of so many image rows."""
    command = [sys.executable, "-m", "tests.bench.bench_engine", "--images", str(images)]
    spent: dict[int, tuple[str, float]] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr) as run:
        while run.poll() is None:
            for process in psutil.Process().children(recursive=True):
                try:
                    role, times = _role(process), process.cpu_times()
                except psutil.Error:
                    continue
                if role:
                    spent[process.pid] = role, times.user + times.system
            time.sleep(_POLL_S)
    if run.returncode:
        raise SystemExit(f"bench_engine ended with {run.returncode}")
    total: Counter[str] = Counter()
    for role, seconds in spent.values():
        total[role] += seconds
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=300_000)
    options = parser.parse_args(arguments)
    small, large = _watch(options.small), _watch(options.large)
    rows = options.large - options.small
    more = {role: large[role] - small[role] for role in ROLES}
    lines = ["|  | CPU seconds, small run | large run | microseconds per image row | share |", "|---|---|---|---|---|"]
    for role, seconds in more.items():
        each, share = seconds / rows * 1e6, seconds / sum(more.values())
        lines.append(f"| {role} | {small[role]:.1f} | {large[role]:.1f} | {each:.1f} | {share:.3f} |")
    lines += ["", conditions(rows=f"{options.small:,} and {options.large:,}", shard_images=50, workers=2)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
