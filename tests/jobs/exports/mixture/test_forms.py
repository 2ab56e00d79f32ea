"""A mixture in every form: named as what it is, drawn as it was audited, and its card's example runs as it stands."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from infra.demo import PIPELINE_PATH
from jobs.exports.api import ExportWorker
from jobs.exports.export_card import export_card
from jobs.exports.forms.header import Provenance, lams_digest, not_alone
from jobs.exports.mixture.forms import LOW_RANK_FILE
from jobs.exports.mixture.loading import mixture_loading
from jobs.exports.mixture.parts import component_place
from jobs.exports.schema import FORMS, Exported, Form
from jobs.exports.verify.driver import Checking, check_mixture
from jobs.exports.verify.samples import Compared, shipped
from jobs.exports.write import ExportTask, main_file
from jobs.images.generator import ImageRequest
from jobs.images.shards import BASE
from jobs.models.checksums import verify_folder
from jobs.models.digests import content_digest
from jobs.models.sources import open_safetensors
from jobs.report.figure_schema import RateFigure
from jobs.report.mixture_schema import ComponentReport, MixtureReport, ProfessionWeights
from tests.jobs.exports.conftest import DemoRun
from tests.jobs.exports.original_layout import single_file
from tests.jobs.exports.verify.test_opened import tasks
from time_ops import Mixture
from time_ops.mixture import UNEDITED

NOTHING = RateFigure(value=None, n=0, low=None, high=None)


def reported(mixture: Mixture, professions: dict[str, dict[str, float]] | None = None) -> MixtureReport:
    """What a run's report says of a mixture, without figures."""
    weights = dict(zip(mixture.labels, mixture.table.default, strict=True))
    components = [
        ComponentReport(
            label=c.label,
            operator=None if c.is_identity else c.operator.digest,
            weight=weights[c.label],
            images=0,
            own=NOTHING,
            wordings=[],
            explicit=NOTHING,
            recognised=NOTHING,
            controls=NOTHING,
            undetermined=NOTHING,
        )
        for c in mixture.components
    ]
    own = [ProfessionWeights(profession=s, source=s, weights=w) for s, w in (professions or {}).items()]
    return MixtureReport(digest=mixture.digest, route=1, weights=weights, professions=own, components=components)


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as one file of the original layout."""
    file = tmp_path_factory.mktemp("single") / "base.safetensors"
    save_file(single_file(PIPELINE_PATH), file, metadata={"format": "pt"})
    return file


def task(form: Form, mixture: Mixture, base_file: Path, **changes: Any) -> ExportTask:
    made = Provenance(content_digest(PIPELINE_PATH), "m" * 64, lams_digest(mixture), "r", "pass")
    asked = ExportTask(form, mixture, made, "an edit", "2026-11-21T00:00:00Z", f"x/{form}-candidate", "# Card\n")
    return replace(asked, base_file=str(base_file), error=0.0, **changes)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_what_was_audited_and_its_example_runs(
    form: Form, demo_run: DemoRun, demo_mixture: Mixture, base_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = task(form, demo_mixture, base_file)
    exported: Exported = demo_run.pool.call(ExportWorker.write_export, asked)
    folder = Path(demo_run.config.output) / asked.prefix
    verify_folder(folder, form)
    assert (folder / main_file(form, mixture=True)).is_file()
    assert exported.components is not None
    assert [each.place for each in exported.components] == [
        component_place(form, "female"), component_place(form, "male"), None
    ]  # fmt: skip
    checking = Checking(demo_run.pool, demo_run.config, tasks(), demo_run.texts)
    found = check_mixture(form, asked.prefix, demo_mixture, checking)
    assert found.gate.outcome == "pass"
    assert found.images == 4 * (3 if form in ("diffusers", "operator") else 2)
    text = export_card("# Card\n", exported.model_copy(update={"shipped": found}), mixture=reported(demo_mixture))
    assert "**No component by itself is a debiased model:**" in text
    runs_as_it_stands(text, form, folder, demo_run, demo_mixture, monkeypatch)


def runs_as_it_stands(
    text: str, form: Form, folder: Path, demo_run: DemoRun, mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first example of a card, with a few steps: its image is the audit's."""
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    drawn: list[Any] = []
    plain = StableDiffusionPipeline.__call__

    @wraps(plain)
    def few(self: Any, *args: Any, **options: Any) -> Any:
        self.set_progress_bar_config(disable=True)
        self.scheduler = demo_run.pool.worker.resident.pipe.scheduler
        size = {"height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
        found = plain(self, *args, **{**options, **size})
        drawn.append(found.images)
        return found

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", few)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("route", "pipeline", "load_mixture"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    exec(code, {"BASE": str(PIPELINE_PATH), "FOLDER": str(folder)})  # noqa: S102 - it is what users run
    seeds = [7] if form != "diffusers" else list(range(4))
    generator = demo_run.pool.worker.resident.generator
    requests = []
    for seed in seeds:
        component = mixture.components[mixture.component_of(seed, "a photo of a CEO")]
        generator.add_operator(component.operator)
        name = BASE if component.is_identity else component.operator.digest
        requests.append(ImageRequest("a photo of a CEO", name, seed))
    monkeypatch.undo()
    wanted = generator.draw(requests).pixels
    assert np.abs(np.concatenate(drawn) * 255 - wanted).max() <= 1.01


@pytest.mark.parametrize("form", ["lora", "single-file", "tensors"])
def test_every_file_says_that_it_is_one_component(
    form: Form, demo_run: DemoRun, demo_mixture: Mixture, base_file: Path
) -> None:
    asked = replace(task(form, demo_mixture, base_file, licence="openrail"), prefix=f"y/{form}")
    exported: Exported = demo_run.pool.call(ExportWorker.write_export, asked)
    folder = Path(demo_run.config.output) / asked.prefix
    for label in ("female", "male"):
        file = folder / component_place(form, label)
        assert file.name.endswith(f"-{label}-only.safetensors")
        metadata = open_safetensors(file).metadata
        assert metadata["evenhand.is"] == not_alone(label)
        assert (metadata["evenhand.component"], metadata["evenhand.mixture"]) == (label, demo_mixture.digest)
        assert metadata["modelspec.title"].startswith(f"{label} only, not debiased")
        assert metadata["modelspec.license"] == "openrail"
    content = json.loads((folder / "mixture.json").read_text())
    assert {c["label"]: c["place"] for c in content["components"]} == {
        "female": component_place(form, "female"), "male": component_place(form, "male"), UNEDITED: None
    }  # fmt: skip
    named = {path.name for path in folder.iterdir()} - {"README.md", "export.json", "SHA256SUMS"}
    assert set(exported.files) == named
    low = named & {LOW_RANK_FILE}
    assert low == ({LOW_RANK_FILE} if form == "lora" else set())


def test_loras_of_a_rank_come_with_the_mixture_that_they_are(
    demo_run: DemoRun, demo_mixture: Mixture, base_file: Path
) -> None:
    asked = replace(task("lora", demo_mixture, base_file, rank=2), prefix="z/lora")
    exported: Exported = demo_run.pool.call(ExportWorker.write_export, asked)
    assert exported.components is not None
    female, male, unedited = exported.components
    assert (female.rank, male.rank, unedited.rank, exported.rank) == (2, 2, None, 2)
    assert exported.error == max(female.error or 0, male.error or 0) > 1e-3
    low = Mixture.load(Path(demo_run.config.output) / "z/lora" / LOW_RANK_FILE)
    assert (low.labels, low.table.default) == (demo_mixture.labels, demo_mixture.table.default)
    assert low.digest != demo_mixture.digest
    for cut, whole in zip(low.components, demo_mixture.components, strict=True):
        shift = cut.operator.matrix - torch.eye(low.d, dtype=torch.float64)
        assert torch.linalg.matrix_rank(shift) == (0 if whole.is_identity else 2)
    # The LoRAs draw what that mixture draws.
    found = check_mixture("lora", "z/lora", low, Checking(demo_run.pool, demo_run.config, tasks(), demo_run.texts))
    assert found.gate.outcome == "pass"


def test_prompts_of_other_programs_have_the_runs_weights(demo_mixture: Mixture) -> None:
    text = mixture_loading(reported(demo_mixture, {"a nurse": {"female": 0.25, "male": 0.75, UNEDITED: 0.0}}), "lora")
    female, male = "<lora:lora-female-only:1>", "<lora:lora-male-only:1>"
    assert f"`{{0.4::{female}|0.4::{male}|0.2::}} ...`" in text
    assert f"- prompts that name 'a nurse': `{{0.25::{female}|0.75::{male}}} ...`" in text
    assert f"`{{{female}|{female}|{male}|{male}|}} ...`" in text
    assert f"`{{{female}|{male}|{male}|{male}}} ...`" in text


def test_a_card_says_what_did_not_pass(demo_mixture: Mixture) -> None:
    wrong = shipped(Compared(16, 0, 0.4, 3.0, 9, 16), "float32", half=False, limit=0.95)
    exported = Exported(form="lora", run="r", verdict="pass", forced=False, tensors=8, files={}, shipped=wrong)
    assert "was not published" in export_card("# Card\n", exported, mixture=reported(demo_mixture))
