"""A model that is one .safetensors file, as A1111 and ComfyUI take it, made into a diffusers folder.

The names are translated by diffusers' own converters, those of `from_single_file`. Weights keep their bytes and dtype,
and no model is made of them: what is missing can't be drawn at random, nor can what is too many be passed over. The
folder has the configuration and the tokenizer of another folder, its *layout*, as the file has neither.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from safetensors.torch import save_file

from jobs.models.files import UNMADE
from jobs.models.kinds import check_kind
from jobs.models.sources import open_safetensors
from jobs.models.weights import check_pipeline, component_class
from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = ["TEXTS", "folder_of"]

TEXTS = (".json", ".txt", ".model")
"""Of a layout, what is read."""

_Tensors = dict[str, torch.Tensor]

_UNET, _VAE, _CLIP, _OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
_FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
_ORIGINAL = {"unet": (_UNET,), "vae": (_VAE,), "text_encoder": (_CLIP, _OPEN_CLIP)}
# What training leaves in a file, and what of a text encoder no image comes from.
_UNREAD = re.compile(
    r"model_ema\..+"
    r"|(alphas|betas|sqrt|log|posterior|logvar|lvlb)[a-z0-9_]*"
    r"|first_stage_model\.loss\..+"
    r"|cond_stage_model\..+\.position_ids"
    r"|cond_stage_model\.model\.(logit_scale|text_projection|attn_mask|visual\..+)"
    # 2.x reads the layer before the last, and diffusers' folder of it has not the last.
    r"|cond_stage_model\.model\.transformer\.resblocks\.23\..+"
)
_SHOWN = 4


def folder_of(file: Path, layout: Path, out: Path, called: str, layout_called: str) -> None:
    """Write the diffusers folder of a single file. Memory: its largest component.

    Args:
        file: the .safetensors, in the original layout of SD 1.x or 2.x.
        layout: a diffusers folder of the same kind of model; its weights are not looked at.
        out: where to; must not exist.
        called: the file in messages.
        layout_called: likewise the layout.

    Raises:
        ModelError: the file is not whole, is not of that layout, or has tensors that are missing, of another shape, too
            many or not finite; with every fault, naming tensors. `out` may then be there in part.
    """
    source = open_safetensors(file)
    _copy_texts(layout, out, layout_called)
    check_kind(out, safety_checker=False)
    faults = [
        f"it has no {part} ({' or '.join(prefixes)}...)"
        for part, prefixes in _ORIGINAL.items()
        if not any(name.startswith(prefixes) for name in source.entries)
    ]
    known = tuple(prefix for prefixes in _ORIGINAL.values() for prefix in prefixes)
    foreign = [n for n in source.entries if not n.startswith(known) and not _UNREAD.fullmatch(n)]
    if foreign:
        faults.append(f"it has tensors that no part of SD 1.x or 2.x has: {_some(foreign)}")
    if not faults:
        for part in _FILES:
            faults += _write_component(part, file, out)
    if not faults:
        try:
            check_pipeline(out, safety_checker=False)
        except ModelError as error:
            faults += _translated(str(error).splitlines()[1:] or [str(error)])
    if faults:
        raise ModelError.listing(f"{called} is not the model that {layout_called} describes:", faults)


def _copy_texts(layout: Path, out: Path, called: str) -> None:
    """Configuration and tokenizer, of the components that a single file can have."""
    try:
        index = json_of((layout / "model_index.json").read_text(encoding="utf-8"))
        parts = {name: value for name, value in index.items() if isinstance(value, list)}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{called}: model_index.json can't be read ({error}); give a diffusers folder") from error
    kind = index.get("_class_name")
    if kind == "StableDiffusionXLPipeline":
        raise ModelError(
            f"{called} is a {kind}, and single files are read of SD 1.x and 2.x alone. Give SDXL as a diffusers "
            f"folder; diffusers.{kind}.from_single_file('FILE').save_pretrained('FOLDER') writes one"
        )
    # No single file holds a safety checker, nor does `from_single_file` give one.
    held = {name: value for name, value in parts.items() if name in (*_FILES, "tokenizer", "scheduler")}
    index |= {name: value if name in held else [None, None] for name, value in parts.items()}
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    out.mkdir(parents=True)
    (out / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    for name in held:
        (out / name).mkdir()
        for path in sorted((layout / name).glob("*")) if (layout / name).is_dir() else ():
            if path.suffix in TEXTS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, out / name / path.name)


def _write_component(part: str, file: Path, out: Path) -> list[str]:
    """Write one component's weights; what is wrong with them."""
    prefixes = _ORIGINAL[part]
    with safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if name.startswith(prefixes)]  # noqa: SIM118 - no mapping
        tensors = {name: opened.get_tensor(name) for name in names}
    tensors = {name: tensor for name, tensor in tensors.items() if not _UNREAD.fullmatch(name)}
    convert = {"unet": _unet, "vae": _vae, "text_encoder": _text_encoder}[part](out / part)
    try:
        converted = convert(tensors)
    except UNMADE as error:
        return [f"its {part} can't be converted ({type(error).__name__}: {str(error)[:200]})"]
    unread = _unread(tensors, converted) if part != "text_encoder" else []
    if unread:
        return [f"it has tensors that no {part} of that layout has: {_some(unread)}"]
    save_file({name: tensor.contiguous() for name, tensor in converted.items()}, out / _FILES[part], {"format": "pt"})
    return []


