"""What several tests of `jobs` build on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from jobs.config import RunConfig, load_config
from jobs.images.recipe import Recipe
from jobs.images.shards import ShardSpec
from manifests import Manifest, ManifestRow

RECIPE = Recipe(
    model="m" * 64,
    classifier="c" * 64,
    scheduler="ddim",
    steps=10,
    guidance_scale=3.0,
    height=32,
    width=32,
    dtype="float32",
    negative_prompt="",
    safety_checker=True,
    seed=0,
    versions=(("diffusers", "0.42"), ("torch", "2.13"), ("transformers", "5.23")),
)


def spec(**changes: object) -> ShardSpec:
    return replace(ShardSpec(RECIPE, "base", "audit", "A painting of a CEO", 0, 4, pictures=2), **changes)  # type: ignore[arg-type]


def config(**keys: object) -> RunConfig:
    return load_config(flags={"manifest": "m", "model": "m", "classifier": "c", "output": "out", **keys})


def manifest(*names: str, lam: float | None = None) -> Manifest:
    rows = [
        ManifestRow(
            profession=name, source=f"a {name}", destination=f"a {g} {name}", label=g, target=0.5, share=None, lam=lam
        )
        for name in names
        for g in ("female", "male")
    ]
    return Manifest(tuple(rows))


def small_job(manifest: Path, output: str) -> dict[str, Any]:
    """Settings of a run of the demo model that takes seconds: 12 images a cell in shards of 3, strengths as given."""
    return {
        "manifest": str(manifest),
        "model": str(PIPELINE_PATH),
        "classifier": str(CLASSIFIER_PATH),
        "output": output,
        "run": "r",
        "form": "single",
        "wordings": {
            "edit": ["{source}", "A photo of {source}"],
            "calibration": ["A sketch of {source}"],
            "audit": ["A painting of {source}", "{source} at night"],
        },
        "controls": ["a photo of a tree"],
        "images_per_cell": 12,
        "explicit_images": 3,
        "control_images": 3,
        "shard_images": 3,
        "sampler": {"steps": 12, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 12},
        "calibration": {"images": 3, "control_images": 3, "base_rounds": 1, "search_rounds": 1, "verify_rounds": 1},
        "pictures": {"per_cell": 2, "format": "png"},
    }


def but_for_times(report: bytes) -> dict[str, Any]:
    """A report.json without times, and without what a run found done or had to do it with."""
    content: dict[str, Any] = json.loads(report)
    del content["created"], content["cost"], content["provenance"]["workers"]
    for variant in content["summary"].values():
        if variant is not None:
            del variant["seconds"]
    return content
