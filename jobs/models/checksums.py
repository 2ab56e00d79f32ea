"""SHA256SUMS: what a published folder holds, in the format of `sha256sum`, and the check that its readers make.

sha256sum -c SHA256SUMS          # the same check, without any of this
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from infra.storage import InvalidKey, check_key
from time_ops.errors import ModelError

__all__ = ["CHECKSUMS", "checksums_text", "parse_checksums", "sha256_of", "verify_folder"]

CHECKSUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_WEIGHTS = ".safetensors"


def sha256_of(path: Path) -> str:
    """Digest of a file in hex, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksums_text(digests: Mapping[str, str]) -> str:
    """The text of SHA256SUMS for files by their names below the folder, sorted."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def parse_checksums(text: str) -> dict[str, str]:
    """Digests by file names.

    Raises:
        ModelError: a line is none of `sha256sum`, or names a file outside the folder.
    """
    digests = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        try:
            digests[check_key(match[2] if match else "")] = match[1] if match else ""
        except InvalidKey as error:
            raise ModelError(f"{CHECKSUMS}, line {number}, is no checksum of a file in its folder") from error
    return digests


def verify_folder(folder: Path, called: str) -> None:
    """Check a folder against its SHA256SUMS; one that has none passes.

    Args:
        folder: the folder.
        called: what to call it in the error: its URL.

    Raises:
        ModelError: a file is missing or other than it was published, or there are weights that were not; all named.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return
    digests = parse_checksums(sums.read_text(encoding="utf-8", errors="replace"))
    faults = [
        f"{name} {'differs from its checksum' if (folder / name).is_file() else 'is missing'}"
        for name, digest in digests.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != digest
    ]
    weights = {file.relative_to(folder).as_posix() for file in folder.rglob(f"*{_WEIGHTS}")}
    faults += [f"{name} is not among the files that were published" for name in sorted(weights - set(digests))]
    if faults:
        raise ModelError.listing(f"{called} is not as it was published (by its {CHECKSUMS}); publish it again:", faults)
