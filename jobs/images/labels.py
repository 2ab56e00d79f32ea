"""Labels: what follows from what is stored of images, and from the embeddings of the zero-shot prompts.

Stored are embeddings of dual encoders and probabilities of heads. They are made once, in the workers; labels are
computed from them at the tally. So a changed label prompt, grouping of a head's labels or margin costs no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["FAILED", "Judge", "Judged", "Labels", "TextEmbeddings", "TextEncoder", "decided"]

FAILED = 255
"""Label code of an image that can't be labelled: black, or not finite."""


class TextEncoder(Protocol):
    """What embeds the prompts: `jobs.images.classifier.Classifier`."""

    @property
    def scale(self) -> float:
        """Factor from cosine similarity to logit, as trained."""
        ...

    @property
    def bias(self) -> float | None:
        """What is added to the logit before the sigmoid; None: probabilities are a softmax over texts."""
        ...

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit embeddings [n, D] float32 of texts."""
        ...


@dataclass(frozen=True)
class Judge:
    """One classifier's way from what is stored of images to probabilities over the labels.

    Attributes:
        columns: from where to where its part of the stored row is.
        texts: [S, L, D], for each subject the mean unit embedding of each label's prompts; None: it is a head.
        groups: [L, H] 0 or 1, which of a head's own labels make up each label; None: it is a dual encoder.
        scale: factor from cosine similarity to logit.
        bias: what is added to the logit before a sigmoid; None: a softmax over the labels' texts.
        margin: lead below which an image is undetermined; None: the run's own.
        on_face: it sees the largest face alone, and of an image without one it has stored zeros.
    """

    columns: tuple[int, int]
    texts: np.ndarray | None
    groups: np.ndarray | None = None
    scale: float = 1.0
    bias: float | None = None
    margin: float | None = None
    on_face: bool = False

    def scores(self, stored: np.ndarray, subject: int) -> np.ndarray:
        """[n, L] probabilities of images of a subject; all 0 where it saw no face.

        Those of a softmax sum to 1, those of a sigmoid to anything. Those of a head sum to 1 with the rest of its own
        labels, which belong to no label.
        """
        mine = stored[:, self.columns[0] : self.columns[1]]
        if self.groups is not None:
            return np.asarray(mine @ self.groups.T)
        if self.texts is None:
            raise ValueError("a judge needs texts or groups")
        logits = self.scale * (mine @ self.texts[subject].T)
        if self.bias is not None:
            scores = 1 / (1 + np.exp(-np.clip(logits + self.bias, -80, 80)))
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        return np.asarray(np.where(self.blind(stored)[:, None], 0, scores))

    def blind(self, stored: np.ndarray) -> np.ndarray:
        """[n] bool, where it saw no face."""
        if not self.on_face:
            return np.zeros(len(stored), bool)
        return ~np.asarray(stored[:, self.columns[0] : self.columns[1]].any(axis=1))


@dataclass(frozen=True)
class Judged:
    """What one classifier says of n images.

    Attributes:
        scores: see `Judge.scores`.
        has_rest: whether what is missing to a sum of 1 belongs to no label: it then competes with them.
        margin: lead below which an image is undetermined.
    """

    scores: np.ndarray
    has_rest: bool
    margin: float

    def codes(self, margin: float | None = None) -> np.ndarray:
        """[n] index of the label, L where undetermined; under this margin, or its own."""
        labels = self.scores.shape[1]
        ranked = np.sort(self.scores, axis=1)
        top, second = ranked[:, -1], ranked[:, -2]
        if self.has_rest:
            second = np.maximum(second, 1 - self.scores.sum(axis=1))
        undetermined = (top - second < (self.margin if margin is None else margin)) | (top == 0)
        return np.asarray(np.where(undetermined, labels, self.scores.argmax(axis=1)))


def decided(judged: Sequence[Judged], margin: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What several classifiers decide together.

    Args:
        judged: what each says of the same n images.
        margin: in place of their own.

    Returns:
        [n] codes: the label where all give the same one, else L; [n] bool, where two or more give a label at all;
        [n] bool, where these differ.
    """
    each = np.stack([one.codes(margin) for one in judged])
    labels = judged[0].scores.shape[1]
    given = each < labels
    lowest, highest = np.where(given, each, labels).min(axis=0), np.where(given, each, -1).max(axis=0)
    compared = given.sum(axis=0) > 1
    agreed = given.all(axis=0) & (lowest == highest)
    return np.where(agreed, lowest, labels), compared, compared & (lowest != highest)


