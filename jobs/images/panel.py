"""All classifiers of a run, on one device: what is stored of each image, and what labels follow from it.

See `jobs.images.judging` for the order of what is stored; the first part recognises professions and controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from jobs.config import RunConfig
from jobs.config.classifiers import ClassifierConfig, FacesConfig, members_of
from jobs.images.classifier import Classifier
from jobs.images.heads import DETECTOR, HEAD, FaceFinder, Head
from jobs.images.judging import check_labels, is_plain, seen_by, seen_of
from jobs.images.labels import Judge, TextEmbeddings
from jobs.models.weights import check_classifier, check_image_model

__all__ = ["Panel", "check_panel"]


def check_panel(config: RunConfig, folders: Mapping[str, Path]) -> None:
    """Refuse classifiers whose files are not what their configurations say, without keeping weights in memory.

    Args:
        config: names them.
        folders: of each model, see `fetch_classifiers`.

    Raises:
        ModelError: see `check_classifier` and `check_image_model`.
        ConfigError: see `check_labels`.
    """
    checked = set()
    for seen in seen_by(config):
        if seen.model not in checked:
            checked.add(seen.model)
            folder = folders[seen.model]
            if seen.head:
                check_image_model(folder, HEAD)
            else:
                check_classifier(folder)
        if seen.faces is not None and seen.faces.model not in checked:
            checked.add(seen.faces.model)
            check_image_model(folders[seen.faces.model], DETECTOR)
    check_labels(config, folders)


class Panel:
    """The classifiers.

    Args:
        config: names them.
        folders: of each model, see `fetch_classifiers`.
        device: where they run, in float32.

    Raises:
        ModelError, ConfigError: as `check_panel`.
    """

    def __init__(self, config: RunConfig, folders: Mapping[str, Path], device: torch.device) -> None:
        check_labels(config, folders)
        self._config = config
        self._seen = seen_by(config)
        self._encoders = {s.model: Classifier(folders[s.model], device) for s in self._seen if not s.head}
        self._heads = {s.model: Head(folders[s.model], device) for s in self._seen if s.head}
        self._finders = {
            s.faces: FaceFinder(folders[s.faces.model], s.faces, device) for s in self._seen if s.faces is not None
        }
        self._parts = [self._heads[s.model] if s.head else self._encoders[s.model] for s in self._seen]
        ends = np.cumsum([0, *(part.width for part in self._parts)]).tolist()
        self._columns = list(pairwise(ends))

    @property
    def encoder(self) -> Classifier:
        """The dual encoder that recognises."""
        return self._encoders[self._seen[0].model]

    @property
    def width(self) -> int:
        """D, the numbers that are stored of an image."""
        return int(self._columns[-1][1])

    def images(self, pixels: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """What is stored of images [n, H, W, 3] uint8, [n, D] float32; batches as `Classifier.images`.

        Zeros stand where a classifier that sees faces alone found none.
        """
        crops: dict[FacesConfig, tuple[list[np.ndarray], np.ndarray]] = {}
        parts = []
        for seen, part in zip(self._seen, self._parts, strict=True):
            if seen.faces is None:
                parts.append(part.images(pixels, batch_size))
                continue
            if seen.faces not in crops:
                crops[seen.faces] = self._finders[seen.faces].crops(pixels, batch_size)
            faces, has_face = crops[seen.faces]
            parts.append(part.images(faces, batch_size) * has_face[:, None])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def texts(self, professions: Sequence[tuple[str, str]], controls: Sequence[str]) -> TextEmbeddings:
        """What labels are computed with.

        Args:
            professions: (name, source prompt) of each.
            controls: prompts of the controls, as they are.
        """
        config = self._config

        def of(encoder: Classifier) -> TextEmbeddings:
            return TextEmbeddings.of(encoder, config.attribute, config.recognition, professions, controls)

        own = of(self.encoder)
        if is_plain(config):
            return own
        members = members_of(config.classifier)
        by_encoder = {m.model: of(self._encoders[m.model]) for m in members if m.labels is None}
        return replace(own, panel=tuple(self._judge(member, by_encoder) for member in members))

    def _judge(self, member: ClassifierConfig, by_encoder: Mapping[str, TextEmbeddings]) -> Judge:
        columns = self._columns[self._seen.index(seen_of(member))]
        on_face = member.faces is not None
        if member.labels is not None:
            own = self._heads[member.model].labels
            rows = [[name in member.labels[label] for name in own] for label in self._config.attribute]
            return Judge(columns, None, np.array(rows, np.float32), margin=member.margin, on_face=on_face)
        texts = by_encoder[member.model]
        bias = texts.bias if member.scoring == "trained" else None
        return Judge(columns, texts.labels, None, texts.scale, bias, member.margin, on_face)
