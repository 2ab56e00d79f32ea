"""What a model is known by: a digest of its tensors and of what decides how they are used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jobs.models.files import safetensors_header
from time_ops.errors import ModelError
from time_ops.files import json_of

__all__ = ["content_digest"]

_READ_BYTES = 1 << 20
_TEXT_SUFFIXES = (".json", ".txt", ".model")
_VARIANTS = (".fp16", ".bf16", ".non_ema", ".ema")
# Written by the library that saved the folder; they say nothing of the model.
_PROVENANCE_KEYS = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")


def content_digest(folder: Path) -> str:
    """sha256 over a model's tensors and configuration: the same wherever and under whatever name the model lies.

    Hashed are tensor names, dtypes, shapes and bytes in the order of their names, however the files are split, and
    configuration and tokenizer files without the lines that the saving library adds.

    Raises:
        ModelError: a file is truncated or not safetensors.
    """
    sha = hashlib.sha256()
    for part in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
        name = part.relative_to(folder).as_posix()
        if any(piece.startswith(".") for piece in part.relative_to(folder).parts):
            continue
        for file in sorted(p for p in part.iterdir() if p.suffix in _TEXT_SUFFIXES):
            if not file.name.endswith(".index.json"):
                sha.update(f"{name}/{file.name}\0".encode() + _text_content(file) + b"\0")
        _hash_tensors(name, sorted(part.glob("*.safetensors")), sha)
    return sha.hexdigest()


def _text_content(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".json":
        try:
            content = json_of(data)
        except ValueError as error:
            raise ModelError(f"{file.name} is not JSON: {error}") from error
        if isinstance(content, dict):
            content = {k: v for k, v in content.items() if k not in _PROVENANCE_KEYS}
        return json.dumps(content, sort_keys=True).encode()
    return data


def _hash_tensors(component: str, files: list[Path], sha: Any) -> None:
    default = [f for f in files if not any(v in f.name for v in _VARIANTS)]
    where: dict[str, tuple[Path, dict[str, Any], int]] = {}
    for file in default or files:
        try:
            # Opened by the library first: it refuses headers that lie about the file.
            with safe_open(file, "np"), file.open("rb") as stream:
                header, data_at = safetensors_header(stream)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{component}/{file.name} can't be read: {error}; fetch the model again") from error
        where |= {name: (file, entry, data_at) for name, entry in header.items() if name != "__metadata__"}
    for name in sorted(where):
        file, entry, data_at = where[name]
        sha.update(f"{component}:{name}:{entry['dtype']}:{tuple(entry['shape'])}\0".encode())
        begin, end = entry["data_offsets"]
        with file.open("rb") as stream:
            stream.seek(data_at + begin)
            left = end - begin
            while left:
                piece = stream.read(min(left, _READ_BYTES))
                if not piece:
                    raise ModelError(f"{component}/{file.name} can't be read: it ends early; fetch the model again")
                sha.update(piece)
                left -= len(piece)
