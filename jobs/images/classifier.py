"""The zero-shot classifier: a dual encoder's embeddings of images and texts. Labels follow in `jobs.images.labels`."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.images.generator import padded
from jobs.images.preparing import Preparation
from jobs.models.classifier_kinds import encoder_kind
from jobs.models.files import weight_variant
from jobs.models.weights import UNLOADABLE, check_classifier, component_class, load_processor
from time_ops import ModelError
from time_ops.files import json_of

__all__ = ["Classifier"]

# Always so many at a time: a text's bits, and with them a label at the margin, depend on nothing but the text.
_TEXT_BATCH = 32
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Classifier:
    """A dual encoder (`jobs.models.classifier_kinds`) and its processor, on one device, in float32.

    Raises:
        ModelError: it is none, or its files are not what its configuration says; see `check_classifier`.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        check_classifier(folder, finite=False)
        self._kind = encoder_kind(folder)
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        try:
            self._model: Any = component_class("transformers", self._kind.model).from_pretrained(
                folder, variant=weight_variant(folder), dtype=torch.float32, **options
            )
            processor, self._tokenizer = load_processor(folder, self._kind)
        except UNLOADABLE as error:
            raise ModelError(f"the classifier can't be loaded as a {self._kind.model}: {error}") from error
        torch.nn.Module.to(self._model, device)
        self._model.train(False)
        self._device, self._preparation = device, Preparation(processor, device)
        self._clean = _cleaned_as(folder) if self._kind.sigmoid else None

    @property
    def scale(self) -> float:
        """Factor from cosine similarity to logit, as trained."""
        # ALIGN learns what it divides by, the others the logarithm of a factor.
        if hasattr(self._model, "temperature"):
            return 1 / float(self._model.temperature.detach())
        return float(self._model.logit_scale.detach().exp())

    @property
    def bias(self) -> float | None:
        """What is added to the logit before the sigmoid; None: probabilities are a softmax over texts."""
        return float(self._model.logit_bias.detach()) if self._kind.sigmoid else None

    @property
    def width(self) -> int:
        """D of the embeddings."""
        config = self._model.config
        return int(config.vision_config.hidden_size if self._kind.sigmoid else config.projection_dim)

    @torch.inference_mode()
    def images(self, pixels: np.ndarray | Sequence[np.ndarray], batch_size: int | None = None) -> np.ndarray:
        """Unit embeddings [n, D] float32 of images [n, H, W, 3] uint8, or of n images of any sizes; n may be 0.

        Their bits depend on how many are encoded together: with a `batch_size` a short batch is padded to it.

        Raises:
            ValueError: more images than `batch_size`.
        """
        n = len(pixels)
        if n == 0:
            return np.zeros((0, self.width), np.float32)
        return _unit(self._model.get_image_features(**self._preparation.inputs(pixels, batch_size)))[:n]

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit embeddings [n, D] float32 of texts.

        Raises:
            ModelError: texts are longer than the classifier reads; all are named.
        """
        positions = int(self._model.config.text_config.max_position_embeddings)
        limit = min(self._kind.tokens or positions, positions)
        cleaned = prompts if self._clean is None else [self._clean(prompt) for prompt in prompts]
        counts = [len(self._tokenizer(text, padding=False)["input_ids"]) for text in cleaned]
        long = [prompt for prompt, count in zip(prompts, counts, strict=True) if count > limit]
        if long:
            raise ModelError(f"the classifier reads {limit} tokens; shorten {long}")
        embeddings = []
        for start in range(0, len(cleaned), _TEXT_BATCH):
            batch = padded(cleaned[start : start + _TEXT_BATCH], _TEXT_BATCH)
            inputs: Mapping[str, torch.Tensor] = self._tokenizer(
                batch, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            )
            names = _TEXT_INPUTS if self._kind.masked else _TEXT_INPUTS[:1]
            known = {k: v.to(self._device) for k, v in inputs.items() if k in names}
            embeddings.append(_unit(self._model.get_text_features(**known)))
        return np.concatenate(embeddings)[: len(prompts)]


def _cleaned_as(folder: Path) -> Any:
    """What SigLIP's texts went through in training, whether or not the tokenizer that is loaded does it too.

    Both versions read lower case alone, and the first one no punctuation. Its own tokenizer, which needs sentencepiece,
    sees to that; the plain one that stands in for it here does not.
    """
    try:
        said = json_of((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class") or ""
    except (OSError, ValueError, AttributeError):
        said = ""
    if str(said).startswith("SiglipTokenizer"):
        return lambda text: " ".join(text.lower().translate(_NO_PUNCTUATION).split())
    return str.lower


def _unit(features: Any) -> np.ndarray:
    values = getattr(features, "pooler_output", features).float()
    array: np.ndarray = torch.nn.functional.normalize(values, dim=-1).cpu().numpy()
    return array
