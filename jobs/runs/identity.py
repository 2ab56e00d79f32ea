"""What a run is: the identity that resuming asks for, and the provenance that a report gives."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from jobs.config import RunConfig
from jobs.images.judging import classifier_name, judging_rules, with_models
from jobs.images.recipe import Probe, Recipe, sampler_facts
from manifests import Manifest

__all__ = ["evaluation_identity", "identity_of", "last_name", "provenance_of", "without_paths"]

# Where things lie, who works and who is told; what these lead to is in the contents.
_UNDECIDING = {
    *("manifest", "model", "model_layout", "classifier", "output", "run"),
    *("workers", "storage", "audit", "evaluate", "export", "schedule", "mlflow"),
}


def identity_of(config: RunConfig, manifest: Manifest, recipe: Recipe, content: Mapping[str, Any] | None = None) -> str:
    """Digest of all that decides the result: contents and settings, not paths, and not how many workers made it.

    Args:
        config: the run's.
        manifest: the run's.
        recipe: of its shards.
        content: what decides it beside these, as digests, of a job other than `debias`.
    """
    settings = config.model_dump(mode="json", exclude=_UNDECIDING)
    # What is of the other form decides nothing; a single edit's run is what it was before there were mixtures. Nor does
    # what only `debias` reads decide another job's result.
    own = {"form", "mixture"} if config.form == "single" else {"calibration"}
    for other in own if content is None else {"form", "mixture", "calibration"}:
        settings.pop(other)
    for how in ("batch_size", "compile"):
        settings["sampler"].pop(how)
    # The orders too: lambdas, shares and counts of a run's calibration are kept by place.
    order = [[p.name, [d.prompt for d in p.destinations]] for p in manifest.professions]
    facts = {
        "settings": settings,
        "manifest": manifest.digest,
        "order": [list(config.attribute), order],
        "recipe": asdict(recipe),
    }
    if content is not None:
        facts["job"] = dict(content)
    if (rules := judging_rules(config)) is not None:
        facts["classifiers"] = rules
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def evaluation_identity(config: RunConfig, edits: str, recipe: Recipe) -> str:
    """As `identity_of`, of an evaluation.

    Args:
        config: the run's.
        edits: digest of the edit set.
        recipe: of its shards.
    """
    deciding = {"evaluate", "controls", "seed", "shard_images", "pictures"}
    facts = {"settings": config.model_dump(mode="json", include=deciding), "edits": edits, "recipe": asdict(recipe)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def without_paths(configuration: dict[str, Any]) -> dict[str, Any]:
    """The configuration as used; of files and folders on a machine only their last name."""

    def shown(value: str | None) -> str | None:
        return last_name(value) if value is not None and value.startswith(("/", "~")) else value

    compared = {key: shown(value) for key, value in configuration["audit"].items()}
    paths = {key: shown(configuration[key]) for key in ("manifest", "model", "model_layout", "output")}
    classifier = with_models(configuration["classifier"], lambda model: str(shown(model)))
    return configuration | paths | {"classifier": classifier, "audit": compared}


def last_name(path: str) -> str:
    """What a model, a run or a file is called, wherever it lies."""
    return path.rstrip("/").rpartition("/")[2]


def provenance_of(config: RunConfig, probe: Probe, recipe: Recipe) -> dict[str, Any]:
    """What a report says of its making; models by their last name and digest, so that no machine's path gets out."""
    return {
        "model": last_name(config.model),
        "model_digest": probe.model,
        "classifier": classifier_name(config.classifier),
        "classifier_digest": probe.classifier,
        **({} if (rules := judging_rules(config)) is None else {"classifier_rules": rules}),
        "device": probe.device,
        "threads": probe.threads,
        "versions": {**probe.versions, "python": platform.python_version(), "evenhand": version("evenhand")},
        "sampler": sampler_facts(recipe),
        "undetermined_margin": config.undetermined_margin,
        "wordings": config.wordings.model_dump(mode="json"),
        "seed": config.seed,
    }


def made_on(makers: Mapping[str, int]) -> dict[str, Any]:
    """What the images' last bits rest on, and whether that was one and the same for all of them.

    Args:
        makers: JSON of device, threads, batch size and versions -> images made so.
    """
    several = [{**json.loads(maker), "images": images} for maker, images in sorted(makers.items())]
    return {"made_on": several, "mixed": len(several) > 1}
