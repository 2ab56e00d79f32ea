"""Small pipelines of the real architectures, randomly initialised, and a CLIP-like tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

POSITIONS = 24
# Words that are one token; all others fall into letters and the pieces that these words' merges make.
WORDS = [
    "a",
    "an",
    "and",
    "at",
    "black",
    "cat",
    "ceo",
    "engineer",
    "female",
    "image",
    "in",
    "male",
    "nurse",
    "of",
    "old",
    "photo",
]
WORDS += ["picture", "the", "work", "workplace"]
LETTERS = "abcdefghijklmnopqrstuvwxyz!"


def make_tokenizer(positions: int = POSITIONS, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind: lower case, `</w>` at word ends, start and end marker."""
    vocabulary = {piece: i for i, piece in enumerate([*LETTERS, *(letter + "</w>" for letter in LETTERS)])}
    merges = []
    # Long words first: a merge of "at" made before those of "cat" would split "cat".
    for word in sorted(WORDS, key=len, reverse=True):
        built, *rest = [*word[:-1], word[-1] + "</w>"]
        for piece in rest:
            if built + piece not in vocabulary:
                merges.append((built, piece))
                vocabulary[built + piece] = len(vocabulary)
            built += piece
    for marker in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[marker] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=positions)


def make_encoder(tokenizer: Any, d: int, *, projected: bool = False, layers: int = 2) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=d,
        intermediate_size=2 * d,
        projection_dim=d,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=int(tokenizer.model_max_length),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    # CLIP's initialisation is so small that all tokens would read alike.
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3 if "embedding" in name else 0.15)
    return encoder


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(steps_offset=1, clip_sample=False)


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def make_unet(d: int, **changes: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": d,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def make_pipe(d: int = 32, *, pad: str = "<|endoftext|>", **changes: Any) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(pad=pad)
    pipe = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_encoder(tokenizer, d),
        tokenizer=tokenizer,
        unet=make_unet(d, **changes),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_xl_pipe() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    first, second = make_tokenizer(), make_tokenizer(pad="!")
    unet = make_unet(
        16 + 32,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32 + 6 * 4,
    )
    pipe = StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=make_encoder(first, 16),
        text_encoder_2=make_encoder(second, 32, projected=True),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=make_scheduler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(name="make_pipe")
def _make_pipe() -> Callable[..., StableDiffusionPipeline]:
    return make_pipe


@pytest.fixture(name="make_unet")
def _make_unet() -> Callable[..., UNet2DConditionModel]:
    return make_unet


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    return make_pipe()


@pytest.fixture
def xl_pipe() -> StableDiffusionXLPipeline:
    return make_xl_pipe()


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer()
