"""`classifier` of a configuration: a dual encoder by its name alone, one classifier with settings, or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from jobs.config.base import Section

__all__ = ["TAGS", "ClassifierConfig", "ClassifierSetting", "FacesConfig", "classifier_faults", "members_of"]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
_Name = Annotated[str, Field(pattern=r"\S")]


class FacesConfig(Section):
    """A detector: the classifier sees the largest face alone. An image without one is undetermined."""

    model: _Name = Field(description="object detector with a label for faces (YOLOS, DETR, ...): hub id, folder, s3://")
    label: str = Field("face", description="the detector's label for faces")
    score: Probability = Field(0.5, description="of a face, at least")
    border: float = Field(0.2, ge=0, le=2, description="on each side of the face, in its own width and height")


class ClassifierConfig(Section):
    """One classifier: a dual encoder that reads the prompts of `attribute`, or an image classifier with `labels`."""

    model: _Name = Field(description="hub id, local folder or s3:// prefix; safetensors only")
    labels: dict[str, tuple[str, ...]] | None = Field(
        None, description="label of `attribute` -> labels of the model that mean it; null: the model is a dual encoder"
    )
    scoring: Literal["trained", "softmax"] = Field(
        "trained",
        description="a dual encoder's probabilities. trained: as it was, SigLIP's a sigmoid for each prompt, others' a "
        "softmax over the labels; softmax: over the labels in any case",
    )
    margin: Probability | None = Field(None, description="in place of `undetermined_margin`")
    faces: FacesConfig | None = Field(None, description="null: the whole image")
    recognition: _Name | None = Field(
        None, description="dual encoder that recognises professions and controls; needed where there is none else"
    )

    @field_validator("labels")
    @classmethod
    def _apart(cls, value: dict[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]] | None:
        if value is None:
            return None
        if empty := [label for label, own in value.items() if not own]:
            raise ValueError(f"no label of the model means {empty}")
        owners: dict[str, list[str]] = {}
        for label, own in value.items():
            for name in own:
                owners.setdefault(name, []).append(label)
        if shared := {name: of for name, of in owners.items() if len(of) > 1}:
            told = "; ".join(f"{name!r} means {' and '.join(map(repr, of))}" for name, of in shared.items())
            raise ValueError(
                f"{told}: each label of the model means one. Labels that cross attributes need a model that names each "
                "crossing, or a dual encoder with a prompt for each"
            )
        return value


def _form(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    return "several" if isinstance(value, list | tuple) else "one"


_One = Annotated[Annotated[_Name, Tag("name")] | Annotated[ClassifierConfig, Tag("one")], Discriminator(_form)]
ClassifierSetting = Annotated[
    Annotated[_Name, Tag("name")]
    | Annotated[ClassifierConfig, Tag("one")]
    | Annotated[tuple[_One, ...], Tag("several")],
    Discriminator(_form),
]
TAGS = ("name", "one", "several")
"""What pydantic puts into the places of faults to tell the forms apart."""


def members_of(setting: str | ClassifierConfig | Sequence[str | ClassifierConfig]) -> tuple[ClassifierConfig, ...]:
    """The classifiers, each with its settings."""
    given = [setting] if isinstance(setting, str | ClassifierConfig) else setting
    return tuple(ClassifierConfig(model=one) if isinstance(one, str) else one for one in given)


def classifier_faults(members: Sequence[ClassifierConfig], labels: Sequence[str]) -> Iterator[str]:
    """What is wrong with the classifiers of an attribute's labels."""
    if not members:
        # Not a length of the field: where one of the list is faulty, pydantic would also call the list empty.
        yield "it names none"
        return
    for member in members:
        if member.labels is None:
            continue
        if member.scoring != "trained":
            yield f"{member.model}: scoring is of dual encoders, and labels make it an image classifier; leave one out"
        if unknown := [label for label in member.labels if label not in labels]:
            yield f"{member.model}: labels has {unknown}, which are no labels of attribute ({', '.join(labels)})"
        if lacking := [label for label in labels if label not in member.labels]:
            yield f"{member.model}: labels lacks {lacking} of attribute; name the model's own labels that mean each"
    if len({member.model_dump_json(exclude={"recognition"}) for member in members}) < len(members):
        yield "the same classifier twice tells nothing more"
    named = sorted({member.recognition for member in members if member.recognition is not None})
    if len(named) > 1:
        yield f"recognition is by one dual encoder; {named} are named"
    if not named and all(member.labels is not None or member.faces is not None for member in members):
        yield (
            "nothing recognises professions and controls. Name a dual encoder that sees the whole image beside one of "
            "them: recognition: openai/clip-vit-base-patch32"
        )
