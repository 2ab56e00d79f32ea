"""Images made ready on a device have the bits that a model's own processor gives, or are the processor's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.images.preparing import Preparation, pillow_weights

CPU = torch.device("cpu")
# Of the classifiers that jobs read: dual encoders' and image classifiers'.
KINDS = ("CLIP", "Siglip", "ChineseCLIP", "ViT", "Bit", "ConvNext", "EfficientNet")


def processor_of(kind: str, **settings: Any) -> Any:
    return getattr(transformers, f"{kind}ImageProcessorPil")(**settings)


def images(*shape: int) -> np.ndarray:
    """Noise, a chequerboard (resizing rings and is cut to bytes), black and white."""
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    board = np.broadcast_to((np.indices(shape).sum(0)[..., None] % 2 * 255).astype(np.uint8), noise.shape)
    return np.stack([noise, board, np.zeros_like(noise), np.full_like(noise, 255)])


def of_processor(processor: Any, pixels: np.ndarray) -> torch.Tensor:
    made: torch.Tensor = processor(images=list(pixels), return_tensors="pt", input_data_format="channels_last")[
        "pixel_values"
    ]
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(512, 512), (64, 64), (32, 32), (224, 224)])
def test_every_bit_is_the_processors(kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    processor, pixels = processor_of(kind), images(*shape)
    wanted = of_processor(processor, pixels)
    preparation = Preparation(processor, CPU, on_device=True)
    preparation.inputs(pixels[:1], None)
    # From here on the processor is not asked.
    monkeypatch.setattr(preparation, "_by_processor", None)
    made = preparation.inputs(pixels, 6)["pixel_values"]
    assert made.dtype == torch.float32
    assert torch.equal(made[:4], wanted)
    assert torch.equal(made[4:], wanted[[3, 3]])


@pytest.mark.parametrize("shape", [(640, 480), (225, 301), (300, 300)])
@pytest.mark.parametrize("settings", [{}, {"resample": 2}, {"do_center_crop": False}, {"size": {"shortest_edge": 288}}])
def test_sides_and_settings_of_all_kinds(shape: tuple[int, int], settings: dict[str, Any]) -> None:
    processor, pixels = processor_of("CLIP", **settings), images(*shape)
    preparation = Preparation(processor, CPU, on_device=True)
    assert torch.equal(preparation.inputs(pixels, None)["pixel_values"], of_processor(processor, pixels))
    assert preparation._plans[pixels[0].shape] is not None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([2, 3]), st.integers(0, 2**32 - 1))
def test_weights_are_pillows(size: int, new: int, resample: int, seed: int) -> None:
    row = np.random.default_rng(seed).integers(0, 256, (1, size), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(row).resize((new, 1), Image.Resampling(resample)))[0]
    sums = [
        sum(int(w) * int(p) for w, p in zip(line, row[0], strict=True)) for line in pillow_weights(size, new, resample)
    ]
    assert [min(255, max(0, (total + 2**21) >> 22)) for total in sums] == wanted.tolist()


@pytest.mark.parametrize("settings", [{"resample": 1}, {"crop_size": {"height": 300, "width": 300}}])
def test_what_is_not_known_is_the_processors(settings: dict[str, Any]) -> None:
    processor, pixels = processor_of("CLIP", **settings), images(40, 40)
    preparation = Preparation(processor, CPU, on_device=True)
    assert torch.equal(preparation.inputs(pixels, None)["pixel_values"], of_processor(processor, pixels))
    assert preparation._plans == {pixels[0].shape: None}


def test_a_processor_that_also_masks_keeps_its_mask() -> None:
    preparation = Preparation(processor_of("Detr", size={"height": 48, "width": 48}), CPU, on_device=True)
    assert preparation.inputs(images(48, 48), None).keys() == {"pixel_values", "pixel_mask"}


def test_a_processor_that_does_more_is_found_out() -> None:
    # Its settings are CLIP's, what it does is not.
    class Darker(transformers.CLIPImageProcessorPil):
        def resize(self, image: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
            resized: np.ndarray = super().resize(image, *arguments, **options)
            return resized - (resized > 128).astype(resized.dtype)

    processor, pixels = Darker(), images(40, 40)
    preparation = Preparation(processor, CPU, on_device=True)
    assert torch.equal(preparation.inputs(pixels, None)["pixel_values"], of_processor(processor, pixels))
    assert preparation._plans == {pixels[0].shape: None}


def test_a_processor_that_cannot_be_asked_for_one_step_alone_prepares_images() -> None:
    class Whole(transformers.CLIPImageProcessorPil):
        def __call__(self, images: Any, **options: Any) -> Any:
            if options.keys() - {"return_tensors", "input_data_format"}:
                raise TypeError("this processor takes no such option")
            return super().__call__(images, **options)

    processor, pixels = Whole(), images(40, 40)
    preparation = Preparation(processor, CPU, on_device=True)
    assert torch.equal(preparation.inputs(pixels, None)["pixel_values"], of_processor(processor, pixels))
    assert preparation._plans == {pixels[0].shape: None}


def test_images_of_several_sizes_and_a_cpu_are_the_processors() -> None:
    processor, pixels = processor_of("CLIP"), images(40, 40)
    several = [pixels[0], images(50, 30)[1]]
    on_device = Preparation(processor, CPU, on_device=True)
    assert on_device.inputs(several, 3)["pixel_values"].shape == (3, 3, 224, 224)
    by_default = Preparation(processor, CPU)
    assert torch.equal(by_default.inputs(pixels, None)["pixel_values"], of_processor(processor, pixels))
    assert on_device._plans == by_default._plans == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits() -> None:
    processor, pixels = processor_of("CLIP"), images(512, 512)
    preparation = Preparation(processor, torch.device("cuda"))
    made = preparation.inputs(pixels, None)["pixel_values"]
    assert made.device.type == "cuda"
    assert torch.equal(made.cpu(), of_processor(processor, pixels))
    assert preparation._plans[pixels[0].shape] is not None
