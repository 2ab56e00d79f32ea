"""A model is what its configuration says, to the last tensor, or it is refused; by what runs, on real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.config import SamplerConfig
from jobs.errors import exit_code_of
from jobs.images.classifier import Classifier
from jobs.models.digests import content_digest
from jobs.models.offline import publish_model
from jobs.models.pipelines import load_pipeline
from jobs.models.weights import check_classifier, check_pipeline
from jobs.worker.worker import Worker
from tests.jobs.helpers import config
from time_ops import ModelError

CPU = torch.device("cpu")
SAMPLER = SamplerConfig(steps=2, height=32, width=32)
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
Spoil = Callable[[Path], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PIPELINE_PATH, tmp_path / "model"))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CLASSIFIER_PATH, tmp_path / "classifier"))


def change(part: str, make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    """Writes a component's tensors anew."""

    def spoil(folder: Path) -> None:
        (file,) = (folder / part).glob("*.safetensors")
        save_file(make(load_file(file)), file, {"format": "pt"})

    return spoil


def drop(part: str, name: str) -> Spoil:
    return change(part, lambda tensors: {n: t for n, t in tensors.items() if n != name})


def replaced(part: str, name: str, value: float) -> Spoil:
    def make(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[-1] = value
        return tensors

    return change(part, make)


def settle(file: str, **keys: Any) -> Spoil:
    """Writes a configuration anew."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | keys))

    return spoil


def cut(part: str, name: str) -> Spoil:
    return change(part, lambda tensors: tensors | {name: tensors[name][:3].clone()})


def few_tokens(folder: Path) -> None:
    name = "embeddings.token_embedding.weight"
    change("text_encoder", lambda tensors: tensors | {name: tensors[name][:900].clone()})(folder)
    settle("text_encoder/config.json", vocab_size=900)(folder)


def renamed(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "weights.safetensors")


BAD: dict[str, tuple[Spoil, list[str]]] = {
    "encoder lacks one": (
        drop("text_encoder", "final_layer_norm.weight"),
        ["text_encoder/model.safetensors lacks", "final_layer_norm.weight"],
    ),
    "encoder promises a layer": (
        settle("text_encoder/config.json", num_hidden_layers=4),
        ["text_encoder/config.json promises: encoder.layers.3.", "and 12 more"],
    ),
    "encoder has a layer over": (
        settle("text_encoder/config.json", num_hidden_layers=2),
        ["no part of text_encoder/config.json is for: encoder.layers.2."],
    ),
    "encoder of another kind": (
        settle("text_encoder/config.json", model_type="bert"),
        ["text_encoder/config.json makes no CLIPTextModel", "bert"],
    ),
    "encoder knows too few tokens": (few_tokens, ["tokenizer/ has tokens up to number 913", "of 900 tokens"]),
    "encoder reads too few tokens": (
        settle("tokenizer/tokenizer_config.json", model_max_length=77),
        ["tokenizer/ pads to 77", "text_encoder/ reads 32", "model_max_length to 32"],
    ),
    "UNet lacks one": (
        drop("unet", "conv_in.bias"),
        ["unet/diffusion_pytorch_model.safetensors lacks", "conv_in.bias"],
    ),
    "UNet has another shape": (cut("unet", "conv_in.bias"), ["another shape", "conv_in.bias [3], promised [32]"]),
    "UNet by no known name": (renamed, ["unet/ has no weights by a name that is loaded"]),
    "VAE lacks one": (
        drop("vae", "decoder.conv_out.weight"),
        ["vae/diffusion_pytorch_model.safetensors lacks", "decoder.conv_out.weight"],
    ),
    "UNet is not finite": (
        replaced("unet", "conv_out.bias", float("inf")),
        ["unet/diffusion_pytorch_model.safetensors: conv_out.bias is not finite"],
    ),
    "encoder is not finite": (
        replaced("text_encoder", "final_layer_norm.bias", float("nan")),
        ["text_encoder/model.safetensors: final_layer_norm.bias is not finite"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_not_the_configurations_model_are_refused(model: Path, name: str) -> None:
    spoil, words = BAD[name]
    spoil(model)
    with pytest.raises(ModelError) as caught:
        check_pipeline(model)
    assert [word for word in words if word not in str(caught.value)] == []
    assert exit_code_of(caught.value) == 3


def test_all_faults_are_told_at_once(model: Path) -> None:
    for name in ("encoder lacks one", "UNet lacks one", "VAE lacks one", "UNet is not finite"):
        BAD[name][0](model)
    with pytest.raises(ModelError) as caught:
        check_pipeline(model)
    text = str(caught.value)
    assert text.count("\n  - ") == 4
    assert all(tensor in text for tensor in ("final_layer_norm.weight", "conv_in.bias", "conv_out.bias"))


def test_loading_and_staging_refuse_them_too(model: Path, tmp_path: Path) -> None:
    BAD["encoder promises a layer"][0](model)
    with pytest.raises(ModelError, match=r"encoder\.layers\.3\."):
        load_pipeline(model, SAMPLER, CPU, torch.float32)
    with pytest.raises(ModelError, match=r"encoder\.layers\.3\."):
        publish_model(str(model), str(tmp_path / "kept" / "sd"), pipeline=True)
    assert not (tmp_path / "kept" / "sd").exists()


def test_a_probe_refuses_both_models(model: Path, classifier: Path, tmp_path: Path) -> None:
    BAD["UNet is not finite"][0](model)
    there = config(model=str(model), classifier=str(classifier), output=str(tmp_path / "out"))
    with pytest.raises(ModelError, match=r"conv_out\.bias is not finite"):
        Worker(there, StorageSettings(), "test", 1).probe()
    drop("", "visual_projection.weight")(classifier)
    there = config(model=str(PIPELINE_PATH), classifier=str(classifier), output=str(tmp_path / "out"))
    with pytest.raises(ModelError, match=r"visual_projection\.weight"):
        Worker(there, StorageSettings(), "test", 1).probe()


def test_what_is_finite_as_stored_may_not_be_as_run(model: Path) -> None:
    replaced("unet", "conv_out.bias", 1e6)(model)
    check_pipeline(model)
    with pytest.raises(ModelError, match=r"unet: conv_out\.bias is not finite in float16"):
        load_pipeline(model, SAMPLER, CPU, torch.float16)


def test_tensors_that_do_no_harm_are_let_be(model: Path, classifier: Path) -> None:
    """Position numbers of old files, the other half of CLIP, and names that attention had in old VAEs."""
    old = ("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")

    def in_old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, tensor in tensors.items():
            for new, was in old:
                name = name.replace(f".attentions.0.{new}.", f".attentions.0.{was}.")
            found[name] = tensor
        assert found.keys() != tensors.keys()
        return found

    change("vae", in_old_names)(model)
    extra = {"text_model.embeddings.position_ids": torch.arange(32)[None], "logit_bias": torch.zeros(())}
    other = {n: t for n, t in load_file(CLASSIFIER_PATH / "model.safetensors").items() if n.startswith("vision_model.")}
    change("text_encoder", lambda ts: {f"text_model.{n}": t for n, t in ts.items()} | extra | other)(model)
    change("", lambda tensors: tensors | extra)(classifier)
    found = load_pipeline(model, SAMPLER, CPU, torch.float32)
    wanted = load_pipeline(PIPELINE_PATH, SAMPLER, CPU, torch.float32)
    for part in ("vae", "text_encoder"):
        mine, theirs = (getattr(pipe, part).state_dict() for pipe in (found, wanted))
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    Classifier(classifier, CPU)


def test_the_safety_checker_is_looked_at_where_it_is_loaded(model: Path) -> None:
    """Its class is diffusers' own; files of earlier versions have another name for its vision model."""
    vision = TINY | {"image_size": 32, "patch_size": 8}
    checker: Any = StableDiffusionSafetyChecker(CLIPConfig(text_config=TINY, vision_config=vision, projection_dim=16))
    checker.save_pretrained(model / "safety_checker")
    named = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    }
    settle("model_index.json", **named)(model)
    (model / "feature_extractor").mkdir()
    with pytest.raises(ModelError, match=r"CLIPFeatureExtractor as the feature_extractor, .* is CLIPImageProcessor"):
        check_pipeline(model)
    settle("model_index.json", feature_extractor=[None, None])(model)

    def in_old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n.replace("vision_model.", "vision_model.vision_model.", 1): t for n, t in tensors.items()}

    change("safety_checker", in_old_names)(model)
    check_pipeline(model)
    drop("safety_checker", "concept_embeds")(model)
    with pytest.raises(ModelError, match=r"safety_checker/model\.safetensors lacks .*: concept_embeds$"):
        check_pipeline(model)
    check_pipeline(model, safety_checker=False)


