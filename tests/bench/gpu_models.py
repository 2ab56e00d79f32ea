"""Models of Stable Diffusion 1.5's layout and of a CLIP classifier's, with random weights: nothing is downloaded."""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
)

from infra.demo import PIPELINE_PATH

__all__ = ["write_classifier", "write_pipeline"]


def _tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(PIPELINE_PATH / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = 77
    return tokenizer


def _text(tokenizer: Any, width: int, depth: int, heads: int, projection: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "projection_dim": projection,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_pipeline(folder: Path, *, tiny: bool) -> None:
    """A pipeline of Stable Diffusion 1.5's layout, or a small one of the same blocks."""
    torch.manual_seed(0)
    width, heads, depth = (64, 2, 2) if tiny else (768, 12, 12)
    channels, groups = ((32, 64, 64, 64), 8) if tiny else ((320, 640, 1280, 1280), 32)
    vae_channels = (16, 32, 32, 32) if tiny else (128, 256, 512, 512)
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(**_text(tokenizer, width, depth, heads, width)))
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=channels,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=groups,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=vae_channels,
        norm_num_groups=groups,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe: Any = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)


def write_classifier(folder: Path, *, tiny: bool) -> None:
    """A CLIP ViT-B/32 that reads 224 pixels, or a small one that reads 32."""
    torch.manual_seed(1)
    tokenizer = _tokenizer()
    width, depth, heads, side, patch = (64, 2, 2, 32, 8) if tiny else (768, 12, 12, 224, 32)
    text_width, text_heads = (64, 2) if tiny else (512, 8)
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
        "projection_dim": text_width,
    }
    text = _text(tokenizer, text_width, depth, text_heads, text_width)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=text_width)).save_pretrained(folder)
    size = {"height": side, "width": side}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
