"""What a staged pipeline is, by its configuration files alone: whether a job can audit it, before anything is spent.

As `jobs.models.staging`, without torch and diffusers. What its weights hold is looked at by `jobs.models.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.models.files import components_of, is_pickled, pickled_advice, weight_variant
from jobs.models.joint_kinds import FLUX, SD3, joint_faults
from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = ["check_kind", "class_of"]

_NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_XL = "StableDiffusionXLPipeline"
_TWO = (*_NEEDED[1:], "text_encoder_2", "tokenizer_2")
_KINDS: dict[Any, tuple[str, ...]] = {
    "StableDiffusionPipeline": _NEEDED,
    _XL: ("unet", *_TWO),
    # Its third encoder, a T5, may be left out: zeros are read in its place.
    SD3: ("transformer", *_TWO),
    FLUX: ("transformer", *_TWO),
}
"""The pipelines that jobs audit, and the components that each needs."""
# What people also give, and why it is not audited.
_REFUSED = {
    "StableDiffusionXLImg2ImgPipeline": "it refines an image: SDXL's refiner draws none from text alone",
    "StableDiffusionXLInpaintPipeline": "it reads a mask and an image beside the text",
    "StableDiffusionXLControlNetPipeline": "its ControlNet reads the text by layers of its own",
    "StableDiffusionControlNetPipeline": "its ControlNet reads the text by layers of its own",
    "StableDiffusion3Img2ImgPipeline": "it reads an image beside the text",
    "StableDiffusion3ControlNetPipeline": "its ControlNet reads the text by layers of its own",
    "FluxControlNetPipeline": "its ControlNet reads the text by layers of its own",
    "FluxControlPipeline": "it reads an image beside the text",
    "FluxFillPipeline": "it reads a mask and an image beside the text",
    "FluxKontextPipeline": "it reads an image beside the text",
    "Flux2Pipeline": "another text encoder writes its embeddings, and is not known here yet",
    "ChromaPipeline": "it masks the text's padding, which is not read here yet",
    "PixArtAlphaPipeline": "a notebook can edit it, jobs do not audit it yet",
    "PixArtSigmaPipeline": "a notebook can edit it, jobs do not audit it yet",
    "SanaPipeline": "a notebook can edit it, jobs do not audit it yet",
}
_WEIGHTLESS = ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", "feature_extractor")
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_SIZES = 6
"""How many numbers SDXL reads beside its pooled embedding: original size, crop and target size, two each."""
# What the channels beyond the latents' are, by what published UNets of 4 latent channels read.
_INPUTS = {
    5: "a depth map beside the noise (depth to image)",
    7: "a low-resolution image beside the noise (upscaling)",
    8: "an image beside the noise (editing by instruction)",
    9: "a mask and an image beside the noise (inpainting)",
}
_ADDITIONS = {
    "text": "a pooled text",
    "text_time": "a pooled text and sizes (as SDXL's)",
    "text_image": "a text and an image",
    "image": "an image",
    "image_hint": "an image and a hint",
}
_PROJECTIONS_OF_IMAGES = ("text_image_proj", "image_proj", "ip_image_proj")


def check_kind(folder: Path, *, safety_checker: bool = True) -> None:
    """Refuse, before anything is spent, a pipeline that jobs can't audit.

    Args:
        folder: the staged pipeline.
        safety_checker: whether that is loaded as well; else it may be as it likes.

    Raises:
        ModelError: it is no pipeline of a known family, its UNet or transformer wants more than a text and noise, or a
            component is missing, pickled, or of another class than its own configuration says; with every fault.
    """
    index = _json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in _KINDS:
        why = f". {_REFUSED[kind][0].upper()}{_REFUSED[kind][1:]}" if kind in _REFUSED else ""
        raise ModelError(f"the model is a {kind}; jobs audit {', '.join(_KINDS)} (SD 1.x to 3.5, FLUX.1) so far{why}")
    components = components_of(folder, safety_checker=safety_checker)
    faults = [f"model_index.json names no {name}" for name in _KINDS[kind] if name not in components]
    pickled = []
    configs: dict[str, Mapping[str, Any]] = {}
    for name, (library, class_name) in components.items():
        part = folder / name
        if not part.is_dir():
            faults.append(f"model_index.json names a {name}, and there is no folder of that name")
        elif name not in _WEIGHTLESS:
            if is_pickled(part):
                pickled.append(name)
            try:
                weight_variant(part)
                configs[name] = _json(part / "config.json")
            except ModelError as error:
                faults.append(str(error))
                continue
            said = configs[name].get("_class_name", class_name)
            if library == "diffusers" and said != class_name:
                faults.append(f"{name}/config.json is of a {said}, model_index.json names a {class_name}")
    if pickled:
        faults.append(
            f"{', '.join(pickled)} {'holds' if len(pickled) == 1 else 'hold'} pickled weights alone, which are never "
            f"opened. {pickled_advice(pipeline=True)}"
        )
    denoiser = _KINDS[kind][0]
    if {denoiser, "vae", "text_encoder"} <= configs.keys():
        try:
            if kind in (SD3, FLUX):
                faults += joint_faults(kind, configs, _json(folder / "scheduler" / "scheduler_config.json"))
            else:
                encoders = [configs[name] for name in _ENCODERS if name in configs]
                faults += _unet_faults(configs["unet"], configs["vae"], encoders, components["unet"][1], xl=kind == _XL)
        except (TypeError, AttributeError) as error:
            faults.append(f"a value in config.json of its {denoiser}, vae or text encoder is of another type ({error})")
        except ModelError as error:
            faults.append(str(error))
    if len(faults) == 1:
        raise ModelError(f"the model can't be audited: {faults[0]}")
    if faults:
        raise ModelError.listing("the model can't be audited:", faults)


def class_of(folder: Path) -> str:
    """Diffusers' class of a pipeline, as its model_index.json names it.

    Raises:
        ModelError: the file can't be read.
    """
    return str(_json(folder / "model_index.json").get("_class_name"))


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json_of(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{_short(file)} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{_short(file)} can't be read: it holds no JSON object")
    return content


def _short(file: Path) -> str:
    return file.name if file.name == "model_index.json" else f"{file.parent.name}/{file.name}"


def _unet_faults(
    unet: Mapping[str, Any], vae: Mapping[str, Any], encoders: Sequence[Mapping[str, Any]], class_name: str, *, xl: bool
) -> Iterator[str]:
    """What in a UNet's configuration wants more than noise, a time and a text. Defaults are diffusers' own."""
    if class_name != "UNet2DConditionModel":
        yield f"its unet is a {class_name}; a UNet2DConditionModel is audited"
        return
    latents = vae.get("latent_channels", 4)
    for way, verb in (("in", "reads"), ("out", "gives")):
        channels = unet.get(f"{way}_channels", 4)
        if channels != latents:
            also = f": {_INPUTS[channels]}" if way == "in" and latents == 4 and channels in _INPUTS else ""
            yield f"the UNet {verb} {channels} channels where the VAE has {latents} ({way}_channels){also}"
    for key in ("class_embed_type", "num_class_embeds"):
        if unet.get(key) is not None:
            yield f"the UNet wants a class beside the text ({key}: {unet[key]!r})"
    addition = unet.get("addition_embed_type")
    if xl and addition != "text_time":
        yield f"the UNet reads no pooled text and sizes, as SDXL's does (addition_embed_type: {addition!r})"
    elif xl and len(encoders) > 1:
        yield from _pooled_faults(unet, encoders[1])
    elif addition is not None:
        yield f"the UNet wants {_ADDITIONS.get(addition, 'more')} beside the text (addition_embed_type: {addition!r})"
    projection = unet.get("encoder_hid_dim_type")
    if projection in _PROJECTIONS_OF_IMAGES:
        yield f"the UNet wants an image's embeddings (encoder_hid_dim_type: {projection!r})"
    width = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)
    parts = [e.get("hidden_size", e.get("text_config", {}).get("hidden_size")) for e in encoders]
    widths = set(width) if isinstance(width, list) else {width}
    if None not in parts and widths != {sum(parts)}:
        said = ", ".join(map(str, sorted(widths)))
        given = "the text encoder gives" if len(parts) == 1 else "the text encoders together give"
        yield f"the UNet reads texts of width {said}, {given} {sum(parts)} (cross_attention_dim)"


def _pooled_faults(unet: Mapping[str, Any], encoder: Mapping[str, Any]) -> Iterator[str]:
    inputs, each = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim")
    pooled = encoder.get("projection_dim", 512)
    if inputs is None or each is None or inputs != pooled + _SIZES * each:
        yield (
            f"the UNet reads {inputs} numbers beside the text (projection_class_embeddings_input_dim), and {pooled} "
            f"pooled ones with {_SIZES} sizes of {each} are {'others' if each is None else pooled + _SIZES * each}"
        )
