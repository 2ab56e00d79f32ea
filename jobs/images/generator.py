"""The resident generator: batches of images in which every image may have its own prompt, seed and operator.

An image's bits depend on its request and on the batch's size, not on its neighbours or its place among them. So
batches have one fixed size, and a short one is padded.
"""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]
from PIL import Image

from jobs.config import SamplerConfig
from jobs.images.latents import decodable, is_packed, unpacked
from jobs.images.shards import BASE, STATUSES
from time_ops import EditOperator, TextEmbeddings, encode_texts
from time_ops.surfaces import denoiser_of

__all__ = [
    "Generator",
    "ImageRequest",
    "Images",
    "auto_batch_size",
    "batch_that_fits",
    "decoded_at_once",
    "encode_picture",
    "is_guided",
    "negative_prompt_of",
    "padded",
]

_T = TypeVar("_T")
_CACHED_PROMPTS = 512
_MAX_BATCH = 64
# A CPU gains nothing past what fills its caches.
_CPU_BATCH_PIXELS = 64 * 32 * 32
# On a GPU eight images of 512 pixels are decoded at once: 15 ms an image on an H200, where one by one took 26. In
# float32, as SDXL's own VAE may be, half as many.
_DECODED_PIXELS = 8 * 512 * 512
# What is left is for the classifier, fragments, and libraries' workspaces.
_MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class ImageRequest:
    """One image: its prompt, the operator its embeddings pass through, and the seed of its own generator."""

    prompt: str
    operator: str
    seed: int


@dataclass(frozen=True)
class Images:
    """Images [n, H, W, 3] uint8 and their statuses [n] uint8 (index into `STATUSES`); zeros where not `ok`."""

    pixels: np.ndarray
    statuses: np.ndarray


def padded(items: Sequence[_T], size: int | None) -> list[_T]:
    """The items, the last one repeated until there are `size`; None leaves them as they are.

    Raises:
        ValueError: there are none, or more than `size`.
    """
    if not items:
        raise ValueError("a batch needs at least one item")
    if size is not None and len(items) > size:
        raise ValueError(f"{len(items)} items do not fit into a batch of {size}")
    return [*items, *[items[-1]] * ((size or 0) - len(items))]


def negative_prompt_of(pipe: Any, sampler: SamplerConfig) -> str | None:
    """The negative prompt to give a pipeline; None: none, and SDXL then reads zeros, as its configuration says."""
    zeros = getattr(pipe.config, "force_zeros_for_empty_prompt", False)
    return None if zeros and not sampler.negative_prompt else sampler.negative_prompt


def is_guided(pipe: Any, sampler: SamplerConfig) -> bool:
    """Whether images are drawn with a negative (or empty) prompt too; FLUX is told the guidance, and reads none."""
    return sampler.guidance_scale > 1 and not is_packed(pipe)


