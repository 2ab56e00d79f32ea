"""The ready configurations parse, name a manifest that is here, and can be planned with a model of their family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.config import load_config
from jobs.models.files import components_of
from jobs.planning.plan import make_plan
from jobs.runs.inputs import read_inputs
from tests.time_ops.conftest import make_xl_pipe
from tests.time_ops.families import make_flux_pipe, make_sd3_pipe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "infra/configs").glob("*.yaml"))
PAGE = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model of each family, with a tokenizer as long as the published ones."""
    xl = tmp_path_factory.mktemp("models") / "xl"
    make_xl_pipe().save_pretrained(xl)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(xl / name)
        shutil.copytree(PIPELINE_PATH / "tokenizer", xl / name)
    found = {"sd": PIPELINE_PATH, "xl": xl}
    for name, make in (("sd3", make_sd3_pipe), ("dev", make_flux_pipe), ("schnell", make_schnell)):
        found[name] = tmp_path_factory.mktemp("models") / name
        make().save_pretrained(found[name])
        for part, (_, kind) in components_of(found[name]).items():
            if kind == "CLIPTokenizer":  # T5's is as long as the published one, and spells what it does not know
                shutil.rmtree(found[name] / part)
                shutil.copytree(PIPELINE_PATH / "tokenizer", found[name] / part)
    return found


def make_schnell() -> Any:
    return make_flux_pipe(guidance=False)


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_it_parses_and_plans(file: Path, models: dict[str, Path], tmp_path: Path) -> None:
    given = load_config(file.read_text(encoding="utf-8"), name=file.name)
    assert given.output.startswith("s3://bucket/")
    assert (ROOT / given.manifest).is_file()
    assert file.name in PAGE
    named = {"xl": "xl", "diffusion-3": "sd3", "dev": "dev", "schnell": "schnell"}
    model = models[next((family for part, family in named.items() if part in given.model), "sd")]
    flags = {
        "manifest": str(ROOT / given.manifest),
        "model": str(model),
        "classifier": str(CLASSIFIER_PATH),
        "output": str(tmp_path),
    }
    config = load_config(file.read_text(encoding="utf-8"), name=file.name, flags=flags)
    assert config.sampler == given.sampler
    if "audit" in file.stem:  # which `plan` does not count
        assert len(read_inputs(config, StorageSettings(), "test").professions) == 35
        return
    plan = make_plan(config, rate=1.0, workers=4)
    audit = next(stage for stage in plan.stages if stage.name == "base audit")
    # 35 professions in five wordings, two explicit prompts of each, and the controls.
    cells = 35 * (5 * config.images_per_cell + 2 * config.explicit_images)
    assert audit.images == cells + len(config.controls) * config.control_images
    assert f"{audit.images:,}" in PAGE
    assert (plan.memory.encoding_bytes > 0) == (config.sampler.dtype == "bfloat16")
