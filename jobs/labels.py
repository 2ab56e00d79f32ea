"""Labels: what follows from the embeddings of images and of the zero-shot prompts.

Embeddings are made once, in the workers, and stored in the shards; labels are computed from them at the tally. So a
changed label prompt or margin costs no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["FAILED", "Labels", "TextEmbeddings", "TextEncoder"]

FAILED = 255
"""Label code of an image that can't be labelled: black, or not finite."""


class TextEncoder(Protocol):
    """What embeds the prompts: `jobs.classifier.Classifier`."""

    @property
    def scale(self) -> float:
        """Factor from cosine similarity to logit, as trained."""
        ...

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit embeddings [n, D] float32 of texts."""
        ...


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
        encoder: TextEncoder,
        attribute: Mapping[str, Sequence[str]],
        recognition: Sequence[str],
        professions: Sequence[tuple[str, str]],
        controls: Sequence[str],
    ) -> TextEmbeddings:
        """Encode the zero-shot prompts.

        Args:
            encoder: the CLIP model.
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
        found = dict(zip(distinct, encoder.texts(distinct), strict=True))

        def mean(prompts: Sequence[str]) -> np.ndarray:
            average = np.mean([found[p] for p in prompts], axis=0)
            return np.asarray(average / np.linalg.norm(average), dtype=np.float32)

        labels = np.stack([np.stack([mean(ensemble) for ensemble in row]) for row in by_label])
        concepts = [mean(ensemble) for ensemble in by_concept]
        return cls(labels, np.stack(concepts), encoder.scale)


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
