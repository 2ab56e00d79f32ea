"""What the benchmarks share: the published manner of sampling, conditions, figures, tables."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

__all__ = ["conditions", "draw_as_published", "draw_plainly", "show", "table"]

LOAD_BEFORE = psutil.getloadavg()[0]
"""Of the minute before this process began to measure; above 0.5 others were at work, and the figures are worth less."""


@torch.inference_mode()
def draw_plainly(pipe: Any, text: torch.Tensor, empty: torch.Tensor, seeds: Sequence[int], sampler: Any) -> np.ndarray:
    """Images [n, H, W, 3] uint8 by one call of the pipeline. `text` and `empty` are [n, tokens, d]."""
    result = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=empty,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        height=sampler.height,
        width=sampler.width,
        output_type="np",
    )
    return np.asarray((np.nan_to_num(result.images) * 255).round(), dtype=np.uint8)


@torch.inference_mode()
def draw_as_published(pipe: Any, text: torch.Tensor, empty: torch.Tensor, seed: int, sampler: Any) -> np.ndarray:
    """One image [1, H, W, 3] uint8 as the code published with TIME draws it: the conditional and the unconditional
    pass of the UNet one after the other. `text` and `empty` are [1, tokens, d]."""
    height, width = sampler.height // pipe.vae_scale_factor, sampler.width // pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, height, width)
    latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=text.dtype).to(pipe.device)
    pipe.scheduler.set_timesteps(sampler.steps, device=pipe.device)
    latents = latents * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        scaled = pipe.scheduler.scale_model_input(latents, t)
        without = pipe.unet(scaled, t, encoder_hidden_states=empty, return_dict=False)[0]
        noise = pipe.unet(scaled, t, encoder_hidden_states=text, return_dict=False)[0]
        noise = without + sampler.guidance_scale * (noise - without)
        latents = pipe.scheduler.step(noise, t, latents, return_dict=False)[0]
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    values = pipe.image_processor.postprocess(image, output_type="np")
    return np.asarray((np.nan_to_num(values) * 255).round(), dtype=np.uint8)


def conditions(**settings: object) -> str:
    """One paragraph: the machine, the versions, the settings."""
    names = ("torch", "diffusers", "transformers", "ray")
    parts = [
        _cpu_model(),
        f"{os.cpu_count()} cores",
        f"load average {LOAD_BEFORE:.1f} before",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in names),
        *(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()),
    ]
    return "Conditions: " + ", ".join(parts) + "."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(values: Sequence[float]) -> str:
    """Median and range: "41.2 [40.8, 43.0]"."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Markdown; the first column holds the rows' names."""
    lines = ["| " + " | ".join(["", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([name, *cells]) + " |" for name, cells in rows.items()]
    return "\n".join(lines)
