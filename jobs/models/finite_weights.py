"""Whether stored weights are finite, read piece by piece: no file is held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jobs.models.files import (
    safetensors_header,
    weight_files,
)
from jobs.models.listing import are, some

__all__ = ["header_and_end", "infinite_tensors"]

_READ_BYTES = 1 << 24


# What NaN and infinities have in common: all bits of the exponent are set.
_EXPONENTS = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}


def header_and_end(file: Path) -> tuple[dict[str, Any], int]:
    """A file's tensors by name, and where their bytes begin."""
    # Opened by the library first: it refuses headers that lie about the file.
    with safe_open(file, "np"), file.open("rb") as stream:
        header, data_at = safetensors_header(stream)
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, data_at


def infinite_tensors(part: Path, name: str) -> Iterator[str]:
    """One fault for each of a part's files that holds NaN or infinities, or can't be read; `name` is the part's."""
    for file in weight_files(part):
        try:
            bad = _not_finite(file)
        except (OSError, SafetensorError) as error:
            yield f"{file.name} can't be read: {error}"
            continue
        if bad:
            where = f"{name}/{file.name}" if name else file.name
            yield f"{where}: {some(bad)} {are(bad)} not finite (NaN or infinity)"


def _not_finite(file: Path) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    bad = []
    header, data_at = header_and_end(file)
    with file.open("rb") as stream:
        for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
            if entry["dtype"] not in _EXPONENTS:
                continue
            kind, exponent = _EXPONENTS[entry["dtype"]]
            begin, end = entry["data_offsets"]
            stream.seek(data_at + begin)
            for at in range(begin, end, _READ_BYTES):
                words = np.frombuffer(stream.read(min(_READ_BYTES, end - at)), kind)
                if bool(((words & exponent) == exponent).any()):
                    bad.append(name)
                    break
    return sorted(bad)
