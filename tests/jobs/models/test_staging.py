"""Models are known by their tensors, and only safetensors are opened."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.models.digests import content_digest
from jobs.models.files import load_tokenizers
from jobs.models.staging import Origin, fetch_model, origin_of
from time_ops import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CLASSIFIER_PATH, tmp_path / "model"))


def test_the_digest_knows_tensors_and_settings_not_files(folder: Path) -> None:
    digest = content_digest(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    names = sorted(tensors)
    weights.unlink()
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, folder / f"model-{i}.safetensors", metadata={"written": "elsewhere"})
    settings = json.loads((folder / "config.json").read_text())
    settings["transformers_version"] = "0.0"
    (folder / "config.json").write_text(json.dumps(settings, indent=7))
    (folder / "README.md").write_text("words")
    assert content_digest(folder) == digest


def test_one_changed_value_is_another_model(folder: Path) -> None:
    digest = content_digest(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    first = sorted(tensors)[-1]
    tensors[first] = torch.nextafter(tensors[first], torch.tensor(float("inf")))
    save_file(tensors, weights)
    changed = content_digest(folder)
    assert changed != digest
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"projection_dim"', '"projection_dims"'))
    assert content_digest(folder) != changed


def test_the_hubs_cache_says_where_a_model_comes_from(folder: Path, tmp_path: Path) -> None:
    assert origin_of(folder) == Origin(None, None, None)
    there = tmp_path / "models--CompVis--stable-diffusion-v1-4" / "snapshots" / ("c0ffee" * 7)[:40]
    shutil.copytree(folder, there)
    (there / "README.md").write_text("---\nlicense: openrail\n---\n")
    found = origin_of(fetch_model(str(there), StorageSettings(), tmp_path, pipeline=False))
    assert found == Origin("CompVis/stable-diffusion-v1-4", there.name, "---\nlicense: openrail\n---\n")


def test_a_truncated_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors can't be read"):
        content_digest(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safe_serialization=True"):
        fetch_model(str(folder), StorageSettings(), tmp_path, pipeline=False)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        fetch_model(str(tmp_path), StorageSettings(), tmp_path / "cache", pipeline=True)


def test_a_mixture_where_one_model_is_asked_for_is_refused_with_the_ways(tmp_path: Path) -> None:
    for label in ("female", "male"):
        shutil.copytree(PIPELINE_PATH, tmp_path / "components" / f"{label}-only")
    (tmp_path / "mixture.json").write_text("{}")
    with pytest.raises(ModelError) as refused:
        fetch_model(f"{tmp_path}/", StorageSettings(), tmp_path / "cache", pipeline=True)
    message = str(refused.value)
    assert f"{tmp_path}/components/female-only or {tmp_path}/components/male-only" in message
    assert f"{tmp_path}/mixture.safetensors as audit.operator" in message


def test_dtypes_that_numpy_lacks_are_told_apart(folder: Path) -> None:
    weights = folder / "model.safetensors"
    digests = set()
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        save_file({"a": torch.ones(3, 5, dtype=dtype), "b": torch.zeros((), dtype=dtype)}, weights)
        digests.add(content_digest(folder))
    assert len(digests) == 3


def test_tokenizers_are_those_of_the_pipeline() -> None:
    (found,) = load_tokenizers(PIPELINE_PATH)
    usual = AutoTokenizer.from_pretrained(PIPELINE_PATH / "tokenizer")
    assert found.model_max_length == usual.model_max_length
    for prompt in ("", "A photo of a CEO", "  ünïcode,   42 an apple's "):
        assert found(prompt)["input_ids"] == usual(prompt)["input_ids"]


def test_a_tokenizer_without_an_index_is_found_all_the_same(tmp_path: Path) -> None:
    shutil.copytree(PIPELINE_PATH / "tokenizer", tmp_path / "tokenizer")
    (found,) = load_tokenizers(tmp_path)
    assert found("a CEO")["input_ids"] == load_tokenizers(PIPELINE_PATH)[0]("a CEO")["input_ids"]


def test_models_are_identified_without_diffusers() -> None:
    code = "import sys, jobs.models.staging; print('diffusers' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
