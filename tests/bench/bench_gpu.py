"""What a GPU gives: manners of drawing end to end, and of the UNet alone, side by side in one run of some five minutes.

    python -m tests.bench.bench_gpu                                             # 512 x 512, 50 steps, on a GPU
    python -m tests.bench.bench_gpu --device cpu --tiny --size 64 --steps 2     # a smoke test, on any machine

End to end, in images/s:

- published: float32, one image at a time, the UNet's conditional and unconditional passes one after the other.
- plain: the diffusers pipeline in half precision, one image at a time.
- bare: the compiled pipeline in a loop, whole batches; no classifier, nothing encoded or stored.
- worker: what a worker does with its shards. It draws, decodes, classifies, encodes pictures and stores; eager and
  compiled, then in two calls at a time as the pool sends them, and with a stream of its own for the classifier.

The UNet alone, in passes of one batch with guidance: layouts, compilers, fused projections, attention's back ends. The
limit is the rate of a large matrix product on the same card. Models have the layout of Stable Diffusion 1.5 and of CLIP
ViT-B/32 and random weights, so nothing is downloaded; what is drawn is noise. Neither Ray nor a network is needed. What
does not fit into `--minutes` is left out, and said. Prints markdown.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.storage import StorageSettings, open_store
from jobs.config import RunConfig, SamplerConfig, load_config
from jobs.images.generator import Generator, ImageRequest, auto_batch_size
from jobs.images.panel import Panel
from jobs.images.recipe import Probe, Recipe, recipe_of
from jobs.images.shard_maker import ShardMaker
from jobs.images.shards import BASE, ShardSpec
from jobs.models.pipelines import compile_unet, load_pipeline
from jobs.models.staging import resolve_dtype
from tests.bench.common import conditions, draw_as_published, draw_plainly, show, table
from tests.bench.gpu_models import write_classifier, write_pipeline
from tests.bench.gpu_unet import matrix_rate, pass_flop, unet_manners
from time_ops import encode_prompts

__all__ = ["main"]

PROMPT = "a photo of a CEO"
CALLS = 2
"""At a time, as `jobs.cluster.crew` sends them, which can't be imported without Ray."""