def _vit() -> Any:
    return ViTModel(ViTConfig(**TINY, image_size=32, patch_size=8))


def test_other_kinds_of_models_are_no_dual_encoders(classifier: Path) -> None:
    _vit().save_pretrained(classifier)
    with pytest.raises(ModelError, match=r"a model of type vit .* no dual encoder"):
        Classifier(classifier, CPU)


def _fewer_pixels(folder: Path) -> None:
    found = json.loads((folder / "processor_config.json").read_text())
    found["image_processor"] |= {"crop_size": {"height": 24, "width": 24}, "do_center_crop": True}
    (folder / "processor_config.json").write_text(json.dumps(found))


def _few_tokens(folder: Path) -> None:
    name = "text_model.embeddings.token_embedding.weight"
    change("", lambda tensors: tensors | {name: tensors[name][:900].clone()})(folder)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    settle("config.json", text_config=text | {"vocab_size": 900})(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("", "visual_projection.weight"), r"model\.safetensors lacks .*: visual_projection\.weight"),
        (cut("", "text_projection.weight"), r"text_projection\.weight \[3, 128\], promised \[64, 128\]"),
        (replaced("", "logit_scale", float("nan")), "logit_scale is not finite"),
        (_fewer_pixels, "cuts images to 24 pixels .* reads 32"),
        (_few_tokens, "up to number 913, and the text model embeddings of 900"),
    ],
)
def test_classifiers_that_are_not_whole_are_refused(classifier: Path, spoil: Spoil, words: str) -> None:
    spoil(classifier)
    with pytest.raises(ModelError, match=words):
        check_classifier(classifier)


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained(variant="fp16")` writes of both models."""
    folder = tmp_path_factory.mktemp("halves")
    pipe: Any = StableDiffusionPipeline.from_pretrained(PIPELINE_PATH)
    pipe.to(torch.float16).save_pretrained(folder / "model", variant="fp16")
    shutil.copytree(CLASSIFIER_PATH, folder / "classifier")
    (folder / "classifier" / "model.safetensors").unlink()
    clip: Any = CLIPModel.from_pretrained(CLASSIFIER_PATH)
    clip.half().save_pretrained(folder / "classifier", variant="fp16")
    return folder


def test_the_variant_that_is_there_is_loaded(halves: Path) -> None:
    check_pipeline(halves / "model")
    pipe = load_pipeline(halves / "model", SAMPLER, CPU, torch.float32)
    plain = load_pipeline(PIPELINE_PATH, SAMPLER, CPU, torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        mine, theirs = (getattr(each, part).state_dict() for each in (pipe, plain))
        assert all(torch.equal(mine[name], tensor.half().float()) for name, tensor in theirs.items())
    assert Classifier(halves / "classifier", CPU).texts(["a CEO"]).dtype == "float32"
    assert content_digest(halves / "model") != content_digest(PIPELINE_PATH)


def test_plain_weights_come_first_component_by_component(halves: Path, model: Path) -> None:
    for part in ("unet", "vae"):
        for file in (halves / "model" / part).glob("*.safetensors"):
            shutil.copy(file, model / part)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe = load_pipeline(model, SAMPLER, CPU, torch.float32)
    plain = load_pipeline(PIPELINE_PATH, SAMPLER, CPU, torch.float32)
    assert torch.equal(pipe.vae.decoder.conv_in.weight, plain.vae.decoder.conv_in.weight)
    assert torch.equal(pipe.unet.conv_in.weight, plain.unet.conv_in.weight.half().float())
    (file,) = (model / "unet").glob("*.safetensors")
    shutil.copy(file, model / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(ModelError, match=r"unet/ holds several variants \(bf16, fp16\) and no default: keep one"):
        check_pipeline(model)


def test_a_variant_is_refused_as_plain_weights_are(halves: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(halves / "model", tmp_path / "model"))
    replaced("vae", "decoder.conv_out.bias", float("nan"))(model)
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model\.fp16\.safetensors: decoder\.conv_out\.bias"):
        check_pipeline(model)
