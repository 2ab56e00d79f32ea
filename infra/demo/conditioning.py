"""What the UNet reads of captions: one encoder's last states, or SDXL's two encoders with their pooled embedding."""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from infra.demo.examples import tokenize

__all__ = ["Conditioning", "condition", "condition_xl"]

_ROWS = 512


@dataclass(frozen=True)
class Conditioning:
    """Token states [n, positions, d] and, of SDXL's layout, pooled embeddings [n, p]; the last row is no prompt's."""

    tokens: Tensor
    pooled: Tensor | None = None


@torch.no_grad()
def condition(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Conditioning:
    """The captions' last states; no prompt is the empty one."""
    ids = tokenize(tokenizer, [*captions, ""], full_length=True)
    return Conditioning(torch.cat([encoder(part).last_hidden_state for part in ids.split(_ROWS)]))


@torch.no_grad()
def condition_xl(
    encoder: CLIPTextModel, second: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, captions: list[str]
) -> Conditioning:
    """Both encoders' states of the last layer but one, side by side, and the second one's pooled embedding.

    No prompt is zeros, as SDXL's own pipeline has it.
    """
    ids = tokenize(tokenizer, captions, full_length=True)
    tokens, pooled = [], []
    for part in ids.split(_ROWS):
        both = [each(part, output_hidden_states=True) for each in (encoder, second)]
        tokens.append(torch.cat([output.hidden_states[-2] for output in both], dim=2))
        pooled.append(both[1].text_embeds)
    nothing = (torch.zeros_like(tokens[0][:1]), torch.zeros_like(pooled[0][:1]))
    return Conditioning(torch.cat([*tokens, nothing[0]]), torch.cat([*pooled, nothing[1]]))
