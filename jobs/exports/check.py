"""An export opened as its users open it, and its images beside those of the edit that was audited.

What was audited is a resident base model whose prompt embeddings pass through the operator; what ships are files. The
same prompts and seeds are drawn with both: the pixels say whether it is the same edit, the labels whether what differs
(half precision, a LoRA's rank) is of any account.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.cells import Cell
from jobs.classifier import Classifier, Labels, TextEmbeddings
from jobs.config import SamplerConfig
from jobs.exports.names import kohya_names
from jobs.exports.schema import Form
from jobs.exports.sources import DTYPES, open_safetensors, open_unet
from jobs.gates import gate
from jobs.generator import Generator, ImageRequest
from jobs.pipelines import load_pipeline, prepared
from jobs.report.schema import RateFigure, Shipped
from jobs.shards import STATUSES, image_seed
from jobs.tally import TallyTask
from time_ops import EditOperator, ModelError, ratios

__all__ = ["FILES", "Compared", "Sample", "compare", "is_half", "open_export", "samples", "shipped"]

FILES: dict[Form, str] = {
    "single-file": "model.safetensors",
    # The name that diffusers looks for in a folder.
    "lora": "pytorch_lora_weights.safetensors",
    "operator": "operator.safetensors",
    "tensors": "tensors.safetensors",
}
"""The file that holds the weights of each form but a diffusers folder."""

_BATCH = 16
_FULL_PRECISION = 0.02
"""Most that the mean pixel may differ in full precision; leaving the empty prompt unedited comes to more."""


@dataclass(frozen=True)
class Sample:
    """One image to compare: its prompt and seed, and its rows in the text embeddings."""

    prompt: str
    seed: int
    subject: int | None
    concept: int


@dataclass(frozen=True)
class Compared:
    """What came of some images.

    Attributes:
        images: how many were drawn with both.
        failed: of these, how many were no image in either.
        largest: difference of one channel, 0 to 1.
        total: sum over images of their mean difference.
        same: images of one label in both.
        labelled: images that have a label, undetermined included; controls have none.
    """

    images: int = 0
    failed: int = 0
    largest: float = 0.0
    total: float = 0.0
    same: int = 0
    labelled: int = 0

    def __add__(self, other: Compared) -> Compared:
        return Compared(
            self.images + other.images,
            self.failed + other.failed,
            max(self.largest, other.largest),
            self.total + other.total,
            self.same + other.same,
            self.labelled + other.labelled,
        )


def samples(tasks: Sequence[TallyTask], seed: int, count: int) -> list[Sample]:
    """The audit's first images, one of each cell, then the second of each, until there are so many; controls apart.

    Where the audit has fewer, further seeds of the same prompts follow.
    """
    labelled = [task for task in tasks if task.subject is not None]
    most = max((task.cell.images for task in labelled), default=0)

    def sample(task: TallyTask, index: int) -> Sample:
        cell: Cell = task.cell
        drawn = image_seed(seed, cell.stream, cell.prompt, cell.first + index)
        return Sample(cell.prompt, drawn, task.subject, task.concept)

    audited = (sample(task, i) for i in range(most) for task in labelled if i < task.cell.images)
    further = (sample(task, task.cell.images + i) for i in range(count) for task in labelled)
    return list(islice(chain(audited, further), count))


def is_half(*dtypes: torch.dtype) -> bool:
    """Whether one of them holds less than float32."""
    return any(dtype.itemsize < torch.float32.itemsize for dtype in dtypes)


def open_export(
    form: Form, folder: Path, base: Any, base_folder: Path, sampler: SamplerConfig
) -> tuple[Any, EditOperator | None, torch.dtype]:
    """Open an export beside the resident base pipeline, in the dtype that it is stored in.

    Args:
        form: which form.
        folder: its files.
        base: the resident pipeline; lends what the export does not hold.
        base_folder: the folder that it was loaded from.
        sampler: as for `load_pipeline`.

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
            folder / "unet", torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return prepared(_with_unet(base, unet, dtype), sampler, device, dtype), None, dtype
    source = open_safetensors(folder / FILES[form])
    edited = [
        entry for name, entry in source.entries.items() if ".attn2.to_" in name or name.endswith("lora_up.weight")
    ]
    if not edited:
        raise ModelError(f"{FILES[form]} holds none of the edit's tensors")
    dtype = DTYPES[edited[0].dtype]
    if form == "single-file":
        options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True, "config": str(base_folder)}
        if base.safety_checker is None:
            options |= {"safety_checker": None}
        try:
            pipe = type(base).from_single_file(str(source.path), **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"the single file can't be loaded by diffusers: {error}") from error
        return prepared(pipe, sampler, device, dtype), None, dtype
    unet = copy.deepcopy(base.unet)
    weights = dict(unet.named_parameters())
    with torch.no_grad():
        if form == "tensors":
            for name in source.entries:
                weights[name].copy_(source.read(name))
        else:
            names = [name for name in weights if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
            for name, layer in kohya_names(unet.config, names).items():
                up, down = (source.read(f"{layer}.lora_{part}.weight").double() for part in ("up", "down"))
                weights[name].copy_(weights[name].double().cpu() + up @ down)
    return prepared(_with_unet(base, unet, base.unet.dtype), sampler, device, base.unet.dtype), None, dtype


def _with_unet(base: Any, unet: Any, dtype: torch.dtype) -> Any:
    """A pipeline of the base's other parts, which take the dtype in copies of their own."""
    parts = {**base.components, "unet": unet}
    if dtype != base.unet.dtype:
        others = [name for name, part in parts.items() if name != "unet" and isinstance(part, torch.nn.Module)]
        parts |= {name: copy.deepcopy(parts[name]).to(dtype) for name in others}
    return type(base)(**parts, requires_safety_checker=base.config.requires_safety_checker)


def compare(
    drawn: tuple[Generator, str],
    audited: tuple[Generator, str],
    wanted: Sequence[Sample],
    classifier: Classifier,
    texts: TextEmbeddings,
    margin: float,
) -> Compared:
    """Draw the samples with both, and compare pixels and labels.

    Args:
        drawn: the export's generator and the name of the operator there, "base" for none.
        audited: the resident model's, likewise.
        wanted: what to draw.
        classifier: labels the images.
        texts: by these.
        margin: of undetermined ones.
    """
    found = Compared()
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        images = [
            generator.draw([ImageRequest(s.prompt, operator, s.seed) for s in batch], _BATCH)
            for generator, operator in (drawn, audited)
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


def shipped(found: Compared, dtype: str, *, half: bool, limit: float) -> Shipped:
    """The figures and their gate.

    Args:
        found: of all images.
        dtype: as stored.
        half: whether half precision or a LoRA's rank is in play: labels are then gated at `limit`, else all of them
            and the pixels.
        limit: see `gates.shipped`.
    """
    kept = ratios.rate(found.same, found.labelled)
    whole = found.images - found.failed
    mean = found.total / whole if whole else None
    result = gate("shipped", kept, limit if half else 1.0)
    if not half:
        exact = mean is not None and mean <= _FULL_PRECISION and found.same == found.labelled
        reason = "every label is the same" if exact else "in full precision every image must be the same"
        result = result.model_copy(update={"outcome": "pass" if exact else "fail", "reason": reason})
    return Shipped(
        dtype=dtype,
        images=found.images,
        failed=found.failed,
        largest_difference=found.largest if whole else None,
        mean_difference=mean,
        same_label=RateFigure(value=kept.value, n=kept.n, low=kept.low, high=kept.high),
        gate=result,
    )
