"""Pipelines that jobs can't audit are refused by their configuration, before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.demo import PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.config import SamplerConfig
from jobs.images.generator import Generator, ImageRequest
from jobs.images.shards import BASE
from jobs.models.kinds import check_kind
from jobs.models.pipelines import load_pipeline
from jobs.models.staging import fetch_model
from jobs.runs.inputs import read_inputs
from manifests import write_manifest
from tests.jobs.helpers import config, manifest
from tests.time_ops.conftest import make_pipe
from time_ops import ModelError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PIPELINE_PATH, tmp_path / "model"))


def settle(folder: Path, file: str, **keys: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | keys))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"in_channels": 9}, r"reads 9 channels where the VAE has 4 \(in_channels\): .*\(inpainting\)"),
        ({"in_channels": 8}, "editing by instruction"),
        ({"in_channels": 5}, "depth"),
        ({"out_channels": 8}, r"gives 8 channels where the VAE has 4 \(out_channels\)"),
        ({"num_class_embeds": 10}, "a class beside the text .*num_class_embeds: 10"),
        ({"class_embed_type": "timestep"}, "class_embed_type: 'timestep'"),
        ({"addition_embed_type": "text_time"}, r"SDXL's\) beside the text .*addition_embed_type: 'text_time'"),
        ({"addition_embed_type": "image_hint"}, "an image and a hint"),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 128}, "wants an image's embeddings"),
        ({"cross_attention_dim": 768}, "texts of width 768, the text encoder gives 128"),
        ({"_class_name": "UNet3DConditionModel"}, "unet/config.json is of a UNet3DConditionModel"),
    ],
)
def test_unets_that_want_more_than_text_and_noise_are_refused_by_name(
    model: Path, keys: dict[str, Any], words: str
) -> None:
    settle(model, "unet/config.json", **keys)
    with pytest.raises(ModelError, match=words):
        check_kind(model)


def test_all_reasons_are_told_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    settle(model, "unet/config.json", in_channels=9, num_class_embeds=3)
    settle(model, "vae/config.json", _class_name="AutoencoderTiny")
    write_manifest(manifest("CEO"), tmp_path / "m.parquet")
    there = config(manifest=str(tmp_path / "m.parquet"), model=str(model), output=str(tmp_path / "out"))
    with pytest.raises(ModelError) as caught:
        read_inputs(there, StorageSettings(), "test")
    assert str(caught.value).count("\n  - ") == 3
    assert not (tmp_path / "out").exists()


def test_a_unet_that_is_told_the_guidance_is_audited(tmp_path: Path) -> None:
    """The pipeline embeds `sampler.guidance_scale` for it: nothing is missing."""
    make_pipe(time_cond_proj_dim=16).save_pretrained(tmp_path)
    drawn = []
    for scale in (1.5, 8.0):
        sampler = SamplerConfig(steps=2, height=16, width=16, guidance_scale=scale)
        pipe = load_pipeline(tmp_path, sampler, torch.device("cpu"), torch.float32)
        with torch.no_grad():  # as made, this layer is nearly 0
            pipe.unet.time_embedding.cond_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
        drawn.append(Generator(pipe, sampler).draw([ImageRequest("a CEO", BASE, 0)]).pixels)
    assert (drawn[0] != drawn[1]).any()


def test_what_is_missing_or_pickled_is_named_with_the_way_out(model: Path) -> None:
    shutil.rmtree(model / "vae")
    for part in ("unet", "text_encoder"):
        (file,) = (model / part).glob("*.safetensors")
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelError) as caught:
        check_kind(model)
    text = str(caught.value)
    assert "names a vae, and there is no folder of that name" in text
    assert "text_encoder, unet hold pickled weights alone" in text
    assert "from_pretrained('OLD', use_safetensors=False).save_pretrained('NEW', safe_serialization=True)" in text


def test_a_safety_checker_that_is_not_loaded_may_be_as_it_likes(model: Path) -> None:
    settle(model, "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "pytorch_model.bin").write_bytes(b"pickled")
    check_kind(model, safety_checker=False)
    with pytest.raises(ModelError, match="safety_checker holds pickled weights alone"):
        check_kind(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sd.ckpt", "a single file, and a pickled one.*a machine that may be lost"),
        ("sd.safetensors", "is a single file"),
    ],
)
def test_single_files_are_told_how_to_become_folders(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    for reference in (str(tmp_path / name), f"s3://bucket/{name}"):
        with pytest.raises(ModelError, match=words + r".*from_single_file\('FILE'\)"):
            # A pipeline's .safetensors file is taken, see test_single_file.py.
            fetch_model(reference, StorageSettings(), tmp_path / "cache", pipeline=name.endswith(".ckpt"))
