"""An edited single file, for programs that read no diffusers folder: the base model's own, its projections replaced.

Nothing is converted. Every tensor that the edit does not touch keeps its bytes, its name and its place, as do the
header's own entries; of the edited ones only the values change. A running average that training left in the file
(`model_ema.`) is edited as well, each from its own values, as some programs load that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.exports.forms.writing import Edits, Written, edited_pieces, write_safetensors
from jobs.models.names import ORIGINAL, POOLED_ORIGINAL, ema_twin, family_of, original_names
from jobs.models.sources import DenoiserSource, SafetensorsSource, open_edited, open_safetensors
from time_ops import EditOperator, ModelError

__all__ = ["SingleFileWritten", "write_single_file"]

_PROJECTION = re.compile(re.escape(ORIGINAL) + r".+\.attn2\.to_([kv])\.weight")
_KNOWN = {32: "SD 1.x and 2.x", 140: "SDXL"}
# Digests of the tensors as they were.
_STALE = ("modelspec.hash_", "sshs_")


@dataclass(frozen=True)
class SingleFileWritten(Written):
    """A single file that was written.

    Attributes:
        averages: how many of its edited tensors are of the running average.
    """

    averages: int


def write_single_file(
    base_file: Path,
    operator: EditOperator,
    out: Path,
    header: Mapping[str, str],
    *,
    unet_folder: Path | None = None,
    expected: int | None = None,
) -> SingleFileWritten:
    """Write the edited form of a base model's single file. Memory: one weight.

    Args:
        base_file: the base model's .safetensors in the original layout; of SD3 and FLUX it may be the transformer's.
        operator: the edit.
        out: where; not the base file.
        header: see `jobs.exports.forms.header`. It is added to the base file's own, and wins where both have a key.
        unet_folder: `unet/` or `transformer/` of the diffusers folder that was audited, which SD3 and FLUX need. With
            it, the file's layers, or those of its running average, must be the folder's own.
        expected: projections that must be there; None: as many as the folder has, or as SD 1.x, 2.x or SDXL have.

    Raises:
        ModelError: no such file, another model's file, or one whose edited weights overflow or do not change.
        StorageError: the disk is full, or the place can't be written to.
    """
    source = open_safetensors(base_file)
    if out.exists() and out.samefile(base_file):
        raise ModelError(f"{out.name} is the base file itself; give another name")
    unet = None if unet_folder is None else open_edited(unet_folder, operator)
    if unet is not None and family_of(unet.config) in ("sd3", "flux"):
        names = _joint_names(source, unet)
        projections, twins = list(names.values()), []
        _check_base(source, unet, names, averaged=False)
    else:
        projections = [*_projections(source, operator, unet, expected), *_pooled(source, operator)]
        twins = _twins(source, projections)
        if unet is not None:
            _check_base(source, unet, original_names(unet.config, unet.names), averaged=bool(twins))
    touched = {*projections, *twins}
    edits = Edits(operator)

    def pieces() -> Iterator[bytes | memoryview]:
        yield from edited_pieces(source, touched, edits)
        edits.check()

    kept = {key: value for key, value in source.metadata.items() if not key.startswith(_STALE)}
    size = write_safetensors(out, list(source.entries.values()), pieces(), {**kept, **header})
    return SingleFileWritten(out, size, len(touched), len(twins))


def _projections(
    source: SafetensorsSource, operator: EditOperator, unet: DenoiserSource | None, expected: int | None
) -> list[str]:
    matches = [match for match in map(_PROJECTION.fullmatch, source.entries) if match]
    projections = [m.string for m in matches if m[1] == "v" or not operator.values_only]
    name = source.path.name
    if not projections:
        raise ModelError(
            f"{name} has no cross-attention under its original names ({ORIGINAL}...attn2.to_k.weight): it is no single "
            "file of SD 1.x, 2.x or SDXL. A diffusers folder is exported as one"
        )
    if unet is not None:
        expected = len(unet.token_names)
    half = 2 if operator.values_only else 1
    if len(projections) != expected if expected is not None else len(projections) * half not in _KNOWN:
        known = " or ".join(f"{count // half} ({kind})" for count, kind in _KNOWN.items())
        raise ModelError(f"{name} has {len(projections)} projections that read the text, not {expected or known}")
    wrong = [n for n in projections if source.entries[n].shape[1:] != (operator.d,)]
    if wrong:
        shape = list(source.entries[wrong[0]].shape)
        raise ModelError(
            f"{name} is not the operator's base model: {wrong[0]} has shape {shape}, the operator width {operator.d}"
        )
    return projections


def _joint_names(source: SafetensorsSource, transformer: DenoiserSource) -> dict[str, str]:
    """What the file calls the layers of SD3 or FLUX that read the text, by diffusers' names.

    Files of a whole model have the original code's prefix, those of a transformer alone have none.
    """
    plain = original_names(transformer.config, transformer.names)
    prefix = "" if all(name in source.entries for name in plain.values()) else ORIGINAL
    names = {name: prefix + original for name, original in plain.items()}
    missing = [original for original in names.values() if original not in source.entries]
    if missing:
        raise ModelError(
            f"{source.path.name} has no {missing[0]}, with the original code's prefix or without: it is no single "
            f"file of the {transformer.config.get('_class_name')} that was audited"
        )
    return names


def _pooled(source: SafetensorsSource, operator: EditOperator) -> list[str]:
    """The weight that reads the pooled embedding, where the operator edits that."""
    if operator.pooled is None:
        return []
    entry = source.entries.get(POOLED_ORIGINAL)
    if entry is None or len(entry.shape) != 2 or entry.shape[1] < operator.pooled.d:
        shape = "is missing" if entry is None else f"has shape {list(entry.shape)}"
        raise ModelError(
            f"{source.path.name} is not the operator's base model: {POOLED_ORIGINAL} {shape}, and the edit changes "
            f"pooled embeddings of width {operator.pooled.d}"
        )
    return [POOLED_ORIGINAL]


def _twins(source: SafetensorsSource, projections: list[str]) -> list[str]:
    """Of the running average: all, or none where there is no average."""
    twins = [twin for twin in map(ema_twin, projections) if twin in source.entries]
    if twins and len(twins) != len(projections):
        raise ModelError(
            f"{source.path.name} has a running average of {len(twins)} of {len(projections)} projections: it is "
            "incomplete; take a file with all of it, or with none"
        )
    return twins


def _check_base(source: SafetensorsSource, unet: DenoiserSource, names: Mapping[str, str], *, averaged: bool) -> None:
    differing = _differing(source, unet, names)
    # The folders of some models were made from the average.
    if differing and averaged:
        differing = min(differing, _differing(source, unet, {n: ema_twin(o) for n, o in names.items()}), key=len)
    if differing:
        raise ModelError(
            f"{source.path.name} is not the base model of this edit: {len(differing)} of {len(names)} projections "
            f"differ from the diffusers folder that was audited, {differing[0]} first. Take the file of the same "
            "model, or audit this one"
        )


def _differing(source: SafetensorsSource, unet: DenoiserSource, names: Mapping[str, str]) -> list[str]:
    return [
        name
        for name, original in names.items()
        if original not in source.entries or not _equal(source.read(original), unet.read(name))
    ]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; in different dtypes, to one step of the coarser."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    coarser = max((torch.finfo(t.dtype) for t in (one, other)), key=lambda info: info.eps)
    smallest = max(torch.finfo(t.dtype).smallest_normal for t in (one, other))
    return torch.allclose(one.double(), other.double(), rtol=coarser.eps, atol=coarser.eps * smallest)
