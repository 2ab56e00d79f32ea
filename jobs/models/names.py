"""What the layers that read the text are called, by the model's family, in diffusers and in other programs' files.

diffusers names them by its own blocks, single files by the original code's (`input_blocks.4.1...`). LoRA files name
UNets' in kohya's manner, by one or the other with underscores for dots, and those of SD3 and FLUX as diffusers does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from time_ops.errors import ModelError

__all__ = [
    "JOINT",
    "ORIGINAL",
    "POOLED",
    "POOLED_ORIGINAL",
    "Family",
    "ema_twin",
    "family_of",
    "is_joint",
    "is_pooled",
    "is_xl",
    "lora_layers",
    "lora_parts",
    "original_names",
    "text_width",
]

Family = Literal["sd", "xl", "sd3", "flux"]
"""Stable Diffusion 1.x and 2.x, XL, 3.x; FLUX.1."""

ORIGINAL = "model.diffusion_model."
"""What the UNet's tensors in a single file begin with."""

POOLED = "add_embedding.linear_1.weight"
"""SDXL's weight that reads the pooled embedding by its first columns, in diffusers."""

POOLED_ORIGINAL = f"{ORIGINAL}label_emb.0.0.weight"
"""The same in a single file."""

JOINT = ("context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight")
"""The weights of SD3 and FLUX that read token states and the pooled embedding, in diffusers."""

_JOINT_ORIGINAL: dict[Family, tuple[str, str]] = {
    "sd3": ("context_embedder.weight", "y_embedder.mlp.0.weight"),
    "flux": ("txt_in.weight", "vector_in.in_layer.weight"),
}
_JOINT_NAMES = {*JOINT, *(name for both in _JOINT_ORIGINAL.values() for name in both)}
_POOLED = {POOLED, POOLED_ORIGINAL, JOINT[1], *(each[1] for each in _JOINT_ORIGINAL.values())}


def original_names(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Original names of weights that read the text.

    Of UNets diffusers has the way back only: it is asked for the names of all weights that such a UNet could have.

    Args:
        config: the UNet's or transformer's.
        names: in diffusers, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" and so on.

    Returns:
        By diffusers' name, in the order of `names`.

    Raises:
        ModelError: a UNet that the original code could not describe.
    """
    family = family_of(config)
    if family in _JOINT_ORIGINAL:
        known = dict(zip(JOINT, _JOINT_ORIGINAL[family], strict=True))
        return {name: known[name] for name in names}
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
    originals = convert_ldm_unet_checkpoint({c: c for c in candidates}, {"layers_per_block": layers})
    originals[POOLED] = POOLED_ORIGINAL
    missing = [name for name in names if name not in originals]
    if missing:
        raise ModelError.listing("no original names are known for:", missing[:8])
    return {name: originals[name] for name in names}


def ema_twin(original: str) -> str:
    """Name of the running average that training kept of a weight: without dots, as a torch buffer has to be."""
    return "model_ema." + original.removeprefix("model.").replace(".", "")


def is_pooled(name: str) -> bool:
    """Whether a weight reads the pooled embedding, by its name in diffusers, a single file or as a running average."""
    return name in _POOLED or name.removeprefix(ORIGINAL) in _POOLED or name == ema_twin(POOLED_ORIGINAL)


def is_joint(name: str) -> bool:
    """Whether a weight is one that reads the text in SD3 or FLUX, by its name in diffusers or a single file."""
    return name.removeprefix(ORIGINAL) in _JOINT_NAMES


def is_xl(config: Mapping[str, Any]) -> bool:
    """Whether this is the UNet of a Stable Diffusion XL."""
    return config.get("addition_embed_type") == "text_time"


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a UNet or transformer that jobs audit, by its configuration, read from a file or of a loaded one.

    A loaded model's does not say its class, so those of SD3 and FLUX are told by what each alone has.
    """
    if "caption_projection_dim" in config:
        return "sd3"
    if "num_single_layers" in config:
        return "flux"
    return "xl" if is_xl(config) else "sd"


def text_width(config: Mapping[str, Any]) -> int:
    """Width of the token states that a UNet or transformer reads."""
    name = "cross_attention_dim" if family_of(config) in ("sd", "xl") else "joint_attention_dim"
    width: int = config[name]
    return width


def lora_parts(config: Mapping[str, Any]) -> tuple[str, str]:
    """What a LoRA file calls a layer's down and up matrices: kohya's words for UNets, diffusers' for transformers."""
    if family_of(config) in ("sd3", "flux"):
        return "lora_A.weight", "lora_B.weight"
    return "lora_down.weight", "lora_up.weight"


def lora_layers(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What a LoRA file calls these weights' layers, as the programs that read such files expect.

    SD 1.x and 2.x are trained in diffusers' layout, and named after it; SDXL in the original one, both in kohya's
    manner. Of SD3 and FLUX diffusers and ComfyUI read diffusers' own names.

    Raises:
        ModelError: as for `original_names`.
    """
    listed = list(names)
    if family_of(config) in ("sd3", "flux"):
        return {n: f"transformer.{n.removesuffix('.weight')}" for n in listed}
    if is_xl(config):
        known = {n: o.removeprefix(ORIGINAL) for n, o in original_names(config, listed).items()}
    else:
        known = {n: n for n in listed}
    return {n: "lora_unet_" + k.removesuffix(".weight").replace(".", "_") for n, k in known.items()}
