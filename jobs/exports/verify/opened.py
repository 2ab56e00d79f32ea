"""An export opened as its users open it, and its images beside those of the edit that was audited.

What was audited is a resident base model whose prompt embeddings pass through the operator; what ships are files. The
same prompts and seeds are drawn with both: the pixels say whether it is the same edit, the labels whether what differs
(half precision, a LoRA's rank) is of any account.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config import SamplerConfig
from jobs.exports.schema import FILES, Form
from jobs.exports.verify.samples import Compared, Sample
from jobs.images.generator import Generator, ImageRequest
from jobs.images.labels import Labels, TextEmbeddings
from jobs.images.panel import Panel
from jobs.images.shards import STATUSES
from jobs.models.files import denoiser_folder, weight_variant
from jobs.models.names import family_of, is_joint, lora_layers, lora_parts, text_width
from jobs.models.pipelines import load_pipeline, prepare_pipeline
from jobs.models.sources import DTYPES, SafetensorsSource, open_denoiser, open_safetensors
from time_ops import EditOperator, ModelError
from time_ops.surfaces import denoiser_of, text_entries

__all__ = ["compare", "is_half", "open_export", "pipeline_options"]

_BATCH = 16
_UP = ("lora_up.weight", "lora_B.weight")


def is_half(*dtypes: torch.dtype) -> bool:
    """Whether one of them holds less than float32."""
    return any(dtype.itemsize < torch.float32.itemsize for dtype in dtypes)


def open_export(
    form: Form, folder: Path, base: Any, base_folder: Path, sampler: SamplerConfig, *, file: str | None = None
) -> tuple[Any, EditOperator | None, torch.dtype]:
    """Open an export beside the resident base pipeline, in the dtype that it is stored in.

    Args:
        form: which form.
        folder: its files.
        base: the resident pipeline; lends what the export does not hold.
        base_folder: the folder that it was loaded from.
        sampler: as for `load_pipeline`.
        file: the file in the folder that holds the weights; None: the form's own.

    Returns:
        The pipeline to draw with, the operator that its embeddings pass through (None: the edit is in the weights), and
        the dtype of the edited tensors as stored.

    Raises:
        ModelError: it can't be opened.
    """
    device = base.device
    if form == "operator":
        return base, EditOperator.load(folder / FILES[form]), torch.float64
    denoiser = denoiser_of(base)
    if form == "diffusers":
        part = denoiser_folder(folder)
        # The width of the embeddings is the base model's.
        dtype = open_denoiser(part, d=text_width(denoiser.config)).dtype
        if (folder / "model_index.json").is_file():
            return load_pipeline(folder, sampler, device, dtype), None, dtype
        edited = type(denoiser).from_pretrained(
            part, variant=weight_variant(part), dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return prepare_pipeline(_with_denoiser(base, edited, dtype), sampler, device, dtype), None, dtype
    source = open_safetensors(folder / (file or FILES[form]))
    dtype = _edited_dtype(source)
    if form == "single-file" and hasattr(base, "transformer"):
        # Such files hold the transformer alone as often as not; the text encoders are the base model's either way.
        edited = _transformer_of(source.path, base_folder, denoiser, dtype)
        return prepare_pipeline(_with_denoiser(base, edited, dtype), sampler, device, dtype), None, dtype
    if form == "single-file":
        return (
            prepare_pipeline(_single_file(source.path, base, base_folder, dtype), sampler, device, dtype),
            None,
            dtype,
        )
    edited = copy.deepcopy(denoiser)
    _add(form, source, edited)
    return prepare_pipeline(_with_denoiser(base, edited, denoiser.dtype), sampler, device, denoiser.dtype), None, dtype


def _single_file(file: Path, base: Any, base_folder: Path, dtype: torch.dtype) -> Any:
    """A pipeline of the base's class, from a single file.

    Raises:
        ModelError: diffusers can't load it.
    """
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "config": str(base_folder)}
    if hasattr(base, "safety_checker") and base.safety_checker is None:
        options |= {"safety_checker": None}
    if family_of(denoiser_of(base).config) == "xl":
        options |= {"add_watermarker": False}
    try:
        return type(base).from_single_file(str(file), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the single file can't be loaded by diffusers: {error}") from error


def _edited_dtype(source: SafetensorsSource) -> torch.dtype:
    """What the edited tensors of a file are stored in."""
    for name, entry in source.entries.items():
        if ".attn2.to_" in name or name.endswith(_UP) or is_joint(name):
            return DTYPES[entry.dtype]
    raise ModelError(f"{source.path.name} holds none of the edit's tensors")


def _transformer_of(file: Path, base_folder: Path, denoiser: Any, dtype: torch.dtype) -> Any:
    try:
        return type(denoiser).from_single_file(
            str(file), config=str(base_folder), subfolder="transformer", dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        raise ModelError(f"the single file can't be loaded by diffusers: {error}") from error


@torch.no_grad()
def _add(form: Form, source: SafetensorsSource, denoiser: Any) -> None:
    """Put a file's tensors in the place of a model's own, or add a LoRA's to them."""
    weights = dict(denoiser.named_parameters())
    if form == "tensors":
        for name in source.entries:
            weights[name].copy_(source.read(name))
        return
    layers = lora_layers(denoiser.config, [f"{entry.name}.weight" for entry in text_entries(denoiser)])
    for name, layer in layers.items():
        down, up = (f"{layer}.{part}" for part in lora_parts(denoiser.config))
        # The layer of the pooled embedding has factors only where that is edited.
        if up in source.entries:
            shift = source.read(up).double() @ source.read(down).double()
            weights[name].copy_(weights[name].double().cpu() + shift)


