"""How PixArt and Sana read a prompt: in lower case, behind an instruction, and with its padding masked.

Their pipelines' calls decide this by defaults of their own, not `encode_prompt`: how many positions there are, whether
captions are cleaned, and for Sana the instruction. So the defaults are read from the call.

Sana's encoder reads instruction and prompt as one text. The model gets its first state, the start marker's, and as many
of the last as make up its positions: from the instruction's last token on, in whose place the prompt mostly begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from time_ops.errors import ModelError
from time_ops.surfaces import CAPTION_MODELS, denoiser_of

__all__ = ["CaptionCall", "caption_call", "caption_embeddings", "reads_captions"]


@dataclass(frozen=True)
class CaptionCall:
    """What the defaults of a pipeline's call say of its captions.

    Attributes:
        positions: how many token states the model gets.
        clean: whether captions are cleaned, of addresses, tags and the like. They are in lower case anyhow.
        instruction: lines in front of every prompt; none but for Sana. Its negative prompts have none either.
    """

    positions: int
    clean: bool
    instruction: tuple[str, ...]

    @property
    def front(self) -> str:
        """The instruction as the encoder reads it."""
        return "\n".join(self.instruction)


def reads_captions(pipe: Any) -> bool:
    """Whether a pipeline's model is PixArt's or Sana's."""
    return type(denoiser_of(pipe)).__name__ in CAPTION_MODELS


def caption_call(pipe: Any) -> CaptionCall:
    """Read the defaults of a pipeline's call.

    Args:
        pipe: a pipeline of PixArt's or Sana's model.

    Raises:
        ModelError: its call does not say how many positions there are, or it prepares no captions.
    """
    name = type(pipe).__name__
    defaults = {key: p.default for key, p in inspect.signature(type(pipe).__call__).parameters.items()}
    positions = defaults.get("max_sequence_length")
    if not isinstance(positions, int):
        raise ModelError(f"{name} can't be edited: its call has no max_sequence_length, so its positions are unknown")
    if not callable(getattr(pipe, "_text_preprocessing", None)):
        raise ModelError(f"{name} can't be edited: it has no _text_preprocessing, so its captions are unknown")
    instruction = defaults.get("complex_human_instruction") or ()
    return CaptionCall(positions, bool(defaults.get("clean_caption")) and _can_clean(), tuple(instruction))


def caption_embeddings(pipe: Any, prompts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode as the pipeline's call does: token states [P, n, d], and which of them the model attends to, [P, n] bool.

    Args:
        pipe: the pipeline, its encoder ready to run.
        prompts: the prompts.
        device: where to encode.

    Raises:
        ModelError: as for `caption_call`.
    """
    call = caption_call(pipe)
    asked: dict[str, Any] = {
        "prompt": list(prompts),
        "device": device,
        "num_images_per_prompt": 1,
        "clean_caption": call.clean,
        "max_sequence_length": call.positions,
    }
    if call.instruction:
        asked["complex_human_instruction"] = list(call.instruction)
    # Distilled to be told its guidance, Sana-Sprint has no negative prompts to leave out.
    if "do_classifier_free_guidance" in inspect.signature(pipe.encode_prompt).parameters:
        asked["do_classifier_free_guidance"] = False
    tokens, mask, *_ = pipe.encode_prompt(**asked)
    return tokens, mask.bool()


def _can_clean() -> bool:
    """Whether there is what cleans captions; without it the pipelines warn at every call and clean none."""
    utils: Any = import_module("diffusers.utils")
    return bool(utils.is_bs4_available() and utils.is_ftfy_available())
