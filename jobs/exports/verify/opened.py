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
from jobs.models.files import weight_variant
from jobs.models.names import POOLED, is_xl, kohya_names
from jobs.models.pipelines import load_pipeline, prepared
from jobs.models.sources import DTYPES, SafetensorsSource, open_safetensors, open_unet
from time_ops import EditOperator, ModelError

__all__ = ["compare", "is_half", "open_export", "pipeline_options"]

_BATCH = 16


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
    if form == "diffusers":
        # The width of the embeddings is the base model's.
        dtype = open_unet(folder / "unet", d=base.unet.config.cross_attention_dim).dtype
        if (folder / "model_index.json").is_file():
            return load_pipeline(folder, sampler, device, dtype), None, dtype
        unet = type(base.unet).from_pretrained(
            folder / "unet",
            variant=weight_variant(folder / "unet"),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
        )
        return prepared(_with_unet(base, unet, dtype), sampler, device, dtype), None, dtype
    source = open_safetensors(folder / (file or FILES[form]))
    edited = [
        entry for name, entry in source.entries.items() if ".attn2.to_" in name or name.endswith("lora_up.weight")
    ]
    if not edited:
        raise ModelError(f"{source.path.name} holds none of the edit's tensors")
    dtype = DTYPES[edited[0].dtype]
    if form == "single-file":
        return prepared(_single_file(source.path, base, base_folder, dtype), sampler, device, dtype), None, dtype
    unet = _with_weights(form, base.unet, source)
    return prepared(_with_unet(base, unet, base.unet.dtype), sampler, device, base.unet.dtype), None, dtype


def _single_file(file: Path, base: Any, base_folder: Path, dtype: torch.dtype) -> Any:
    """A pipeline of the base's class, from a single file.

    Raises:
        ModelError: diffusers can't load it.
    """
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "config": str(base_folder)}
    if hasattr(base, "safety_checker") and base.safety_checker is None:
        options |= {"safety_checker": None}
    if is_xl(base.unet.config):
        options |= {"add_watermarker": False}
    try:
        return type(base).from_single_file(str(file), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the single file can't be loaded by diffusers: {error}") from error


def _with_weights(form: Form, base: Any, source: SafetensorsSource) -> Any:
    """A copy of the base's UNet with the tensors of an export, or with a LoRA added to its weights."""
    unet = copy.deepcopy(base)
    weights = dict(unet.named_parameters())
    with torch.no_grad():
        if form == "tensors":
            for name in source.entries:
                weights[name].copy_(source.read(name))
        else:
            names = [n for n in weights if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) or n == POOLED]
            layers = {name: layer for name, layer in kohya_names(unet.config, names).items()
                      if name != POOLED or f"{layer}.lora_up.weight" in source.entries}  # fmt: skip
            for name, layer in layers.items():
                up, down = (source.read(f"{layer}.lora_{part}.weight").double() for part in ("up", "down"))
                weights[name].copy_(weights[name].double().cpu() + up @ down)
    return unet


def pipeline_options(base: Any) -> dict[str, Any]:
    """What a pipeline like this one is made with beside its components."""
    if is_xl(base.unet.config):
        return {"force_zeros_for_empty_prompt": base.config.force_zeros_for_empty_prompt, "add_watermarker": False}
    return {"requires_safety_checker": base.config.requires_safety_checker}


def _with_unet(base: Any, unet: Any, dtype: torch.dtype) -> Any:
    """A pipeline of the base's other parts, which take the dtype in copies of their own."""
    parts = {**base.components, "unet": unet}
    if dtype != base.unet.dtype:
        others = [name for name, part in parts.items() if name != "unet" and isinstance(part, torch.nn.Module)]
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
    found = Compared()
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
        found += Compared(
            len(batch),
            int((~ok).sum()),
            float(apart.max(initial=0.0)),
            float(apart.mean(axis=(1, 2, 3)).sum()) if len(apart) else 0.0,
            int(((codes[0] == codes[1]) & ok).sum()),
            int(ok.sum()),
        )
    return found


def _labels(
    embeddings: np.ndarray, ok: np.ndarray, batch: Sequence[Sample], texts: TextEmbeddings, margin: float
) -> np.ndarray:
    each = [
        Labels.of(embeddings[[i]], ok[[i]], texts, sample.subject, sample.concept, margin).codes[0]
        for i, sample in enumerate(batch)
    ]
    return np.array(each)
