"""Banks of training examples: pictures and captions drawn ahead of a training stage and sampled from in it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from infra.demo.captions import NAMED_SHARE, Shares, draw_scene
from infra.demo.world import draw

__all__ = ["Advance", "Bank", "draw_bank", "tokenize"]

Advance = Callable[[float], None]
"""Called by a training stage after every step, with the step's loss."""


@dataclass(frozen=True)
class Bank:
    """Drawn examples: distinct captions, each picture's caption index, and the pictures, uint8 `[n, 3, 32, 32]`."""

    captions: list[str]
    caption_index: Tensor
    pictures: Tensor

    def normalised(self, rows: Tensor) -> Tensor:
        """Give the rows' pictures as float32 in [-1, 1]."""
        return self.pictures[rows].float() / 127.5 - 1


def draw_bank(
    size: int,
    seed: int,
    shares: Shares,
    named_share: float = NAMED_SHARE,
    guessed_share: float = 0.0,
    unsaid_style_share: float = 0.0,
) -> Bank:
    """Draw a bank of `size` examples; see `infra.demo.captions.draw_scene` for the shares."""
    rng = np.random.default_rng(seed)
    index: dict[str, int] = {}
    rows, pictures = np.empty(size, np.int64), np.empty((size, 3, 32, 32), np.uint8)
    for row in range(size):
        scene = draw_scene(rng, shares, named_share, guessed_share, unsaid_style_share)
        rows[row] = index.setdefault(scene.caption, len(index))
        pictures[row] = draw(scene, rng).transpose(2, 0, 1)
    return Bank(list(index), torch.from_numpy(rows), torch.from_numpy(pictures))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], full_length: bool) -> Tensor:
    """Make token ids, `[n, tokens]`, padded to the context length, or only to the longest caption."""
    padding = "max_length" if full_length else "longest"
    ids: Tensor = tokenizer(captions, padding=padding, truncation=True, return_tensors="pt").input_ids
    return ids
