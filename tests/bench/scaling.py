"""How time and GPU-hours of a run grow with GPUs and images: a simulation from figures measured on one node.

    python -m tests.bench.scaling                     # the tables of docs/scaling.md
    python -m tests.bench.scaling --rate 3.5          # images/s of one of your GPUs (`evenhand plan` says it)

The rate of a GPU is yours to give; everything else is read from the tables in docs/benchmarks.md and docs/scaling.md,
so a new measurement is a new model. Simulated is what a stage of generation is: workers with two pieces each, a driver
that turns, hears who is done and sends more. Not simulated: lost nodes, and the minutes in which nodes come.
"""

from __future__ import annotations

import argparse
import heapq
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.cluster.crew import CONCURRENCY
from tests.bench.common import table

__all__ = ["Measured", "Outcome", "limits", "main", "measured", "simulate"]

ROOT = Path(__file__).parents[2]
SHARD_IMAGES = 50
CORES = 2
"""Of the machine that docs/benchmarks.md is of; bench_engine keeps them full."""
PIECE_IMAGES = 100
"""What `jobs.cluster.pool` sends at once, of shards of 50."""
S3_PUTS_PER_S, S3_GETS_PER_S = 3_500, 5_500
"""Per partition of a prefix, at least: AWS's user guide, "Optimizing Amazon S3 performance"."""
MODEL_BYTES = 1.56e9
"""Of the model that bench_export stages."""
PREFIXES = 256
"""`shards/00` to `shards/ff`: the first byte of a digest, so each gets the same."""


@dataclass(frozen=True)
class Measured:
    """Of one node, as the tables say.

    Attributes:
        rows_per_s: image rows per second from plan to tally, models that do nothing, two cores (bench_engine).
        generation_rows_per_s: of generation alone.
        driver_mb: the driver's memory after a tiny run.
        driver_mb_per_million: its growth per million image rows.
        cpu_us: CPU microseconds per image row by role: of both cores over `rows_per_s`, the role's share
            (bench_processes).
        turn_s: seconds of a turn of the driver's loop by the number of calls under way (bench_turn).
        bare_cpu_s: CPU seconds of an image of the demo model in a bare loop (bench_generation).
        bare_images_per_s: of that loop, on all cores.
        engine_to_bare: the engine to the bare loop, images per CPU second of the processes that draw: least, most.
        engine_to_bare_images: the same, images per second, with Ray, store and driver on the same cores.
        stage_bytes_per_s: of one node that stages a model from a store of one server, checks included (bench_export).
    """

    rows_per_s: float
    generation_rows_per_s: float
    driver_mb: float
    driver_mb_per_million: float
    cpu_us: Mapping[str, float]
    turn_s: Mapping[int, float]
    bare_cpu_s: float
    bare_images_per_s: float
    engine_to_bare: tuple[float, float]
    engine_to_bare_images: tuple[float, float]
    stage_bytes_per_s: float

    def turn(self, calls: int) -> float:
        """Seconds of one turn, between the measured numbers of calls by a line, beyond them by the last slope."""
        at, seconds = np.array(sorted(self.turn_s)), np.array([self.turn_s[n] for n in sorted(self.turn_s)])
        if calls <= at[-1]:
            return float(np.interp(calls, at, seconds))
        return float(seconds[-1] * calls / at[-1])


@dataclass(frozen=True)
class Outcome:
    """What a simulated stage comes to.

    Attributes:
        seconds: from the first piece to the last.
        gpu_busy: share of that time in which GPUs draw.
    """

    seconds: float
    gpu_busy: float


