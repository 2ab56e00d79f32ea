"""Whether a run's sampler fits its model, before anything is spent. Without torch and diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.config import SamplerConfig
from jobs.errors import ConfigError
from jobs.models.joint_kinds import FLUX, SD3
from jobs.models.kinds import class_of
from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = ["FLOW_SCHEDULERS", "check_sampler"]

FLOW_SCHEDULERS = ("flow-euler",)
"""Names of schedulers for models that match a flow, SD3 and FLUX; all others are for models that predict noise or v."""


def check_sampler(folder: Path, sampler: SamplerConfig) -> None:
    """Refuse what the model would not draw with, or would pass over.

    Args:
        folder: a staged pipeline that `check_kind` has passed.
        sampler: the run's.

    Raises:
        ConfigError: with every fault.
        ModelError: its configuration says no sizes.
    """
    faults = [*_faults(class_of(folder), folder, sampler)]
    if faults:
        raise ConfigError("the sampler does not fit the model:\n" + "\n".join(f"  {fault}" for fault in faults))


def _faults(kind: str, folder: Path, sampler: SamplerConfig) -> Iterator[str]:
    flow, named = kind in (SD3, FLUX), sampler.scheduler in FLOW_SCHEDULERS
    if flow and not named:
        yield (
            f"sampler.scheduler: {sampler.scheduler} is for models that predict noise, and a {kind} matches a flow: "
            f"set it to {' or '.join(FLOW_SCHEDULERS)}"
        )
    if named and not flow:
        yield f"sampler.scheduler: {sampler.scheduler} is for SD3 and FLUX, and a {kind} predicts noise: set ddim"
    if not flow:
        return
    transformer, vae = (_config(folder / part) for part in ("transformer", "vae"))
    # Where diffusers finds another size it draws the next smaller one, or raises once models are loaded.
    unit = _unit(transformer.get("patch_size", 2) if kind == SD3 else 2, vae.get("block_out_channels", [0]))
    for side in ("height", "width"):
        size = getattr(sampler, side)
        if size % unit:
            yield f"sampler.{side}: {size} is no multiple of {unit}, the side of this model's patches"
    if kind == FLUX and sampler.negative_prompt:
        yield (
            "sampler.negative_prompt: FLUX is distilled to be told its guidance as a number, and reads no negative "
            "prompt: leave it empty"
        )
    if kind == FLUX and not transformer.get("guidance_embeds", False) and sampler.guidance_scale > 1:
        yield (
            f"sampler.guidance_scale: {sampler.guidance_scale:g} would be passed over, as this FLUX is told no "
            "guidance (guidance_embeds: false, as schnell's): set 1"
        )


def _unit(patch: Any, blocks: Any) -> int:
    """How many pixels wide a patch is: latents of a patch, times two for each of the VAE's blocks but one."""
    if not isinstance(patch, int) or not isinstance(blocks, list) or not (0 < patch < 256 and 0 < len(blocks) < 16):
        raise ModelError(
            "the model can't be audited: patch_size of its transformer or block_out_channels of its VAE is no size"
        )
    return patch * int(2 ** (len(blocks) - 1))


def _config(part: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json_of((part / "config.json").read_text(encoding="utf-8"))
    return config
