"""What a cheaper manner of drawing does to labels: the demo model's images from the same seeds, in each manner.

    python -m tests.bench.gpu_labels                               # 500 seeds, on a GPU
    python -m tests.bench.gpu_labels --device cpu                  # the same on a CPU, some minutes
    python -m tests.bench.gpu_labels --device cpu --images 8 --steps 2 --no-compile

Each image is compared with the one that float32 draws from its seed. A label that float32 gives and the manner does not
is *lost* where it becomes undetermined, and *changed* where it becomes another one. The share is what an audit would
report: a manner that moves it by less than its interval is one that an audit can use. dpm++ at two fifths of the steps
is beside DDIM, as both draw nearly the same image from a seed. Prints markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from jobs.config import SamplerConfig, load_config
from jobs.images.generator import Generator, ImageRequest
from jobs.images.labels import Labels
from jobs.images.panel import Panel
from jobs.images.shards import BASE
from jobs.models.pipelines import compile_unet, load_pipeline
from jobs.models.staging import resolve_dtype
from manifests import read_manifest
from manifests.build import shipped_manifest_path
from tests.bench.common import conditions, table
from tests.bench.gpu_unet import in_float8
from time_ops.stats.intervals import rate

__all__ = ["main"]

BATCH = 50


@dataclass(frozen=True)
class Manner:
    """A way to draw."""

    name: str
    sampler: SamplerConfig
    dtype: torch.dtype
    compiled: bool = False
    eight: bool = False


def manners(sampler: SamplerConfig, device: torch.device, *, compiling: bool) -> Iterator[Manner]:
    """The reference first."""
    half = resolve_dtype("auto", device) if device.type == "cuda" else torch.bfloat16
    name = str(half).removeprefix("torch.")
    yield Manner("float32", sampler, torch.float32)
    yield Manner(name, sampler, half)
    if compiling:
        yield Manner(f"{name}, compiled", sampler, half, compiled=True)
    yield Manner(f"{name}, linear layers in 8 bits", sampler, half, eight=True)
    fewer = sampler.model_copy(update={"scheduler": "dpm++", "steps": max(1, sampler.steps * 2 // 5)})
    yield Manner(f"float32, dpm++ at {fewer.steps} steps", fewer, torch.float32)


def drawn(manner: Manner, requests: Sequence[ImageRequest], device: torch.device) -> np.ndarray:
    """Pixels [n, H, W, 3]."""
    pipe = load_pipeline(PIPELINE_PATH, manner.sampler, device, manner.dtype)
    if manner.eight:
        in_float8(pipe.unet)
    if manner.compiled:
        compile_unet(pipe)
    generator = Generator(pipe, manner.sampler)
    parts = [generator.draw(requests[i : i + BATCH], BATCH).pixels for i in range(0, len(requests), BATCH)]
    return np.concatenate(parts)


def row(codes: np.ndarray, reference: np.ndarray, first: int, labels: int, moved: float) -> list[str]:
    """A manner's cells: counts of images with their intervals, and the first label's share of those with a label."""
    n = len(codes)
    had = reference < labels
    lost, changed = (int((had & wrong).sum()) for wrong in (codes == labels, (codes < labels) & (codes != reference)))
    counted = int((codes < labels).sum())
    cells = [rate(int((codes == reference).sum()), n), rate(lost, n), rate(changed, n)]
    cells.append(rate(int((codes == first).sum()), counted))
    return [f"{c.value:.1%} [{c.low:.1%}, {c.high:.1%}], n {c.n}" for c in cells] + [f"{moved:.2g}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--no-compile", action="store_true", help="nothing compiled")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu draws the same images, slowly")
    flags = {"manifest": "m", "model": str(PIPELINE_PATH), "classifier": str(CLASSIFIER_PATH), "output": "unused"}
    config = load_config(flags=flags)
    sampler = SamplerConfig(steps=given.steps, guidance_scale=3.0, height=32, width=32)
    professions = [(row.profession, row.source) for row in read_manifest(shipped_manifest_path()).rows]
    professions = list(dict.fromkeys(professions))
    panel = Panel(config, {str(config.classifier): CLASSIFIER_PATH}, device)
    texts = panel.texts(professions, [])
    subjects = np.arange(given.images) % len(professions)
    requests = [ImageRequest(f"A photo of {professions[s][1]}", BASE, seed) for seed, s in enumerate(subjects)]
    labels = len(config.attribute)

    def labelled(pixels: np.ndarray) -> np.ndarray:
        parts = [panel.images(pixels[i : i + BATCH], BATCH) for i in range(0, len(pixels), BATCH)]
        stored, ok = np.concatenate(parts), np.ones(1, bool)
        return np.array(
            [
                Labels.of(stored[i : i + 1], ok, texts, int(s), int(s), config.undetermined_margin).codes[0]
                for i, s in enumerate(subjects)
            ]
        )

    rows: dict[str, list[str]] = {}
    reference, expected = np.empty(0), np.empty(0)
    for manner in manners(sampler, device, compiling=not given.no_compile):
        pixels = drawn(manner, requests, device)
        codes = labelled(pixels)
        if not rows:
            reference, expected = codes, pixels.astype(np.float64)
        rows[manner.name] = row(codes, reference, 0, labels, float(np.abs(pixels - expected).mean()))
        sys.stderr.write(f"{manner.name}: {rows[manner.name][0]}\n")
    columns = ("the same", "lost", "changed", f"share of {next(iter(config.attribute))}", "mean change of a byte")
    sys.stdout.write(f"{table(columns, rows)}\n\n")
    said = conditions(device=given.device, steps=given.steps, images=given.images, professions=len(professions))
    sys.stdout.write(f"{said}\n")


if __name__ == "__main__":
    main()
