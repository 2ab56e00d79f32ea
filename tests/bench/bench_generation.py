"""How much of the machine's generation the engine keeps: three ways to the same labels, alternating, in one run.

    python -m tests.bench.bench_generation --processes 2 --threads 1

- bare: a loop around the diffusers pipeline and the classifier; no Ray, no storage. Embeddings are made once.
- engine: `jobs.cluster.pool.Pool` with real workers on the embedded Ray, shards stored in the embedded S3 server.
- published: one image at a time, the UNet's conditional and unconditional passes one after the other.

All have the same number of processes and threads, load their models before the clock starts, and wait while another
one is measured. CPU seconds are those of the processes that draw. Prints markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
import torch

from infra import demo, local
from infra.local.home import Home
from infra.local.processes import members
from infra.storage import StorageSettings
from jobs.config import RunConfig, SamplerConfig, load_config
from jobs.worker.make import make_worker
from tests.bench.common import conditions, draw_as_published, draw_plainly, show, table

__all__ = ["main"]

LABELS = ("a photo of a female {}", "a photo of a male {}")
WORDING = "A painting of a {}"
ARMS = ("bare", "engine", "published")
READY_S, ANSWER_S = 300.0, 1800.0
WARM_ROUNDS = 20


@dataclass(frozen=True)
class Settings:
    """What all arms share; `images` is of one measurement, over all processes."""

    images: int
    published_images: int
    batch_size: int
    repeats: int
    processes: int
    threads: int
    sampler: SamplerConfig

    def of(self, arm: str) -> int:
        return self.published_images if arm == "published" else self.images


@dataclass(frozen=True)
class Measured:
    per_s: float
    per_cpu_s: float


def serve_loop(pipe_end: Connection, settings: Settings, arm: str, rank: int) -> None:
    """One process of the bare loop or of the published manner: draws and labels as many images as it is told."""
    from jobs.images.classifier import Classifier
    from jobs.models.pipelines import load_pipeline
    from time_ops import encode_prompts

    torch.set_num_threads(settings.threads)
    sampler, cpu = settings.sampler, torch.device("cpu")
    pipe = load_pipeline(demo.PIPELINE_PATH, sampler, cpu, torch.float32)
    classifier = Classifier(demo.CLASSIFIER_PATH, cpu)
    names = [profession.name for profession in demo.PROFESSIONS]
    text = encode_prompts(pipe, [WORDING.format(name) for name in names])
    empty = encode_prompts(pipe, [""])
    labels = np.stack([classifier.texts([label.format(name) for label in LABELS]) for name in names])
    size = 1 if arm == "published" else settings.batch_size

    def work(first: int, count: int) -> None:
        for at in range(first, first + count, size):
            seeds = range(at, min(at + size, first + count))
            which = at // settings.batch_size % len(names)
            if arm == "published":
                pixels = draw_as_published(pipe, text[which : which + 1], empty, at, sampler)
            else:
                embeds = text[which].expand(len(seeds), -1, -1), empty.expand(len(seeds), -1, -1)
                pixels = draw_plainly(pipe, *embeds, seeds, sampler)
            (classifier.images(pixels) @ labels[which].T).argmax(axis=1)

    work(0, size)
    pipe_end.send([os.getpid()])
    for repeat, count in iter(pipe_end.recv, None):
        work((repeat * settings.processes + rank) * 1_000_000, count)
        pipe_end.send(count)


def serve_engine(pipe_end: Connection, settings: Settings, _arm: str, _rank: int) -> None:
    """The driver of a pool on an embedded cluster of its own: makes as many images as it is told, in whole shards."""
    with tempfile.TemporaryDirectory(prefix="evenhand-bench-") as folder:
        try:
            cluster = local.up(folder, num_cpus=settings.processes * settings.threads, bucket="bench")
            for name in set(os.environ) - set(cluster.client_environment()):
                del os.environ[name]
            os.environ.update(cluster.environment())
            _serve_pool(pipe_end, settings, cluster)
        finally:
            local.down(folder)


def _serve_pool(pipe_end: Connection, settings: Settings, cluster: local.LocalCluster) -> None:
    # Ray reads its environment once, when it is imported.
    import ray

    from jobs.cluster.pool import Pool
    from jobs.images.recipe import recipe_of
    from jobs.images.shards import BASE, ShardSpec

    config = engine_config(settings, cluster.url)
    ray.init(address=cluster.ray_address, log_to_driver=False, logging_level="ERROR")
    with Pool(config, StorageSettings.from_environment(), "bench", make_worker) as pool:
        recipe = recipe_of(config, pool.probe())
        names = [profession.name for profession in demo.PROFESSIONS]

        def work(repeat: int, count: int) -> None:
            specs = [
                ShardSpec(
                    recipe, BASE, f"repeat {repeat}", WORDING.format(names[i % len(names)]), i, settings.batch_size
                )
                for i in range(count // settings.batch_size)
            ]
            made = pool.run(specs, (), lambda *_, **__: None, len(specs))
            if made.images_made != count:
                raise RuntimeError(f"{made.images_made} images were made, not {count}")

        # Warm once all share the work: then each has loaded its models, and none waits for another's.
        for warm in range(1, WARM_ROUNDS + 1):
            before = {worker.pid: _cpu_s(worker) for worker in _workers(cluster)}
            work(-warm, 2 * settings.processes * settings.batch_size)
            workers = _workers(cluster)
            spent = [_cpu_s(worker) - before.get(worker.pid, 0.0) for worker in workers]
            if warm > 1 and len(workers) == settings.processes and min(spent) > max(spent) / 2:
                break
        else:
            raise RuntimeError(f"{settings.processes} workers do not share the work: they spent {spent} CPU seconds")
        pipe_end.send([worker.pid for worker in workers])
        for repeat, count in iter(pipe_end.recv, None):
            work(repeat, count)
            pipe_end.send(count)
    ray.shutdown()


def engine_config(settings: Settings, url: str) -> RunConfig:
    """As a run would be configured, with nothing kept but what labels need."""
    return load_config(
        flags={
            "manifest": "none",
            "model": str(demo.PIPELINE_PATH),
            "classifier": str(demo.CLASSIFIER_PATH),
            "output": f"{url}/bench",
            "sampler": {**settings.sampler.model_dump(), "batch_size": settings.batch_size},
            "shard_images": settings.batch_size,
            "images_per_cell": settings.batch_size,
            "explicit_images": settings.batch_size,
            "control_images": settings.batch_size,
            "workers": {"count": settings.processes, "num_cpus": settings.threads},
        }
    )


def _workers(cluster: local.LocalCluster) -> list[psutil.Process]:
    return [p for p in members(Home.at(cluster.home)) if any("ray::EvenhandWorker" in part for part in p.cmdline())]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


class Arm:
    """One way to do it, served by processes of its own."""

    def __init__(self, name: str, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        serve: Callable[..., None] = serve_engine if name == "engine" else serve_loop
        self.name, self._settings = name, settings
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(1 if name == "engine" else settings.processes):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, settings, name, rank))
            process.start()
            theirs.close()
            self._ends.append(mine)
            self._processes.append(process)
        self._drawing: list[psutil.Process] = []

    def wait_ready(self) -> None:
        """Until its processes are warm."""
        self._drawing = [psutil.Process(pid) for pids in self._answers(READY_S) for pid in pids]

    def _answers(self, patience_s: float) -> list[Any]:
        deadline = time.monotonic() + patience_s
        for end in self._ends:
            if not end.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{self.name} does not answer")
        try:
            return [end.recv() for end in self._ends]
        except EOFError as error:
            raise RuntimeError(f"{self.name} has failed; see above") from error

    def _spent_s(self) -> float:
        return sum(_cpu_s(process) for process in self._drawing)

    def measure(self, repeat: int) -> Measured:
        images = self._settings.of(self.name)
        cpu_s, start = self._spent_s(), time.perf_counter()
        for end in self._ends:
            end.send((repeat, images // len(self._ends)))
        self._answers(ANSWER_S)
        wall_s = time.perf_counter() - start
        cpu_s = max(self._spent_s() - cpu_s, 1 / os.sysconf("SC_CLK_TCK"))
        return Measured(images / wall_s, images / cpu_s)

    def close(self) -> None:
        for end in self._ends:
            if not end.closed:
                try:
                    end.send(None)
                except OSError:
                    continue
        for process in self._processes:
            process.join(60)
            if process.is_alive():
                process.terminate()


@contextmanager
def arms(settings: Settings) -> Iterator[list[Arm]]:
    """All arms, warm; they end together."""
    with ExitStack() as stack:
        found = []
        for name in ARMS:
            arm = Arm(name, settings)
            stack.callback(arm.close)
            found.append(arm)
        for arm in found:
            arm.wait_ready()
        yield found


def run(settings: Settings) -> str:
    """Measure, and write the result as markdown."""
    with arms(settings) as running:
        measured: dict[str, list[Measured]] = {arm.name: [] for arm in running}
        for repeat in range(settings.repeats):
            for arm in running:
                measured[arm.name].append(arm.measure(repeat))
                sys.stderr.write(f"{arm.name} {repeat + 1}/{settings.repeats}: {measured[arm.name][-1]}\n")
    rows = {}
    for name, mine in measured.items():
        bare = measured["bare"]
        rows[name] = [
            show([m.per_s for m in mine]),
            show([m.per_s / b.per_s for m, b in zip(mine, bare, strict=True)]),
            show([m.per_cpu_s for m in mine]),
            show([m.per_cpu_s / b.per_cpu_s for m, b in zip(mine, bare, strict=True)]),
        ]
    columns = ["images/s", "to bare", "images per CPU-second", "to bare"]
    sampler = settings.sampler
    stated = conditions(
        processes=settings.processes,
        threads_each=settings.threads,
        steps=sampler.steps,
        pixels=f"{sampler.width}x{sampler.height}",
        batch=settings.batch_size,
        images_per_measurement=f"{settings.images} (published {settings.published_images})",
        repeats=f"{settings.repeats}, alternating",
    )
    return f"{table(columns, rows)}\n\nMedian [least, most]; ratios within each repeat. {stated}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="per measurement of bare and engine")
    parser.add_argument("--published-images", type=int, default=100, help="per measurement of the published manner")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    given = parser.parse_args(arguments)
    sampler = SamplerConfig(steps=given.steps, guidance_scale=3.0, height=32, width=32)
    # Every process draws as many, and whole batches.
    whole = given.processes * given.batch_size
    settings = Settings(
        images=-(-given.images // whole) * whole,
        published_images=-(-given.published_images // given.processes) * given.processes,
        batch_size=given.batch_size,
        repeats=given.repeats,
        processes=given.processes,
        threads=given.threads,
        sampler=sampler,
    )
    sys.stdout.write(run(settings))


if __name__ == "__main__":
    main()
