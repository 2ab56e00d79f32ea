"""The classifiers of a run: what is stored of each image for them, and what of their settings decides labels alone.

Neither torch nor transformers is imported here: a plan reads the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.storage import StorageSettings
from jobs.config import RunConfig
from jobs.config.classifiers import ClassifierConfig, FacesConfig, members_of
from jobs.errors import ConfigError
from jobs.models.classifier_kinds import embedding_width, labels_of
from jobs.models.digests import content_digest
from jobs.models.staging import fetch_model

__all__ = [
    "ONE_CLASSIFIER",
    "PanelKind",
    "Seen",
    "check_labels",
    "classifier_digest",
    "classifier_name",
    "digest_of_classifiers",
    "digests_of",
    "fetch_classifiers",
    "is_plain",
    "judging_rules",
    "models_of",
    "seen_by",
    "seen_of",
    "stored_width",
    "with_models",
]


@dataclass(frozen=True)
class Seen:
    """What one model makes of each image, as it is stored: an embedding, or probabilities of a head's labels.

    Attributes:
        model: hub id, folder or prefix.
        head: an image classifier; else a dual encoder.
        faces: what finds the face that it sees; None: it sees the whole image.
    """

    model: str
    head: bool = False
    faces: FacesConfig | None = None


@dataclass(frozen=True)
class PanelKind:
    """What of the classifiers a report says more about: several that may disagree, some that look at faces alone."""

    several: bool = False
    on_faces: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> PanelKind:
        """Of a configuration."""
        members = members_of(config.classifier)
        return cls(len(members) > 1, any(member.faces is not None for member in members))


ONE_CLASSIFIER = PanelKind()
"""That sees the whole image."""


def seen_of(member: ClassifierConfig) -> Seen:
    """What a classifier labels by."""
    return Seen(member.model, member.labels is not None, member.faces)


def seen_by(config: RunConfig) -> tuple[Seen, ...]:
    """All that is stored of an image, in order; the first one recognises professions and controls."""
    members = members_of(config.classifier)
    labelling = [seen_of(member) for member in members]
    named = [Seen(member.recognition) for member in members if member.recognition is not None]
    first = next(seen for seen in (*named, *labelling) if not seen.head and seen.faces is None)
    return tuple(dict.fromkeys([first, *labelling]))


def models_of(config: RunConfig) -> tuple[str, ...]:
    """Hub ids, folders or prefixes of all models beside the pipeline, each once."""
    seen = seen_by(config)
    return tuple(dict.fromkeys([*(s.model for s in seen), *(s.faces.model for s in seen if s.faces is not None)]))


def is_plain(config: RunConfig) -> bool:
    """Whether one dual encoder labels and recognises, as where `classifier` is its name alone."""
    return judging_rules(config) is None and len(seen_by(config)) == 1


def fetch_classifiers(config: RunConfig, settings: StorageSettings, cache: Path) -> dict[str, Path]:
    """The folder of each of `models_of` on this node; raises as `fetch_model`."""
    return {model: fetch_model(model, settings, cache, pipeline=False) for model in models_of(config)}


def check_labels(config: RunConfig, folders: Mapping[str, Path]) -> None:
    """Refuse labels that a head, or a detector, does not have.

    Raises:
        ConfigError: with every one of them, and what the model has.
        ModelError: a model's configuration has no labels.
    """
    faults = []
    for member in members_of(config.classifier):
        asked = {} if member.labels is None else {member.model: [n for own in member.labels.values() for n in own]}
        if member.faces is not None:
            asked[member.faces.model] = [member.faces.label]
        for model, names in asked.items():
            has = labels_of(folders[model])
            if lacking := [name for name in names if name not in has]:
                shown = ", ".join(has[:20]) + (f" and {len(has) - 20} more" if len(has) > 20 else "")
                faults.append(f"{model} has no label {', '.join(map(repr, lacking))}; it has {shown}")
    if faults:
        raise ConfigError("classifier: " + "; ".join(dict.fromkeys(faults)))


def classifier_digest(config: RunConfig, folders: Mapping[str, Path]) -> str:
    """What of the classifiers decides what is stored, as a recipe has it; a dual encoder's alone is its content's.

    Raises:
        ModelError: see `content_digest`.
    """
    return digest_of_classifiers(config, digests_of(folders))


def digests_of(folders: Mapping[str, Path]) -> dict[str, str]:
    """The content of each of the classifiers' models; raises as `content_digest`."""
    return {model: content_digest(folder) for model, folder in folders.items()}


def digest_of_classifiers(config: RunConfig, digests: Mapping[str, str]) -> str:
    """As `classifier_digest`, by the contents of each of `models_of`."""
    seen = seen_by(config)
    if seen == (Seen(seen[0].model),):
        return digests[seen[0].model]
    parts = [
        {
            "head": each.head,
            "model": digests[each.model],
            "faces": None
            if each.faces is None
            else each.faces.model_dump(mode="json") | {"model": digests[each.faces.model]},
        }
        for each in seen
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def judging_rules(config: RunConfig) -> list[dict[str, Any]] | None:
    """What decides labels, given what is stored; None where it is nothing but the attribute's prompts and margin.

    Models stand as their places in what is stored.
    """
    seen = seen_by(config)
    rules = [
        {
            "seen": seen.index(seen_of(member)),
            "labels": None if member.labels is None else {k: sorted(v) for k, v in member.labels.items()},
            "scoring": member.scoring,
            "margin": member.margin,
        }
        for member in members_of(config.classifier)
    ]
    return None if rules == [{"seen": 0, "labels": None, "scoring": "trained", "margin": None}] else rules


def stored_width(config: RunConfig, folders: Mapping[str, Path]) -> int | None:
    """How many numbers are stored of an image; None where a configuration does not say it."""
    widths = [
        len(labels_of(folders[each.model])) if each.head else embedding_width(folders[each.model])
        for each in seen_by(config)
    ]
    return None if None in widths else sum(width for width in widths if width is not None)


def classifier_name(setting: Any) -> str:
    """The classifiers' last names, for people, from a configuration or its JSON."""
    if isinstance(setting, str):
        return setting.rstrip("/").rpartition("/")[2]
    if isinstance(setting, ClassifierConfig):
        setting = setting.model_dump(mode="json")
    if isinstance(setting, Mapping):
        on_face = ", on the largest face" if setting.get("faces") else ""
        return classifier_name(setting["model"]) + on_face
    return " + ".join(classifier_name(one) for one in setting)


def with_models(setting: Any, change: Callable[[str], str]) -> Any:
    """A classifier's setting, as JSON has it, with every hub id, folder or prefix in it changed."""
    if isinstance(setting, str):
        return change(setting)
    if isinstance(setting, Mapping):
        changed = dict(setting)
        for key in ("model", "recognition"):
            if changed.get(key) is not None:
                changed[key] = change(changed[key])
        if changed.get("faces") is not None:
            changed["faces"] = with_models(changed["faces"], change)
        return changed
    return [with_models(one, change) for one in setting]
