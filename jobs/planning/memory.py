"""What a model's weights take of each worker's memory, by the headers of its files. Without torch."""

from __future__ import annotations

from math import prod
from pathlib import Path

from jobs.models.files import components_of, safetensors_header, weight_files
from jobs.planning.schema import MemoryEstimate

__all__ = ["memory_of"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def memory_of(folder: Path, dtype: str, *, safety_checker: bool = True) -> MemoryEstimate:
    """Bytes of a pipeline's weights on each worker, and of what is beside them while prompts are encoded.

    Args:
        folder: a staged pipeline that `jobs.models.kinds.check_kind` has passed.
        dtype: that it runs in.
        safety_checker: whether that is loaded.
    """
    numbers = {name: _numbers(folder / name) for name in components_of(folder, safety_checker=safety_checker)}
    encoders = sum(count for name, count in numbers.items() if name.startswith("text_encoder"))
    # Prompts are encoded in float32, once each; the encoders' own weights stay where they are.
    beside = 0 if dtype == "float32" else _BYTES["float32"] * encoders
    return MemoryEstimate(weights_bytes=_BYTES[dtype] * sum(numbers.values()), encoding_bytes=beside)


def _numbers(part: Path) -> int:
    total = 0
    for file in weight_files(part):
        with file.open("rb") as stream:
            header, _ = safetensors_header(stream)
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
