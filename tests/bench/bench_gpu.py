"""Images per second of a model the size of Stable Diffusion 1.5 on a GPU: three manners, alternating, in one run.

    python -m tests.bench.bench_gpu                                             # 512 x 512, 50 steps, on a GPU
    python -m tests.bench.bench_gpu --device cpu --tiny --size 64 --steps 2     # a smoke test, on any machine

- published: float32, one image at a time, the UNet's conditional and unconditional passes one after the other.
- plain: the diffusers pipeline in half precision, one image at a time.
- ours: `load_pipeline` and `Generator` as workers use them, batches as `auto_batch_size` finds them.
- ours, compiled: the same with `sampler.compile`; only with --compile.

The model has the layout of Stable Diffusion 1.5 and random weights, so nothing is downloaded; what is drawn is noise.
Prints markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from infra.demo import PIPELINE_PATH
from jobs.config import SamplerConfig
from jobs.images.generator import Generator, ImageRequest, auto_batch_size
from jobs.images.shards import BASE
from jobs.models.pipelines import load_pipeline
from jobs.models.staging import resolve_dtype
from tests.bench.common import conditions, draw_as_published, draw_plainly, show, table
from time_ops import encode_prompts

__all__ = ["main"]

PROMPT = "a photo of a CEO"


def build(folder: Path, *, tiny: bool) -> None:
    """Write a pipeline with the layout of Stable Diffusion 1.5, or a small one of the same blocks, random weights."""
    torch.manual_seed(0)
    width, heads, depth = (64, 2, 2) if tiny else (768, 12, 12)
    channels, groups = ((32, 64, 64, 64), 8) if tiny else ((320, 640, 1280, 1280), 32)
    vae_channels = (16, 32, 32, 32) if tiny else (128, 256, 512, 512)
    tokenizer = AutoTokenizer.from_pretrained(PIPELINE_PATH / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = 77
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            max_position_embeddings=77,
            projection_dim=width,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=channels,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=groups,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=vae_channels,
        norm_num_groups=groups,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe: Any = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)


@dataclass(frozen=True)
class Manner:
    """One way to draw: `draw` makes `images` images from a seed on."""

    name: str
    images: int
    tf32: bool
    draw: Callable[[int], object]


def manners(
    folder: Path, device: torch.device, sampler: SamplerConfig, *, batch_size: int | None, compiled: bool
) -> list[Manner]:
    """All manners with their pipelines on the device."""

    def pipeline(dtype: torch.dtype) -> tuple[Any, torch.Tensor, torch.Tensor]:
        pipe: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(device)
        return pipe, *(encode_prompts(pipe, [prompt]).to(device, dtype) for prompt in (PROMPT, ""))

    full, half = pipeline(torch.float32), pipeline(resolve_dtype("auto", device))
    found = [
        Manner("published", 1, False, lambda seed: draw_as_published(*full, seed, sampler)),
        Manner("plain", 1, False, lambda seed: draw_plainly(*half, [seed], sampler)),
    ]
    for compiling in (False, True)[: 1 + compiled]:
        mine = sampler.model_copy(update={"compile": compiling})
        found.append(_ours(folder, device, mine, batch_size))
    return found


def _ours(folder: Path, device: torch.device, sampler: SamplerConfig, batch_size: int | None) -> Manner:
    dtype = resolve_dtype("auto", device)
    pipe = load_pipeline(folder, sampler, device, dtype)
    size = batch_size or auto_batch_size(pipe, sampler, device, 50)
    generator = Generator(pipe, sampler)
    name = f"ours, batch {size}" + (", compiled" if sampler.compile else "")
    return Manner(
        name,
        size,
        dtype != torch.float32,
        lambda seed: generator.draw([ImageRequest(PROMPT, BASE, seed + i) for i in range(size)], size),
    )


def images_per_s(manner: Manner, seed: int, at_least: int) -> float:
    """Images come back to the CPU, so the clock covers all of their work."""
    torch.backends.cuda.matmul.allow_tf32 = manner.tf32
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    start, made = time.perf_counter(), 0
    while made < at_least:
        manner.draw(seed + made)
        made += manner.images
    return made / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=4, help="at least so many per measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="of ours, in place of what is found by trying")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile; takes minutes to start")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same blocks")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    sampler = SamplerConfig(steps=given.steps, height=given.size, width=given.size, safety_checker=False)
    with tempfile.TemporaryDirectory(prefix="evenhand-bench-") as name:
        build(Path(name), tiny=given.tiny)
        running = manners(Path(name), device, sampler, batch_size=given.batch_size, compiled=given.compile)
        measured: dict[str, list[float]] = {manner.name: [] for manner in running}
        for manner in running:
            manner.draw(0)
        for repeat in range(given.repeats):
            for manner in running:
                measured[manner.name].append(images_per_s(manner, 1000 * (repeat + 1), given.images))
                sys.stderr.write(f"{manner.name} {repeat + 1}/{given.repeats}: {measured[manner.name][-1]:.3g}\n")
    rows = {
        name: [
            show(mine),
            show([m / other for m, other in zip(mine, measured["published"], strict=True)]),
            show([m / other for m, other in zip(mine, measured["plain"], strict=True)]),
        ]
        for name, mine in measured.items()
    }
    stated = conditions(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        dtype=f"{resolve_dtype('auto', device)} (published: torch.float32)",
        model="tiny" if given.tiny else "Stable Diffusion 1.5's layout, random weights",
        steps=given.steps,
        pixels=f"{given.size}x{given.size}",
        images_per_measurement=f"{given.images} at least",
        repeats=f"{given.repeats}, alternating",
    )
    columns = ["images/s", "to published", "to plain"]
    sys.stdout.write(f"{table(columns, rows)}\n\nMedian [least, most]; ratios within each repeat. {stated}\n")


if __name__ == "__main__":
    main()
