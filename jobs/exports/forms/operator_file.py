"""The operator itself, for those who would rather transform embeddings than keep edited weights, and its loader.

The loader is `load_operator.py` of this folder, copied as it is: it needs torch, safetensors and diffusers only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch

from jobs.exports.forms.writing import Written, entries_of, tensor_bytes, write_file, write_safetensors
from time_ops import EditError, EditOperator

__all__ = ["LOADER", "check_transform", "write_loader", "write_operator"]

LOADER = "load_operator.py"
"""Name of the loader beside an operator's file."""


def write_operator(operator: EditOperator, out: Path, header: Mapping[str, str]) -> Written:
    """Write it in float64; `EditOperator.load` reads it too.

    Raises:
        StorageError: the disk is full, or the place can't be written to.
    """
    own = _own_header(operator.to_bytes())
    tensors = {"matrix": operator.matrix} | ({} if operator.pooled is None else {"pooled": operator.pooled.matrix})
    entries = entries_of((name, torch.float64, tuple(matrix.shape)) for name, matrix in tensors.items())
    size = write_safetensors(out, entries, [tensor_bytes(tensors[e.name]) for e in entries], {**own, **header})
    return Written(out, size, len(tensors))


def check_transform(operator: EditOperator) -> None:
    """Refuse an operator that embeddings can't pass through.

    Raises:
        EditError: it is values-only.
    """
    if operator.values_only:
        raise EditError(
            "a values-only operator is no transform of the embeddings, as keys read them unchanged: "
            "export a checkpoint, a LoRA or the tensors"
        )


def write_loader(out: Path) -> Written:
    """Write the loader.

    Raises:
        StorageError: as for `write_operator`.
    """
    return Written(out, write_file(out, files("jobs.exports.forms").joinpath(LOADER).read_bytes()), 0)


def _own_header(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    header: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return header
