"""A mixture run on a real Ray with the demo model, and its exports: written, checked, audited, published.

Small on purpose: whether each form is right is tested where it is written.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from diffusers import DiffusionPipeline
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from jobs.auditing.reporting import Outcome
from jobs.cli import main
from jobs.config import load_config
from jobs.debias import debias
from jobs.models.checksums import verify_folder
from manifests import write_manifest
from tests.jobs.helpers import manifest
from time_ops import Mixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Place:
    """The run's folder, and what came of it."""

    folder: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def here(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("mixture-run")
    write_manifest(manifest("nurse", "mechanic"), folder / "m.parquet")
    config = {
        "manifest": str(folder / "m.parquet"),
        "model": str(PIPELINE_PATH),
        "classifier": str(CLASSIFIER_PATH),
        "output": str(folder / "out"),
        "form": "mixture",
        "run": "mixed",
        "wordings": {
            "edit": ["{source}", "A photo of {source}"],
            "calibration": ["A sketch of {source}"],
            "audit": ["A painting of {source}"],
        },
        "mixture": {"budget": 0},
        "controls": ["a photo of a tree"],
        "images_per_cell": 4,
        "explicit_images": 2,
        "control_images": 2,
        "shard_images": 4,
        "sampler": {"steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 8},
        "pictures": {"per_cell": 2, "format": "png"},
        "export": {"images": 4},
        "workers": {"count": 1},
    }
    outcome = debias(load_config(yaml.safe_dump(config)), Console(file=io.StringIO()))
    return Place(folder / "out" / "runs" / "mixed", outcome)


def test_the_runs_own_folder_is_the_whole_and_nothing_less(here: Place) -> None:
    report = here.outcome.report
    assert report.mixture is not None
    assert report.shipped is not None
    assert report.shipped.gate.outcome == "pass"
    # Each component and the whole.
    assert report.shipped.images == 3 * 4
    (folder,) = (here.folder / name for name in ("candidate", "checkpoint") if (here.folder / name).exists())
    verify_folder(folder, folder.name)
    told = json.loads((folder / "mixture.json").read_text())
    assert told["mixture"] == report.mixture.digest == Mixture.load(folder / "mixture.safetensors").digest
    assert told["weights"] == report.mixture.weights
    assert [component["place"] for component in told["components"]] == [
        "components/female-only",
        "components/male-only",
    ]
    card = (folder / "README.md").read_text()
    assert "It is a mixture of edits" in card
    assert report.mixture.digest in card
    with pytest.raises(OSError, match=r"no file named model_index\.json"):
        DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_its_exports_are_checked_audited_and_published(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    forms = [flag for form in ("operator", "lora", "diffusers") for flag in ("--form", form)]
    models = ["--model", str(PIPELINE_PATH), "--classifier", str(CLASSIFIER_PATH)]
    with pytest.raises(SystemExit) as ended:
        main(["export", str(here.folder), *models, *forms, "--force", "--json"])
    assert ended.value.code == 0
    found = {each["form"]: each for each in json.loads(capsys.readouterr().out)}
    published = {path.name for path in (here.folder / "exports").iterdir() if not path.name.startswith(".")}
    assert published - {"LEASE"} == set(found)
    for form, told in found.items():
        folder = here.folder / "exports" / form
        verify_folder(folder, form)
        assert json.loads((folder / "export.json").read_text()) == told
        assert [each["label"] for each in told["components"]] == ["female", "male"]
        assert told["shipped"]["gate"]["outcome"] == "pass"
        assert told["shipped"]["images"] == 4 * (2 if form == "lora" else 3)
        card = (folder / "README.md").read_text()
        assert "**No component by itself is a debiased model:**" in card
        assert card.count("from pipeline import MixturePipeline") == (1 if form == "diffusers" else 0)
    # At its ranks, on the run's images' own seeds: all but the same mixture, so all but the same figures.
    audited = found["lora"]["audit"]
    assert audited["delta_of_run"]["value"] == here.outcome.report.model_dump()["summary"]["edited"]["delta"]["value"]
    assert abs(audited["delta"]["value"] - audited["delta_of_run"]["value"]) < 0.2
