"""How each family of pipelines makes its embeddings: which encoders, in which order, at which length.

    family    token states [n, d]                                         pooled [p]
    SD 1, 2   CLIP                                                        none
    SDXL      two CLIPs side by side, the last layer but one              the second CLIP's
    SD3       two CLIPs side by side, padded with zeros to T5's width;    both CLIPs', side by side
              T5's 256 positions behind them
    FLUX      T5's 512 positions                                          CLIP's
    PixArt    T5's 120 positions (Alpha) or 300 (Sigma)                   none
    Sana      300 positions of Gemma, which reads an instruction first    none

The embeddings are the pipeline's own. What is told here is which positions come from which tokenizers, so that source
and destination can be aligned in each. Neither SD3 nor FLUX masks T5's padding: the model attends to it, so it counts.
PixArt and Sana mask theirs, so there it does not (`time_ops.captions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from time_ops.alignment import Alignment, Positions, align_prompts, token_ids
from time_ops.captions import CaptionCall, caption_call, caption_embeddings, reads_captions
from time_ops.encoders import text_encoders
from time_ops.errors import ModelError
from time_ops.surfaces import denoiser_of

__all__ = [
    "CaptionReader",
    "Reader",
    "Span",
    "TextEmbeddings",
    "aligned_spans",
    "check_masks",
    "pipeline_embeddings",
    "text_readers",
    "token_spans",
]

# Positions of T5, which pads to whatever it is told: the defaults of the pipelines' calls.
_T5_POSITIONS = {"SD3Transformer2DModel": 256, "FluxTransformer2DModel": 512}


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """What a pipeline makes of P prompts.

    Attributes:
        tokens: [P, n, d].
        pooled: [P, p]; None where the model reads none.
        mask: [P, n] bool, which token states the model attends to; None: to all of them.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None
    mask: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Span:
    """Neighbouring token states that come from the same tokens.

    Attributes:
        readers: the tokenizers, whose encoders' states lie side by side; none where the states are zeros.
        positions: how many states.
    """

    readers: Sequence[Reader]
    positions: int


def pipeline_embeddings(pipe: Any, prompts: Sequence[str], device: torch.device) -> TextEmbeddings:
    """Encode by the pipeline's own `encode_prompt`, as its call does by default.

    Args:
        pipe: the pipeline, its encoders ready to run.
        prompts: the prompts.
        device: where to encode.
    """
    if reads_captions(pipe):
        tokens, mask = caption_embeddings(pipe, prompts, device)
        return TextEmbeddings(tokens, None, mask)
    call: dict[str, Any] = {"prompt": list(prompts), "device": device, "num_images_per_prompt": 1}
    family = type(denoiser_of(pipe)).__name__
    if family == "FluxTransformer2DModel":
        tokens, pooled, _ = pipe.encode_prompt(**call)
        return TextEmbeddings(tokens, pooled)
    if family == "SD3Transformer2DModel":
        call |= {"prompt_2": None, "prompt_3": None}
    made = pipe.encode_prompt(**call, do_classifier_free_guidance=False)
    # (states, negative states, pooled, negative pooled) where there is a second encoder, (states, negative) elsewhere.
    return TextEmbeddings(made[0], made[2] if len(made) == 4 else None)


def text_readers(pipe: Any) -> list[Reader]:
    """The pipeline's tokenizers, each with the length at which the pipeline uses it, in the encoders' order.

    Raises:
        ModelError: a tokenizer pads further than its encoder reads, CLIP's tokenizers to different lengths, or the
            pipeline's captions are unknown.
    """
    if reads_captions(pipe):
        call = caption_call(pipe)
        return [CaptionReader(pipe, tokenizer, call) for tokenizer, _ in text_encoders(pipe)]
    t5_positions = _T5_POSITIONS.get(type(denoiser_of(pipe)).__name__)
    readers, lengths = [], set()
    for tokenizer, encoder in text_encoders(pipe):
        is_t5 = _is_t5(encoder)
        n = t5_positions if is_t5 and t5_positions is not None else int(tokenizer.model_max_length)
        limit = getattr(encoder.config, "max_position_embeddings", None)
        if limit is not None and n > int(limit):
            raise ModelError(f"the tokenizer pads to {n} tokens, but the text encoder has {limit} positions")
        readers.append(Reader(pipe, tokenizer, n))
        lengths |= set() if is_t5 else {n}
    if len(lengths) > 1:
        raise ModelError(f"the pipeline's tokenizers pad to different lengths: {sorted(lengths)}")
    return readers


