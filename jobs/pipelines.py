"""Pipelines: loaded from a staged folder, ready to sample. Apart from `jobs.models`, because diffusers is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError

from jobs.config import SamplerConfig
from jobs.models import check_kind
from time_ops.errors import ModelError

__all__ = ["SCHEDULERS", "load_pipeline"]

# diffusers' schedulers by the names that people use, with what each needs beyond the model's own settings.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def load_pipeline(folder: Path, sampler: SamplerConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The resident pipeline, ready to sample: scheduler set, progress bar off, in evaluation mode.

    Raises:
        ModelError: not a Stable Diffusion 1.x or 2.x pipeline, or one that can't be loaded.
    """
    check_kind(folder)
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
    if not sampler.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    diffusers_logging.disable_progress_bar()
    try:
        pipe: Any = StableDiffusionPipeline.from_pretrained(folder, **options)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ModelError(f"the pipeline can't be loaded: {error}") from error
    name, extra = SCHEDULERS[sampler.scheduler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **extra)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe
