"""Contrastive training of a small `CLIPModel`: once for the pipeline's text encoder, once more for the classifier."""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

import math

import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from infra.demo.examples import Advance, Bank, tokenize
from infra.demo.tokenizer import MAX_TOKENS
from infra.demo.world import SIZE_PX

__all__ = ["HIDDEN", "train_clip"]

HIDDEN = 128
_BATCH = 256
_MAX_LOGIT_SCALE = 30.0
"""CLIP allows 100; at this size a sharper scale only makes the softmax between two prompts overconfident."""


def _config(tokenizer: CLIPTokenizer, text_layers: int, vision_layers: int, text_width: int) -> CLIPConfig:
    shared = {"hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_attention_heads": 4, "projection_dim": 64}
    text = {
        **shared,
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": text_layers,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": vision_layers, "image_size": SIZE_PX, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)


def train_clip(
    bank: Bank,
    tokenizer: CLIPTokenizer,
    seed: int,
    steps: int,
    advance: Advance,
    text_layers: int = 3,
    vision_layers: int = 3,
    text_width: int = HIDDEN,
) -> CLIPModel:
    """Train a CLIP model on a bank's pictures and captions.

    Pictures under the same caption are each other's positives: with some thousand distinct captions a batch holds many.
    """
    torch.manual_seed(seed)
    model: CLIPModel = CLIPModel(_config(tokenizer, text_layers, vision_layers, text_width)).train()
    tokens = tokenize(tokenizer, bank.captions, full_length=False)
    lengths = (tokens != tokenizer.pad_token_id).sum(dim=1) + 1
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=steps + 1, pct_start=0.1)
    batch = min(_BATCH, len(bank.caption_index))
    for _ in range(steps):
        rows = torch.randint(len(bank.caption_index), (batch,))
        captions = bank.caption_index[rows]
        # Padding comes after the end marker that is pooled, and attention is causal: cutting it changes nothing.
        ids = tokens[captions, : int(lengths[captions].max())]
        output = model(input_ids=ids, pixel_values=bank.normalised(rows))
        same = (captions[:, None] == captions[None, :]).float()
        target = same / same.sum(dim=1, keepdim=True)
        loss = (
            functional.cross_entropy(output.logits_per_image, target)
            + functional.cross_entropy(output.logits_per_text, target)
        ) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
        advance(loss.item())
    model.eval()
    return model
