"""What a model's files hold, against what its configuration promises: every tensor, of its shape, and finite.

The libraries load what they find: a tensor that is missing is drawn at random, one too many is passed over, each with a
line in a log at most. An audit of such a model has figures, and they are of no model at all. Here models are made of
their configuration on the meta device, which takes no memory for weights, and compared with the files.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from jobs.models.classifier_kinds import EncoderKind, class_named, class_of, encoder_kind, labels_of
from jobs.models.files import (
    UNMADE,
    components_of,
    is_pickled,
    load_tokenizers,
    pickled_advice,
    weight_files,
    weight_variant,
)
from jobs.models.finite_weights import header_and_end, infinite_tensors
from jobs.models.kinds import check_kind
from jobs.models.listing import are, have, lack, some
from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = [
    "UNLOADABLE",
    "check_classifier",
    "check_image_model",
    "check_loaded",
    "check_pipeline",
    "component_class",
    "load_image_processor",
    "load_processor",
]

_NOT_AS_SAID = "the classifier's files are not what its configuration says. Fetch both again, or give another model:"
UNLOADABLE = (*UNMADE, ImportError)
"""What the libraries raise of files that they can't load, or not with what is installed here."""

# Tensors that no configuration promises, and why a file may have them all the same.
_HARMLESS = (
    r"(^|\.)position_ids$",  # 0, 1, 2, ...: earlier versions of transformers kept them with the weights
    r"(^|\.)logit_bias$",  # of CLIP models trained with a sigmoid: one number on every score, which no choice sees
)
# A text encoder may be given as the whole CLIP model that it is half of.
_OTHER_HALF = (r"^vision_model\.", r"^visual_projection\.", r"^text_projection\.", r"^logit_scale$")
# Classes that old folders name and that are gone.
_SUCCESSORS = {"CLIPFeatureExtractor": "CLIPImageProcessor"}


def check_pipeline(folder: Path, *, safety_checker: bool = True, finite: bool = True) -> None:
    """Refuse a pipeline whose files are not the model that its configuration says. No weights are kept in memory.

    Args:
        folder: the staged pipeline.
        safety_checker: whether that is loaded as well.
        finite: also read all weights, once, and look for NaN and infinities.

    Raises:
        ModelError: see `check_kind`; and with every fault of every component, naming files and tensors.
    """
    check_kind(folder, safety_checker=safety_checker)
    faults: list[str] = []
    models: dict[str, Any] = {}
    for name, (library, class_name) in components_of(folder, safety_checker=safety_checker).items():
        kind = component_class(library, class_name)
        if kind is None:
            also = f"; its successor is {_SUCCESSORS[class_name]}, name that" if class_name in _SUCCESSORS else ""
            faults.append(
                f"model_index.json names {library}.{class_name} as the {name}, which is not installed here{also}"
            )
        elif issubclass(kind, torch.nn.Module):
            other = _OTHER_HALF if class_name == "CLIPTextModel" else ()
            models[name] = _examine(folder / name, kind, other, faults)
    # Where one of several is missing, that has been said.
    tokenizers = load_tokenizers(folder)
    for suffix, tokenizer in zip(("", "_2", "_3"), tokenizers, strict=False):
        if models.get(f"text_encoder{suffix}") is not None:
            encoder, reader = f"text_encoder{suffix}", f"tokenizer{suffix}"
            faults += _reading_faults(tokenizer, models[encoder], encoder, reader)
    if finite:
        faults += chain.from_iterable(infinite_tensors(folder / name, name) for name in models)
    _refuse("the model's files are not what its configuration says. Fetch both again, or give another model:", faults)


def check_classifier(folder: Path, *, finite: bool = True) -> None:
    """Refuse a classifier that is no dual encoder, or whose files are not what its configuration says.

    Args:
        folder: the staged model.
        finite: see `check_pipeline`.

    Raises:
        ModelError: with every fault, naming files and tensors.
    """
    _refuse_pickled(folder)
    kind = encoder_kind(folder)
    faults: list[str] = []
    model = _examine(folder, component_class("transformers", kind.model), (), faults, name="")
    if model is not None:
        try:
            images, tokenizer = load_processor(folder, kind)
        except UNLOADABLE as error:
            faults.append(f"its processor can't be loaded: {_first_line(error)}")
        else:
            faults += _vocabulary_faults(tokenizer, model.text_model, "the text model", "its tokenizer")
            faults += _size_faults(images, getattr(model.config.vision_config, "image_size", None))
    if finite:
        faults += infinite_tensors(folder, "")
    _refuse(_NOT_AS_SAID, faults)


