"""Pipelines: loaded from a staged folder, ready to sample. Apart from `staging`, because diffusers is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from jobs.config import SamplerConfig
from jobs.models.files import components_of, weight_variant
from jobs.models.kinds import class_of
from jobs.models.sampling import check_sampler
from jobs.models.weights import check_loaded, check_pipeline, component_class
from time_ops.errors import ModelError
from time_ops.surfaces import denoiser_of

__all__ = ["SCHEDULERS", "compile_unet", "load_pipeline", "prepare_pipeline"]

# diffusers' schedulers by the names that people use, with what each needs beyond the model's own settings.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as Stable Diffusion ships it; the warm-up needs four steps
    "unipc": ("UniPCMultistepScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
}
_KINDS = (StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline)


def load_pipeline(folder: Path, sampler: SamplerConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The resident pipeline, ready to sample: scheduler set, progress bar off, in evaluation mode.

    Attention is scaled dot-product, diffusers' default. On a GPU the VAE's layout is channels-last, and TF32 is allowed
    unless the dtype is float32. How many images are decoded together is the generator's choice, whether the UNet or
    transformer is compiled the worker's.

    Components whose weights are there in a variant alone, as fp16, are loaded from that.

    Raises:
        ModelError: a pipeline of no known family, one that can't be loaded, or one whose files are not what its
            configuration says; see `check_pipeline`.
        ConfigError: the sampler does not fit the model.
    """
    check_pipeline(folder, safety_checker=sampler.safety_checker, finite=False)
    check_sampler(folder, sampler)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    kind: Any = {kind.__name__: kind for kind in _KINDS}[class_of(folder)]
    if kind is StableDiffusionXLPipeline:
        # A watermark is written into the pixels, of the base and of the edited model's images alike.
        options["add_watermarker"] = False
    elif kind is StableDiffusionPipeline and not sampler.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    elif kind is StableDiffusion3Pipeline and "text_encoder_3" not in components_of(folder):
        # diffusers asks to be told that there is no T5; zeros are read in its place.
        options |= {"text_encoder_3": None, "tokenizer_3": None}
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        options |= _variants(folder, sampler, dtype)
        pipe: Any = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ModelError(f"the pipeline can't be loaded: {error}") from error
    check_loaded(pipe.components)
    return prepare_pipeline(pipe, sampler, device, dtype)


def _variants(folder: Path, sampler: SamplerConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The components that have no plain weights, loaded. diffusers' own `variant` would be that of all components."""
    components = {}
    for name, (library, class_name) in components_of(folder, safety_checker=sampler.safety_checker).items():
        variant = weight_variant(folder / name)
        if variant is not None:
            kind = component_class(library, class_name)
            components[name] = kind.from_pretrained(
                folder / name, variant=variant, dtype=dtype, use_safetensors=True, local_files_only=True
            )
    return components


def prepare_pipeline(pipe: Any, sampler: SamplerConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """A loaded pipeline made ready to sample, see `load_pipeline`."""
    name, extra = SCHEDULERS[sampler.scheduler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **extra)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    is_xl = isinstance(pipe, StableDiffusionXLPipeline)
    if is_xl and dtype == torch.float16 and pipe.vae.config.force_upcast:
        # SDXL's own VAE overflows float16, as its configuration says; the one that was mended for it says otherwise.
        pipe.vae.to(torch.float32)
    if device.type == "cuda":
        # The UNet stays in its own layout: on an H200 channels-last cost it a tenth, in bfloat16 with batches of 16.
        pipe.vae.to(memory_format=torch.channels_last)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype != torch.float32
    return pipe


def compile_unet(pipe: Any) -> None:
    """Compile at the first batch, and again for every other batch size; workers of a node share inductor's cache.

    Without CUDA graphs, which overwrite the outputs of earlier steps that multistep schedulers keep.
    """
    denoiser_of(pipe).compile(fullgraph=True, dynamic=False)
