"""Every training stage for a few steps: one command leaves folders that load."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

from infra.demo import HELD_OUT_WORDINGS, PROFESSIONS, WORDINGS
from infra.demo.captions import all_captions, fill, source
from infra.demo.conditioning import condition_xl
from infra.demo.contrastive import HIDDEN
from infra.demo.measure import Effort, measure
from infra.demo.tokenizer import MAX_TOKENS, train_tokenizer
from infra.demo.train import SECOND_WIDTH, Budget, train

FEW = Budget(
    tokenizer_captions=200, bank=256, encoder_steps=3, autoencoder_steps=3, denoiser_steps=3, classifier_steps=3
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "model"
    train(out, seed=5, budget=FEW)
    return out


def weights(folder, part):
    return (folder / "pipeline" / part).read_bytes()


UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def test_one_command_trains_everything_to_loadable_folders(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(
        trained / "pipeline", safety_checker=None, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(["a CEO", "a nurse"], num_inference_steps=2, guidance_scale=3.0, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    model = CLIPModel.from_pretrained(trained / "classifier", local_files_only=True)
    processor = CLIPProcessor.from_pretrained(trained / "classifier", local_files_only=True)
    pictures = list((images * 255).astype(np.uint8))
    inputs = processor(text=["a photo of a CEO"], images=pictures, return_tensors="pt", padding=True)
    assert model(**inputs).logits_per_image.shape == (2, 1)
    pixels = CLIPImageProcessor.from_pretrained(trained / "classifier")(images=pictures, return_tensors="pt")
    # The processor must give the classifier what it was trained on: pixels in [-1, 1], untouched otherwise.
    expected = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(pixels.pixel_values, expected, atol=1e-5)
    record = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    assert set(record["stages"]) == {"text encoder", "autoencoder", "UNet", "classifier"}
    assert len(record["shares"]) == len(record["old_shares"]) == len(PROFESSIONS)


def test_the_seed_selects_everything_and_the_unet_can_be_retrained_alone(trained, tmp_path):
    train(tmp_path / "again", seed=5, budget=FEW)
    assert weights(tmp_path / "again", UNET) == weights(trained, UNET)
    train(tmp_path / "other", seed=6, share_seed=1, unet_only_from=trained, budget=FEW)
    assert weights(tmp_path / "other", VAE) == weights(trained, VAE)
    assert weights(tmp_path / "other", UNET) != weights(trained, UNET)
    assert not (tmp_path / "other" / "classifier").exists()


def test_sdxls_layout_is_trained_on_what_its_own_pipeline_reads(trained, tmp_path):
    train(tmp_path / "xl", seed=7, unet_only_from=trained, budget=FEW, xl=True)
    pipe = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "xl" / "pipeline", add_watermarker=False, use_safetensors=True, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    captions = ["a CEO", "a photo of a nurse"]
    read = condition_xl(pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer, captions)
    tokens, negative, pooled, negative_pooled = pipe.encode_prompt(captions, do_classifier_free_guidance=True)
    assert torch.equal(read.tokens, torch.cat([tokens, negative[:1]]))
    assert torch.equal(read.pooled, torch.cat([pooled, negative_pooled[:1]]))
    assert pipe.unet.config.cross_attention_dim == tokens.shape[2] == HIDDEN + SECOND_WIDTH
    images = pipe(captions, num_inference_steps=2, guidance_scale=3.0, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    # Its own parts are reused as the other layout's are.
    train(tmp_path / "again", seed=8, unet_only_from=tmp_path / "xl", budget=FEW, xl=True)
    second = "text_encoder_2/model.safetensors"
    assert weights(tmp_path / "again", second) == weights(tmp_path / "xl", second)
    assert weights(tmp_path / "again", UNET) != weights(tmp_path / "xl", UNET)
    assert "second text encoder" not in json.loads((tmp_path / "again" / "training.json").read_text())["stages"]


def test_measuring_writes_the_report_and_the_grid(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("infra.demo.measure.STEPS", 2)
    measure(trained, tmp_path, effort=Effort(base=1, wording=1, explicit=1, control=1), templates=WORDINGS[:1])
    report = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    assert report["sampler"]["steps"] == 2
    assert set(report["wordings"]) == {WORDINGS[0]}
    assert set(report["explicit"]["both"]) == {"young female", "old female", "young male", "old male"}
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_the_tokenizer_is_clips_format_and_fits_every_wording():
    tokenizer = train_tokenizer(all_captions())
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    ids = tokenizer("a CEO", padding="max_length").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[3:] == [tokenizer.eos_token_id] * (MAX_TOKENS - 3)
    for wording in (*WORDINGS, *HELD_OUT_WORDINGS):
        for p in PROFESSIONS:
            assert len(tokenizer(fill(wording, source(p, "female", "young"))).input_ids) <= MAX_TOKENS
    for p in PROFESSIONS:
        assert len(tokenizer.tokenize(p.name)) == len(p.name.split())
    assert tokenizer.eos_token not in tokenizer.tokenize("Zoë's 7 quirky jobs!")
