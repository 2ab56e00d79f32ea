"""How images are made ready for a classifier: on a GPU there, with the bits that its processor gives on the CPU.

Processors cut, resize and normalise images one at a time by Pillow, on one core, which a GPU waits for. Pillow resizes
bytes in two passes, along rows and then along columns, by whole numbers of 22 bits after the point. Products of those
are exact in float64, in any order, so a matrix product on any device gives the same bytes. What a processor makes of a
byte afterwards is read off the processor itself, for all 256 of them.

Whether all this holds is not taken on trust: for each size of images noise goes both ways. Where a bit differs, or a
processor does more than is known here, the processor prepares that size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import torch

from jobs.images.generator import padded

__all__ = ["Preparation", "pillow_weights"]

_PIXELS = "pixel_values"
_BITS = 22
"""Of a weight behind the point, as Pillow has it for bytes."""
_CHUNK_BYTES = 256 * 2**20
"""What the images that are resized together may take in float64."""


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    # Keys' kernel with a = -0.5.
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


_KERNELS: dict[int, tuple[Callable[[float], float], float]] = {2: (_triangle, 1.0), 3: (_cubic, 2.0)}
"""By Pillow's number of a filter: bilinear and bicubic, and how far each reaches."""


def pillow_weights(size: int, new: int, resample: int) -> np.ndarray:
    """What each new pixel takes of the old ones in one pass of Pillow's `resize`.

    Args:
        size: pixels before.
        new: pixels after.
        resample: 2 (bilinear) or 3 (bicubic).

    Returns:
        [new, size] float64, whole numbers in units of 2**-22.
    """
    kernel, reach = _KERNELS[resample]
    scale = size / new
    wide = max(scale, 1.0)
    weights = np.zeros((new, size))
    for at in range(new):
        centre = (at + 0.5) * scale
        first = max(0, int(centre - reach * wide + 0.5))
        last = min(size, int(centre + reach * wide + 0.5))
        values = [kernel((i - centre + 0.5) * (1.0 / wide)) for i in range(first, last)]
        total = sum(values)
        for i, value in enumerate(values, first):
            share = value / total * (1 << _BITS)
            # Halves go away from zero, as C's cast after adding one has them.
            weights[at, i] = floor(0.5 + share) if share >= 0 else ceil(-0.5 + share)
    return weights


