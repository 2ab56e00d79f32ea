"""The verbs of diffusers' `StableDiffusionModelEditingPipeline`, for today's pipelines.

    operator = edit_model(pipe, "a CEO", "a female CEO")                  # as published: lamb 0.1, keys and values
    edit_model(pipe, "a nurse", "a male nurse", restart_params=False)     # a second edit, of the edited weights
    restore_model(pipe)                                                   # the original weights, bit for bit

What an edit needs to be undone is kept with the UNet or transformer: a copy, on the CPU, of the entries that were
edited, the one that reads the pooled embedding among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from time_ops.encoders import text_encoders
from time_ops.encoding import encode_edits
from time_ops.errors import EditError, ModelError
from time_ops.folding import check_loaded
from time_ops.operator import EditOperator
from time_ops.prompts import PromptEdit
from time_ops.solver import solve
from time_ops.surfaces import Projection, check_pipeline, denoiser_of, text_entries

__all__ = ["AUGS_CONST", "edit_model", "restore_model"]

# As published. The pair itself, without a prefix, always takes part.
AUGS_CONST = ("A photo of ", "An image of ", "A picture of ")

# On the UNet itself, so that it lives as long, is shared by pipelines that share the UNet, and is copied with it.
_ATTRIBUTE = "_time_ops_edited"
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class _Edited:
    """What edits have done to a UNet.

    Attributes:
        originals: weight of each edited projection before the first edit, [out, d] on the CPU.
        operator: all edits since, composed.
        left: fingerprint of each edited projection as the last edit left it.
    """

    originals: dict[str, torch.Tensor]
    operator: EditOperator
    left: dict[str, tuple[torch.dtype, int]]


def edit_model(
    pipe: Any,
    source_prompt: str | Sequence[str],
    destination_prompt: str | Sequence[str],
    lamb: float | Sequence[float] = 0.1,
    restart_params: bool = True,
    *,
    with_to_k: bool = True,
    with_augs: Sequence[str] = AUGS_CONST,
) -> EditOperator:
    """Edit a pipeline's model in place, so that it reads the source prompt as the destination prompt (TIME, eq. 5).

    Solved in float64 from float32 embeddings, whatever the pipeline's dtype, and cast once into the weights.

    Args:
        pipe: a Stable Diffusion 1.x, 2.x, XL or 3.x, a FLUX.1, PixArt or Sana pipeline in float16, bfloat16, float32
            or float64. Offloaded by `enable_model_cpu_offload` it can be edited; its weights must not be on the meta
            device or on disk.
        source_prompt: what is said, "a CEO"; or several, for edits in one solve.
        destination_prompt: what is to be read, "a female CEO", with all words of the source; one for each source.
        lamb: regularisation, for all or for each edit; smaller edits more strongly.
        restart_params: begin from the original weights, as they were before the first edit. False: from the current
            weights, so that edits accumulate; a later one changes what earlier ones did.
        with_to_k: edit keys as well as values.
        with_augs: prefixes (or templates with "{source}") behind which the prompts take part too; empty: none.

    Returns:
        The operator of all edits that the weights now carry: original weight @ matrix, up to the casts in between.

    Raises:
        EditError: prompts can't be aligned or are too long, lamb is not positive, or edits of values only and of keys
            and values would accumulate. The weights are as before.
        ModelError: the pipeline can't be edited (a LoRA or IP-Adapter not merged, quantised or offloaded weights, an
            MM-DiT model and so on), something else changed the weights since the last edit, or an edited weight
            overflows. The weights are as before, or where `restart_params` took an edit back, the original ones.
    """
    sources, destinations = _listed(source_prompt), _listed(destination_prompt)
    if len(sources) != len(destinations):
        raise EditError(f"{len(sources)} source prompts and {len(destinations)} destination prompts: give one for each")
    templates = ["{source}", *(a if "{source}" in a else a + "{source}" for a in _listed(with_augs))]
    check_pipeline(pipe)
    unet = _unet(pipe)
    projections = text_entries(unet, values_only=not with_to_k)
    for module in (unet, *(encoder for _, encoder in text_encoders(pipe))):
        check_loaded(module)
    _checked(unet)
    edits = [PromptEdit(s, {d: 1.0}) for s, d in zip(sources, destinations, strict=True)]
    operator = solve(encode_edits(pipe, edits, augmentations=templates), lamb, values_only=not with_to_k)
    if restart_params:
        restore_model(pipe)
    before = _checked(unet)
    composed = operator if before is None else before.operator @ operator
    originals = before.originals if before else {p.name: p.layer.weight.detach().cpu().clone() for p in projections}
    operator.fold_into(unet)
    left = {p.name: _fingerprint(p) for p in projections}
    setattr(unet, _ATTRIBUTE, _Edited(originals, composed, left))
    return composed


def restore_model(pipe: Any) -> bool:
    """Put the weights back that the model had before its first edit by `edit_model`, bit for bit.

    A model that was cast to another dtype since gets the original weights cast to it.

    Args:
        pipe: a pipeline with the UNet that was edited.

    Returns:
        Whether there was an edit to take back.

    Raises:
        ModelError: the weights can't be reached (offloaded, or wrapped by an adapter that was loaded since), or
            something else changed them since the last edit. The weights are as before.
    """
    unet = _unet(pipe)
    edited = _checked(unet)
    if edited is None:
        return False
    with torch.no_grad():
        for projection in text_entries(unet):
            if projection.name in edited.originals:
                projection.layer.weight.copy_(edited.originals[projection.name])
    delattr(unet, _ATTRIBUTE)
    return True


def _listed(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _unet(pipe: Any) -> Any:
    return denoiser_of(pipe)


def _checked(unet: Any) -> _Edited | None:
    """Find what edits have done, once it is sure that nothing else was done to the same weights since."""
    edited: _Edited | None = getattr(unet, _ATTRIBUTE, None)
    if edited is None:
        return None
    check_loaded(unet)
    changed = []
    for projection in text_entries(unet):
        dtype, bits = edited.left.get(projection.name, (None, 0))
        # A cast model has other bits, and says nothing.
        if projection.layer.weight.dtype == dtype and _fingerprint(projection) != (dtype, bits):
            changed.append(projection.name)
    if changed:
        raise ModelError(
            f"{len(changed)} edited projections were changed since the last edit by something else, a fused LoRA or "
            f"loaded weights ({', '.join(changed[:4])}): to go back to the original weights would undo that as well. "
            "Load the pipeline again, change it first and edit it then"
        )
    return edited


def _fingerprint(projection: Projection) -> tuple[torch.dtype, int]:
    """Sum the bits of a weight, as integers: the same on every device, whatever the order."""
    weight = projection.layer.weight.detach()
    return weight.dtype, int(weight.view(_BITS[weight.element_size()]).sum(dtype=torch.int64))
