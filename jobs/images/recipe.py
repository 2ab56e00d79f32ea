"""What all shards of a run share: the recipe, made of its settings and of what its workers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from jobs.config import RunConfig

__all__ = ["KEYED_LIBRARIES", "SHARD_SCHEMA", "Probe", "Recipe", "keyed_versions", "recipe_of", "sampler_facts"]

SHARD_SCHEMA = 1
"""Raised whenever our code changes what the same key would hold."""


@dataclass(frozen=True)
class Recipe:
    """What all shards of a run share, as far as it decides pixels and embeddings."""

    model: str
    classifier: str
    scheduler: str
    steps: int
    guidance_scale: float
    height: int
    width: int
    dtype: str
    negative_prompt: str
    safety_checker: bool
    seed: int
    versions: tuple[tuple[str, str], ...]
    schema: int = SHARD_SCHEMA

    @cached_property
    def content(self) -> dict[str, Any]:
        """As plain data; worked out once, as every shard's key holds it."""
        return asdict(self)


KEYED_LIBRARIES = ("diffusers", "torch", "transformers")
"""Whose major and minor versions are part of the shards' key."""


@dataclass(frozen=True)
class Probe:
    """What a worker is: what the shards' key needs, and where it runs.

    Attributes:
        classifiers: each model of the classifiers and its digest, where they are several.
    """

    model: str
    classifier: str
    dtype: str
    device: str
    threads: int
    host: str
    versions: dict[str, str]
    classifiers: tuple[tuple[str, str], ...] = ()


def keyed_versions(versions: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Major and minor version of each of `KEYED_LIBRARIES`, as a recipe has them."""
    return tuple((name, ".".join(versions[name].split("+")[0].split(".")[:2])) for name in sorted(KEYED_LIBRARIES))


def recipe_of(config: RunConfig, probe: Probe) -> Recipe:
    """What all shards of the run share, with the dtype and the libraries of the probed worker."""
    sampler = config.sampler
    return Recipe(
        model=probe.model,
        classifier=probe.classifier,
        scheduler=sampler.scheduler,
        steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        height=sampler.height,
        width=sampler.width,
        dtype=probe.dtype,
        negative_prompt=sampler.negative_prompt,
        safety_checker=sampler.safety_checker,
        seed=config.seed,
        versions=keyed_versions(probe.versions),
    )


def sampler_facts(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe is set by the run: scheduler, steps, guidance, size, dtype, seed and so on."""
    return {k: v for k, v in asdict(recipe).items() if k not in ("model", "classifier", "versions", "schema")}