@dataclass(frozen=True)
class TextEmbeddings:
    """What labels are computed with.

    Attributes:
        labels: [S, L, D], for each subject the mean unit embedding of each label's prompts; subjects are professions.
        concepts: [C, D], one for each thing that can be recognised: professions first, then controls.
        scale: factor from cosine similarity to logit.
        bias: see `Judge`.
        panel: the classifiers, where they are not the one dual encoder that recognises.
    """

    labels: np.ndarray
    concepts: np.ndarray
    scale: float
    bias: float | None = None
    panel: tuple[Judge, ...] = ()

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Who labels; one at least."""
        own = Judge((0, self.labels.shape[-1]), self.labels, scale=self.scale, bias=self.bias)
        return self.panel or (own,)

    @property
    def width(self) -> int:
        """How many numbers are stored of an image: first the embedding that recognises, then what the judges read."""
        return max(int(self.concepts.shape[1]), *(judge.columns[1] for judge in self.judges))

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
            encoder: the dual encoder.
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
        embeddings = dict(zip(distinct, encoder.texts(distinct), strict=True))

        def mean(prompts: Sequence[str]) -> np.ndarray:
            average = np.mean([embeddings[p] for p in prompts], axis=0)
            return np.asarray(average / np.linalg.norm(average), dtype=np.float32)

        labels = np.stack([np.stack([mean(ensemble) for ensemble in row]) for row in by_label])
        concepts = [mean(ensemble) for ensemble in by_concept]
        return cls(labels, np.stack(concepts), encoder.scale, encoder.bias)


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        codes: [n] uint8: index of the label; L where undetermined; `FAILED` where the image can't be labelled.
        scores: [n, L] float32 probabilities over the labels, of several classifiers their mean.
        recognised: [n] bool, the image's own concept comes first among all.
        judged: by each classifier; empty where the images have no label.
        compared: [n] bool, two or more classifiers give a label.
        differ: [n] bool, and not the same one.
        blind: [n] bool, some classifier saw no face.
    """

    codes: np.ndarray
    scores: np.ndarray
    recognised: np.ndarray
    judged: tuple[Judged, ...]
    compared: np.ndarray
    differ: np.ndarray
    blind: np.ndarray

    @classmethod
    def of(
        cls,
        stored: np.ndarray,
        ok: np.ndarray,
        texts: TextEmbeddings,
        subject: int | None,
        concept: int,
        margin: float,
    ) -> Labels:
        """Label images by what is stored of them, [n, D] or wider; `ok` [n] bool says which are of real images.

        `subject` is the row of the judges' texts (None for a control, which has no label); `concept` that of
        `texts.concepts`. An image is undetermined when the first label leads the second by less than `margin`, or
        than the classifier's own; of several classifiers, when they do not all give the same label.
        """
        n, labels = len(stored), texts.labels.shape[1]
        no = np.zeros(n, bool)
        embeddings = stored[:, : texts.concepts.shape[1]]
        recognised = ((embeddings @ texts.concepts.T).argmax(axis=1) == concept) & ok
        if subject is None:
            return cls(np.full(n, FAILED, np.uint8), np.zeros((n, labels), np.float32), recognised, (), no, no, no)
        judges = texts.judges
        judged = tuple(
            Judged(
                judge.scores(stored, subject).astype(np.float32),
                judge.groups is not None,
                margin if judge.margin is None else judge.margin,
            )
            for judge in judges
        )
        numbers, compared, differ = decided(judged)
        codes = numbers.astype(np.uint8)
        codes[~ok] = FAILED
        blind = np.any([judge.blind(stored) for judge in judges], axis=0) & ok
        scores = judged[0].scores if len(judged) == 1 else np.mean([one.scores for one in judged], axis=0)
        return cls(codes, scores, recognised, judged, compared & ok, differ & ok, blind)
