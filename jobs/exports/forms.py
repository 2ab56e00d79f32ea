"""One export of a finished run, in any of the forms, from a worker's copy of the base model to a published folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.exports.diffusers_folder import write_checkpoint
from jobs.exports.header import Form as HeaderForm
from jobs.exports.header import Provenance, file_header, spec_of
from jobs.exports.lora import LoraWritten, write_lora
from jobs.exports.operator_file import LOADER, check_transform, write_loader, write_operator
from jobs.exports.publishing import MODEL_INDEX, publish
from jobs.exports.schema import FILES, Exported, Form
from jobs.exports.single_file import write_single_file
from jobs.exports.sources import open_unet
from jobs.exports.tensors import write_tensors
from jobs.exports.writing import Written, scratch_folder
from jobs.models import content_digest
from time_ops import EditOperator, ModelError
from time_ops.lora import truncate

__all__ = ["RECORD", "Dtype", "ExportTask", "main_file", "write_export"]

RECORD = "export.json"
_UNET_CONFIG = "unet/config.json"
Dtype = Literal["float32", "float16", "bfloat16"]
_HEADERS: dict[Form, HeaderForm] = {
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
        operator: the edit.
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
    operator: EditOperator
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


def main_file(form: Form, *, only_unet: bool = False) -> str:
    """The small file without which an export is none: written last, deleted first."""
    if form != "diffusers":
        return RECORD
    return _UNET_CONFIG if only_unet else MODEL_INDEX


def write_export(
    task: ExportTask,
    base: Path,
    store: ObjectStore,
    *,
    scratch: Path,
    settings: StorageSettings,
    beside: tuple[str, ...] = (),
) -> Exported:
    """Write an export below `task.prefix`, whole or not at all.

    Args:
        task: what.
        base: folder of the base model on this node.
        store: of the run's output.
        scratch: where files lie until they are sent.
        settings: how to reach object stores.
        beside: published folders in `store` that may hold some of the same files.

    Raises:
        ModelError: the base model or its single file is not what was audited, or can't be edited.
        EditError: the form can't hold this edit.
        StorageError: the store refuses, or there is no space left.
    """
    if content_digest(base) != task.provenance.base_digest:
        raise ModelError(
            "this model is not the base model of the run: its tensors differ; give the one that was edited"
        )
    spec = spec_of(base, task.title, date=task.date, license=task.licence)
    header = file_header(_HEADERS[task.form], spec, task.provenance)
    operator_header = file_header("operator", spec, task.provenance)
    unet = open_unet(base / "unet", d=task.operator.d, values_only=task.operator.values_only)
    with scratch_folder(scratch) as folder:
        written, others = _written(task, base, folder, header, operator_header, settings)
        files = {file.name: file for file in others}
        if written is not None:
            files[FILES[task.form]] = written.path
        exported = Exported(
            form=task.form,
            run=task.provenance.run,
            verdict=task.provenance.verdict,
            forced=task.provenance.forced,
            tensors=len(unet.names) if written is None else written.tensors,
            files={name: path.stat().st_size for name, path in files.items()},
            **(_errors(written) if isinstance(written, LoraWritten) else {}),
        )
        if written is None:
            sizes = write_checkpoint(
                base,
                task.provenance.base_digest,
                task.operator,
                task.card,
                store,
                task.prefix,
                only_unet=task.only_unet,
                header=header,
                operator_header=operator_header,
                scratch=scratch,
                settings=settings,
                beside=beside,
            )
            return exported.model_copy(update={"files": {n: size for n, size in sizes.items() if n != "README.md"}})
        (folder / "README.md").write_text(task.card, encoding="utf-8")
        (folder / RECORD).write_text(exported.model_dump_json(indent=1), encoding="utf-8")
        files |= {name: folder / name for name in ("README.md", RECORD)}
        publish(files, store, task.prefix, main=RECORD, beside=beside)
        return exported


def _written(
    task: ExportTask,
    base: Path,
    folder: Path,
    header: Mapping[str, str],
    operator_header: Mapping[str, str],
    settings: StorageSettings,
) -> tuple[Written | None, list[Path]]:
    """The file that holds the edit (None: a diffusers folder has several), and other files beside it."""
    if task.form == "diffusers":
        return None, []
    out, unet, operator = folder / FILES[task.form], base / "unet", task.operator
    if task.form == "operator":
        check_transform(operator)
        return write_operator(operator, out, header), [write_loader(folder / LOADER).path]
    if task.form == "tensors":
        return write_tensors(unet, operator, out, header), []
    if task.form == "single-file":
        return write_single_file(_base_file(task, folder, settings), operator, out, header, unet_folder=unet), []
    dtype: torch.dtype | None = None if task.dtype is None else getattr(torch, task.dtype)
    lora = write_lora(unet, operator, out, header, rank=task.rank, error=task.error, dtype=dtype)
    source = open_unet(unet, d=operator.d, values_only=operator.values_only)
    low = truncate(operator, (source.read(name) for name in source.names), rank=lora.rank)
    cut = folder / f"operator-rank-{lora.rank}.safetensors"
    return lora, [write_operator(low.operator(operator), cut, operator_header).path]


def _base_file(task: ExportTask, folder: Path, settings: StorageSettings) -> Path:
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


def _errors(written: LoraWritten) -> dict[str, float | int]:
    return {
        "rank": written.rank,
        "error": written.error,
        "weight_error": written.weight_error,
        "stored_error": written.stored_error,
    }
