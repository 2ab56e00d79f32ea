"""Small random SD3 and FLUX pipelines of the real classes, and a T5 whose tokenizer is SentencePiece's kind."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.time_ops.conftest import make_encoder, make_tokenizer

T5_WIDTH = 64
# SentencePiece writes "a" as two pieces and "an" as one, and keeps upper case.
PIECES = ["an", "CEO", "ceo", "female", "male", "old", "photo", "picture", "image", "of", "engineer", "A", "An"]


def make_t5_tokenizer(positions: int = 512) -> Any:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    vocabulary += [(f"▁{piece}", -1.0 - i / 100) for i, piece in enumerate(PIECES)]
    vocabulary += [(letter, -5.0) for letter in "bcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=positions)


def make_t5(tokenizer: Any, d: int = T5_WIDTH) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=d,
        d_kv=8,
        d_ff=2 * d,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    encoder: T5EncoderModel = T5EncoderModel(config).eval()
    with torch.no_grad():
        encoder.shared.weight.normal_(std=1.0)
    return encoder


def _vae(channels: int, **extra: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        **extra,
    ).eval()


def make_sd3_pipe(*, t5: bool = True) -> Any:
    torch.manual_seed(0)
    first, second, third = make_tokenizer(), make_tokenizer(pad="!"), make_t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=16 + 32,
        in_channels=4,
        out_channels=4,
    ).eval()
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4),
        text_encoder=make_encoder(first, 16, projected=True),
        tokenizer=first,
        text_encoder_2=make_encoder(second, 32, projected=True),
        tokenizer_2=second,
        text_encoder_3=make_t5(third) if t5 else None,
        tokenizer_3=third if t5 else None,
    )
    return _strong(pipe)


def make_flux_pipe(*, guidance: bool = True) -> Any:
    """A small FLUX; `guidance`: told it as a number, as dev is and schnell is not."""
    torch.manual_seed(0)
    first, second = make_tokenizer(), make_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance,
    ).eval()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4),
        text_encoder=make_encoder(first, 32),
        tokenizer=first,
        text_encoder_2=make_t5(second),
        tokenizer_2=second,
        transformer=transformer,
    )
    return _strong(pipe)


def _strong(pipe: Any) -> Any:
    """Let the text be seen: at their initialisation these models hardly read it."""
    with torch.no_grad():
        for name in (
            "context_embedder",
            "time_text_embed.text_embedder.linear_1",
            "time_text_embed.text_embedder.linear_2",
        ):
            pipe.transformer.get_submodule(name).weight.normal_(std=0.3)
        for block in pipe.transformer.transformer_blocks:
            block.norm1.linear.weight.normal_(std=0.2)
    pipe.set_progress_bar_config(disable=True)
    return pipe
