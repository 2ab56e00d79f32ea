"""Latents as pipelines hand them out, and as their VAEs read them."""

from __future__ import annotations

from typing import Any

import torch

from time_ops.surfaces import denoiser_of

__all__ = ["decodable", "is_packed", "unpacked"]


def is_packed(pipe: Any) -> bool:
    """Whether a pipeline's latents are patches in a row, as FLUX's are."""
    return type(denoiser_of(pipe)).__name__ == "FluxTransformer2DModel"


def unpacked(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Latents [n, C, H/f, W/f] of what a pipeline gives as such, FLUX as [n, patches, 4 C]; height and width in px."""
    if not is_packed(pipe):
        return latents
    return torch.as_tensor(pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor))


def decodable(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE reads them, by its configuration, as diffusers' own pipelines do."""
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or std is None:
        shift = getattr(vae.config, "shift_factor", None)
        scaled = latents / vae.config.scaling_factor
        # SD3's and FLUX's are shifted; where there is no shift, nothing is added, so that bits stay as they were.
        return torch.as_tensor(scaled if shift is None else scaled + shift)
    means, stds = (torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1) for v in (mean, std))
    return torch.as_tensor(latents * stds / vae.config.scaling_factor + means)