class Generator:
    """One base pipeline; an edit is tried by transforming prompt embeddings, never by loading edited weights.

    W' c = W (A c) for the conditional and for the negative (or empty) prompt alike, so both are transformed; their
    pooled embeddings as well where the model reads such, by the operator's pooled one.
    """

    def __init__(self, pipe: Any, sampler: SamplerConfig) -> None:
        self._pipe = pipe
        self._sampler = sampler
        self._operators: dict[str, EditOperator] = {}
        self._needed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._base: dict[str, TextEmbeddings] = {}
        self._edited: dict[tuple[str | None, str], TextEmbeddings] = {}

    def add_operator(self, operator: EditOperator) -> None:
        """Make an operator known under its digest."""
        self._operators[operator.digest] = operator

    @contextmanager
    def knowing(self, operators: Sequence[EditOperator]) -> Iterator[None]:
        """Within the block, operators are known under their digests; those that were not before are forgotten after it.

        Blocks may overlap, in several threads: the last one that needs an operator forgets it.
        """
        with self._lock:
            digests = [o.digest for o in operators if o.digest in self._needed or o.digest not in self._operators]
            self._operators.update({operator.digest: operator for operator in operators})
            self._needed.update(digests)
        try:
            yield
        finally:
            with self._lock:
                for digest in digests:
                    self._needed[digest] -= 1
                    if not self._needed[digest]:
                        del self._needed[digest], self._operators[digest]

    def knows(self, digest: str) -> bool:
        """Whether requests may name this operator."""
        return digest == BASE or digest in self._operators

    def _embedding(self, prompt: str | None, operator: str) -> TextEmbeddings:
        """Token states [n, d] and pooled [p] in the pipeline's dtype; made once in float32, transformed in float64.

        Of no prompt they are zeros, which every operator keeps.
        """
        known = self._edited.get((prompt, operator))
        if known is not None:
            return known
        if len(self._edited) > _CACHED_PROMPTS:
            self._edited.clear()
            self._base.clear()
        named = prompt or ""
        if named not in self._base:
            made = encode_texts(self._pipe, [named])
            self._base[named] = TextEmbeddings(made.tokens[0], None if made.pooled is None else made.pooled[0])
        tokens, pooled = self._base[named].tokens, self._base[named].pooled
        if prompt is None:
            tokens, pooled = torch.zeros_like(tokens), None if pooled is None else torch.zeros_like(pooled)
        elif operator != BASE:
            edit = self._operators[operator]
            tokens, pooled = edit.transform(tokens), None if pooled is None else edit.transform_pooled(pooled)
        where = self._pipe.device, denoiser_of(self._pipe).dtype
        self._edited[prompt, operator] = TextEmbeddings(
            tokens.to(*where), None if pooled is None else pooled.to(*where)
        )
        return self._edited[prompt, operator]

    def _texts(self, prompts: Sequence[tuple[str | None, str]], prefix: str = "") -> dict[str, torch.Tensor]:
        """What the pipeline is given for these prompts, each under its operator."""
        made = [self._embedding(prompt, operator) for prompt, operator in prompts]
        options = {f"{prefix}prompt_embeds": torch.stack([each.tokens for each in made])}
        pooled = [each.pooled for each in made if each.pooled is not None]
        if pooled:
            options[f"{prefix}pooled_prompt_embeds"] = torch.stack(pooled)
        return options

    @torch.inference_mode()
    def draw(self, requests: Sequence[ImageRequest], batch_size: int | None = None) -> Images:
        """Images of one batch, in order. Every image has a generator of its own, on the CPU.

        A bad image is data, not an error: see `STATUSES`.

        Args:
            requests: what to draw; n of them.
            batch_size: the size that the batch is padded to, by repeating the last request; None: n.

        Raises:
            ValueError: no request, or more than `batch_size`.
            torch.OutOfMemoryError: the batch is too large, for the GPU or for the machine.
        """
        try:
            return self._draw(padded(requests, batch_size), len(requests))
        except Exception as error:
            if _out_of_memory(error) and not isinstance(error, torch.OutOfMemoryError):
                raise torch.OutOfMemoryError(str(error)) from error
            raise

    def _draw(self, batch: Sequence[ImageRequest], n: int) -> Images:
        pipe = self._pipe
        generators = [torch.Generator("cpu").manual_seed(r.seed) for r in batch]
        latents = self._latents(batch, generators)
        sane = torch.isfinite(latents).flatten(1).all(dim=1)
        if not bool(sane.all()):
            latents = torch.where(sane[:, None, None, None], latents, 0)
        images, undecodable = self._decode(latents, generators, n)
        sane &= torch.isfinite(images).flatten(1).all(dim=1)
        images[~sane] = 0
        flagged = None
        if hasattr(pipe, "run_safety_checker"):  # SDXL's pipeline has none
            images, flagged = pipe.run_safety_checker(images, pipe.device, latents.dtype)
        hidden = [bool(f) for f in flagged] if flagged is not None else [False] * len(batch)
        pixels = _as_bytes(pipe, torch.as_tensor(images), hidden)[:n]
        statuses = np.full(n, STATUSES.index("ok"), np.uint8)
        statuses[np.array(hidden[:n]) | (pixels.max(axis=(1, 2, 3)) == 0)] = STATUSES.index("black")
        statuses[~sane[:n].cpu().numpy()] = STATUSES.index("nan")
        statuses[undecodable] = STATUSES.index("undecodable")
        pixels[statuses != STATUSES.index("ok")] = 0
        return Images(pixels, statuses)

    def _latents(self, batch: Sequence[ImageRequest], generators: list[torch.Generator]) -> torch.Tensor:
        """[size, C, H/f, W/f] in the pipeline's dtype."""
        sampler = self._sampler
        result = self._pipe(
            generator=generators,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            height=sampler.height,
            width=sampler.width,
            output_type="latent",
            **self._prompts(batch),
        )
        return unpacked(self._pipe, result.images, sampler.height, sampler.width)

    def _prompts(self, batch: Sequence[ImageRequest]) -> dict[str, Any]:
        """What the pipeline is told of the batch's prompts."""
        options: dict[str, Any] = {}
        if is_guided(self._pipe, self._sampler):
            negative = negative_prompt_of(self._pipe, self._sampler)
            options |= self._texts([(negative, r.operator) for r in batch], "negative_")
        return options | self._texts([(r.prompt, r.operator) for r in batch])

    def _decode(
        self, latents: torch.Tensor, generators: list[torch.Generator], n: int
    ) -> tuple[torch.Tensor, list[int]]:
        """Images [size, 3, H, W] in [-1, 1] of the first n latents, zeros for the others; and which can't be decoded.

        So many go through the VAE together as `decoded_at_once` says. Where they raise, their halves are tried, each
        padded to that number so that bits stay the same.
        """
        pipe, size = self._pipe, len(latents)
        shape = (size, pipe.vae.config.out_channels, self._sampler.height, self._sampler.width)
        # SDXL's VAE may run in float32 where all else is float16; see `jobs.models.pipelines.prepare_pipeline`.
        latents = decodable(pipe.vae, latents.to(pipe.vae.dtype))
        images = torch.zeros(shape, dtype=latents.dtype, device=latents.device)
        undecodable = []
        at_once = decoded_at_once(size, latents.dtype, latents.device, self._sampler)
        pending = [list(range(start, min(start + at_once, n))) for start in reversed(range(0, n, at_once))]
        while pending:
            rows = pending.pop()
            part = latents if len(rows) == size else latents[padded(rows, at_once)]
            try:
                decoded = pipe.vae.decode(part, return_dict=False, generator=generators[: len(part)])[0]
            except Exception as error:
                if _out_of_memory(error):
                    raise
                if latents.device.type == "cuda":
                    torch.cuda.synchronize()  # raises if it is the device that has failed, and no image
                if len(rows) == 1:
                    undecodable += rows
                else:
                    pending += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            else:
                images[rows] = decoded[: len(rows)]
        return images, undecodable


