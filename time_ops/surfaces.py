"""Which layers read the text, and which models can be edited.

An *entry* is a linear layer that reads embeddings of the text, of one kind: the token states, or the one pooled vector
of a prompt. A linear layer's edit is an operator on what it reads, so a model is edited exactly where all its text
enters by entries:

    UNets           attn2.to_k and attn2.to_v of every cross-attention        token states
    SDXL besides    add_embedding.linear_1, the columns before the sizes'     pooled
    SD3, FLUX       context_embedder                                          token states
                    time_text_embed.text_embedder.linear_1                    pooled
    PixArt, Sana    caption_projection.linear_1                               token states

A UNet's are found by role, never by class name, and counted against what its configuration promises. A model where an
edit of its entries would not be the whole of what the text does is refused with every reason at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from time_ops.errors import ModelError

__all__ = [
    "CAPTION_MODELS",
    "Kind",
    "Projection",
    "check_pipeline",
    "denoiser_of",
    "expected_layers",
    "pooled_width",
    "text_entries",
    "text_projections",
]

Kind = Literal["tokens", "pooled"]
"""What an entry reads: [..., n, d] token states, or one [..., p] vector for each prompt."""

Role = Literal["key", "value", "context", "pooled"]

# Dtypes whose weights can be multiplied and cast; float8 and integers are storage formats of quantisers.
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# How many numbers (sizes, crops, a score) stand beside SDXL's pooled embedding: its base model's, its refiner's.
_TIME_IDS = (6, 5)
CAPTION_MODELS = ("PixArtTransformer2DModel", "SanaTransformer2DModel")
"""Models whose text passes one projection, whatever reads it behind, and whose padding is masked."""

_JOINT_ENTRIES: tuple[tuple[str, Role, str], ...] = (
    ("context_embedder", "context", "joint_attention_dim"),
    ("time_text_embed.text_embedder.linear_1", "pooled", "pooled_projection_dim"),
)
_CAPTION_ENTRIES: tuple[tuple[str, Role, str], ...] = (("caption_projection.linear_1", "context", "caption_channels"),)
# By class: that a model has layers of these names does not say that nothing else in it reads the text.
_ENTRIES = {
    **dict.fromkeys(("SD3Transformer2DModel", "FluxTransformer2DModel"), _JOINT_ENTRIES),
    **dict.fromkeys(CAPTION_MODELS, _CAPTION_ENTRIES),
}
"""Of transformers: path and role of each entry, and what of the configuration promises its width."""
# The module around PixArt's and Sana's entry; another one may do something to the text before it.
_CAPTION_PROJECTION = "PixArtAlphaTextProjection"


@dataclass(frozen=True)
class Projection:
    """One entry: a linear layer that reads the text.

    Attributes:
        name: its path inside the model, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k".
        role: "key" or "value" of a cross-attention, "context" of a whole model, or "pooled".
        layer: the layer; weight [out, in].
        width: how many of its inputs, the first ones, read the text: d. The others, and the bias, are never edited.
    """

    name: str
    role: Role
    layer: nn.Linear
    width: int

    @property
    def kind(self) -> Kind:
        """What it reads."""
        return "pooled" if self.role == "pooled" else "tokens"


def text_entries(
    module: Any, *, d: int | None = None, pooled: int | None = None, values_only: bool = False
) -> list[Projection]:
    """Every linear layer that reads the text, in the model's order, the one that reads the pooled embedding last.

    Args:
        module: a `UNet2DConditionModel`, or the transformer of SD3, FLUX, PixArt or Sana.
        d: width of the token states that the caller has; checked against every entry that reads them.
        pooled: width of the pooled embedding that the caller has; likewise.
        values_only: leave the key projections out.

    Returns:
        32 for Stable Diffusion 1.x and 2.x, 141 for SDXL, 2 for SD3 and FLUX, 1 for PixArt and Sana.

    Raises:
        ModelError: the model can't be edited; all reasons are given.
    """
    config = _known_config(module)
    if type(module).__name__ in _ENTRIES:
        return _transformer_entries(module, config, d=d, pooled=pooled, values_only=values_only)
    projections = _unet_projections(module, config, d=d, pooled=pooled)
    return [p for p in projections if p.role != "key" or not values_only]


def text_projections(module: Any, *, d: int | None = None, values_only: bool = False) -> list[Projection]:
    """Every entry that reads token states, in the model's order; the parameters and errors of `text_entries`.

    Returns:
        Keys and values in turn: 32 for Stable Diffusion 1.x and 2.x, 140 for SDXL; 1 for all others.
    """
    return [p for p in text_entries(module, d=d, values_only=values_only) if p.kind == "tokens"]


def pooled_width(module: Any) -> int | None:
    """Width of the pooled embedding that a model reads; None: it reads none. Errors as for `text_entries`."""
    return next((p.width for p in text_entries(module) if p.kind == "pooled"), None)


def _transformer_entries(
    module: nn.Module, config: Mapping[str, Any], *, d: int | None, pooled: int | None, values_only: bool
) -> list[Projection]:
    faults = []
    entries = _ENTRIES[type(module).__name__]
    # SD3 and FLUX read an image by layers of their own, whose states the text's attention then mixes with.
    if getattr(module, "image_proj", None) is not None or getattr(module, "encoder_hid_proj", None) is not None:
        faults.append("an IP-Adapter is loaded: its image enters the attention jointly with the text. Unload it first")
    if values_only:
        faults.append(f"{entries[0][0]} feeds keys and values alike, so there is no edit of values only")
    if pooled is not None and all(role != "pooled" for _, role, _ in entries):
        faults.append("it reads no pooled embedding, and the edit has one")
    around = type(getattr(module, "caption_projection", None)).__name__
    if entries is _CAPTION_ENTRIES and around not in (_CAPTION_PROJECTION, "NoneType"):
        faults.append(f"caption_projection is a {around}, which may change the text before its linear layer reads it")
    projections = []
    for path, role, promised in entries:
        layer = module
        for part in path.split("."):
            layer = getattr(layer, part, None)  # type: ignore[assignment]
        if layer is None:
            faults.append(f"{path} is missing")
            continue
        reasons = list(_layer_faults(path, layer, pooled if role == "pooled" else d))
        width = config.get(promised)
        if not reasons and layer.in_features != width:
            reasons = [f"{path} reads embeddings of width {layer.in_features}, its configuration promises {width}"]
        faults += reasons
        if not reasons:
            projections.append(Projection(path, role, layer, layer.in_features))  # type: ignore[arg-type]
    if faults:
        raise ModelError.listing(f"{type(module).__name__} can't be edited:", faults)
    return projections


def _unet_projections(
    module: nn.Module, config: Mapping[str, Any], *, d: int | None, pooled: int | None
) -> list[Projection]:
    faults = list(_model_faults(module, config))
    projections: list[Projection] = []
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
                projections.append(Projection(path, role, layer, layer.in_features))
    if not layers:
        faults.append("it has no cross-attention (no layer called attn2), so nothing in it reads the text")
    else:
        promised = expected_layers(config)
        if len(layers) != promised:
            faults.append(f"{len(layers)} cross-attention layers found, but its configuration promises {promised}")
    if config.get("addition_embed_type") == "text_time":
        try:
            projections.append(_sized_entry(module, config, pooled))
        except ModelError as error:
            faults.append(str(error))
    elif pooled is not None:
        faults.append("it reads no pooled embedding, and the edit has one")
    if faults:
        raise ModelError.listing(f"{type(module).__name__} can't be edited:", _shortened(faults))
    return projections


def _sized_entry(module: nn.Module, config: Mapping[str, Any], pooled: int | None) -> Projection:
    """SDXL's: the pooled embedding is joined with embedded sizes, which come behind it (`get_aug_embed`)."""
    path = "add_embedding.linear_1"
    layer: Any = getattr(getattr(module, "add_embedding", None), "linear_1", None)
    if layer is None:
        raise ModelError(f"{path} is missing")
    reasons = list(_layer_faults(path, layer, None))
    if reasons:
        raise ModelError("; ".join(reasons))
    each = int(config["addition_time_embed_dim"])
    widths = [layer.in_features - ids * each for ids in _TIME_IDS]
    if pooled is None:
        # The refiner alone has as many inputs as its cross-attention reads, and five sizes.
        refines = widths[1] == config["cross_attention_dim"]
        width = widths[1] if refines else widths[0]
    elif pooled in widths:
        width = pooled
    else:
        raise ModelError(f"{path} reads pooled embeddings of width {widths[0]}, the edit has {pooled}")
    if width <= 0:
        raise ModelError(f"{path} has {layer.in_features} inputs, no more than its sizes take")
    return Projection(path, "pooled", layer, width)


