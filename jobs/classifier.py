"""The zero-shot classifier: CLIP embeddings of images and texts. Labels follow from them, in `jobs.labels`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from jobs.generator import padded
from jobs.models import weight_variant
from jobs.weights import check_classifier
from time_ops import ModelError

__all__ = ["Classifier"]

# Always so many at a time: a text's bits, and with them a label at the margin, depend on nothing but the text.
_TEXT_BATCH = 32


class Classifier:
    """A CLIP model and its processor, on one device, in float32.

    Raises:
        ModelError: it is none, or its files are not what its configuration says; see `check_classifier`.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        check_classifier(folder, finite=False)
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        try:
            self._model: Any = CLIPModel.from_pretrained(
                folder, variant=weight_variant(folder), dtype=torch.float32, **options
            )
            self._processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"the classifier can't be loaded as a CLIP model: {error}") from error
        torch.nn.Module.to(self._model, device)
        self._model.train(False)
        self._device = device

    @property
    def scale(self) -> float:
        """Factor from cosine similarity to logit, as trained."""
        return float(self._model.logit_scale.detach().exp())

    @property
    def width(self) -> int:
        """D of the embeddings."""
        return int(self._model.config.projection_dim)

    @torch.inference_mode()
    def images(self, pixels: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Unit embeddings [n, D] float32 of images [n, H, W, 3] uint8; n may be 0.

        Their bits depend on how many are encoded together: with a `batch_size` a short batch is padded to it.

        Raises:
            ValueError: more images than `batch_size`.
        """
        n = len(pixels)
        if n == 0:
            return np.zeros((0, self.width), np.float32)
        batch = np.pad(pixels, [(0, (batch_size or n) - n), (0, 0), (0, 0), (0, 0)], mode="edge")
        inputs = self._processor.image_processor(
            images=list(batch), return_tensors="pt", input_data_format="channels_last"
        )
        features = self._model.get_image_features(pixel_values=inputs["pixel_values"].to(self._device))
        return _unit(features)[:n]

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit embeddings [n, D] float32 of texts.

        Raises:
            ModelError: texts are longer than the classifier reads; all are named.
        """
        limit = self._model.config.text_config.max_position_embeddings
        long = [p for p in prompts if len(self._processor.tokenizer(p)["input_ids"]) > limit]
        if long:
            raise ModelError(f"the classifier reads {limit} tokens; shorten {long}")
        found = []
        for start in range(0, len(prompts), _TEXT_BATCH):
            batch = padded(prompts[start : start + _TEXT_BATCH], _TEXT_BATCH)
            inputs = self._processor.tokenizer(
                batch, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            )
            known = {k: v.to(self._device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
            found.append(_unit(self._model.get_text_features(**known)))
        return np.concatenate(found)[: len(prompts)]


def _unit(features: Any) -> np.ndarray:
    values = getattr(features, "pooler_output", features).float()
    array: np.ndarray = torch.nn.functional.normalize(values, dim=-1).cpu().numpy()
    return array
