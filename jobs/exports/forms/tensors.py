"""The edited layers alone, under diffusers' names.

unet.load_state_dict(safetensors.torch.load_file("tensors.safetensors"), strict=False)    # of SD3 and FLUX transformer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs.exports.forms.writing import Edits, Written, entries_of, tensor_bytes, write_safetensors
from jobs.models.sources import DTYPES, open_edited
from time_ops import EditOperator

__all__ = ["write_tensors"]


def write_tensors(unet_folder: Path, operator: EditOperator, out: Path, header: Mapping[str, str]) -> Written:
    """Write the 32 (SD 1.x, 2.x), 141 (SDXL) or 2 (SD3, FLUX) edited weights, in their dtype. Memory: one weight.

    Args:
        unet_folder: `unet/` or `transformer/` of the base model's diffusers folder.
        operator: the edit.
        out: where.
        header: see `jobs.exports.forms.header`.

    Raises:
        ModelError: the base model can't be edited, or its edited weights overflow or do not change.
        StorageError: the disk is full, or the place can't be written to.
    """
    unet = open_edited(unet_folder, operator)
    entries = entries_of((name, DTYPES[unet.entry(name).dtype], unet.entry(name).shape) for name in unet.names)
    edits = Edits(operator)

    def pieces() -> Iterator[memoryview]:
        for entry in entries:
            yield tensor_bytes(edits(entry.name, unet.read(entry.name)))
        edits.check()

    return Written(out, write_safetensors(out, entries, pieces(), header), len(entries))
