"""What several tests of `jobs` build on."""

from dataclasses import replace

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