def token_spans(pipe: Any, readers: Sequence[Reader]) -> list[Span]:
    """Where in the token states the tokens of each of the pipeline's readers are."""
    t5 = [r for r, (_, encoder) in zip(readers, text_encoders(pipe), strict=True) if _is_t5(encoder)]
    clip = [r for r in readers if r not in t5]
    family = type(denoiser_of(pipe)).__name__
    if family == "FluxTransformer2DModel":
        return [Span(t5, _T5_POSITIONS[family])]
    spans = [Span(clip or readers, (clip or readers)[0].model_max_length)]
    if family == "SD3Transformer2DModel":
        # Without T5 its states are zeros, which no operator moves.
        spans.append(Span(t5, _T5_POSITIONS[family]))
    return spans


def aligned_spans(spans: Sequence[Span], source: str, destination: str, alignment: Alignment) -> Positions:
    """Destination position of each source position over all spans, [n] int64.

    States of two encoders lie side by side, so their tokenizers must align alike.

    Raises:
        EditError: a prompt is too long or can't be aligned.
        ModelError: the tokenizers of one span align differently.
    """
    parts, start = [], 0
    for span in spans:
        n = span.positions
        positions = [align_prompts(r, source, destination, positions=n, alignment=alignment) for r in span.readers]
        if any((index != positions[0]).any() for index in positions[1:]):
            raise ModelError(f"the pipeline's tokenizers align {source!r} with {destination!r} differently")
        parts.append(start + (positions[0] if positions else np.arange(n, dtype=np.int64)))
        start += n
    return np.concatenate(parts)


def check_masks(spans: Sequence[Span], prompts: Sequence[str], mask: torch.Tensor) -> None:
    """Refuse masks that don't leave exactly a prompt's own tokens, in front: alignment would take others for them.

    Args:
        spans: the pipeline's.
        prompts: as encoded.
        mask: their masks, [P, n] bool.

    Raises:
        ModelError: the pipeline masks otherwise than its tokenizer pads; the first such prompt is named.
    """
    places = torch.arange(mask.shape[1])
    for prompt, kept in zip(prompts, mask, strict=True):
        count = len(token_ids(spans[0].readers[0], prompt))
        if not torch.equal(kept, places < count):
            raise ModelError(
                f"prompt {prompt!r} has {count} tokens, but the pipeline reads positions "
                f"{kept.nonzero().flatten().tolist()[:8]} and so on: pad to the right, and mask the padding alone"
            )


class Reader:
    """A tokenizer that sees prompts as the pipeline does: with textual inversion's placeholders spelled out.

    It remembers what `token_ids` and the alignment ask of it, each prompt many times: asked anew, tokenizing takes
    longer than a small encoder's forward pass.
    """

    def __init__(self, pipe: Any, tokenizer: Any, positions: int) -> None:
        self._tokenizer = tokenizer
        self._convert = getattr(pipe, "maybe_convert_prompt", None)
        self._tokenized: dict[str, Any] = {}
        self._decoded: dict[tuple[int, ...], str] = {}
        self.model_max_length = positions

    def __call__(self, prompt: str, **kwargs: Any) -> Any:
        """Tokenize one prompt, by the tokenizer's own parameters."""
        if prompt not in self._tokenized:
            text = self._convert(prompt, self._tokenizer) if self._convert is not None else prompt
            self._tokenized[prompt] = self._read(text, **kwargs)
        return self._tokenized[prompt]

    def _read(self, text: str, **kwargs: Any) -> Any:
        return self._tokenizer(text, **kwargs)

    def decode(self, ids: Sequence[int]) -> str:
        """Spell tokens out."""
        key = tuple(ids)
        if key not in self._decoded:
            self._decoded[key] = str(self._tokenizer.decode(ids))
        return self._decoded[key]


class CaptionReader(Reader):
    """A tokenizer that sees captions as PixArt's and Sana's pipelines do, at the positions that the model gets."""

    def __init__(self, pipe: Any, tokenizer: Any, call: CaptionCall) -> None:
        super().__init__(pipe, tokenizer, call.positions)
        self._prepare, self._call = pipe._text_preprocessing, call
        # Of the instruction only its last place is the model's, behind the text's first.
        self._behind = len(tokenizer.encode(call.front)) - 1 if call.front else 1

    def _read(self, text: str, **kwargs: Any) -> Any:
        (caption,) = self._prepare(text, clean_caption=self._call.clean)
        ids = self._tokenizer(self._call.front + caption, **kwargs)["input_ids"]
        return {"input_ids": [*ids[:1], *ids[self._behind :]]}


def _is_t5(encoder: Any) -> bool:
    return bool(encoder.config.model_type == "t5")
