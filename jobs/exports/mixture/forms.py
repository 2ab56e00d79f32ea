"""One export of a finished mixture run: its components, each named after its label, and what says what the whole is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from infra.storage import ObjectStore, StorageSettings
from jobs.exports.forms.header import component_header, file_header, spec_of
from jobs.exports.forms.lora import LoraWritten, low_rank_operator, write_lora
from jobs.exports.forms.single_file import write_single_file
from jobs.exports.forms.tensors import write_tensors
from jobs.exports.forms.writing import Written, scratch_folder
from jobs.exports.mixture.folder import mixture_header, write_about, write_mixture, write_mixture_file
from jobs.exports.mixture.parts import component_place
from jobs.exports.schema import Exported, ExportedComponent
from jobs.exports.task import HEADERS, RECORD, ExportTask, base_file_of, errors_of, pipeline_of
from jobs.models.digests import content_digest
from jobs.models.files import denoiser_folder
from jobs.models.publishing import publish
from jobs.models.sources import open_denoiser
from time_ops import EditOperator, Mixture, ModelError

__all__ = ["LOW_RANK_FILE", "write_mixture_export"]

LOW_RANK_FILE = "mixture-low-rank.safetensors"
"""Beside LoRAs: the mixture that they come to, to be audited."""


def write_mixture_export(
    task: ExportTask,
    mixture: Mixture,
    base: Path,
    store: ObjectStore,
    *,
    scratch: Path,
    settings: StorageSettings,
    beside: tuple[str, ...] = (),
) -> Exported:
    """Write an export of a mixture below `task.prefix`, whole or not at all.

    Args:
        task: see `write_export`; so is all else.
        mixture: the edit of the task.
        base: .
        store: .
        scratch: .
        settings: .
        beside: .

    Raises:
        ModelError, EditError, StorageError: as `write_export`.
    """
    if content_digest(base) != task.provenance.base_digest:
        raise ModelError(
            "this model is not the base model of the run: its tensors differ; give the one that was edited"
        )
    with scratch_folder(scratch) as folder:
        if task.form == "diffusers":
            sizes = write_mixture(
                base,
                mixture,
                task.provenance,
                task.title,
                task.card,
                store,
                task.prefix,
                only_unet=task.only_unet,
                date=task.date,
                licence=task.licence,
                scratch=scratch,
                settings=settings,
                beside=beside,
            )
            return _exported(task, mixture, base, {n: size for n, size in sizes.items() if n != "README.md"}, {})
        written = _write_components(task, mixture, base, folder, settings)
        about = {"date": task.date, "licence": task.licence}
        write_about(folder, base, mixture, task.provenance, task.title, task.form, **about)
        files = {file.name: file for file in folder.iterdir() if file.is_file()}
        sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
        exported = _exported(task, mixture, base, sizes, written)
        (folder / "README.md").write_text(task.card, encoding="utf-8")
        (folder / RECORD).write_text(exported.model_dump_json(indent=1), encoding="utf-8")
        files |= {name: folder / name for name in ("README.md", RECORD)}
        publish(files, store, task.prefix, main=RECORD, beside=beside)
        return exported


def _write_components(
    task: ExportTask, mixture: Mixture, base: Path, folder: Path, settings: StorageSettings
) -> dict[str, Written]:
    """A file for each component that is no unedited model, by its label; none for operators, which are in one file."""
    if task.form == "operator":
        return {}
    spec = spec_of(base, task.title, date=task.date, license=task.licence)
    header = file_header(HEADERS[task.form], spec, task.provenance)
    unet = denoiser_folder(base)
    written: dict[str, Written] = {}
    dtype: torch.dtype | None = None if task.dtype is None else getattr(torch, task.dtype)
    single = base_file_of(task, folder / "fetched", settings) if task.form == "single-file" else None
    for component in mixture.components:
        if component.is_identity:
            continue
        label, operator = component.label, component.operator
        out, own = folder / component_place(task.form, label), component_header(header, label, mixture.digest)
        if single is not None:
            written[label] = write_single_file(single, operator, out, own, unet_folder=unet)
        elif task.form == "tensors":
            written[label] = write_tensors(unet, operator, out, own)
        else:
            written[label] = write_lora(unet, operator, out, own, rank=task.rank, error=task.error, dtype=dtype)
    if task.form == "lora":
        low = _low_rank(mixture, unet, written)
        told = mixture_header(base, low, task.provenance, task.title, task.date, task.licence)
        write_mixture_file(low, folder / LOW_RANK_FILE, told)
    return written


def _low_rank(mixture: Mixture, unet: Path, written: Mapping[str, Written]) -> Mixture:
    """The mixture of what each LoRA keeps of its operator."""

    def cut(operator: EditOperator, lora: Written | None) -> EditOperator:
        return low_rank_operator(unet, operator, lora) if isinstance(lora, LoraWritten) else operator

    components = tuple(replace(c, operator=cut(c.operator, written.get(c.label))) for c in mixture.components)
    return Mixture(components, mixture.table)


def _exported(
    task: ExportTask, mixture: Mixture, base: Path, sizes: Mapping[str, int], written: Mapping[str, Written]
) -> Exported:
    errors = {label: errors_of(each) for label, each in written.items() if isinstance(each, LoraWritten)}
    tensors = [each.tensors for each in written.values()] or [
        len(open_denoiser(denoiser_folder(base), d=mixture.d, pooled=mixture.pooled_d).names)
    ]
    return Exported(
        form=task.form,
        run=task.provenance.run,
        verdict=task.provenance.verdict,
        forced=task.provenance.forced,
        pipeline=pipeline_of(base),
        tensors=max(tensors),
        files=dict(sizes),
        components=[
            ExportedComponent(
                label=component.label,
                weight=weight,
                place=None if component.is_identity else component_place(task.form, component.label),
                **errors.get(component.label, {}),
            )
            for component, weight in zip(mixture.components, mixture.table.default, strict=True)
        ],
        **{name: max(each[name] for each in errors.values()) for name in next(iter(errors.values()), {})},
    )
