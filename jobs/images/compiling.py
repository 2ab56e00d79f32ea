"""Whether a UNet or transformer is compiled: it takes a minute, and then an image takes less."""

from __future__ import annotations

import os
import shutil

from jobs.config import RunConfig, SamplerConfig

__all__ = ["compiles", "for_images", "is_worth_compiling"]

# On an H200 compiling took 52 s and saved 0.09 s of an image of 512 pixels and 50 steps: after 600 it has paid for
# itself, after twice as many for its start on every node too. A slower GPU saves more on each.
_IMAGES, _PIXELS, _STEPS = 1200, 512 * 512, 50


def is_worth_compiling(sampler: SamplerConfig, images: float) -> bool:
    """Whether a worker that draws so many images saves more than compiling takes."""
    return images * sampler.steps * sampler.height * sampler.width >= _IMAGES * _STEPS * _PIXELS


def for_images(config: RunConfig, images: float) -> RunConfig:
    """The configuration with `auto` off where a worker draws too few images to pay for compiling.

    Args:
        config: of a run.
        images: that each of its workers draws.
    """
    sampler = config.sampler
    if sampler.compile != "auto" or is_worth_compiling(sampler, images):
        return config
    return config.model_copy(update={"sampler": sampler.model_copy(update={"compile": False})})


def compiles(sampler: SamplerConfig, device: str, dtype: str) -> bool:
    """Whether a worker compiles; `auto` means that it may, see `for_images`.

    What is measured is half precision on a GPU. Kernels are started by code that a C compiler on the node makes.

    Args:
        sampler: of the run.
        device: kind of the worker's, as "cuda".
        dtype: that the pipeline runs in, as "bfloat16".
    """
    if sampler.compile != "auto":
        return sampler.compile
    if device != "cuda" or dtype == "float32":
        return False
    return shutil.which(os.environ.get("CC", "cc")) is not None or shutil.which("gcc") is not None