def check_image_model(folder: Path, ending: str, *, finite: bool = True) -> None:
    """Refuse an image classifier or a detector whose files are not what its configuration says.

    Args:
        folder: the staged model.
        ending: of the class that its configuration names, as `ForImageClassification`.
        finite: see `check_pipeline`.

    Raises:
        ModelError: with every fault, naming files and tensors.
    """
    _refuse_pickled(folder)
    name = class_of(folder, ending)
    kind = component_class("transformers", name)
    if kind is None or not issubclass(kind, PreTrainedModel):
        raise ModelError(f"{folder.name}: config.json names a {name}, which transformers does not have here")
    faults: list[str] = []
    labels_of(folder)
    if _examine(folder, kind, (), faults, name="") is not None:
        try:
            load_image_processor(folder)
        except UNLOADABLE as error:
            faults.append(f"its image processor can't be loaded: {_first_line(error)}")
    if finite:
        faults += infinite_tensors(folder, "")
    _refuse(_NOT_AS_SAID, faults)


def load_processor(folder: Path, kind: EncoderKind) -> tuple[Any, Any]:
    """Image processor and tokenizer of a dual encoder.

    Raises:
        Exception: one of `UNLOADABLE`, where they can't be loaded.
    """
    if kind.model == "CLIPModel":
        processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        return processor.image_processor, processor.tokenizer
    images = load_image_processor(folder)
    if kind.sigmoid and (folder / "tokenizer.json").is_file():
        # As it stands. Of the classes that SigLIP's folders name one needs sentencepiece, others add what training
        # did not have, as a token in front.
        return images, PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return images, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_image_processor(folder: Path) -> Any:
    """What prepares images for a model; raises as `load_processor`."""
    kind: Any = AutoImageProcessor
    return kind.from_pretrained(folder, local_files_only=True)


def _refuse_pickled(folder: Path) -> None:
    if is_pickled(folder):
        raise ModelError(
            "the classifier holds pickled weights alone, which are never opened. "
            + pickled_advice(pipeline=False, model=class_named(folder))
        )


def check_loaded(modules: Mapping[str, Any]) -> None:
    """Refuse weights that are not finite in the dtype that they were loaded in, though they may be as stored.

    Args:
        modules: loaded models by name; what has no weights is passed over.

    Raises:
        ModelError: naming the tensors.
    """
    faults = []
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Module):
            continue
        weights = [(key, weight) for key, weight in module.state_dict().items() if weight.is_floating_point()]
        bad = [key for key, weight in weights if not bool(torch.isfinite(weight).all())]
        if bad:
            dtype = str(dict(weights)[bad[0]].dtype).removeprefix("torch.")
            faults.append(f"{name}: {some(bad)} {are(bad)} not finite in {dtype}")
    _refuse("weights are beyond the range of the dtype that they run in (sampler.dtype: another, as float32):", faults)


def component_class(library: str, class_name: str) -> Any:
    """The class that `model_index.json` names; None where it is not installed."""
    home = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    try:
        return getattr(importlib.import_module(home), class_name, None)
    except ImportError:
        return None


def _refuse(what: str, faults: Collection[str]) -> None:
    if faults:
        raise ModelError.listing(what, [*faults])