def _rows(document: str, name: str) -> list[list[str]]:
    """The cells of a table between its markers."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name}: begin.*?-->\n(.*?)<!-- {name}: end -->", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"docs/{document} has no table {name}")
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _number(cell: str) -> float:
    """The first number of a cell: "1,002,002", "0.993 [0.979, 0.996]", "653 MB"."""
    return float(re.findall(r"[\d,]*\.?\d+", cell)[0].replace(",", ""))


def _range(cell: str) -> tuple[float, float]:
    """Least and most of "0.993 [0.979, 0.996]"."""
    least, most = (float(end) for end in re.findall(r"\[(.*?), (.*?)\]", cell)[0])
    return least, most


def measured() -> Measured:
    """Read from the documents."""
    small, large = _rows("benchmarks.md", "bench_engine")
    millions = (_number(large[0]) - _number(small[0])) / 1e6
    generation = {name: cells for name, *cells in _rows("benchmarks.md", "bench_generation")}
    export = {name: cells for name, *cells in _rows("benchmarks.md", "bench_export")}
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    model = re.search(r"model ([\d.]+) GB, written", text)
    if model is None:
        raise SystemExit("docs/benchmarks.md does not say the size of bench_export's model")
    rows_per_s = _number(large[1])
    shares = {role: float(cells[3]) for role, *cells in _rows("scaling.md", "bench_processes")}
    return Measured(
        rows_per_s=rows_per_s,
        generation_rows_per_s=_number(large[2]),
        driver_mb=_number(small[3]),
        driver_mb_per_million=(_number(large[3]) - _number(small[3])) / millions,
        cpu_us={role: share * CORES * 1e6 / rows_per_s for role, share in shares.items()},
        turn_s={
            int(_number(name.partition("workers")[2])): _number(cells[0]) / 1e3
            for name, *cells in _rows("scaling.md", "bench_turn")
        },
        bare_cpu_s=1 / _number(generation["bare"][2]),
        bare_images_per_s=_number(generation["bare"][0]),
        engine_to_bare=_range(generation["engine"][3]),
        engine_to_bare_images=_range(generation["engine"][1]),
        stage_bytes_per_s=float(model[1]) * 1e9 / _number(export["staged from it, checked for changes"][0]),
    )


def limits(figures: Measured) -> dict[str, float]:
    """Images per second at which each part that does not grow with the nodes is full, with shards of 50 images."""
    cpu = figures.cpu_us
    return {
        "driver, one core": 1e6 / cpu["driver"],
        "object store of one server, one core": 1e6 / cpu["object store"],
        "GCS, one core": 1e6 / cpu["gcs_server"],
        "S3 PUTs, one partition": S3_PUTS_PER_S * SHARD_IMAGES,
        "S3 GETs, one partition": S3_GETS_PER_S * SHARD_IMAGES,
        f"S3 PUTs, {PREFIXES} partitions": S3_PUTS_PER_S * SHARD_IMAGES * PREFIXES,
    }


def simulate(images: int, gpus: int, rate: float, figures: Measured, *, piece_images: int = PIECE_IMAGES) -> Outcome:
    """One stage of generation: `images` on `gpus` workers that draw `rate` images per second each.

    The driver spends its measured time on each turn and on each image row; what arrives while it is busy waits. A
    worker draws while it has a piece; a second one waits there, so that it need not wait for the driver.
    """
    pieces = -(-images // piece_images)
    each_s = piece_images / rate
    handling_s = piece_images * figures.cpu_us["driver"] / 1e6
    free = [0.0] * gpus
    done: list[tuple[float, int]] = []
    now, sent = 0.0, 0
    for _ in range(CONCURRENCY):
        for worker in range(min(gpus, pieces - sent)):
            now += handling_s
            free[worker] = max(free[worker], now) + each_s
            heapq.heappush(done, (free[worker], worker))
            sent += 1
    while done:
        now = max(now, done[0][0]) + figures.turn(len(done))
        heard = []
        while done and done[0][0] <= now:
            heard.append(heapq.heappop(done)[1])
        for worker in heard:
            if sent < pieces:
                now += handling_s
                free[worker] = max(free[worker], now) + each_s
                heapq.heappush(done, (free[worker], worker))
                sent += 1
    seconds = max(now, max(free))
    return Outcome(seconds, images / rate / gpus / seconds)


def _figure(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{_figure(seconds / length)} {unit}"
    return f"{_figure(seconds / 86_400)} d"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0, 10.0], help="images/s of one GPU, yours")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256, 1000])
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000, 100_000_000])
    options = parser.parse_args(arguments)
    figures = measured()
    full = {name: [f"{at:,.0f}", _figure(at / 1000)] for name, at in limits(figures).items()}
    lines = [table(["images/s at which it is full", "per GPU of 1,000"], full), ""]
    for rate in options.rate:
        rows = {}
        for images in options.images:
            cells = []
            for gpus in options.gpus:
                found = simulate(images, gpus, rate, figures)
                hours = gpus * found.seconds / 3600
                cells.append(f"{_duration(found.seconds)}; {_figure(hours)} GPU-h; {found.gpu_busy:.1%}")
            rows[f"{images:,}"] = cells
        lines += [
            f"At {rate:g} images/s of one GPU:",
            "",
            table([f"{gpus:,} GPU" + "s" * (gpus > 1) for gpus in options.gpus], rows),
            "",
        ]
    memory = {
        f"{images:,}": [f"{(figures.driver_mb + figures.driver_mb_per_million * images / 1e6) / 1e3:.2g} GB"]
        for images in options.images
    }
    staging = {
        f"{gpus:,} node" + "s" * (gpus > 1): [_duration(gpus * MODEL_BYTES / figures.stage_bytes_per_s)]
        for gpus in options.gpus
    }
    lines += [table(["driver's memory"], memory), ""]
    sys.stdout.write("\n".join([*lines, table(["a model of 1.56 GB from a store of one server"], staging), ""]))


if __name__ == "__main__":
    main()
