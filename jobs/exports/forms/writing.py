"""Writing safetensors files: byte for byte the same each time, one tensor in memory, whole or not at all.

The library's own writer keeps metadata in the order of a randomly seeded hash, so the same file written twice differs.
Here a header is written in a fixed order. The bytes go to a hidden file beside, which is renamed once it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from infra.storage import StorageError
from jobs.models.names import is_pooled
from jobs.models.sources import DTYPES, Entry, SafetensorsSource
from time_ops import EditOperator, ModelError

__all__ = [
    "Edits",
    "Written",
    "edited_pieces",
    "entries_of",
    "scratch_folder",
    "tensor_bytes",
    "write_file",
    "write_safetensors",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HASH = "modelspec.hash_sha256"
_UNKNOWN = "0x" + "0" * 64
_ALIGNED = 8
_CHUNK_BYTES = 8 << 20
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: where.
        size_bytes: its size.
        tensors: how many edited tensors it holds; of a LoRA, for how many layers.
    """

    path: Path
    size_bytes: int
    tensors: int


class Edits:
    """An operator at work on one weight after the other, watching what comes of it."""

    def __init__(self, operator: EditOperator) -> None:
        self._operator = operator
        self._changed = False
        self._identity = operator.is_identity

    def __call__(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Edit one weight, [out, d], in its own dtype; by its name one that reads the pooled embedding, [out, in].

        Raises:
            ModelError: the edited weight overflows its dtype.
        """
        edited = (self._operator.edited_pooled if is_pooled(name) else self._operator.edited)(weight)
        if not bool(torch.isfinite(edited).all()):
            raise ModelError(f"the edited {name} is not finite in {weight.dtype}")
        self._changed |= not torch.equal(edited, weight)
        return edited

    def check(self) -> None:
        """Call once all are edited.

        Raises:
            ModelError: no weight changed although the operator is not the identity.
        """
        if not self._changed and not self._identity:
            raise ModelError("no weight changed: the edit is below the resolution of the weights' dtype. Lower lam")


def entries_of(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> list[Entry]:
    """Lay tensors out in a file: wide dtypes first, so that all are aligned, then by name."""
    entries, at = [], 0
    for name, dtype, shape in sorted(tensors, key=lambda t: (-t[1].itemsize, t[0])):
        end = at + dtype.itemsize * torch.Size(shape).numel()
        entries.append(Entry(name, _DTYPE_NAMES[dtype], shape, at, end))
        at = end
    return entries


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, as the format stores them."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def edited_pieces(
    source: SafetensorsSource, touched: Collection[str], edit: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[bytes | memoryview]:
    """Yield a file's tensors by offset, those named in `touched` edited; memory: one weight.

    Raises:
        ModelError: as `edit`, or the file has changed since it was opened.
    """
    with source.path.open("rb") as stream:
        for entry in sorted(source.entries.values(), key=lambda e: e.begin):
            if entry.name in touched:
                yield tensor_bytes(edit(entry.name, source.read(entry.name)))
                continue
            stream.seek(source.data_at + entry.begin)
            for at in range(entry.begin, entry.end, _CHUNK_BYTES):
                wanted = min(_CHUNK_BYTES, entry.end - at)
                data = stream.read(wanted)
                if len(data) != wanted:
                    raise ModelError(f"{source.path.name}: it has become shorter since it was opened")
                yield data


def write_safetensors(
    out: Path, entries: Sequence[Entry], pieces: Iterable[bytes | memoryview], metadata: Mapping[str, str]
) -> int:
    """Write a file.

    Args:
        out: where; a file there is replaced once the new one is whole.
        entries: its tensors, in the header's order; their offsets leave no gap.
        pieces: all their bytes, by offset; may raise, and then nothing is written.
        metadata: for the header, where keys are sorted. The ModelSpec hash of the tensors' bytes is added.

    Returns:
        The file's size in bytes.

    Raises:
        StorageError: the disk is full, or the place can't be written to.
        ValueError: the pieces are more or fewer bytes than the entries say.
    """
    total = max((entry.end for entry in entries), default=0)

    def header(digest: str) -> bytes:
        described: dict[str, Any] = {"__metadata__": dict(sorted({**metadata, "format": "pt", _HASH: digest}.items()))}
        for e in entries:
            described[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
        text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return len(text).to_bytes(8, "little") + text

    def chunks(stream: BinaryIO) -> None:
        sha, size = hashlib.sha256(), 0
        # The digest is known at the end only; until then one of the same length stands in the header.
        stream.write(header(_UNKNOWN))
        for piece in pieces:
            stream.write(piece)
            sha.update(piece)
            size += len(piece)
        if size != total:
            raise ValueError(f"{size} bytes were given for tensors of {total}")
        stream.seek(0)
        stream.write(header("0x" + sha.hexdigest()))

    return _write_whole(out, chunks)


def write_file(out: Path, data: bytes) -> int:
    """Write a small file whole; returns its size in bytes.

    Raises:
        StorageError: as for `write_safetensors`.
    """
    return _write_whole(out, lambda stream: stream.write(data))


def _write_whole(out: Path, write: Callable[[BinaryIO], object]) -> int:
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        size = beside.stat().st_size
        beside.replace(out)
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{out.name} can't be written: the disk is full ({error.strerror}). Nothing was left behind; "
                "free some space, or export to another disk"
            ) from error
        raise StorageError(f"{out.name} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()
    return size


@contextmanager
def scratch_folder(folder: Path | None) -> Iterator[Path]:
    """A folder for the time of the block, in `folder`; None: in the usual place.

    Raises:
        StorageError: there can be none, or the disk is full.
    """
    made = None
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="evenhand-", dir=folder))
        yield made
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"the edited files can't be kept on this node until they are sent: {error.strerror or error}. Free some "
            "space, or set EVENHAND_CACHE to a folder with more",
            "" if made is None else made.as_posix(),
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