@dataclass
class Bench:
    """Where models lie, what is drawn, and until when."""

    folder: Path
    device: torch.device
    sampler: SamplerConfig
    batch: int | None
    ends: float
    left_out: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return resolve_dtype("auto", self.device)

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether so much is left; what is not measured is remembered."""
        if time.monotonic() + seconds <= self.ends:
            return True
        self.left_out.append(name)
        return False

    def pipeline(self, *, compiled: bool = False) -> Any:
        """As a worker loads it."""
        pipe = load_pipeline(self.folder / "pipeline", self.sampler, self.device, self.dtype)
        if compiled:
            compile_unet(pipe)
        return pipe


@dataclass(frozen=True)
class Manner:
    """One way to draw: `draw` makes `images` images from a seed on."""

    name: str
    images: int
    draw: Callable[[int], object]
    tf32: bool = True


def plain_manners(bench: Bench) -> Iterator[Manner]:
    """diffusers' own pipeline, image by image."""
    from diffusers import StableDiffusionPipeline

    for name, dtype in (("published", torch.float32), ("plain", bench.dtype)):
        pipe: Any = StableDiffusionPipeline.from_pretrained(bench.folder / "pipeline", dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(bench.device)
        text, empty = (encode_prompts(pipe, [prompt]).to(bench.device, dtype) for prompt in (PROMPT, ""))
        if name == "published":
            yield Manner(
                name, 1, lambda seed, p=pipe, t=text, e=empty: draw_as_published(p, t, e, seed, bench.sampler), False
            )
        else:
            yield Manner(name, 1, lambda seed, p=pipe, t=text, e=empty: draw_plainly(p, t, e, [seed], bench.sampler))


def bare(bench: Bench, pipe: Any, size: int) -> Manner:
    """Whole batches, and nothing around them."""
    generator = Generator(pipe, bench.sampler)
    return Manner(
        f"bare, compiled, batch {size}",
        size,
        lambda seed: generator.draw([ImageRequest(PROMPT, BASE, seed + i) for i in range(size)], size),
    )


class StreamedPanel(Panel):
    """Its kernels run beside the UNet's, on a stream of their own; images come from the host and go back to it."""

    def images(self, pixels: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """As a `Panel`'s."""
        with torch.cuda.stream(self._stream):
            return super().images(pixels, batch_size)

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()


def worker(bench: Bench, pipe: Any, size: int, name: str, *, calls: int = 1, panels: type[Panel] = Panel) -> Manner:
    """`ShardMaker`, as `Worker` makes it; four batches of shards in one call or in several, into a folder."""
    config = run_config(bench, size)
    store = open_store(config.output, StorageSettings.from_environment())
    panel = panels(config, {str(config.classifier): bench.folder / "classifier"}, bench.device)
    maker = ShardMaker(
        Generator(pipe, bench.sampler), panel, store, threading.RLock(), size, auto=False, provenance={"bench": name}
    )
    recipe = recipe_for(bench, config)

    def draw(seed: int) -> object:
        specs = [ShardSpec(recipe, BASE, f"{name} {seed}", PROMPT, i, size, pictures=2) for i in range(4)]
        with ThreadPoolExecutor(calls) as threads:
            return list(threads.map(maker.make, [specs[i::calls] for i in range(calls)]))

    return Manner(f"{name}, batch {size}", 4 * size, draw)


def run_config(bench: Bench, size: int) -> RunConfig:
    """A run on these models, its output in their folder."""
    flags = {
        "manifest": "unused.parquet",
        "model": str(bench.folder / "pipeline"),
        "classifier": str(bench.folder / "classifier"),
        "output": str(bench.folder / "output"),
    }
    return load_config("", flags=flags).model_copy(update={"sampler": bench.sampler, "shard_images": size})


def recipe_for(bench: Bench, config: RunConfig) -> Recipe:
    """Of shards that nobody reads again."""
    versions = dict.fromkeys(("diffusers", "torch", "transformers"), "0.0")
    return recipe_of(config, Probe("model", "classifier", str(bench.dtype), str(bench.device), 1, "host", versions))


def measured(manner: Manner, seed: int) -> tuple[float, float]:
    """Images/s and the host's CPU seconds an image. Images come back to the CPU, so the clock covers all of it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = manner.tf32
    start, cpu = time.perf_counter(), time.process_time()
    manner.draw(seed)
    return manner.images / (time.perf_counter() - start), (time.process_time() - cpu) / manner.images


def end_to_end(bench: Bench, repeats: int, *, compiling: bool) -> tuple[dict[str, list[float]], dict[str, str], int]:
    """Images/s by manner, what else is known of each, and the batch."""
    found: dict[str, list[float]] = {}
    notes: dict[str, str] = {}

    def measure(manner: Manner, times: int) -> None:
        start = time.perf_counter()
        manner.draw(0)
        first = time.perf_counter() - start
        rates = found.setdefault(manner.name, [])
        host: list[float] = []
        for repeat in range(times):
            if repeat and not bench.has_time(f"{manner.name}, repeat {repeat + 1}", manner.images / rates[-1]):
                break
            rate, cpu = measured(manner, 1000 * (repeat + 1))
            rates.append(rate)
            host.append(cpu)
        notes[manner.name] = f"{first:.1f} s for the first {manner.images}, {1000 * min(host):.0f} ms of CPU an image"
        sys.stderr.write(f"{manner.name}: {show(found[manner.name])} images/s, {notes[manner.name]}\n")

    for manner in plain_manners(bench):
        measure(manner, min(2, repeats))
    pipe = bench.pipeline()
    size = bench.batch or auto_batch_size(pipe, bench.sampler, bench.device, 50)
    measure(worker(bench, pipe, size, "worker"), repeats)
    if compiling and bench.has_time("compiled", 90 if bench.device.type == "cuda" else 0):
        pipe = bench.pipeline(compiled=True)
        measure(bare(bench, pipe, size), repeats)
        measure(worker(bench, pipe, size, "worker, compiled"), repeats)
        name = "worker, compiled, two calls"
        if bench.has_time(name, 40 if bench.device.type == "cuda" else 0):
            measure(worker(bench, pipe, size, name, calls=CALLS), repeats)
        name = "worker, compiled, two calls, the classifier's own stream"
        if bench.device.type == "cuda" and bench.has_time(name, 40):
            measure(worker(bench, pipe, size, name, calls=CALLS, panels=StreamedPanel), repeats)
    return found, notes, size


def tables(bench: Bench, repeats: int, *, compiling: bool) -> Iterator[str]:
    """Both, as markdown."""
    found, notes, size = end_to_end(bench, repeats, compiling=compiling)
    limit = matrix_rate(bench.device, bench.dtype)
    pipe = bench.pipeline()
    flop = pass_flop(pipe, bench.sampler) * bench.sampler.steps
    published = found["published"]
    rows = {
        name: [
            show(rates),
            f"{max(rates) / max(published):.3g}",
            f"{max(rates) * flop / 1e12:.3g}",
            f"{max(rates) * flop / limit:.1%}",
            notes[name],
        ]
        for name, rates in found.items()
    }
    columns = ("images/s", "to published", "TFLOP/s in the UNet", "of the matrix rate", "")
    yield table(columns, rows)
    yield f"A matrix product runs at {limit / 1e12:.3g} TFLOP/s here; an image takes {flop / 1e12:.3g} TFLOP."
    passes = dict(unet_manners(pipe, bench.sampler, min(size, 16), repeats, bench.has_time, compiling=compiling))
    per_pass = pass_flop(pipe, bench.sampler) * min(size, 16)
    yield table(
        (f"UNet, ms a pass of {min(size, 16)} images", "TFLOP/s", "of the matrix rate"),
        unet_rows(passes, per_pass, limit),
    )


def unet_rows(passes: Mapping[str, Sequence[float]], flop: float, limit: float) -> dict[str, list[str]]:
    """Milliseconds of a pass, and what they come to."""
    return {
        name: [
            show([1000 * s for s in seconds]),
            f"{flop / min(seconds) / 1e12:.3g}",
            f"{flop / min(seconds) / limit:.1%}",
        ]
        for name, seconds in passes.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="in place of what is found by trying")
    parser.add_argument("--no-compile", action="store_true", help="nothing compiled")
    parser.add_argument("--minutes", type=float, default=5.0, help="what takes longer is left out, and said")
    parser.add_argument("--scheduler", default="ddim", help="dpm++ with --steps 20 is the common shorter choice")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same blocks")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --tiny tries the script")
    sampler = SamplerConfig(
        scheduler=given.scheduler, steps=given.steps, height=given.size, width=given.size, safety_checker=False
    )
    with tempfile.TemporaryDirectory(prefix="evenhand-bench-") as name:
        folder = Path(name)
        write_pipeline(folder / "pipeline", tiny=given.tiny)
        write_classifier(folder / "classifier", tiny=given.tiny)
        bench = Bench(folder, device, sampler, given.batch_size, time.monotonic() + 60 * given.minutes)
        for block in tables(bench, given.repeats, compiling=not given.no_compile):
            sys.stdout.write(f"{block}\n\n")
            sys.stdout.flush()
    cuda = device.type == "cuda"
    stated = conditions(
        device=torch.cuda.get_device_name(device) if cuda else "CPU",
        GPU_memory_at_most=f"{torch.cuda.max_memory_reserved(device) / 2**30:.1f} GiB" if cuda else "none",
        host_memory_at_most=f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB",
        dtype=f"{bench.dtype} (published: torch.float32)",
        model="tiny" if given.tiny else "Stable Diffusion 1.5's layout, random weights",
        scheduler=given.scheduler,
        steps=given.steps,
        pixels=f"{given.size}x{given.size}",
        repeats=given.repeats,
    )
    missing = f"Not measured for want of time: {', '.join(bench.left_out)}. " if bench.left_out else ""
    sys.stdout.write(f"Median [least, most]; shares by the best. {missing}{stated}\n")


if __name__ == "__main__":
    main()
