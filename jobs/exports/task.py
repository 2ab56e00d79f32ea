"""What one export is asked to be, and what the forms share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.storage import StorageSettings, open_store
from jobs.exports.forms.header import Form as HeaderForm
from jobs.exports.forms.header import Provenance
from jobs.exports.forms.lora import LoraWritten
from jobs.exports.schema import Form
from jobs.models.joint_kinds import FLUX, SD3
from jobs.models.publishing import MIXTURE_INDEX, MODEL_INDEX
from time_ops import EditOperator, Mixture, ModelError

__all__ = [
    "HEADERS",
    "RECORD",
    "Dtype",
    "ExportTask",
    "base_file_of",
    "denoiser_in",
    "errors_of",
    "main_file",
    "pipeline_of",
]

RECORD = "export.json"
Dtype = Literal["float32", "float16", "bfloat16"]
HEADERS: dict[Form, HeaderForm] = {
    "diffusers": "tensors",
    "single-file": "single_file",
    "lora": "lora",
    "operator": "operator",
    "tensors": "tensors",
}


@dataclass(frozen=True)
class ExportTask:
    """What to write.

    Attributes:
        form: which form.
        operator: the edit; a mixture is written by `jobs.exports.mixture.forms`.
        provenance: for every header; its base digest is what the model must have.
        title: the model's name for people.
        date: of the run, ISO 8601.
        prefix: where in the run's store.
        card: text of README.md.
        base_file: the base model's single file, of that form only: a path on the workers, or s3://bucket/key.
        only_unet: of a diffusers folder, leave the other components out.
        rank: of a LoRA; None: chosen by `error`.
        error: what a LoRA may leave out, relative to the edit.
        dtype: of a LoRA; None: the base model's.
        licence: of the base model, as its card says.
    """

    form: Form
    operator: EditOperator | Mixture
    provenance: Provenance
    title: str
    date: str
    prefix: str
    card: str
    base_file: str | None = None
    only_unet: bool = False
    rank: int | None = None
    error: float = 1e-3
    dtype: Dtype | None = None
    licence: str | None = None


def denoiser_in(pipeline: str) -> str:
    """The folder, and the attribute, of a pipeline's model that reads the text, by diffusers' class of the pipeline."""
    return "transformer" if pipeline in (SD3, FLUX) else "unet"


def main_file(
    form: Form, *, only_unet: bool = False, mixture: bool = False, pipeline: str = "StableDiffusionPipeline"
) -> str:
    """The small file without which an export is none: written last, deleted first."""
    if form != "diffusers":
        return RECORD
    if mixture:
        return MIXTURE_INDEX
    return f"{denoiser_in(pipeline)}/config.json" if only_unet else MODEL_INDEX


def base_file_of(task: ExportTask, folder: Path, settings: StorageSettings) -> Path:
    """The base model's single file, fetched into `folder` where it lies in a store.

    Raises:
        ModelError: none was given.
        StorageError: it can't be read.
    """
    if task.base_file is None:
        raise ModelError(
            "a single file is made from the base model's own single file: give it with --base-file (a path that the "
            "workers reach, or s3://bucket/key)"
        )
    if not task.base_file.startswith("s3://"):
        return Path(task.base_file).expanduser()
    place, _, name = task.base_file.rpartition("/")
    fetched = folder / "base" / name
    open_store(place, settings).download(name, fetched)
    return fetched


def pipeline_of(base: Path) -> str:
    """Diffusers' class of a base model, by its folder."""
    said: str = json.loads((base / MODEL_INDEX).read_text(encoding="utf-8"))["_class_name"]
    return said


def errors_of(written: LoraWritten) -> dict[str, float | int]:
    """What `export.json` says of a LoRA's rank."""
    return {
        "rank": written.rank,
        "error": written.error,
        "weight_error": written.weight_error,
        "stored_error": written.stored_error,
    }
