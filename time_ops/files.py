"""What the project's safetensors files share: their header's metadata, and writing that leaves no half file behind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["header_of", "json_of", "write_beside"]

_PREFIX = 8


def json_of(data: bytes | str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is none, or nested so deeply that Python gives up on it.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def header_of(data: bytes) -> Mapping[str, str]:
    """A safetensors file's metadata, read from its bytes; empty where it has none.

    Raises:
        ValueError: the bytes are no such file.
    """
    size = int.from_bytes(data[:_PREFIX], "little")
    if len(data) < _PREFIX + size:
        raise ValueError("the header is cut short")
    content = json_of(data[_PREFIX : _PREFIX + size])
    if not isinstance(content, dict):
        raise ValueError("the header is no mapping")
    metadata = content.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("the header's metadata is no mapping")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the header's metadata is not all text")
    return metadata


def write_beside(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file beside its place, then rename it; its folder is made where missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target
