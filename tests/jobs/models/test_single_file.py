"""A single .safetensors file as the model: the same model as its folder, and nothing in it is made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.demo import PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.config import SamplerConfig
from jobs.errors import ConfigError
from jobs.export import base_file_for, default_forms
from jobs.exports.forms.single_file import write_single_file
from jobs.models.digests import content_digest
from jobs.models.pipelines import load_pipeline
from jobs.models.staging import fetch_model
from jobs.runs.identity import identity_of, without_paths
from tests.jobs.exports.original_layout import single_file
from tests.jobs.helpers import RECIPE, config, manifest
from time_ops import EditOperator, ModelError

SETTINGS = StorageSettings()
Tensors = dict[str, torch.Tensor]
WHOLE = single_file(PIPELINE_PATH)
MIDDLE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
AVERAGE = {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelx": torch.ones(2), "betas": torch.ones(3)}


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[Tensors], Path]:
    def stage_it(tensors: Tensors, layout: str | None = str(PIPELINE_PATH)) -> Path:
        save_file(tensors, tmp_path / "foo.safetensors")
        return fetch_model(
            str(tmp_path / "foo.safetensors"), SETTINGS, tmp_path / "cache", pipeline=True, layout=layout
        )

    return stage_it


def test_it_is_the_very_model_that_its_folder_is(staged: Callable[[Tensors], Path]) -> None:
    folder = staged(
        {**WHOLE, **AVERAGE, "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)}
    )
    assert content_digest(folder) == content_digest(PIPELINE_PATH)
    images = []
    for place in (folder, PIPELINE_PATH):
        pipe = load_pipeline(place, SamplerConfig(steps=2, height=32, width=32), torch.device("cpu"), torch.float32)
        images.append(
            pipe(
                "a photo of a CEO",
                num_inference_steps=2,
                height=32,
                width=32,
                generator=torch.manual_seed(0),
                output_type="pt",
            ).images
        )
    assert torch.equal(*images)


def test_it_is_what_diffusers_makes_of_it(staged: Callable[[Tensors], Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    folder = staged(WHOLE)
    kind = StableDiffusionPipeline
    opened = kind.from_single_file(str(tmp_path / "foo.safetensors"), config=str(PIPELINE_PATH), local_files_only=True)
    ours = kind.from_pretrained(folder, local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        theirs, found = getattr(opened, part).state_dict(), getattr(ours, part).state_dict()
        assert list(theirs) == list(found)
        assert all(torch.equal(theirs[name], found[name]) for name in theirs), part


def test_half_precision_stays_half(staged: Callable[[Tensors], Path]) -> None:
    folder = staged({name: tensor.half() for name, tensor in WHOLE.items()})
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_without_a_layout_it_says_what_to_set(staged: Callable[[Tensors], Path]) -> None:
    with pytest.raises(ConfigError, match=r"foo\.safetensors is a single file.*model_layout"):
        staged(WHOLE, None)  # type: ignore[call-arg]


def without(name: str) -> Tensors:
    assert name in WHOLE
    return {key: tensor for key, tensor in WHOLE.items() if key != name}


NAN = {MIDDLE: torch.full_like(WHOLE[MIDDLE], float("nan"))}
BROKEN = {
    "a tensor of the UNet": (without(MIDDLE), r"mid_block\.attentions\.0.*attn2\.to_k\.weight"),
    "a tensor with another name there": (
        without("model.diffusion_model.time_embed.0.weight"),
        r"time_embedding\.linear_1\.weight",
    ),
    "a tensor of the VAE": (without("first_stage_model.decoder.conv_in.bias"), r"decoder\.conv_in\.bias"),
    "a tensor of the text encoder": (
        without("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        r"final_layer_norm\.bias",
    ),
    "the text encoder": ({k: v for k, v in WHOLE.items() if not k.startswith("cond_")}, "has no text_encoder"),
    "the VAE": ({k: v for k, v in WHOLE.items() if not k.startswith("first_")}, "has no vae"),
    "another shape": ({**WHOLE, MIDDLE: WHOLE[MIDDLE][:, :3].clone()}, r"shape.*attn2\.to_k\.weight"),
    "one too many": ({**WHOLE, "model.diffusion_model.extra.weight": torch.ones(2)}, r"diffusion_model\.extra\.weight"),
    "one too many of the VAE": ({**WHOLE, "first_stage_model.extra": torch.ones(2)}, r"first_stage_model\.extra"),
    "something else": ({**WHOLE, "lora_te.alpha": torch.ones(2)}, r"lora_te\.alpha"),
    "a number that is none": ({**WHOLE, **NAN}, r"attn2\.to_k\.weight is not finite"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_not_the_layouts_model_is_refused(staged: Callable[[Tensors], Path], what: str, tmp_path: Path) -> None:
    tensors, said = BROKEN[what]
    with pytest.raises(ModelError, match=rf"foo\.safetensors is not the model(.|\n)*{said}"):
        staged(tensors)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_layout_of_another_model_is_refused(staged: Callable[[Tensors], Path], tmp_path: Path) -> None:
    layout = Path(shutil.copytree(PIPELINE_PATH, tmp_path / "layout"))
    config = json.loads((layout / "unet" / "config.json").read_text())
    config["block_out_channels"] = [2 * n for n in config["block_out_channels"]]
    (layout / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="of another shape"):
        staged(WHOLE, str(layout))  # type: ignore[call-arg]
    with pytest.raises(ModelError, match=r"nowhere.*neither a folder"):
        staged(WHOLE, str(tmp_path / "nowhere"))  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["foo.ckpt", "foo.pt", "foo.bin"])
def test_a_pickled_one_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match=r"pickled one: opening it can run code(.|\n)*from_single_file"):
        fetch_model(str(tmp_path / name), SETTINGS, tmp_path / "cache", pipeline=True, layout=str(PIPELINE_PATH))


def test_a_file_that_is_not_there_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    def stage_it(name: str) -> Path:
        return fetch_model(str(tmp_path / name), SETTINGS, tmp_path / "cache", pipeline=True, layout=str(PIPELINE_PATH))

    with pytest.raises(ModelError, match=r"there is no file .*gone\.safetensors"):
        stage_it("gone.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 99)
    with pytest.raises(ModelError, match=r"bad\.safetensors is not a whole safetensors file"):
        stage_it("bad.safetensors")


def test_an_edit_goes_back_into_the_file_and_is_read_again(staged: Callable[[Tensors], Path], tmp_path: Path) -> None:
    folder = staged(WHOLE)
    d = WHOLE[MIDDLE].shape[1]
    operator = EditOperator(torch.eye(d, dtype=torch.float64) * 1.25)
    edited = tmp_path / "edited.safetensors"
    written = write_single_file(tmp_path / "foo.safetensors", operator, edited, {}, unet_folder=folder / "unet")
    again = fetch_model(str(edited), SETTINGS, tmp_path / "cache", pipeline=True, layout=str(folder))
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    before, after = (load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (folder, again))
    assert torch.equal(after[name], operator.edited(before[name]))
    assert sum(not torch.equal(before[key], after[key]) for key in before) == written.tensors > 0


def test_a_run_of_a_file_is_exported_as_one() -> None:
    file = config(model="s3://bucket/foo.safetensors", model_layout="s3://bucket/sd14")
    assert default_forms(file) == ("single-file",)
    assert base_file_for(file, None) == "s3://bucket/foo.safetensors"
    assert base_file_for(file, "other.safetensors") == "other.safetensors"
    assert default_forms(config()) == ("diffusers",)
    assert base_file_for(config(), None) is None


def test_where_the_layout_lies_decides_nothing_and_is_not_told() -> None:
    one, other = (config(model="/a/foo.safetensors", model_layout=place) for place in ("/home/me/sd14", "owner/sd14"))
    assert identity_of(one, manifest("nurse"), RECIPE) == identity_of(other, manifest("nurse"), RECIPE)
    told = without_paths(one.model_dump(mode="json"))
    assert (told["model"], told["model_layout"]) == ("foo.safetensors", "sd14")
    assert without_paths(other.model_dump(mode="json"))["model_layout"] == "owner/sd14"


def test_one_in_a_store_is_fetched_and_made_once(s3, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store = s3.store()
    save_file(WHOLE, tmp_path / "foo.safetensors")
    store.upload(tmp_path / "foo.safetensors", "models/foo.safetensors")
    store.upload_folder(PIPELINE_PATH, "layout")
    asked = {"pipeline": True, "layout": store.url("layout")}
    folder = fetch_model(store.url("models/foo.safetensors"), s3.settings, tmp_path / "cache", **asked)
    assert content_digest(folder) == content_digest(PIPELINE_PATH)
    # Nothing of the layout's weights is fetched for it, and no copy of the file is left.
    assert sum(1 for _ in (tmp_path / "cache").rglob("*.safetensors")) == 3
    made = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat()
    again = fetch_model(store.url("models/foo.safetensors"), s3.settings, tmp_path / "cache", **asked)
    assert again == folder
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == made.st_mtime_ns


def test_a_layout_of_sdxl_is_refused_by_its_name(staged: Callable[..., Path], tmp_path: Path) -> None:
    layout = Path(shutil.copytree(PIPELINE_PATH, tmp_path / "xl"))
    index = json.loads((layout / "model_index.json").read_text())
    (layout / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ModelError, match=r"single files are read of SD 1\.x and 2\.x alone"):
        staged(WHOLE, str(layout))
