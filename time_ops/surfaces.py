"""Which layers read the text, and which models can be edited.

The key and value projections of every cross-attention layer, found by role (`attn2.to_k`, `attn2.to_v`), never by
class name, and counted against what the model's configuration promises. A model where an edit of these projections
would not be the whole of what the text does is refused with every reason at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from time_ops.errors import ModelError

__all__ = ["Projection", "check_pipeline", "expected_layers", "text_projections"]

Role = Literal["key", "value"]

# Dtypes whose weights can be multiplied and cast; float8 and integers are storage formats of quantisers.
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Projection:
    """One linear layer that reads the text.

    Attributes:
        name: Its path inside the model, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k".
        role: "key" or "value".
        layer: The layer; weight [out, d].

    """

    name: str
    role: Role
    layer: nn.Linear


def text_projections(module: Any, *, d: int | None = None, values_only: bool = False) -> list[Projection]:
    """Every key and value projection that reads the text, in the model's order.

    Args:
        module: A `UNet2DConditionModel`.
        d: Width of the text embeddings that the caller has; checked against every projection.
        values_only: Leave the key projections out.

    Returns:
        Keys and values in turn: 32 for Stable Diffusion 1.x and 2.x, 140 for SDXL.

    Raises:
        ModelError: The model can't be edited; all reasons are given.

    """
    config = _unet_config(module)
    faults = list(_model_faults(module, config))
    found: list[Projection] = []
    layers = [(name, layer) for name, layer in module.named_modules() if name.rpartition(".")[2] == "attn2"]
    for name, attention in layers:
        faults.extend(_attention_faults(name, attention))
        for attribute, role in _ROLES:
            layer = getattr(attention, attribute, None)
            path = f"{name}.{attribute}"
            if layer is None:
                faults.append(f"{path} is missing")
                continue
            reasons = list(_layer_faults(path, layer, d))
            faults.extend(reasons)
            if not reasons:
                found.append(Projection(path, role, layer))
    if not layers:
        faults.append("it has no cross-attention (no layer called attn2), so nothing in it reads the text")
    else:
        promised = expected_layers(config)
        if len(layers) != promised:
            faults.append(f"{len(layers)} cross-attention layers found, but its configuration promises {promised}")
    if faults:
        raise ModelError.listing(f"{type(module).__name__} can't be edited:", _shortened(faults))
    return [p for p in found if p.role == "value" or not values_only]


def expected_layers(config: Mapping[str, Any]) -> int:
    """Count the cross-attention layers that a UNet's configuration promises: 16 for SD 1.x and 2.x, 70 for SDXL.

    Args:
        config: The configuration of a `UNet2DConditionModel`.

    """
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    layers = _per_block(config.get("layers_per_block", 2), len(down))
    blocks = _per_block(config.get("transformer_layers_per_block", 1), len(down))
    backwards = config.get("reverse_transformer_layers_per_block")
    up_blocks = _per_block(backwards, len(up)) if backwards is not None else blocks[::-1]
    count = sum(n * _total(b, n) for kind, n, b in zip(down, layers, blocks, strict=True) if "CrossAttn" in kind)
    for kind, n, b in zip(up, layers[::-1], up_blocks, strict=True):
        count += (n + 1) * _total(b, n + 1) if "CrossAttn" in kind else 0
    if "CrossAttn" in (config.get("mid_block_type") or ""):
        count += _total(blocks[-1], 1)
    return int(count)


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline whose text does not enter through a UNet's cross-attention.

    Raises:
        ModelError: It has no UNet, or no text encoder; the reason is named.

    """
    name = type(pipe).__name__
    if getattr(pipe, "transformer", None) is not None:
        text_projections(pipe.transformer)
    # A pipeline loaded with unet=None still encodes prompts: workers that only encode do that.
    if not hasattr(pipe, "unet"):
        raise ModelError(f"{name} can't be edited: it has no UNet")
    if getattr(pipe, "text_encoder", None) is None and getattr(pipe, "text_encoder_2", None) is None:
        raise ModelError(f"{name} can't be edited: its text encoder is not loaded")
    if not callable(getattr(pipe, "encode_prompt", None)):
        raise ModelError(f"{name} can't be edited: it has no encode_prompt, so its prompts can't be encoded as it does")


_ROLES: tuple[tuple[str, Role], ...] = (("to_k", "key"), ("to_v", "value"))