def pipeline_options(base: Any) -> dict[str, Any]:
    """What a pipeline like this one is made with beside its components."""
    family = family_of(denoiser_of(base).config)
    if family == "xl":
        return {"force_zeros_for_empty_prompt": base.config.force_zeros_for_empty_prompt, "add_watermarker": False}
    return {"requires_safety_checker": base.config.requires_safety_checker} if family == "sd" else {}


def _with_denoiser(base: Any, denoiser: Any, dtype: torch.dtype) -> Any:
    """A pipeline of the base's other parts, which take the dtype in copies of their own."""
    own = "transformer" if hasattr(base, "transformer") else "unet"
    parts = {**base.components, own: denoiser}
    if dtype != denoiser_of(base).dtype:
        others = [name for name, part in parts.items() if name != own and isinstance(part, torch.nn.Module)]
        parts |= {name: copy.deepcopy(parts[name]).to(dtype) for name in others}
    return type(base)(**parts, **pipeline_options(base))


def compare(
    drawn: tuple[Generator, str],
    audited: tuple[Generator, str | Callable[[Sample], str]],
    wanted: Sequence[Sample],
    classifier: Panel,
    texts: TextEmbeddings,
    margin: float,
) -> Compared:
    """Draw the samples with both, and compare pixels and labels.

    Args:
        drawn: the export's generator and the name of the operator there, "base" for none.
        audited: the resident model's, likewise; of a mixture, the operator's name for each sample.
        wanted: what to draw.
        classifier: labels the images.
        texts: by these.
        margin: of undetermined ones.
    """
    total = Compared()
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        images = [
            generator.draw(
                [ImageRequest(s.prompt, name if isinstance(name, str) else name(s), s.seed) for s in batch], _BATCH
            )
            for generator, name in (drawn, audited)
        ]
        ok = np.all([each.statuses == STATUSES.index("ok") for each in images], axis=0)
        pixels = [each.pixels.astype(np.float64) / 255 for each in images]
        apart = np.abs(pixels[0] - pixels[1])[ok]
        codes = [_labels(classifier.images(each.pixels, _BATCH), ok, batch, texts, margin) for each in images]
        total += Compared(
            len(batch),
            int((~ok).sum()),
            float(apart.max(initial=0.0)),
            float(apart.mean(axis=(1, 2, 3)).sum()) if len(apart) else 0.0,
            int(((codes[0] == codes[1]) & ok).sum()),
            int(ok.sum()),
        )
    return total


def _labels(
    embeddings: np.ndarray, ok: np.ndarray, batch: Sequence[Sample], texts: TextEmbeddings, margin: float
) -> np.ndarray:
    each = [
        Labels.of(embeddings[[i]], ok[[i]], texts, sample.subject, sample.concept, margin).codes[0]
        for i, sample in enumerate(batch)
    ]
    return np.array(each)