def decoded_at_once(n: int, dtype: torch.dtype, device: torch.device, sampler: SamplerConfig) -> int:
    """How many of a batch of n go through a VAE of this dtype together: on a CPU all of them."""
    if device.type != "cuda":
        return n
    most = _DECODED_PIXELS * 2 // (dtype.itemsize * sampler.height * sampler.width)
    return max(1, min(most, n))


def _as_bytes(pipe: Any, images: torch.Tensor, hidden: Sequence[bool]) -> np.ndarray:
    """Images [n, 3, H, W] in [-1, 1] as [n, H, W, 3] uint8; those that are hidden are black already.

    Rounded where they were decoded, so that a GPU hands over bytes. Bits are those of the pipeline's postprocessing.
    """
    shown = torch.tensor([not h for h in hidden], device=images.device)[:, None, None, None]
    values = torch.where(shown, pipe.image_processor.denormalize(images), images)
    pixels: np.ndarray = (values.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def auto_batch_size(
    pipe: Any, sampler: SamplerConfig, device: torch.device, shard_images: int, share: float = 1.0
) -> int:
    """How many images to draw at once, at most 64, so that shards are whole batches where that costs little.

    On a GPU batches of 1, 2, 4, ... are really drawn, with two steps, as long as they fit into 85 % of the free memory.
    On a CPU the pixels decide. `share` is the part of the device that is this process's.

    Raises:
        torch.OutOfMemoryError: not even one image fits.
    """
    if device.type != "cuda":
        return _cut(max(1, min(_MAX_BATCH, _CPU_BATCH_PIXELS // (sampler.height * sampler.width))), shard_images)
    torch.cuda.empty_cache()
    budget = int(torch.cuda.mem_get_info(device)[0] * _MEMORY_SHARE * share)
    generator = Generator(pipe, sampler.model_copy(update={"steps": 2}))
    peaks: dict[int, int] = {}
    size = 1
    while size <= _MAX_BATCH and _extrapolated(peaks, size) <= budget:
        try:
            peaks[size] = _peak_bytes(generator, size, device)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            break
        size *= 2
    torch.cuda.empty_cache()
    return batch_that_fits(peaks, budget, shard_images)


def _peak_bytes(generator: Generator, size: int, device: torch.device) -> int:
    """What a batch takes from the device beyond what is taken before it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    with torch.compiler.set_stance("force_eager"):  # compiling anew for every size would take minutes
        generator.draw([ImageRequest("", BASE, 0)] * size)
    return torch.cuda.max_memory_reserved(device) - before


def _extrapolated(peaks: Mapping[int, int], size: int) -> float:
    """Bytes that a batch would take, by the line through the two largest that were tried; 0 before there are two."""
    if len(peaks) < 2:
        return 0.0
    low, high = sorted(peaks)[-2:]
    return peaks[high] + (size - high) * max(0, peaks[high] - peaks[low]) / (high - low)


def batch_that_fits(peaks: Mapping[int, int], budget: int, shard_images: int) -> int:
    """The largest batch within the budget that cuts shards into whole batches, or holds whole shards.

    Args:
        peaks: bytes that batches of 1, 2, 4, ... took.
        budget: bytes that a batch may take.
        shard_images: images in one shard.
    """
    fits = [n for n in range(1, min(2 * max(peaks) - 1, _MAX_BATCH) + 1) if _extrapolated(peaks, n) <= budget]
    return _cut(max(fits, default=1), shard_images)


def _cut(most: int, shard_images: int) -> int:
    """The largest divisor or multiple of a shard up to `most`.

    Where that is less than a quarter of it (a shard of 53 images has no divisors), shards are cut evenly instead.
    """
    if most >= shard_images:
        return most // shard_images * shard_images
    divisor = max(n for n in range(1, most + 1) if shard_images % n == 0)
    batches = -(-shard_images // most)
    return divisor if 4 * divisor >= most else -(-shard_images // batches)


def encode_picture(pixels: np.ndarray, kind: str) -> bytes:
    """One image [H, W, 3] uint8 as WebP (lossless up to 128 px, where loss would show; quality 90 above) or PNG."""
    sink = io.BytesIO()
    image = Image.fromarray(pixels)
    if kind == "webp":
        image.save(sink, "WEBP", lossless=max(image.size) <= 128, quality=90)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()