def _unet_config(module: Any) -> Mapping[str, Any]:
    if not isinstance(module, nn.Module):
        hint = ": pass its unet" if hasattr(module, "unet") else ""
        raise ModelError(f"{type(module).__name__} is not a model{hint}")
    config = getattr(module, "config", None)
    if isinstance(config, Mapping) and {"down_block_types", "up_block_types", "cross_attention_dim"} <= set(config):
        return config
    names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    if "add_k_proj" in names or "single_transformer_blocks" in names or "context_embedder" in names:
        reason = (
            "it is an MM-DiT (as SD3 and FLUX are): text and image share one attention, the text is changed from block "
            "to block, and no fixed projection reads the text embeddings"
        )
    elif "caption_projection" in names or "attn2" in names:
        reason = "its text passes a projection or norm of its own before cross-attention (a projected context)"
    else:
        reason = "it is not a UNet2DConditionModel, and has no projections that are known to read the text"
    raise ModelError(f"{type(module).__name__} can't be edited: {reason}")


def _model_faults(module: nn.Module, config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("encoder_hid_dim_type") == "ip_image_proj":
        yield "an IP-Adapter is loaded (encoder_hid_proj holds its image projection): unload it first"
    elif getattr(module, "encoder_hid_proj", None) is not None:
        yield "encoder_hid_proj projects the text before cross-attention (a projected context)"
    if config.get("addition_embed_type") in ("text", "text_image", "image", "image_hint"):
        yield f"addition_embed_type={config['addition_embed_type']!r} reads the text or an image by another way"
    only_cross = config.get("only_cross_attention") or config.get("mid_block_only_cross_attention")
    if any(only_cross) if isinstance(only_cross, Sequence) else only_cross:
        yield "only_cross_attention is set, so its attn1 layers read the text as well"
    if config.get("dual_cross_attention"):
        yield "dual_cross_attention is set: two contexts share the layers"


def _attention_faults(name: str, attention: nn.Module) -> Iterator[str]:
    if getattr(attention, "fused_projections", False):
        yield f"{name} has fused QKV projections: call unfuse_qkv_projections() first"
    if getattr(attention, "added_kv_proj_dim", None) is not None or getattr(attention, "add_k_proj", None) is not None:
        yield f"{name} has added key and value projections (added_kv_proj_dim), which read a context of their own"
    if getattr(attention, "norm_cross", None) is not None:
        yield f"{name} normalises the text before projecting it (cross_attention_norm): no longer linear in the text"
    if getattr(attention, "is_cross_attention", True) is False:
        yield f"{name} is a self-attention"
    if hasattr(getattr(attention, "processor", None), "to_k_ip"):
        yield f"{name} carries an IP-Adapter: unload it first"


def _layer_faults(path: str, layer: nn.Module, d: int | None) -> Iterator[str]:
    # An exact type: subclasses compute something else from the same weight (adapters, quantisers, parametrisations).
    if type(layer) is not nn.Linear:
        if hasattr(layer, "base_layer") or hasattr(layer, "lora_A"):
            yield f"{path} is wrapped by an adapter ({type(layer).__name__}): fuse and unload it, or unload it, first"
        elif _is_quantised(layer):
            yield f"{path} is quantised ({type(layer).__module__}.{type(layer).__name__}): load full weights"
        else:
            yield f"{path} is a {type(layer).__module__}.{type(layer).__name__}, not a plain linear layer"
        return
    if type(layer.weight.data) is not torch.Tensor or layer.weight.dtype not in _WEIGHT_DTYPES:
        kind = type(layer.weight.data).__name__
        yield f"{path} is quantised (weight is a {kind} of {layer.weight.dtype}): load full weights"
        return
    if getattr(layer, "lora_layer", None) is not None:
        yield f"{path} carries an unmerged LoRA: fuse it first"
    if d is not None and layer.in_features != d:
        yield f"{path} reads embeddings of width {layer.in_features}, the edit has {d}"


def _is_quantised(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    home = type(layer).__module__.partition(".")[0]
    if home in ("bitsandbytes", "torchao", "optimum", "quanto", "auto_gptq", "awq", "gguf"):
        return True
    return (isinstance(weight, torch.Tensor) and weight.dtype not in _WEIGHT_DTYPES) or hasattr(layer, "quant_state")


def _per_block(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)


def _total(transformer_layers: Any, layers: int) -> float:
    """Mean number of transformer layers per attention, where a block may give one number or one for each."""
    return transformer_layers if isinstance(transformer_layers, int) else sum(transformer_layers[:layers]) / layers


def _shortened(faults: Sequence[str], limit: int = 8) -> list[str]:
    """Cut a list: the same reason in seventy layers reads better as a few examples and a count."""
    more = len(faults) - limit
    return [*faults[:limit], *([f"and {more} more"] if more > 0 else [])]
