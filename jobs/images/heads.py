"""Image classifiers with labels of their own, and detectors that find the largest face. What they say is stored."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config.classifiers import FacesConfig
from jobs.images.preparing import Preparation
from jobs.models.classifier_kinds import class_of, labels_of
from jobs.models.files import weight_variant
from jobs.models.weights import UNLOADABLE, check_image_model, component_class, load_image_processor
from time_ops import ModelError

__all__ = ["DETECTOR", "HEAD", "FaceFinder", "Head"]

HEAD = "ForImageClassification"
DETECTOR = "ForObjectDetection"


class _ImageModel:
    """A model that reads images alone, and its processor, on one device, in float32."""

    def __init__(self, folder: Path, ending: str, device: torch.device) -> None:
        check_image_model(folder, ending, finite=False)
        self.labels = labels_of(folder)
        name = class_of(folder, ending)
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        try:
            self.model: Any = component_class("transformers", name).from_pretrained(
                folder, variant=weight_variant(folder), dtype=torch.float32, **options
            )
            self.processor = load_image_processor(folder)
        except UNLOADABLE as error:
            raise ModelError(f"{folder.name} can't be loaded as a {name}: {error}") from error
        torch.nn.Module.to(self.model, device)
        self.model.train(False)
        self._preparation = Preparation(self.processor, device)
        self._reads = inspect.signature(self.model.forward).parameters.keys()

    def forward(self, pixels: np.ndarray | Sequence[np.ndarray], batch_size: int | None) -> Any:
        """The model's output of images of any sizes, a short batch padded to `batch_size`."""
        inputs = self._preparation.inputs(pixels, batch_size)
        return self.model(**{name: tensor for name, tensor in inputs.items() if name in self._reads})


class Head:
    """An image classifier.

    Raises:
        ModelError: it is none, its files are not what its configuration says, or its labels do not exclude each other.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._image_model = _ImageModel(folder, HEAD, device)
        kind = self._image_model.model.config.problem_type
        if kind not in (None, "single_label_classification"):
            raise ModelError(f"{folder.name} is for {kind} (config.json); a classifier gives each image one label")

    @property
    def width(self) -> int:
        """H, its own labels."""
        return len(self._image_model.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Its own labels, in the order of their probabilities."""
        return self._image_model.labels

    @torch.inference_mode()
    def images(self, pixels: np.ndarray | Sequence[np.ndarray], batch_size: int | None = None) -> np.ndarray:
        """Probabilities [n, H] float32 of n images, a softmax over all its labels; batches as `Classifier.images`."""
        n = len(pixels)
        if n == 0:
            return np.zeros((0, self.width), np.float32)
        logits = self._image_model.forward(pixels, batch_size).logits[:n]
        scores: np.ndarray = torch.softmax(logits.float(), dim=-1).cpu().numpy()
        return scores


class FaceFinder:
    """An object detector with a label for faces.

    Raises:
        ModelError: it is none, or its files are not what its configuration says.
    """

    def __init__(self, folder: Path, config: FacesConfig, device: torch.device) -> None:
        self._image_model = _ImageModel(folder, DETECTOR, device)
        self._config = config
        if config.label not in self._image_model.labels:
            raise ModelError(f"{folder.name} has no label {config.label!r}")
        self._face = self._image_model.labels.index(config.label)

    @torch.inference_mode()
    def crops(self, pixels: np.ndarray, batch_size: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        """The largest face of each image.

        Args:
            pixels: [n, H, W, 3] uint8.
            batch_size: as `Classifier.images`.

        Returns:
            n crops [h, w, 3], the whole image where there is no face; [n] bool, where there is one.
        """
        n = len(pixels)
        if n == 0:
            return [], np.zeros(0, bool)
        output = self._image_model.forward(pixels, batch_size)
        size = pixels.shape[1:3]
        detections = self._image_model.processor.post_process_object_detection(
            output, threshold=self._config.score, target_sizes=[size] * max(n, batch_size or n)
        )
        crops, seen = [], np.zeros(n, bool)
        for i, (image, each) in enumerate(zip(pixels, detections, strict=False)):
            boxes = each["boxes"][each["labels"] == self._face].float().cpu().numpy()
            box = largest_box(boxes, size, self._config.border)
            seen[i] = box is not None
            left, top, right, bottom = (0, 0, size[1], size[0]) if box is None else box
            crops.append(image[top:bottom, left:right])
        return crops, seen


def largest_box(boxes: np.ndarray, size: tuple[int, int], border: float) -> tuple[int, int, int, int] | None:
    """The largest box with its border, cut to the image, in whole pixels; None where no box has a pixel of it.

    Args:
        boxes: [m, 4] left, top, right, bottom, in pixels.
        size: the image's height and width.
        border: on each side, in the box's own width and height.
    """
    if not len(boxes):
        return None
    height, width = size
    # A detector's box may reach beyond the image: only what is of it counts.
    inside = np.clip(boxes, 0, [width, height, width, height])
    areas = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    left, top, right, bottom = inside[int(areas.argmax())].tolist()
    across, down = border * (right - left), border * (bottom - top)
    box = (
        max(0, int(np.floor(left - across))),
        max(0, int(np.floor(top - down))),
        min(width, int(np.ceil(right + across))),
        min(height, int(np.ceil(bottom + down))),
    )
    return box if areas.max() > 0 and box[2] > box[0] and box[3] > box[1] else None