def _examine(
    part: Path, kind: Any, harmless: Iterable[str], faults: list[str], *, name: str | None = None
) -> Any | None:
    """The component on the meta device, its faults appended; None where there is none to be made."""
    name = part.name if name is None else name
    files = weight_files(part)
    where = f"{name}/" if name else ""
    if not files:
        faults.append(
            f"{where or 'the folder'} has no weights by a name that is loaded, as model.safetensors or "
            "diffusion_pytorch_model.safetensors"
        )
        return None
    try:
        made, missing, wrong, more = (_from_transformers if issubclass(kind, PreTrainedModel) else _from_diffusers)(
            part, kind, files
        )
    except UNLOADABLE as error:
        faults.append(f"{where}config.json makes no {kind.__name__} of {where}{files[0].name}: {_first_line(error)}")
        return None
    known = re.compile("|".join((*_HARMLESS, *harmless)))
    more = [tensor for tensor in more if not known.search(tensor)]
    said = f"{where}{files[0].name}" if len(files) == 1 else f"{where}{files[0].name} and its {len(files) - 1} others"
    if missing:
        faults.append(f"{said} {lack(files)} what {where}config.json promises: {some(missing)}")
    if wrong:
        faults.append(f"{said} {have(files)} tensors of another shape than {where}config.json says: {some(wrong)}")
    if more:
        faults.append(f"{said} {have(files)} tensors that no part of {where}config.json is for: {some(more)}")
    return made


_Compared = tuple[Any, list[str], list[str], list[str]]
"""A model on the meta device; names that are missing, of another shape, and too many."""


def _from_transformers(part: Path, kind: Any, files: list[Path]) -> _Compared:
    """By the library's own report, which knows what tensors were called in earlier versions."""
    del files
    said = json_of((part / "config.json").read_text(encoding="utf-8")).get("model_type")
    wanted = str(kind.config_class.model_type)
    # "clip" is said by all parts of CLIP, clip_text_model among them.
    if said is not None and not wanted.startswith(said):
        raise ValueError(f"its model_type is {said}, not {wanted}")
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)  # its report is ours to give
    try:
        made, info = kind.from_pretrained(
            part,
            variant=weight_variant(part),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
        )
    finally:
        transformers_logging.set_verbosity(level)
    wrong = [f"{name} {list(stored)}, promised {list(promised)}" for name, stored, promised in info["mismatched_keys"]]
    return made, sorted(info["missing_keys"]), sorted(wrong), sorted(info["unexpected_keys"])


def _from_diffusers(part: Path, kind: Any, files: list[Path]) -> _Compared:
    with torch.device("meta"):
        made = kind.from_config(kind.load_config(part, local_files_only=True))
    promised = {name: list(tensor.shape) for name, tensor in made.state_dict().items()}
    stored = {name: list(entry["shape"]) for file in files for name, entry in header_and_end(file)[0].items()}
    # Attention of VAEs saved before diffusers 0.18 has other names.
    made._fix_state_dict_keys_on_load(stored)
    wrong = [n for n, shape in promised.items() if stored.get(n, shape) != shape]
    return (
        made,
        sorted(promised.keys() - stored.keys()),
        sorted(f"{name} {stored[name]}, promised {promised[name]}" for name in wrong),
        sorted(stored.keys() - promised.keys()),
    )


def _vocabulary_faults(tokenizer: Any, model: Any, encoder: str, reader: str) -> Iterator[str]:
    rows = int(model.get_input_embeddings().num_embeddings)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        yield (
            f"{reader} has tokens up to number {highest}, and {encoder} embeddings of {rows} tokens alone: they are "
            "of different models, or tokens were added without embeddings"
        )


def _reading_faults(tokenizer: Any, model: Any, encoder: str, reader: str) -> Iterator[str]:
    yield from _vocabulary_faults(tokenizer, model, f"{encoder}/", f"{reader}/")
    positions = getattr(model.config, "max_position_embeddings", None)
    # Prompts are padded to the tokenizer's length, whatever theirs is.
    if positions is not None and int(tokenizer.model_max_length) > int(positions):
        yield (
            f"{reader}/ pads to {int(tokenizer.model_max_length)} tokens, and {encoder}/ reads {positions}; set "
            f"model_max_length to {positions} in {reader}/tokenizer_config.json"
        )


def _size_faults(images: Any, wanted: int | None) -> Iterator[str]:
    """Images that the processor cuts to another size than the model reads; None: it reads any."""
    crop = getattr(images, "crop_size", None)
    if wanted is None or not getattr(images, "do_center_crop", False) or crop is None:
        return
    size = {int(edge) for edge in (crop["height"], crop["width"])}
    if size != {wanted}:
        yield f"its processor cuts images to {max(size)} pixels (crop_size), and the model reads {wanted}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
