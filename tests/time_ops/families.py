"""Small random transformers' pipelines of the real classes, and tokenizers of SentencePiece's and of Gemma's kind."""

from __future__ import annotations

import re
import string
from inspect import signature
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.processors import TemplateProcessing
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from tests.time_ops.conftest import make_encoder, make_scheduler, make_tokenizer, make_vae

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


def make_pixart_pipe(*, sigma: bool = False) -> Any:
    """A small PixArt; Alpha is told sizes beside the text, as its 1024 pixel model is."""
    torch.manual_seed(0)
    tokenizer = make_t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=64 if sigma else 128,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=T5_WIDTH,
        in_channels=4,
        out_channels=8,
    ).eval()
    pipe = (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizer,
        text_encoder=make_t5(tokenizer),
        vae=make_vae(),
        transformer=transformer,
        scheduler=make_scheduler(),
    )
    return _strong_captions(pipe)


def make_gemma_tokenizer() -> Any:
    """Byte pairs that join a word to the space before it, be that a prompt's own or the instruction's last."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    # Words of the instruction too: letter by letter it would be over a thousand tokens.
    instruction = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    words = {*PIECES, "a", *re.findall("[a-z]+", " ".join(instruction))}
    for letter in f"▁{string.ascii_letters}{string.punctuation}\n":
        vocabulary.setdefault(letter, len(vocabulary))
    merges = []
    for piece in sorted((word for word in words if word.islower()), key=lambda word: (-len(word), word)):
        built = "▁"
        for letter in piece:
            if built + letter not in vocabulary:
                merges.append((built, letter))
                vocabulary[built + letter] = len(vocabulary)
            built += letter
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def make_gemma(tokenizer: Any, d: int, **changes: Any) -> Gemma2Model:
    config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": d,
        "intermediate_size": 2 * d,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": d // 4,
        "query_pre_attn_scalar": d // 4,
    }
    encoder: Gemma2Model = Gemma2Model(Gemma2Config(**{**config, **changes})).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=1.0 if "embed" in name else 0.15)
    return encoder


def make_sana_pipe() -> Any:
    torch.manual_seed(0)
    tokenizer = make_gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        sample_size=32,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=48,
        in_channels=4,
        out_channels=4,
    ).eval()
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ).eval()
    pipe = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=make_gemma(tokenizer, 48),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return _strong_captions(pipe)


def _strong_captions(pipe: Any) -> Any:
    """Let the text be seen in PixArt and Sana, as `_strong` does in the others."""
    with torch.no_grad():
        for name in ("linear_1", "linear_2"):
            pipe.transformer.caption_projection.get_submodule(name).weight.normal_(std=0.2)
        for block in pipe.transformer.transformer_blocks:
            for layer in (block.attn2.to_k, block.attn2.to_v, block.attn2.to_out[0]):
                layer.weight.normal_(std=0.3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
