"""One export of a finished run, in any of the forms, from a worker's copy of the base model to a published folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from infra.storage import ObjectStore, StorageSettings
from jobs.exports.forms.diffusers_folder import write_checkpoint
from jobs.exports.forms.header import file_header, spec_of
from jobs.exports.forms.lora import LoraWritten, low_rank_operator, write_lora
from jobs.exports.forms.operator_file import LOADER, check_transform, write_loader, write_operator
from jobs.exports.forms.single_file import write_single_file
from jobs.exports.forms.tensors import write_tensors
from jobs.exports.forms.writing import Written, scratch_folder
from jobs.exports.mixture.forms import write_mixture_export
from jobs.exports.schema import FILES, Exported
from jobs.exports.task import HEADERS, RECORD, Dtype, ExportTask, base_file_of, errors_of, main_file, pipeline_of
from jobs.models.digests import content_digest
from jobs.models.files import denoiser_folder
from jobs.models.publishing import publish
from jobs.models.sources import open_edited
from time_ops import EditOperator, Mixture, ModelError

__all__ = ["RECORD", "Dtype", "ExportTask", "main_file", "write_export"]


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
    if isinstance(task.operator, Mixture):
        return write_mixture_export(task, task.operator, base, store, scratch=scratch, settings=settings, beside=beside)
    operator = task.operator
    if content_digest(base) != task.provenance.base_digest:
        raise ModelError(
            "this model is not the base model of the run: its tensors differ; give the one that was edited"
        )
    header, operator_header = _headers(task, base)
    unet = open_edited(denoiser_folder(base), operator)
    with scratch_folder(scratch) as folder:
        written, others = _write_edit(task, operator, base, folder, header, operator_header, settings)
        files = {file.name: file for file in others}
        if written is not None:
            files[FILES[task.form]] = written.path
        exported = _exported(task, base, written, len(unet.names), files)
        if written is None:
            sizes = write_checkpoint(
                base,
                task.provenance.base_digest,
                operator,
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


def _headers(task: ExportTask, base: Path) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Of the form's own file, and of an operator's beside it."""
    spec = spec_of(base, task.title, date=task.date, license=task.licence)
    return file_header(HEADERS[task.form], spec, task.provenance), file_header("operator", spec, task.provenance)


def _exported(
    task: ExportTask, base: Path, written: Written | None, edited: int, files: Mapping[str, Path]
) -> Exported:
    """What `export.json` says; `edited` counts the tensors of a diffusers folder, which is not written yet."""
    return Exported(
        form=task.form,
        run=task.provenance.run,
        verdict=task.provenance.verdict,
        forced=task.provenance.forced,
        pipeline=pipeline_of(base),
        tensors=edited if written is None else written.tensors,
        files={name: path.stat().st_size for name, path in files.items()},
        **(errors_of(written) if isinstance(written, LoraWritten) else {}),
    )


def _write_edit(
    task: ExportTask,
    operator: EditOperator,
    base: Path,
    folder: Path,
    header: Mapping[str, str],
    operator_header: Mapping[str, str],
    settings: StorageSettings,
) -> tuple[Written | None, list[Path]]:
    """The file that holds the edit (None: a diffusers folder has several), and other files beside it."""
    if task.form == "diffusers":
        return None, []
    out, unet = folder / FILES[task.form], denoiser_folder(base)
    if task.form == "operator":
        check_transform(operator)
        return write_operator(operator, out, header), [write_loader(folder / LOADER).path]
    if task.form == "tensors":
        return write_tensors(unet, operator, out, header), []
    if task.form == "single-file":
        return write_single_file(base_file_of(task, folder, settings), operator, out, header, unet_folder=unet), []
    dtype: torch.dtype | None = None if task.dtype is None else getattr(torch, task.dtype)
    lora = write_lora(unet, operator, out, header, rank=task.rank, error=task.error, dtype=dtype)
    cut = folder / f"operator-rank-{lora.rank}.safetensors"
    return lora, [write_operator(low_rank_operator(unet, operator, lora), cut, operator_header).path]
