"""The zero-shot classifier: CLIP embeddings of images and texts, and the labels that follow from them.

Embeddings are made once, in the workers, and stored in the shards; labels are computed from them at the tally. So a
changed label prompt or margin costs no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from jobs.generator import padded
from time_ops import ModelError

__all__ = ["FAILED", "Classifier", "Labels", "TextEmbeddings"]

# Always so many at a time: a text's bits, and with them a label at the margin, depend on nothing but the text.
_TEXT_BATCH = 32
FAILED = 255
"""Label code of an image that can't be labelled: black, or not finite."""


class Classifier:
    """A CLIP model and its processor, on one device, in float32."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            self._model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
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


@dataclass(frozen=True)
class TextEmbeddings:
    """What labels are computed with.

    Attributes:
        labels: [S, L, D], for each subject the mean unit embedding of each label's prompts; subjects are professions.
        concepts: [C, D], one for each thing that can be recognised: professions first, then controls.
        scale: factor from cosine similarity to logit.
    """

    labels: np.ndarray
    concepts: np.ndarray
    scale: float

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        attribute: Mapping[str, Sequence[str]],
        recognition: Sequence[str],
        professions: Sequence[tuple[str, str]],
        controls: Sequence[str],
    ) -> TextEmbeddings:
        """Encode the zero-shot prompts.

        Args:
            classifier: the CLIP model.
            attribute: label -> prompts with `{profession}` or `{source}`.
            recognition: prompts with `{source}` or `{profession}` by which a profession is recognised.
            professions: (name, source prompt) of each.
            controls: prompts of the controls, as they are.
        """

        def filled(prompts: Sequence[str], name: str, source: str) -> tuple[str, ...]:
            return tuple(p.replace("{profession}", name).replace("{source}", source) for p in prompts)

        by_label = [[filled(prompts, *p) for prompts in attribute.values()] for p in professions]
        by_concept = [*(filled(recognition, *p) for p in professions), *((prompt,) for prompt in controls)]
        ensembles = [*(ensemble for row in by_label for ensemble in row), *by_concept]
        distinct = list(dict.fromkeys(prompt for ensemble in ensembles for prompt in ensemble))
        found = dict(zip(distinct, classifier.texts(distinct), strict=True))

        def mean(prompts: Sequence[str]) -> np.ndarray:
            average = np.mean([found[p] for p in prompts], axis=0)
            return np.asarray(average / np.linalg.norm(average), dtype=np.float32)

        labels = np.stack([np.stack([mean(ensemble) for ensemble in row]) for row in by_label])
        concepts = [mean(ensemble) for ensemble in by_concept]
        return cls(labels, np.stack(concepts), classifier.scale)


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        codes: [n] uint8: index of the label; L where undetermined; `FAILED` where the image can't be labelled.
        scores: [n, L] float32 probabilities over the labels.
        recognised: [n] bool, the image's own concept comes first among all.
    """

    codes: np.ndarray
    scores: np.ndarray
    recognised: np.ndarray

    @classmethod
    def of(
        cls,
        embeddings: np.ndarray,
        ok: np.ndarray,
        texts: TextEmbeddings,
        subject: int | None,
        concept: int,
        margin: float,
    ) -> Labels:
        """Label unit embeddings [n, D]; `ok` [n] bool says which are of real images.

        `subject` is the row of `texts.labels` (None for a control, which has no label); `concept` that of
        `texts.concepts`. An image is undetermined when the first label leads the second by less than `margin`.
        """
        n = len(embeddings)
        recognised = ((embeddings @ texts.concepts.T).argmax(axis=1) == concept) & ok
        if subject is None:
            return cls(np.full(n, FAILED, np.uint8), np.zeros((n, texts.labels.shape[1]), np.float32), recognised)
        logits = texts.scale * (embeddings @ texts.labels[subject].T)
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        ranked = np.sort(scores, axis=1)
        codes = scores.argmax(axis=1).astype(np.uint8)
        codes[ranked[:, -1] - ranked[:, -2] < margin] = scores.shape[1]
        codes[~ok] = FAILED
        return cls(codes, scores.astype(np.float32), recognised)
