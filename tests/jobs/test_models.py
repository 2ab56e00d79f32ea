"""Models are known by their tensors, and only safetensors are opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.demo import CLASSIFIER_PATH
from infra.storage import StorageSettings
from jobs.models import content_digest, stage
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


def test_a_truncated_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors can't be read"):
        content_digest(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safe_serialization=True"):
        stage(str(folder), StorageSettings(), tmp_path, pipeline=False)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        stage(str(tmp_path), StorageSettings(), tmp_path / "cache", pipeline=True)
