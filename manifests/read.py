"""Read a manifest from Parquet or CSV and check it, reporting every fault at once.

    manifest = read_manifest(Path("professions.parquet"), name="professions.parquet", labels=["female", "male"])

`iter_rows` streams: Parquet by row groups in batches, CSV by lines, so only what the checks between rows need is kept.
How much of a file is read is bounded, see `manifests.layout` and `manifests.parquet_size`.
Files are taken as tools write them: with a data frame's index, without columns that may be empty, with commas,
semicolons or tabs between the cells.
"""

from __future__ import annotations

import csv
import difflib
import io
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from manifests.check import RowChecker
from manifests.errors import Fault, ManifestError
from manifests.layout import MOST_BYTES, MOST_ROWS, Columns, Layout, RawRow, is_enough, is_nameless
from manifests.parquet import parquet_rows
from manifests.schema import COLUMNS, TEXT_COLUMNS, Manifest

__all__ = ["Columns", "Layout", "PromptChecker", "RawRow", "check_with", "is_nameless", "iter_rows", "read_manifest"]

PromptChecker = Callable[[Sequence[tuple[int, str, str]]], Iterable[Fault]]
"""Checks (row, source, destination) of all rows against something that this package does not know, a tokenizer say."""

_PARQUET_MAGIC = b"PAR1"
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_FORMATS = {
    b"PARE": "an encrypted Parquet file",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"PK\x03\x04": "a spreadsheet or a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}


def read_manifest(
    source: Path | str | bytes,
    *,
    name: str | None = None,
    labels: Collection[str] | None = None,
    checker: PromptChecker | None = None,
) -> Manifest:
    """Read and check a whole manifest.

    Args:
        source: a local file, or a file's content.
        name: what messages call it; default: the file's path.
        labels: the run's attribute labels; None: any label will do.
        checker: a further check of the prompts; its faults are reported together with the others.

    Raises:
        ManifestError: with every fault found, for any content whatever.
        OSError: the file itself can't be read.
    """
    if name is None:
        name = "manifest" if isinstance(source, bytes) else str(source)
    faults: list[Fault] = []
    rows = RowChecker(labels)
    for raw in iter_rows(source, faults=faults):
        rows.add(raw.number, raw.line, raw.cells)
        if is_enough(raw.number, faults, rows.faults):
            break
    faults += rows.finish()
    if rows.count == 0 and not faults:
        faults.append(Fault(None, None, "has no rows; give at least one profession with one destination"))
    if checker is not None:
        lines = {row: line for (row, _, _), line in zip(rows.prompts, rows.lines, strict=True)}
        faults += [replace(fault, line=lines.get(fault.row or 0)) for fault in checker(rows.prompts)]
    if faults:
        raise ManifestError(name, faults)
    lines_known = tuple(line for line in rows.lines if line is not None)
    return Manifest(tuple(rows.rows), name, lines_known or None)


def check_with(manifest: Manifest, checker: PromptChecker) -> None:
    """Check a manifest that was read already against something more, such as a model's tokenizer.

    Raises:
        ManifestError: with every fault that the checker yields.
    """
    faults = [replace(fault, line=manifest.line_of(fault.row or 0)) for fault in checker(list(manifest.prompts()))]
    if faults:
        raise ManifestError(manifest.name, faults)


def iter_rows(source: Path | str | bytes, *, faults: list[Fault], layout: Layout | None = None) -> Iterator[RawRow]:
    """Stream the rows of a Parquet or CSV file, told apart by content.

    What is wrong with the file or with a whole column is appended to `faults`, with no row; a column that can't be used
    is left out of the rows, so that the others are still checked. A row that can't be taken apart is left out, with a
    fault of its own.

    Args:
        source: a local file, or a file's content.
        faults: what is wrong is appended here.
        layout: the columns to be read; default: a manifest's.
    """
    layout = layout or MANIFEST
    suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(8)
        stream.seek(0)
        format_name = next((what for magic, what in _FORMATS.items() if head.startswith(magic)), None)
        if not head:
            faults.append(Fault(None, None, "is empty; give Parquet, or CSV with a header"))
        elif format_name:
            faults.append(Fault(None, None, f"is {format_name}; give plain Parquet or CSV"))
        elif size > MOST_BYTES:
            faults.append(Fault(None, None, f"has {size:,} bytes, {MOST_BYTES:,} are read at most; split it"))
        elif head.startswith(_PARQUET_MAGIC):
            yield from parquet_rows(stream, faults, layout)
        elif suffix in {".parquet", ".pq"}:
            faults.append(Fault(None, None, f"is called {suffix} but is not Parquet; write it again, or call it .csv"))
        else:
            yield from _csv_rows(stream, faults, layout)


def _columns(columns: Sequence[str], faults: list[Fault], line: int | None = None) -> list[str]:
    """The usable ones of the columns found; each unknown or repeated one, and a missing one of text, is a fault."""
    known = set(COLUMNS)
    unknown = [column for column in dict.fromkeys(columns) if column not in known and not is_nameless(column)]
    missing = [column for column in COLUMNS if column not in columns]
    for column in unknown:
        near = difflib.get_close_matches(column.strip().lower()[:80], missing or COLUMNS, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"remove it; the columns are {', '.join(COLUMNS)}"
        faults.append(Fault(None, column, f"is not a column of a manifest; {hint}", line))
    faults += [Fault(None, column, "is missing; add it", line) for column in missing if column in TEXT_COLUMNS]
    times = Counter(columns)
    for column, count in times.items():
        if count > 1 and not is_nameless(column):
            faults.append(Fault(None, column, f"is there {count} times; keep one", line))
    return [column for column in COLUMNS if times[column] == 1]


_NUMBERS = COLUMNS[len(TEXT_COLUMNS) :]
MANIFEST = Layout("manifest", _columns, frozenset(_NUMBERS), optional=_NUMBERS)


def _csv_rows(stream: io.BufferedReader | io.BytesIO, faults: list[Fault], layout: Layout) -> Iterator[RawRow]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    usable: list[str] | None = None
    number, line = 0, 1
    try:
        head, separator = _head(text)
        reader = csv.reader(chain(head, text), delimiter=separator, strict=True)
        for fields in reader:
            started, line = line, reader.line_num + 1
            if not any(fields):
                # A blank line, or a spreadsheet's row of separators.
                if line > 2 * MOST_ROWS:
                    faults.append(Fault(None, None, f"has more than {2 * MOST_ROWS:,} lines; take the blank ones out"))
                    return
                continue
            if usable is None:
                if not _looks_like_text("".join(fields)):
                    faults.append(Fault(None, None, "is neither Parquet nor CSV; give one of them"))
                    return
                header = fields
                usable = layout.usable(header, faults, started)
                absent = layout.absent(header)
                if not usable:
                    faults.append(
                        Fault(
                            None,
                            None,
                            f"has no header, or is no {layout.noun}; the first line names the columns",
                            started,
                        )
                    )
                    return
                continue
            number += 1
            if is_enough(number, faults):
                return
            if len(fields) != len(header):
                message = (
                    f"has {len(fields)} cells where the header has {len(header)}; quote cells that hold "
                    f"{_SEPARATORS[separator]}"
                )
                faults.append(Fault(number, None, message, started))
                continue
            cells = dict(zip(header, fields, strict=True))
            yield RawRow(number, started, {column: cells[column] for column in usable} | absent)
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text past row {number} (byte 0x{error.object[error.start]:02X}); save it as UTF-8"
        faults.append(Fault(None, None, message, None))
    except csv.Error as error:
        # Of no single row: nothing behind it can be read.
        message = f"can't be taken apart as CSV past row {number} ({error}); mend the quotes"
        faults.append(Fault(None, None, message, line))
    finally:
        text.detach()


def _head(text: Iterable[str]) -> tuple[list[str], str]:
    """The lines up to the header, read from `text`, and what stands between its cells: what makes most cells of it."""
    head: list[str] = []
    for line in text:
        head.append(line)
        if line.strip(f"{''.join(_SEPARATORS)}{string.whitespace}"):
            break
    header = head[-1:]
    counts = {mark: len(next(csv.reader(header, delimiter=mark), [])) for mark in _SEPARATORS}
    return head, max(_SEPARATORS, key=lambda mark: counts[mark])


def _looks_like_text(header: str) -> bool:
    return all(character in string.whitespace or character.isprintable() for character in header)
