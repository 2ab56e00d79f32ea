"""What is wrong with a manifest: one `Fault` per finding, one `ManifestError` for all of them.

Both pickle, because they cross Ray between the driver and its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Fault", "ManifestError", "in_order"]

_SHOWN = 1_000
"""Faults that a message lists; `ManifestError.faults` has all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One finding in a manifest, worded so that its author can mend it."""

    row: int | None
    """Data row, counted from 1 without the header; None for a finding about the file or a whole column."""
    column: str | None
    """Column that holds it; None when it concerns the row or the file."""
    message: str
    """What is wrong and what to do."""
    line: int | None = None
    """Line of the file on which the row starts, counted from 1 with the header; CSV only."""

    @property
    def place(self) -> str:
        """Where it is, in words: "row 3 (line 4), column 'lam'"."""
        parts = []
        if self.row is not None:
            parts.append(f"row {self.row}" if self.line is None else f"row {self.row} (line {self.line})")
        elif self.line is not None:
            parts.append(f"line {self.line}")
        if self.column is not None:
            parts.append(f"column {self.column!r}")
        return ", ".join(parts) or "file"

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Findings about the file first, then by row; each once."""
    return tuple(sorted(dict.fromkeys(faults), key=lambda fault: (fault.row is not None, fault.row or 0)))


class ManifestError(ValueError):
    """A manifest that can't be used, with every fault that was found in it."""

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.name = name
        self.faults = in_order(faults)
        super().__init__(name, self.faults)

    def __str__(self) -> str:
        count = len(self.faults)
        lines = [f"{self.name}: {count} {'fault' if count == 1 else 'faults'} to mend"]
        lines += map(str, self.faults[:_SHOWN])
        if count > _SHOWN:
            lines.append(f"and {count - _SHOWN:,} more")
        return "\n  ".join(lines)
