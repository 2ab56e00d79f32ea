"""Single files in the original layout, made from diffusers folders: the inverse of what diffusers converts on loading.

diffusers has no such inverse. What is written here is proved by its readers: `from_single_file` gives back the folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(folder: Path, *, averaged: bool = False, second: bool = False) -> Tensors:
    """All tensors of a pipeline, as the original training code would have saved them; `second`: that of 2.x."""
    parts = {p.name: load_file(next(p.glob("*.safetensors"))) for p in folder.iterdir() if any(p.glob("*.safetensors"))}
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet(parts["unet"]).items()}
    if averaged:
        twins = {"model_ema." + k.removeprefix("model.").replace(".", ""): v * 0.5 for k, v in tensors.items()}
        tensors |= twins | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    tensors |= {f"first_stage_model.{k}": v for k, v in vae(parts["vae"]).items()}
    if "text_encoder_2" in parts:
        tensors |= clip(parts["text_encoder"], "conditioner.embedders.0.transformer.")
        tensors |= open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    elif second:
        tensors |= open_clip(parts["text_encoder"], "cond_stage_model.model.")
    else:
        tensors |= clip(parts["text_encoder"], "cond_stage_model.transformer.")
    return {k: v.contiguous() for k, v in tensors.items()}


def unet(tensors: Tensors) -> Tensors:
    layers = len({k.split(".")[3] for k in tensors if k.startswith("down_blocks.0.resnets.")})
    table = DIFFUSERS_TO_LDM_MAPPING["unet"]
    fixed = {**table["layers"], **table["addition_embed_type"]}
    attending = {k.split(".")[1] for k in tensors if re.match(r"up_blocks\.\d+\.attentions", k)}

    def name(key: str) -> str:
        if key in fixed:
            return fixed[key]
        side, block, kind, place, rest = re.fullmatch(
            r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+)\.(\d+)\.(.+)", key
        ).groups()  # type: ignore[union-attr]
        if kind == "resnets":
            for new, old in RESNET.items():
                rest = rest.replace(new, old)
        if side == "mid_block":
            return f"middle_block.{2 * int(place) if kind == 'resnets' else 1}.{rest}"
        first = int(block) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if block in attending else 1}.{rest}"
        inside = 0 if kind == "resnets" else 1
        if side == "down_blocks":
            return f"input_blocks.{first + 1 + int(place)}.{inside}.{rest}"
        return f"output_blocks.{first + int(place)}.{inside}.{rest}"

    return {name(k): v for k, v in tensors.items()}


def vae(tensors: Tensors) -> Tensors:
    blocks = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("decoder.up_blocks."))
    fixed = DIFFUSERS_TO_LDM_MAPPING["vae"]

    def name(key: str) -> str:
        if key in fixed:
            return fixed[key]
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in VAE_ATTENTION.items():
                key = key.replace(f".{new}.", f".{old}.")
        return key.replace("conv_shortcut", "nin_shortcut")

    # Attention was made of 1 x 1 convolutions.
    return {name(k): v[:, :, None, None] if "attentions" in k and v.ndim == 2 else v for k, v in tensors.items()}


def clip(tensors: Tensors, prefix: str) -> Tensors:
    return {f"{prefix}text_model.{k.removeprefix('text_model.')}": v for k, v in tensors.items()}


def open_clip(tensors: Tensors, prefix: str) -> Tensors:
    """Queries, keys and values in one tensor, other names, and a projection that multiplies from the other side."""
    table = DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"]
    found: Tensors = {}
    # transformers 5 leaves the first part out where there is no projection.
    tensors = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in tensors.items()}
    for key, value in tensors.items():
        if key in table:
            found[prefix + table[key]] = value.T if key == "text_projection.weight" else value
            continue
        key = key.replace("text_model.encoder.layers.", "transformer.resblocks.").replace("self_attn", "attn")
        for new, old in {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}.items():
            key = key.replace(f".{new}.", f".{old}.")
        merged = re.fullmatch(r"(.+\.attn)\.([qkv])_proj\.(weight|bias)", key)
        if merged and merged[2] == "q":
            siblings = [tensors[_sibling(key, tensors, part)] for part in "qkv"]
            found[f"{prefix}{merged[1]}.in_proj_{merged[3]}"] = torch.cat(siblings)
        elif not merged:
            found[prefix + key] = value
    return found


def _sibling(key: str, tensors: Tensors, part: str) -> str:
    layer, kind = re.search(r"resblocks\.(\d+)\..+\.(weight|bias)$", key).groups()  # type: ignore[union-attr]
    return next(k for k in tensors if k.endswith(f"layers.{layer}.self_attn.{part}_proj.{kind}"))


JOINT = (
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"attn\.to_out\.0", "x_block.attn.proj"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"ff\.net\.2", "x_block.mlp.fc2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
)


def sd3(tensors: Tensors) -> Tensors:
    """The transformer of an SD3: queries, keys and values in one tensor, and in places shift and scale swapped."""
    found: Tensors = {}
    last = max(int(k.split(".")[1]) for k in tensors if k.startswith("transformer_blocks."))
    for key, value in tensors.items():
        merged = re.fullmatch(r"transformer_blocks\.(\d+)\.attn\.(to_q|add_q_proj)\.(weight|bias)", key)
        if merged:
            side = "x_block" if merged[2] == "to_q" else "context_block"
            three = torch.cat([tensors[key.replace("_q", f"_{part}")] for part in "qkv"])
            found[f"joint_blocks.{merged[1]}.{side}.attn.qkv.{merged[3]}"] = three
        elif not re.search(r"\.(to_[kv]|add_[kv]_proj)\.", key):
            swapped = key.startswith(("norm_out.", f"transformer_blocks.{last}.norm1_context."))
            for new, old in JOINT:
                key = re.sub(new, old, key)
            found[key] = torch.cat(value.chunk(2)[::-1]) if swapped else value
    return {f"model.diffusion_model.{k}": v.contiguous() for k, v in found.items()}


FLUX = (
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"^context_embedder", "txt_in"),
    (r"^x_embedder", "img_in"),
    (r"^transformer_blocks", "double_blocks"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"norm1_context\.linear", "txt_mod.lin"),
    (r"norm1\.linear", "img_mod.lin"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"^(double_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.img_attn.norm.query_norm.scale"),
    (r"^(double_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.img_attn.norm.key_norm.scale"),
    (r"attn\.norm_q\.weight", "norm.query_norm.scale"),
    (r"attn\.norm_k\.weight", "norm.key_norm.scale"),
    (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
    (r"ff_context\.net\.2", "txt_mlp.2"),
    (r"ff\.net\.0\.proj", "img_mlp.0"),
    (r"ff\.net\.2", "img_mlp.2"),
    (r"attn\.to_out\.0", "img_attn.proj"),
    (r"attn\.to_add_out", "txt_attn.proj"),
    (r"^(single_blocks\.\d+)\.norm\.linear", r"\1.modulation.lin"),
    (r"^(single_blocks\.\d+)\.proj_out", r"\1.linear2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
)


def flux(tensors: Tensors) -> Tensors:
    """The transformer of a FLUX; a single block's one tensor holds its feed-forward layer too."""
    found: Tensors = {}
    for key, value in tensors.items():
        merged = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.attn\.(to_q|add_q_proj)\.(weight|bias)", key)
        if merged:
            parts = [tensors[key.replace("_q", f"_{part}")] for part in "qkv"]
            if merged[1]:
                parts.append(tensors[f"single_transformer_blocks.{merged[2]}.proj_mlp.{merged[4]}"])
                found[f"single_blocks.{merged[2]}.linear1.{merged[4]}"] = torch.cat(parts)
            else:
                side = "img" if merged[3] == "to_q" else "txt"
                found[f"double_blocks.{merged[2]}.{side}_attn.qkv.{merged[4]}"] = torch.cat(parts)
        elif not re.search(r"\.(to_[kv]|add_[kv]_proj|proj_mlp)\.", key):
            swapped = key.startswith("norm_out.")
            for new, old in FLUX:
                key = re.sub(new, old, key)
            found[key] = torch.cat(value.chunk(2)[::-1]) if swapped else value
    return {k: v.contiguous() for k, v in found.items()}
