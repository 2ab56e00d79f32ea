"""What a UNet's projections are called in the files of other programs.

diffusers names them by its own blocks, single files by the original code's (`input_blocks.4.1...`), and LoRA files, in
kohya's manner, by one or the other with underscores for dots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from time_ops.errors import ModelError

__all__ = ["ORIGINAL", "POOLED", "POOLED_ORIGINAL", "ema_twin", "is_pooled", "is_xl", "kohya_names", "original_names"]

ORIGINAL = "model.diffusion_model."
"""What the UNet's tensors in a single file begin with."""

POOLED = "add_embedding.linear_1.weight"
"""SDXL's weight that reads the pooled embedding by its first columns, in diffusers."""

POOLED_ORIGINAL = f"{ORIGINAL}label_emb.0.0.weight"
"""The same in a single file."""


def original_names(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Original names of attention weights.

    diffusers has the way back only: it is asked for the names of all weights that such a UNet could have.

    Args:
        config: The UNet's.
        names: In diffusers, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" and so on.

    Returns:
        By diffusers' name, in the order of `names`.

    Raises:
        ModelError: A UNet that the original code could not describe.

    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise ModelError("layers_per_block differs between blocks: no original names are known for such a UNet")
    inside = sorted({name.partition(".transformer_blocks.")[2] for name in names if name != POOLED})
    count = len(config["down_block_types"]) * (layers + 1)
    places = [f"{side}_blocks.{i}" for side in ("input", "output") for i in range(count)]
    candidates = [
        f"{ORIGINAL}{place}.1.transformer_blocks.{rest}" for place in [*places, "middle_block"] for rest in inside
    ]
    # The converter counts middle blocks: only as the second of three does it know an attention.
    candidates += [f"{ORIGINAL}middle_block.{i}.norm" for i in range(3)]
    found = convert_ldm_unet_checkpoint(  # type: ignore[no-untyped-call]
        {c: c for c in candidates}, {"layers_per_block": layers}
    )
    found[POOLED] = POOLED_ORIGINAL
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError.listing("no original names are known for:", missing[:8])
    return {name: found[name] for name in names}


def ema_twin(original: str) -> str:
    """Name of the running average that training kept of a weight: without dots, as a torch buffer has to be."""
    return "model_ema." + original.removeprefix("model.").replace(".", "")


def is_pooled(name: str) -> bool:
    """Whether a weight reads the pooled embedding, by its name in diffusers, a single file or as a running average."""
    return name in (POOLED, POOLED_ORIGINAL, ema_twin(POOLED_ORIGINAL))


def is_xl(config: Mapping[str, Any]) -> bool:
    """Whether this is the UNet of a Stable Diffusion XL."""
    return config.get("addition_embed_type") == "text_time"


def kohya_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What a LoRA file calls these weights' layers, as the programs that read such files expect.

    SD 1.x and 2.x are trained in diffusers' layout, and named after it; SDXL in the original one.

    Raises:
        ModelError: As for `original_names`.

    """
    listed = list(names)
    if is_xl(config):
        known = {n: o.removeprefix(ORIGINAL) for n, o in original_names(config, listed).items()}
    else:
        known = {n: n for n in listed}
    return {n: "lora_unet_" + k.removesuffix(".weight").replace(".", "_") for n, k in known.items()}
