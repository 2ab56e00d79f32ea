from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.exports.forms.header import Form, ModelSpec, Provenance, file_header, lams_digest, spec_of
from tests.jobs.exports.conftest import Model
from time_ops import EditOperator, ModelError
from time_ops.records import EditRecord, SolveInputs

SPEC = ModelSpec("SD, even-handed", "stable-diffusion-v1", "512x512", date="2026-11-21")
PROVENANCE = Provenance("b" * 64, "m" * 64, "l" * 64, "2026-11-21-sd14", "fail", forced=True)


def test_the_fields_of_both_kinds() -> None:
    assert file_header("single_file", SPEC, PROVENANCE) == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "sgm",
        "modelspec.title": "SD, even-handed",
        "modelspec.resolution": "512x512",
        "modelspec.date": "2026-11-21",
        "evenhand.base_digest": "b" * 64,
        "evenhand.manifest_digest": "m" * 64,
        "evenhand.lams_digest": "l" * 64,
        "evenhand.run": "2026-11-21-sd14",
        "evenhand.verdict": "fail",
        "evenhand.forced": "true",
    }


@pytest.mark.parametrize(
    ("form", "base", "architecture", "implementation"),
    [
        ("lora", "stable-diffusion-v1", "stable-diffusion-v1/lora", "diffusers"),
        ("lora", "stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base/lora", "sgm"),
        ("tensors", "stable-diffusion-v1", "stable-diffusion-v1", "diffusers"),
        ("operator", "stable-diffusion-v1", "stable-diffusion-v1/evenhand-operator", "evenhand"),
    ],
)
def test_adapters_say_what_they_are_for(form: Form, base: str, architecture: str, implementation: str) -> None:
    found = file_header(form, replace(SPEC, architecture=base), PROVENANCE)
    assert found["modelspec.architecture"] == architecture
    assert found["modelspec.implementation"] == implementation


@pytest.mark.parametrize("place", ["/home/ada/sd", "from ~/sd", "C:\\sd", "file:sd", "s3://bucket/sd", "sd (/mnt/sd)"])
def test_no_place_gets_out(place: str) -> None:
    with pytest.raises(ValueError, match="names a place"):
        file_header("lora", replace(SPEC, title=place), PROVENANCE)
    with pytest.raises(ValueError, match=r"evenhand\.run"):
        file_header("lora", SPEC, replace(PROVENANCE, run=place))
    # A stranger's words, after hours of generation: no reason to end the run.
    assert "modelspec.license" not in file_header("lora", replace(SPEC, license=f"as in {place}"), PROVENANCE)


def test_words_and_links_are_no_places() -> None:
    spec = replace(SPEC, title="SD 1.4 / 35 professions", license="https://licences.org/a", description="and/or: both")
    assert file_header("lora", spec, PROVENANCE)["modelspec.title"] == spec.title


@pytest.mark.parametrize(
    ("unet", "prediction", "wanted"),
    [
        ({"cross_attention_dim": 768}, "epsilon", ("stable-diffusion-v1", "epsilon")),
        ({"cross_attention_dim": 1024}, "epsilon", ("stable-diffusion-v2-512", "epsilon")),
        ({"cross_attention_dim": 1024}, "v_prediction", ("stable-diffusion-v2-768-v", "v")),
        (
            {"cross_attention_dim": 2048, "addition_embed_type": "text_time"},
            "epsilon",
            ("stable-diffusion-xl-v1-base", "epsilon"),
        ),
        ({"cross_attention_dim": 32}, "epsilon", ("stable-diffusion-custom", "epsilon")),
    ],
)
def test_a_folder_says_its_architecture(
    sd: Model, tmp_path: Path, unet: dict[str, Any], prediction: str, wanted: tuple[str, str]
) -> None:
    for part, name in (("unet", "config.json"), ("vae", "config.json"), ("scheduler", "scheduler_config.json")):
        (tmp_path / part).mkdir()
        shutil.copy(sd.folder / part / name, tmp_path / part / name)
    changed = {"unet/config.json": unet, "scheduler/scheduler_config.json": {"prediction_type": prediction}}
    for name, values in changed.items():
        config = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(config | values))
    found = spec_of(tmp_path, "a title", date="2026-11-21")
    assert (found.architecture, found.prediction_type) == wanted
    assert (found.title, found.resolution, found.date) == ("a title", "16x16", "2026-11-21")
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"vae/config\.json can't be read"):
        spec_of(tmp_path, "a title")


def test_the_lams_digest_knows_strengths_and_not_their_order() -> None:
    def of(*lams: float) -> str:
        records = [EditRecord(f"a {i}", (("a nurse", 1.0),), lam) for i, lam in enumerate(lams)]
        matrix = torch.eye(4, dtype=torch.float64)
        assert EditOperator(matrix, (SolveInputs(tuple(records)),)).steps == (SolveInputs(tuple(records[::-1])),)
        return lams_digest(EditOperator(matrix, (SolveInputs(tuple(records[::-1])),)))

    assert of(0.1, 0.2) == of(0.1, 0.2)
    assert of(0.1, 0.2) != of(0.2, 0.1)
