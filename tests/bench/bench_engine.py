"""What the engine itself costs: plan, workers, storage, tally and figures, with models that do nothing.

    python -m tests.bench.bench_engine --images 1000000

Two runs in one process, of 1,000 image rows and of as many as asked for, each of a base model and an edit. Reports rows
per second and how much the driver's memory has grown from the first run to the second. Everything is real but the
generator and the classifier: an embedded Ray and S3 server, a million rows read back, labelled, written and counted.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from rich.console import Console

from infra import demo, local
from jobs.auditing.figures import AuditedProfession, audit_figures
from jobs.auditing.session import open_session
from jobs.config import RunConfig, load_config
from jobs.images.cells import audit_cells
from jobs.images.variants import Variant
from manifests import Manifest, ManifestRow, resolved_targets, write_manifest
from tests.bench.common import conditions
from tests.bench.noop_worker import CELL, WIDTH, NoopWorker
from time_ops import EditOperator

__all__ = ["main"]

WORDINGS = ("A painting of {source}", "{source} working", "{source} laughing", "{source} in the workplace")


@dataclass
class Figures:
    """What one run came to."""

    rows: int
    seconds: float
    generation_s: float
    peak_mb: float
    """Of the driver."""


class Watch:
    """The driver's largest resident memory while a block runs, sampled."""

    def __enter__(self) -> Watch:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, me.memory_info().rss)


def manifest(professions: int) -> Manifest:
    """So many professions; their names mean nothing."""
    words = ("nurse", "baker", "cook", "guard", "clerk", "farmer", "lawyer", "teacher", "writer", "tailor")
    rows = []
    for i in range(professions):
        name = " ".join(words[int(digit)] for digit in f"{i:04d}")
        for label in ("female", "male"):
            rows.append(
                ManifestRow(
                    profession=name,
                    source=f"a {name}",
                    destination=f"a {label} {name}",
                    label=label,
                    target=0.5,
                    share=None,
                    lam=1000.0,
                )
            )
    return Manifest(tuple(rows))


def config(folder: Path, output: str, professions: int, images_per_cell: int) -> RunConfig:
    """A run of two variants of `professions` x 4 wordings x images, and next to nothing else."""
    file = folder / f"{professions}.parquet"
    write_manifest(manifest(professions), file)
    return load_config(
        flags={
            "manifest": str(file),
            "model": str(demo.PIPELINE_PATH),
            "classifier": str(demo.CLASSIFIER_PATH),
            "output": f"{output}/{professions}-{images_per_cell}",
            "form": "single",
            "wordings": {"edit": ["{source}"], "calibration": ["A photo of {source}"], "audit": list(WORDINGS)},
            "controls": ["a photo of a tree"],
            "images_per_cell": images_per_cell,
            "explicit_images": 1,
            "control_images": 1,
            "shard_images": CELL,
            "pictures": {"per_cell": 0},
            "sampler": {"height": 32, "width": 32, "batch_size": CELL},
        }
    )


def run(settings: RunConfig) -> Figures:
    """One run: both variants made, tallied and evaluated."""
    operator = EditOperator.identity(128)
    with Watch() as watch:
        start = time.monotonic()
        with open_session(settings, Console(file=io.StringIO()), NoopWorker) as session:
            cells = audit_cells(session.manifest, settings)
            texts = session.texts()
            ready = time.monotonic()
            session.generate(cells, None, "base")
            session.generate(cells, operator, "edited")
            made = time.monotonic()
            variants = {"base": Variant.plain(), "edited": Variant.plain(operator.digest)}
            tallies = session.tally(session.tasks(cells), variants, texts, written=True)
            labels = list(settings.attribute)
            professions = [
                AuditedProfession(p.name, p.source, resolved_targets(p, labels), 1.0, {})
                for p in session.manifest.professions
            ]
            tallied = time.monotonic()
            audit_figures(tallies, professions, labels, list(WORDINGS), settings.gates, 0)
            end = time.monotonic()
    rows = 2 * sum(cell.images for cell in cells)
    sys.stderr.write(
        f"{rows:,} rows: ready after {ready - start:.1f} s, generation {made - ready:.1f} s, tally "
        f"{tallied - made:.1f} s, figures {end - tallied:.1f} s; driver at most {watch.peak / 2**20:.0f} MB\n"
    )
    return Figures(rows, tallied - ready, made - ready, watch.peak / 2**20)


def _beside_servers(workers: int, arguments: Sequence[str]) -> int:
    """The same in a process of its own, as Ray reads its environment once, when it is imported."""
    with tempfile.TemporaryDirectory(prefix="evenhand-bench-") as home:
        cluster = local.up(home, num_cpus=workers)
        try:
            command = [sys.executable, "-m", "tests.bench.bench_engine", *arguments, "--inside", f"{cluster.url}/bench"]
            environment = cluster.client_environment() | {"RAY_ADDRESS": cluster.ray_address}
            return subprocess.run(command, env=environment, check=False).returncode
        finally:
            local.down(home)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200_000, help="image rows of the large run, both variants")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.inside:
        sys.exit(_beside_servers(options.workers, sys.argv[1:] if arguments is None else arguments))
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="evenhand-bench-") as scratch:
        small = run(config(Path(scratch), options.inside, 2, CELL))
        images = 5 * CELL if options.images >= 100_000 else CELL
        professions = max(2, options.images // (2 * len(WORDINGS) * images))
        large = run(config(Path(scratch), options.inside, professions, images))
    lines = ["| image rows | rows/s, plan to tally | generation alone | driver's peak memory |", "|---|---|---|---|"]
    lines += [
        f"| {found.rows:,} | {found.rows / found.seconds:,.0f} | {found.rows / found.generation_s:,.0f} "
        f"| {found.peak_mb:,.0f} MB |"
        for found in (small, large)
    ]
    lines += ["", f"The driver's peak grew by {large.peak_mb - small.peak_mb:.0f} MB."]
    lines += [conditions(workers=options.workers, shard_images=CELL, embedding_width=WIDTH)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
