"""Folders of models: what their JSON says, what their weights' headers say, and names with `..`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.config import SamplerConfig
from jobs.models.checksums import parse_checksums
from jobs.models.classifier_kinds import embedding_width
from jobs.models.digests import content_digest
from jobs.models.files import components_of
from jobs.models.kinds import check_kind
from jobs.models.sampling import check_sampler
from jobs.models.sources import open_denoiser
from jobs.models.staging import fetch_model
from jobs.models.weights import check_classifier, check_image_model, check_pipeline
from tests.fuzz.judging import judged, untouched
from tests.fuzz.profiles import inputs
from tests.fuzz.strategies import DEEP, broken_bytes, broken_json, json_text, odd_texts, safetensors_file
from tests.jobs.images.classifiers import save_head
from tests.time_ops.families import make_flux_pipe
from time_ops import ModelError

CONFIGS = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")
JOINT_CONFIGS = (
    *("model_index.json", "scheduler/scheduler_config.json"),
    *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder", "text_encoder_2")),
)
SAID = {name: json.loads((PIPELINE_PATH / name).read_text()) for name in CONFIGS}


def linked(place: Path, whole: Path = PIPELINE_PATH) -> Path:
    """A model's folder whose files are links, so that one is replaced without a copy of the others."""
    return Path(shutil.copytree(whole, place / "model", copy_function=os.link, dirs_exist_ok=True))


def replaced(folder: Path, name: str, data: bytes) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(data)


@given(st.sampled_from(CONFIGS).flatmap(lambda n: json_text(SAID[n]).map(lambda d: (n, d))))
@inputs(40)
def test_what_a_pipeline_says_of_itself(tmp_path_factory: Any, broken: tuple[str, bytes]) -> None:
    place = tmp_path_factory.mktemp("pipeline")
    folder = linked(place)
    replaced(folder, *broken)
    with untouched(place):
        judged("pipelines", lambda: check_kind(folder), size=len(broken[1]))
        judged("pipelines", lambda: content_digest(folder), size=len(broken[1]))
        judged("pipelines", lambda: fetch_model(str(folder), StorageSettings(), place / "cache", pipeline=True))


@given(st.sampled_from(CONFIGS).flatmap(lambda n: broken_json(SAID[n], most=1).map(lambda d: (n, d))))
@inputs(12)
def test_pipelines_that_are_made_of_what_they_say(tmp_path_factory: Any, broken: tuple[str, Any]) -> None:
    place = tmp_path_factory.mktemp("pipeline")
    folder = linked(place)
    replaced(folder, broken[0], json.dumps(broken[1]).encode())
    with untouched(place):
        judged("pipelines", lambda: check_pipeline(folder, finite=False))
        judged("pipelines", lambda: open_denoiser(folder / "unet", d=64))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    make_flux_pipe().save_pretrained(folder)
    return folder


@given(st.data(), st.sampled_from(JOINT_CONFIGS))
@inputs(30)
def test_what_a_flux_says_of_itself_and_of_its_sampler(
    flux: Path, tmp_path_factory: Any, data: st.DataObject, name: str
) -> None:
    broken = json.dumps(data.draw(broken_json(json.loads((flux / name).read_text()), most=1))).encode()
    place = tmp_path_factory.mktemp("pipeline")
    folder = linked(place, flux)
    replaced(folder, name, broken)

    def checked() -> None:
        check_kind(folder)
        check_sampler(folder, SamplerConfig(scheduler="flow-euler", height=64, width=64, guidance_scale=3.5))

    with untouched(place):
        judged("pipelines", checked)


WEIGHTS = (PIPELINE_PATH / "text_encoder" / "model.safetensors").read_bytes()
SIZE = int.from_bytes(WEIGHTS[:8], "little")
HEADER = json.loads(WEIGHTS[8 : 8 + SIZE])


