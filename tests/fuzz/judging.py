"""What every reader is held to, whatever it is given: a value or one of the project's own errors, in bounded time and
memory, and nothing written.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from jobs.errors import ExitCode, exit_code_of

__all__ = ["FIGURES", "MEMORY_BYTES", "PER_BYTE", "SECONDS", "judged", "untouched"]

T = TypeVar("T")

SECONDS = 2.0
"""CPU time of one input at most; a reader that sleeps is stopped by pytest's own timeout."""
MEMORY_BYTES = 384 << 20
PER_BYTE = 16
"""Memory of one input at most: `MEMORY_BYTES`, and so many bytes for each of its own."""
MESSAGE_CHARACTERS = 300_000
"""Of a refusal: a thousand faults of a manifest."""
DOCUMENTED = {ExitCode.INPUT, ExitCode.MODEL, ExitCode.STORAGE, ExitCode.LEASE_HELD}


@dataclass
class Figures:
    """Of one kind of input."""

    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    peak_bytes: int = 0


FIGURES: dict[str, Figures] = {}


def judged(
    kind: str, read: Callable[[], T], *, says: str = "", size: int = 0, also: tuple[type[Exception], ...] = ()
) -> T | None:
    """What a reader makes of one input; None where it refuses.

    Args:
        kind: for the figures.
        read: the reader, with its input.
        says: what the message of a refusal names: the file or the key.
        size: of the input, in bytes.
        also: errors that the reader's callers turn into another input, a shard that is made again say.
    """
    figures = FIGURES.setdefault(kind, Figures())
    figures.inputs += 1
    found, message = None, says
    before = _reset_peak()
    begun = time.process_time()
    try:
        found = read()
        figures.accepted += 1
    except Exception as error:
        code = exit_code_of(error)
        if code not in DOCUMENTED and not isinstance(error, also):
            raise
        figures.refused[type(error).__name__ if code is None else f"exit {int(code)}"] += 1
        message = str(error)
    spent, peak = time.process_time() - begun, max(0, _peak() - before)
    figures.longest_s, figures.peak_bytes = max(figures.longest_s, spent), max(figures.peak_bytes, peak)
    assert says in message, f"the message does not name {says!r}: {message[:500]}"
    assert len(message) <= MESSAGE_CHARACTERS, f"a message of {len(message):,} characters"
    assert spent <= SECONDS, f"took {spent:.1f} s of CPU"
    allowed = MEMORY_BYTES + PER_BYTE * size
    assert peak <= allowed, f"took {peak >> 20} MiB, {allowed >> 20} are allowed"
    return found


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Hold the block to writing nothing that stays below these folders."""
    before = _snapshot(folders)
    yield
    assert _snapshot(folders) == before


def _snapshot(folders: tuple[Path, ...]) -> dict[str, tuple[int, int]]:
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            stat = path.lstat()
            # A folder's own time moves where a scratch file came and went.
            found[str(path)] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> int:
    """Set the peak of resident memory back to what is resident now, and return that."""
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123 - the kernel's file takes one write
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


if not os.access("/proc/self/clear_refs", os.W_OK):  # no Linux: time and errors are still held
    _reset_peak = _peak = lambda: 0  # type: ignore[assignment]