@dataclass(frozen=True, eq=False)
class _Plan:
    """How images of one size are prepared.

    Attributes:
        across: [w, W] float64, of the first pass; None: the width stays.
        down: [h, H], of the second.
        crop: rows and columns that are kept.
        values: [C, 256] float32, what a channel's byte becomes.
    """

    across: torch.Tensor | None
    down: torch.Tensor | None
    crop: tuple[slice, slice]
    values: torch.Tensor

    def run(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, C, h, w] float32 of [n, H, W, C] uint8."""
        planes = pixels.permute(0, 3, 1, 2)
        if self.across is not None or self.down is not None:
            wide = planes.double()
            if self.across is not None:
                wide = _as_bytes(wide @ self.across.T)
            if self.down is not None:
                wide = _as_bytes(self.down @ wide)
            planes = wide
        planes = planes[:, :, self.crop[0], self.crop[1]].long()
        return torch.stack([row[planes[:, i]] for i, row in enumerate(self.values)], dim=1)


def _as_bytes(sums: torch.Tensor) -> torch.Tensor:
    """Sums of bytes by weights, in units of 2**-22, rounded and cut to bytes as Pillow does; float64."""
    return ((sums + (1 << (_BITS - 1))) / (1 << _BITS)).floor_().clamp_(0, 255)


class Preparation:
    """What a model is given of images: by its processor, or on a GPU by the same steps there.

    Args:
        processor: of the model.
        device: where the model runs.
        on_device: whether to prepare there; None: where it is a GPU.
    """

    def __init__(self, processor: Any, device: torch.device, *, on_device: bool | None = None) -> None:
        self._processor, self._device = processor, device
        self._on_device = device.type == "cuda" if on_device is None else on_device
        self._plans: dict[tuple[int, ...], _Plan | None] = {}

    def inputs(self, pixels: np.ndarray | Sequence[np.ndarray], batch_size: int | None) -> dict[str, torch.Tensor]:
        """Model inputs on the device, "pixel_values" [n, C, h, w] float32 and what else the processor gives.

        Args:
            pixels: [n, H, W, C] uint8, or n images of any sizes; n is not 0.
            batch_size: a short batch is padded to it.

        Raises:
            ValueError: more images than `batch_size`.
        """
        images = padded(list(pixels), batch_size)
        if self._on_device and isinstance(pixels, np.ndarray):
            shape = images[0].shape
            if shape not in self._plans:
                self._plans[shape] = self._checked(shape)
            if (plan := self._plans[shape]) is not None:
                each = max(1, _CHUNK_BYTES // (8 * images[0].size))
                chunks = [np.stack(images[start : start + each]) for start in range(0, len(images), each)]
                return {_PIXELS: torch.cat([plan.run(self._sent(chunk)) for chunk in chunks])}
        made = self._by_processor(images)
        return {name: tensor.to(self._device) for name, tensor in made.items()}

    def _by_processor(self, images: Sequence[np.ndarray]) -> Mapping[str, torch.Tensor]:
        made: Mapping[str, torch.Tensor] = self._processor(
            images=list(images), return_tensors="pt", input_data_format="channels_last"
        )
        return made

    def _sent(self, pixels: np.ndarray) -> torch.Tensor:
        # Through pinned memory a copy to a GPU does not wait for what the GPU does.
        host = torch.from_numpy(pixels)
        pinned = host.pin_memory() if self._device.type == "cuda" else host
        return pinned.to(self._device, non_blocking=True)

    def _checked(self, shape: tuple[int, ...]) -> _Plan | None:
        """A plan that gives the processor's bits for noise of this size, if there is one."""
        try:
            plan = _plan_for(self._processor, shape, self._device)
        except (TypeError, ValueError, LookupError):
            return None  # its settings are of other kinds, or it can't be asked for one step alone
        if plan is None:
            return None
        noise = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
        wanted = self._by_processor(list(noise))
        same = set(wanted) == {_PIXELS} and torch.equal(plan.run(self._sent(noise)).cpu(), wanted[_PIXELS])
        return plan if same else None


def _plan_for(processor: Any, shape: tuple[int, ...], device: torch.device) -> _Plan | None:
    """By the processor's settings; None: it does something that is not known here."""
    height, width, channels = shape
    if getattr(processor, "do_pad", None) or not hasattr(processor, "do_resize") or channels != 3:
        return None
    new, resample = (height, width), 0
    if processor.do_resize:
        resized, resample = _new_size(dict(processor.size or {}), height, width), int(processor.resample or 0)
        if resized is None or resample not in _KERNELS:
            return None
        new = resized
    crop = (slice(None), slice(None))
    if getattr(processor, "do_center_crop", None):
        cut = dict(processor.crop_size or {})
        if not {"height", "width"} <= cut.keys() or cut["height"] > new[0] or cut["width"] > new[1]:
            return None
        top, left = (new[0] - cut["height"]) // 2, (new[1] - cut["width"]) // 2
        crop = (slice(top, top + cut["height"]), slice(left, left + cut["width"]))

    def weights(size: int, wanted: int) -> torch.Tensor | None:
        return None if size == wanted else torch.from_numpy(pillow_weights(size, wanted, resample)).to(device)

    across, down = weights(width, new[1]), weights(height, new[0])
    return _Plan(across, down, crop, _values(processor).to(device))


def _new_size(size: dict[str, int], height: int, width: int) -> tuple[int, int] | None:
    if {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    if size.keys() != {"shortest_edge"}:
        return None
    short, long = sorted((height, width))
    edge = size["shortest_edge"]
    longer = int(edge * long / short)
    return (edge, longer) if height <= width else (longer, edge)


def _values(processor: Any) -> torch.Tensor:
    """[3, 256] float32: what the processor makes of each byte of a channel, asked of itself."""
    every = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    made = processor(
        images=[every],
        return_tensors="pt",
        input_data_format="channels_last",
        do_resize=False,
        do_center_crop=False,
    )[_PIXELS]
    values: torch.Tensor = made[0].float().flatten(1)
    return values