def expected_layers(config: Mapping[str, Any]) -> int:
    """Count the cross-attention layers that a UNet's configuration promises: 16 for SD 1.x and 2.x, 70 for SDXL.

    Args:
        config: the configuration of a `UNet2DConditionModel`.
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


def denoiser_of(pipe: Any) -> Any:
    """The model in a pipeline that reads the text, its UNet or transformer; None where it is not loaded.

    `torch.compile` wraps a model, and would put a prefix before every name: what it wraps is given.
    """
    module = getattr(pipe, "transformer", None)
    module = getattr(pipe, "unet", None) if module is None else module
    return getattr(module, "_orig_mod", module)


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline whose text does not enter by entries alone.

    Raises:
        ModelError: it has neither UNet nor known transformer, no text encoder, or a second model that reads the text;
            the reason is named.
    """
    name = type(pipe).__name__
    if getattr(pipe, "transformer", None) is not None:
        text_entries(denoiser_of(pipe))
    # A pipeline loaded with unet=None still encodes prompts: workers that only encode do that.
    elif not hasattr(pipe, "unet"):
        raise ModelError(f"{name} can't be edited: it has no UNet")
    if getattr(pipe, "controlnet", None) is not None:
        raise ModelError(
            f"{name} can't be edited: its ControlNet reads the text by layers of its own. Edit the pipeline without it"
        )
    if all(getattr(pipe, "text_encoder" + suffix, None) is None for suffix in ("", "_2", "_3")):
        raise ModelError(f"{name} can't be edited: its text encoder is not loaded")
    if not callable(getattr(pipe, "encode_prompt", None)):
        raise ModelError(f"{name} can't be edited: it has no encode_prompt, so its prompts can't be encoded as it does")


_ROLES: tuple[tuple[str, Role], ...] = (("to_k", "key"), ("to_v", "value"))


def _known_config(module: Any) -> Mapping[str, Any]:
    if not isinstance(module, nn.Module):
        part = next((name for name in ("unet", "transformer") if hasattr(module, name)), "")
        hint = f": pass its {part}" if part else ""
        raise ModelError(f"{type(module).__name__} is not a model{hint}")
    config = getattr(module, "config", None)
    if isinstance(config, Mapping) and {"down_block_types", "up_block_types", "cross_attention_dim"} <= set(config):
        return config
    if isinstance(config, Mapping) and type(module).__name__ in _ENTRIES:
        return config
    names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    if "add_k_proj" in names or "single_transformer_blocks" in names or "context_embedder" in names:
        reason = (
            "text and image share one attention, and of such models only SD3's and FLUX's are known to read the text "
            "by two linear layers alone"
        )
    elif "caption_projection" in names or "attn2" in names:
        reason = (
            "its text passes a projection or norm of its own before cross-attention (a projected context), and of such "
            "models only PixArt's and Sana's are known to begin with one linear layer"
        )
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