@st.composite
def weights(draw: Any) -> bytes:
    """The text encoder's file with another header, or a header alone."""
    kind = draw(st.sampled_from(("json", "json", "bytes", "length", "cut")))
    if kind == "bytes":
        return draw(broken_bytes(WEIGHTS[: 8 + SIZE])) + WEIGHTS[8 + SIZE :]
    if kind == "length":
        return safetensors_file(WEIGHTS[8:], b"", draw(st.sampled_from((0, 1, 2**31, 2**63, 2**64 - 1))))
    if kind == "cut":
        return WEIGHTS[: draw(st.integers(0, len(WEIGHTS)))]
    return safetensors_file(json.dumps(draw(broken_json(HEADER))).encode(), WEIGHTS[8 + SIZE :])


@given(weights())
@inputs(25)
def test_weights(tmp_path_factory: Any, data: bytes) -> None:
    place = tmp_path_factory.mktemp("pipeline")
    folder = linked(place)
    replaced(folder, "text_encoder/model.safetensors", data)
    with untouched(place):
        judged("weights", lambda: content_digest(folder), size=len(data))
        judged("weights", lambda: check_pipeline(folder, finite=True), size=len(data))


CLASSIFIER = json.loads((CLASSIFIER_PATH / "config.json").read_text())


@given(json_text(CLASSIFIER))
@inputs(12)
def test_what_a_classifier_says_of_itself(tmp_path_factory: Any, data: bytes) -> None:
    place = tmp_path_factory.mktemp("classifier")
    folder = linked(place, CLASSIFIER_PATH)
    replaced(folder, "config.json", data)
    with untouched(place):
        judged("classifiers", lambda: check_classifier(folder, finite=False), size=len(data))


@given(st.one_of(odd_texts, st.sampled_from((f"{'0' * 64}  ../x", f"{'0' * 64}  a\n" * 9, "x" * 99_999))))
@inputs(30)
def test_checksums(text: str) -> None:
    judged("checksums", lambda: parse_checksums(text), says="SHA256SUMS", size=len(text))


@pytest.mark.parametrize("key", ["in_channels", "cross_attention_dim", "addition_embed_type"])
def test_a_width_that_is_a_list_of_lists_is_no_traceback(tmp_path: Path, key: str) -> None:
    folder = linked(tmp_path)
    said = {**SAID["unet/config.json"], key: [[None]]}
    replaced(folder, "unet/config.json", json.dumps(said).encode())
    with pytest.raises(ModelError, match="of another type"):
        check_kind(folder)


@pytest.mark.parametrize("name", ["../unet", "/etc", "", "a\0b"])
def test_no_component_is_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = linked(tmp_path)
    replaced(folder, "model_index.json", json.dumps({**SAID["model_index.json"], name: ["diffusers", "X"]}).encode())
    with pytest.raises(ModelError, match="no component, library or class"):
        components_of(folder)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    replaced(folder, "unet/config.json", DEEP.replace("[", "[" * 60).encode())
    with pytest.raises(ModelError, match=r"unet/config\.json can't be read"):
        check_kind(folder)


def test_a_classifier_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    folder = linked(tmp_path, CLASSIFIER_PATH)
    replaced(folder, "config.json", DEEP.replace("[", "[" * 60).encode())
    with pytest.raises(ModelError, match=r"config\.json can't be read"):
        check_classifier(folder)
    assert embedding_width(folder) is None


def test_a_width_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"projection_dim": 1e999}')
    assert embedding_width(tmp_path) is None


@pytest.mark.parametrize("said", ["[]", '{"image_processor_type": ["x"]}', DEEP.replace("[", "[" * 60)])
def test_an_image_processor_that_is_none_is_a_fault_of_the_model(tmp_path: Path, said: str) -> None:
    save_head("vit", tmp_path, ["a", "b"])
    (tmp_path / "preprocessor_config.json").write_text(said)
    with pytest.raises(ModelError, match="image processor can't be loaded"):
        check_image_model(tmp_path, "ForImageClassification")
