"""The files of a staged model: its components, their weights and variants, its tokenizers. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = [
    "PICKLED",
    "UNMADE",
    "components_of",
    "denoiser_folder",
    "is_pickled",
    "is_single_file",
    "load_tokenizers",
    "pickled_advice",
    "safetensors_header",
    "variant_of",
    "weight_files",
    "weight_variant",
]

UNMADE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError),
    *(SafetensorError, StrictDataclassError),
)
"""What the libraries raise of a configuration that makes no model: a list too short, a width of zero, a null."""
_MOST_HEADER_BYTES = 100_000_000
"""As the format's own library has it."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# What transformers and diffusers call a component's weights: model[.VARIANT][-00001-of-00002].safetensors. Earlier
# versions wrote the variant behind the shard's number.
_WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.(\w+))?(?:-\d{5}-of-\d{5})?(?:\.(\w+))?\.safetensors")
# Of components, which are folders of the model, and of the libraries and classes that read them.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*", re.ASCII)


def safetensors_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, `__metadata__` among its entries, and where its tensors' bytes begin.

    Raises:
        ValueError: there is none.
    """
    size = int.from_bytes(stream.read(8), "little")
    if size > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {size:,} bytes, {_MOST_HEADER_BYTES:,} are read at most")
    header = json_of(stream.read(size))
    if not isinstance(header, dict):
        raise ValueError("the header is no mapping")
    return header, 8 + size


def is_pickled(part: Path) -> bool:
    """Whether a component's folder has pickled weights and no safetensors."""
    return not any(part.glob("*.safetensors")) and any(file.suffix in PICKLED for file in part.iterdir())


def pickled_advice(*, pipeline: bool, model: str | None = None) -> str:
    """The way out, for who has pickled weights alone.

    Args:
        pipeline: of a pipeline; else of a classifier.
        model: the classifier's class in transformers; None: a CLIP model.
    """
    load = "('OLD', use_safetensors=False).save_pretrained('NEW', safe_serialization=True)"
    kind = model or "CLIPModel"
    reader = "CLIPProcessor" if kind == "CLIPModel" else "AutoProcessor"
    if kind.endswith(("ForImageClassification", "ForObjectDetection")):
        reader = "AutoImageProcessor"
    code = (
        f"from diffusers import StableDiffusionPipeline as P; P.from_pretrained{load}"
        if pipeline
        else f"from transformers import {kind} as M, {reader} as P; M.from_pretrained{load}; "
        "P.from_pretrained('OLD').save_pretrained('NEW')"
    )
    return (
        "Opening them can run code: convert them on a machine that may be lost, and give the new folder. "
        f'python -c "{code}"'
    )


def _variants(names: Iterable[str]) -> dict[str | None, list[str]]:
    """A component's weights by their variant, None for those without; other files are no weights that would load."""
    variants: dict[str | None, list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name)
        if match:
            variants.setdefault(match[1] or match[2], []).append(name)
    return variants


def _names(part: Path) -> list[str]:
    return [file.name for file in part.glob("*.safetensors")]


def variant_of(names: Iterable[str], where: str) -> str | None:
    """Which variant of a component's weights is loaded: None, the plain ones, where there are such; else the only one.

    Args:
        names: the component's files.
        where: its name, for a message.

    Raises:
        ModelError: there are several variants, and no plain weights.
    """
    variants = _variants(names)
    if None in variants or not variants:
        return None
    if len(variants) > 1:
        held = ", ".join(str(variant) for variant in variants)
        raise ModelError(f"{where}/ holds several variants ({held}) and no default: keep one")
    return next(iter(variants))


def weight_variant(part: Path) -> str | None:
    """Which variant of the weights in a component's folder is loaded; see `variant_of`."""
    return variant_of(_names(part), part.name)


def weight_files(part: Path) -> list[Path]:
    """The safetensors files that a component is loaded from, shards in their order; none where there are none.

    Raises:
        ModelError: see `weight_variant`.
    """
    return [part / name for name in _variants(_names(part)).get(weight_variant(part), [])]


def components_of(folder: Path, *, safety_checker: bool = True) -> dict[str, tuple[str, str]]:
    """What a pipeline's `model_index.json` has loaded: library and class of each component, by its name.

    Args:
        folder: the pipeline.
        safety_checker: whether that is loaded as well.

    Raises:
        ModelError: the file can't be read.
    """
    try:
        index = json_of((folder / "model_index.json").read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"model_index.json can't be read: {error}") from error
    components = {
        name: (str(value[0]), str(value[1]))
        for name, value in index
        if isinstance(value, list) and len(value) == 2 and None not in value
        if safety_checker or name != "safety_checker"
    }
    odd = [text for name, both in components.items() for text in (name, *both) if not _NAME.fullmatch(text)]
    if odd:
        said = ", ".join(repr(text)[:80] for text in odd[:4])
        raise ModelError(f"model_index.json can't be read: no component, library or class is called {said}")
    return components


def denoiser_folder(folder: Path) -> Path:
    """The component of a pipeline's folder that reads the text: `transformer/` of SD3 and FLUX, `unet/` of others."""
    there = folder / "transformer"
    return there if there.is_dir() else folder / "unet"


def load_tokenizers(folder: Path) -> list[Any]:
    """The pipeline's tokenizers alone, of the classes it names, for checking prompts without loading weights.

    Raises:
        ModelError: the folder has none that can be loaded.
    """
    import transformers

    tokenizers = []
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if (folder / name).is_dir():
            kind = _component_class(folder, name)
            # AutoTokenizer imports torch; the named class, which the pipeline itself would load, does not.
            named = kind if kind.endswith(("Tokenizer", "TokenizerFast")) else "AutoTokenizer"
            try:
                loader = getattr(transformers, named)
                tokenizers.append(loader.from_pretrained(folder / name, local_files_only=True))
            except UNMADE as error:
                raise ModelError(f"the model's {name} can't be loaded: {error}") from error
    if not tokenizers:
        raise ModelError("the model has no tokenizer folder; it is no text-to-image pipeline")
    return tokenizers


def _component_class(folder: Path, name: str) -> str:
    """The transformers class of one of the pipeline's components, "" where model_index.json names none."""
    try:
        library, kind = components_of(folder)[name]
    except (ModelError, KeyError):
        return ""
    return kind if library == "transformers" else ""


def is_single_file(reference: str) -> bool:
    """Whether a model is named as one .safetensors file, here or in a store, and no folder."""
    return reference.lower().endswith(".safetensors") and not Path(reference).is_dir()
