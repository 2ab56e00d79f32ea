"""What rows are read into, which columns a kind of file has, and how much of one is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from manifests.errors import Fault

__all__ = [
    "MOST_BYTES",
    "MOST_COLUMNS",
    "MOST_FAULTS",
    "MOST_ROWS",
    "Columns",
    "Layout",
    "RawRow",
    "is_enough",
    "is_nameless",
]

MOST_BYTES = 32 << 20
MOST_ROWS = 200_000
MOST_COLUMNS = 1_000
MOST_FAULTS = 20_000
"""So many are collected; whoever has mended those reads the file again."""

Columns = Callable[[Sequence[str], list[Fault], int | None], list[str]]
"""The usable ones of the columns found, given also the header's line; what is wrong with the others is appended."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the file holds it, unchecked."""

    number: int
    """From 1, the header not counted."""
    line: int | None
    """The file's line on which it starts; None for Parquet."""
    cells: dict[str, object]
    """By column; only the columns that can be used."""


def is_nameless(column: str) -> bool:
    """Whether a column is a spreadsheet's spacer or a data frame's index: no name, or the one that pandas makes up."""
    return not column.strip() or column.startswith("Unnamed:")


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of file: which columns it has."""

    noun: str
    columns: Columns
    numbers: frozenset[str] = frozenset()
    """Columns of numbers; all others hold text."""
    sparse: bool = False
    """Whether a column of text may be empty from end to end."""
    optional: tuple[str, ...] = ()
    """Columns that a file may leave out: their cells are then null."""

    def usable(self, columns: Sequence[str], faults: list[Fault], line: int | None) -> list[str]:
        """The columns that can be used of those found; what is wrong with the others is appended to `faults`."""
        if len(columns) > MOST_COLUMNS:
            faults.append(Fault(None, None, f"has {len(columns):,} columns, {MOST_COLUMNS:,} are read at most", line))
            return []
        return self.columns(columns, faults, line)

    def absent(self, columns: Collection[str]) -> dict[str, object]:
        """The cells of every row in columns that the file has left out."""
        return dict.fromkeys(column for column in self.optional if column not in columns)


def is_enough(number: int, faults: list[Fault], more: int = 0) -> bool:
    """Whether to read no further: there are too many rows, which is a fault, or faults.

    Args:
        number: of the row that comes next.
        faults: found so far; that reading has ended is appended.
        more: faults that are kept elsewhere.
    """
    if number > MOST_ROWS:
        faults.append(Fault(None, None, f"has more than {MOST_ROWS:,} rows; split it"))
        return True
    if len(faults) + more >= MOST_FAULTS + 1:
        faults.append(Fault(None, None, f"has so many faults that it is read no further than row {number - 1}"))
        return True
    return False
