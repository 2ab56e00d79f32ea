"""Stable Diffusion 1.4's text side at its real size, with random weights and CLIP's own byte-pair vocabulary.

The vocabulary's merges are those of the file that the open-clip-torch wheel carries. `infra/setup.sh test` fetches that
wheel and does not install it: it would bring torchvision, and with that other image processors than users have.
"""

from __future__ import annotations

import gzip
import sys
import zipfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from manifests import read_manifest
from manifests.build import shipped_manifest_path
from time_ops import PromptEdit
from time_ops.surfaces import text_projections

__all__ = ["POSITIONS", "SHAPES", "UNET", "VOCABULARY", "clip_tokenizer", "profession_edits", "text_pipeline", "unet"]

VOCABULARY = 49_408
"""Entries: 256 bytes, 256 bytes at a word's end, 48,894 merges, two markers."""

POSITIONS = 77

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}

SHAPES = [(320, 768)] * 10 + [(640, 768)] * 10 + [(1280, 768)] * 12
"""Of the 32 projections, sorted."""


def clip_tokenizer() -> CLIPTokenizer:
    """77 positions, padded with the end marker.

    Raises:
        FileNotFoundError: The wheel is not there.

    """
    wheels = sorted((Path(sys.prefix) / "wheels").glob("open_clip_torch-*.whl"))
    if not wheels:
        raise FileNotFoundError(f"{sys.prefix}/wheels has no open_clip_torch wheel: run infra/setup.sh test")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        text = gzip.decompress(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    letters = list(bytes_to_unicode().values())
    # The first line is a header, and CLIP takes no more merges than fill its vocabulary.
    merges = [tuple(line.split()) for line in text.split("\n")[1 : VOCABULARY - 2 * len(letters) - 2 + 1]]
    markers = ["<|startoftext|>", "<|endoftext|>"]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), *markers]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=markers[1], model_max_length=POSITIONS)


def text_pipeline(layers: int = 12) -> StableDiffusionPipeline:
    """Tokenizer and text encoder of ViT-L/14's width, 12 layers in the original; neither UNet nor VAE."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=12,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config).eval()
    # CLIP's initialisation is so small that all tokens would read alike.
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3 if "embedding" in name else 0.05)
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unet() -> UNet2DConditionModel:
    """In float32; random are the 32 key and value projections, all else is memory that nobody has touched."""
    with torch.device("meta"):
        model = UNet2DConditionModel(**UNET)
    model.to_empty(device="cpu")
    g = torch.Generator().manual_seed(1)
    for projection in text_projections(model, d=768):
        weight = torch.randn(projection.layer.weight.shape, generator=g) * 0.04
        projection.layer.weight = torch.nn.Parameter(weight)
    return model


def profession_edits() -> list[PromptEdit]:
    """The shipped manifest's 35 professions, by turns with their first and their second destination alone."""
    professions = read_manifest(shipped_manifest_path()).professions
    return [PromptEdit(p.source, {p.destinations[i % 2].prompt: 1.0}) for i, p in enumerate(professions)]