def _unread(tensors: Mapping[str, torch.Tensor], converted: Mapping[str, torch.Tensor]) -> list[str]:
    """Tensors that the converter has passed over: what it gives are those it was given, or views of them."""
    used = {tensor.data_ptr() for tensor in converted.values()}
    return [name for name, tensor in tensors.items() if tensor.data_ptr() not in used]


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json_of((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _unet(folder: Path) -> Callable[[_Tensors], _Tensors]:
    convert: Any = single_file_utils.convert_ldm_unet_checkpoint
    # It takes defaults for granted, which a folder's own file may leave out.
    return lambda tensors: convert(dict(tensors), {"layers_per_block": 2, **_config(folder)})


def _vae(folder: Path) -> Callable[[_Tensors], _Tensors]:
    convert: Any = single_file_utils.convert_ldm_vae_checkpoint
    return lambda tensors: convert(dict(tensors), {"down_block_types": ["DownEncoderBlock2D"], **_config(folder)})


def _text_encoder(folder: Path) -> Callable[[_Tensors], _Tensors]:
    class_name = json_of((folder.parent / "model_index.json").read_text(encoding="utf-8"))["text_encoder"][1]
    kind: Any = component_class("transformers", class_name)
    if kind is None:
        raise ModelError(f"the layout names {class_name} as the text_encoder, which is not installed here")
    try:
        with torch.device("meta"):
            made = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except UNMADE as error:
        raise ModelError(f"the layout's text_encoder/config.json makes no {class_name}: {str(error)[:200]}") from error
    flat = not any(name.startswith("text_model.") for name in made.state_dict())
    clip: Any = single_file_utils.convert_ldm_clip_checkpoint
    open_clip: Any = single_file_utils.convert_open_clip_checkpoint

    def convert(tensors: _Tensors) -> _Tensors:
        is_open = any(name.startswith(_OPEN_CLIP) for name in tensors)
        converted = open_clip(made, tensors, prefix=_OPEN_CLIP) if is_open else clip(tensors)
        converted.pop("text_projection.weight", None)
        # As transformers saves it: since version 5.6 without the name of the wrapper that is gone.
        return {name.removeprefix("text_model.") if flat else name: tensor for name, tensor in converted.items()}

    return convert


def _translated(lines: list[str]) -> list[str]:
    """Faults of the folder as faults of the file, whose tensors have diffusers' names in them."""
    said = [line.strip().removeprefix("- ") for line in lines if line.strip()]
    for part, name in _FILES.items():
        said = [line.replace(name, f"its {part}") for line in said]
    return said


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
