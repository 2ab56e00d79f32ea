"""The resident generator: batches of images in which every image may have its own prompt, seed and operator."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.config import SamplerConfig
from jobs.shards import BASE, STATUSES
from time_ops import EditOperator, encode_prompts

__all__ = ["Generator", "ImageRequest", "Images", "encode_picture"]

_CACHED_PROMPTS = 4096


@dataclass(frozen=True)
class ImageRequest:
    """One image: its prompt, the operator its embeddings pass through, and the seed of its own generator."""

    prompt: str
    operator: str
    seed: int


@dataclass(frozen=True)
class Images:
    """Images [n, H, W, 3] uint8 and their statuses [n] uint8 (index into `STATUSES`)."""

    pixels: np.ndarray
    statuses: np.ndarray


class Generator:
    """One base pipeline; an edit is tried by transforming prompt embeddings, never by loading edited weights.

    W' c = W (A c) for the conditional and for the negative (or empty) prompt alike, so both are transformed.
    """

    def __init__(self, pipe: Any, sampler: SamplerConfig) -> None:
        self._pipe = pipe
        self._sampler = sampler
        self._operators: dict[str, EditOperator] = {}
        self._base: dict[str, torch.Tensor] = {}
        self._edited: dict[tuple[str, str], torch.Tensor] = {}

    def add_operator(self, operator: EditOperator) -> None:
        """Make an operator known under its digest."""
        self._operators[operator.digest] = operator

    def knows(self, digest: str) -> bool:
        """Whether requests may name this operator."""
        return digest == BASE or digest in self._operators

    def _embedding(self, prompt: str, operator: str) -> torch.Tensor:
        """[n, d] in the pipeline's dtype; made once in float32, transformed in float64, cast once."""
        known = self._edited.get((prompt, operator))
        if known is not None:
            return known
        if len(self._edited) > _CACHED_PROMPTS:
            self._edited.clear()
            self._base.clear()
        if prompt not in self._base:
            self._base[prompt] = encode_prompts(self._pipe, [prompt])[0]
        embedding = self._base[prompt]
        if operator != BASE:
            embedding = self._operators[operator].transform(embedding)
        self._edited[prompt, operator] = embedding.to(self._pipe.device, self._pipe.unet.dtype)
        return self._edited[prompt, operator]

    @torch.inference_mode()
    def draw(self, requests: Sequence[ImageRequest]) -> Images:
        """Images of one batch, in order. Every image has a generator of its own, on the CPU."""
        sampler = self._sampler
        options: dict[str, Any] = {}
        if sampler.guidance_scale > 1:
            negative = [self._embedding(sampler.negative_prompt, r.operator) for r in requests]
            options["negative_prompt_embeds"] = torch.stack(negative)
        result = self._pipe(
            prompt_embeds=torch.stack([self._embedding(r.prompt, r.operator) for r in requests]),
            generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            height=sampler.height,
            width=sampler.width,
            output_type="np",
            **options,
        )
        values = np.asarray(result.images)
        finite = np.isfinite(values).all(axis=(1, 2, 3))
        pixels = (np.nan_to_num(values, posinf=1.0).clip(0, 1) * 255).round().astype(np.uint8)
        statuses = np.where(finite, STATUSES.index("ok"), STATUSES.index("nan")).astype(np.uint8)
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(requests)
        black = np.array([bool(f) for f in flagged]) | (finite & (pixels.max(axis=(1, 2, 3)) == 0))
        statuses[black] = STATUSES.index("black")
        return Images(pixels, statuses)


def encode_picture(pixels: np.ndarray, kind: str) -> bytes:
    """One image [H, W, 3] uint8 as WebP (lossless up to 128 px, where loss would show; quality 90 above) or PNG."""
    sink = io.BytesIO()
    image = Image.fromarray(pixels)
    if kind == "webp":
        image.save(sink, "WEBP", lossless=max(image.size) <= 128, quality=90)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()
