"""What a staged classifier is, by its configuration file alone. As `jobs.models.kinds`, without torch.

A classifier is a dual encoder of images and texts, an image classifier with labels of its own (a head), or a detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = [
    "ENCODERS",
    "EncoderKind",
    "class_named",
    "class_of",
    "embedding_width",
    "encoder_kind",
    "image_ending",
    "labels_of",
]

_EXAMPLE = "openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224"


@dataclass(frozen=True)
class EncoderKind:
    """A family of dual encoders, as transformers has it.

    Attributes:
        model: its class.
        sigmoid: trained with a sigmoid for each pair of image and text; else with a softmax over texts.
        tokens: how many tokens its texts were padded to in training; None: as many as its text model has positions.
        masked: whether padding is hidden from its text model by an attention mask.
    """

    model: str
    sigmoid: bool = False
    tokens: int | None = None
    masked: bool = True


# SigLIP's texts end in padding that the model reads: trained so, and the last position is what it pools.
ENCODERS: Mapping[str, EncoderKind] = {
    "align": EncoderKind("AlignModel", tokens=64),
    "altclip": EncoderKind("AltCLIPModel", tokens=77),
    "chinese_clip": EncoderKind("ChineseCLIPModel", tokens=52),
    "clip": EncoderKind("CLIPModel"),
    "metaclip_2": EncoderKind("MetaClip2Model"),
    "siglip": EncoderKind("SiglipModel", sigmoid=True, masked=False),
    "siglip2": EncoderKind("Siglip2Model", sigmoid=True, masked=False),
}
"""By `model_type`."""


def encoder_kind(folder: Path) -> EncoderKind:
    """Which dual encoder a folder holds.

    Raises:
        ModelError: none that is known here, or its configuration can't be read.
    """
    config = _config(folder)
    said = str(config.get("model_type", "clip"))
    kind = ENCODERS.get(said)
    if kind is None:
        head = next((name for name in _architectures(config) if name.endswith("ForImageClassification")), None)
        also = f". It is a {head}: say which of its labels are which, `classifier: {{model, labels}}`" if head else ""
        raise ModelError(
            f"the classifier is a model of type {said} (config.json), no dual encoder of images and texts{also}. Known "
            f"are {', '.join(sorted(ENCODERS))}; give one as {_EXAMPLE}"
        )
    _refuse_other(config, said, kind.model)
    return kind


def class_of(folder: Path, ending: str) -> str:
    """The class that a folder's configuration names.

    Args:
        folder: the staged model.
        ending: of the class's name, as `ForImageClassification`.

    Raises:
        ModelError: it names none with this ending, or its configuration can't be read.
    """
    config = _config(folder)
    named = [name for name in _architectures(config) if name.endswith(ending)]
    if not named:
        says = ", ".join(_architectures(config)) or "no class"
        raise ModelError(f"{folder.name}: config.json names {says} (architectures), no ...{ending}")
    return named[0]


def image_ending(folder: Path) -> str | None:
    """What the class ends in that a folder's configuration names, of a head or a detector; None of a dual encoder.

    Raises:
        ModelError: the configuration can't be read.
    """
    named = _architectures(_config(folder))
    endings = ("ForImageClassification", "ForObjectDetection")
    return next((ending for ending in endings for name in named if name.endswith(ending)), None)


def class_named(folder: Path) -> str | None:
    """The class that a folder's configuration names first, where it can be read, and a name is all that it is."""
    try:
        # It is told in commands that people run.
        return next((name for name in _architectures(_config(folder)) if name.isidentifier()), None)
    except ModelError:
        return None


def labels_of(folder: Path) -> tuple[str, ...]:
    """Labels of a head or a detector, by their number.

    Raises:
        ModelError: its configuration has none, or none for some number.
    """
    config = _config(folder)
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not names:
        raise ModelError(f"{folder.name}: config.json has no labels (id2label)")
    try:
        by_number = {int(number): str(label) for number, label in names.items()}
    except ValueError as error:
        raise ModelError(f"{folder.name}: id2label of config.json has a key that is no number: {error}") from error
    if sorted(by_number) != list(range(len(by_number))):
        raise ModelError(f"{folder.name}: id2label of config.json skips numbers: it has {sorted(by_number)}")
    return tuple(by_number[number] for number in range(len(by_number)))


def embedding_width(folder: Path) -> int | None:
    """D of a dual encoder's embeddings, where its configuration says it."""
    try:
        config = _config(folder)
        if "projection_dim" in config:
            return int(config["projection_dim"])
        return int(config["vision_config"]["hidden_size"])
    except (ModelError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _refuse_other(config: Mapping[str, Any], said: str, wanted: str) -> None:
    """Where `architectures` names another class of the family, as one that has only its images' half."""
    named = _architectures(config)
    if named and wanted not in named and any(name.startswith(wanted.removesuffix("Model")) for name in named):
        raise ModelError(
            f"the classifier's config.json is of type {said} and names {', '.join(named)}, no {wanted}. Give a dual "
            f"encoder, as {_EXAMPLE}"
        )


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json_of((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the classifier's config.json can't be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError("the classifier's config.json can't be read: it holds no JSON object")
    return config
