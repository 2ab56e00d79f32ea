"""Read a manifest from Parquet or CSV and check it, reporting every fault at once.

    manifest = read_manifest(Path("professions.parquet"), name="professions.parquet", labels=["female", "male"])

`iter_rows` streams: Parquet by row groups in batches, CSV by lines, so only what the checks between rows need is kept.
Files are taken as tools write them: with a data frame's index, without columns that may be empty, with commas,
semicolons or tabs between the cells.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.check import RowChecker
from manifests.errors import Fault, ManifestError
from manifests.schema import COLUMNS, TEXT_COLUMNS, Manifest

__all__ = ["Columns", "Layout", "PromptChecker", "RawRow", "check_with", "is_nameless", "iter_rows", "read_manifest"]

PromptChecker = Callable[[Sequence[tuple[int, str, str]]], Iterable[Fault]]
"""Checks (row, source, destination) of all rows against something that this package does not know, a tokenizer say."""

Columns = Callable[[Sequence[str], list[Fault], int | None], list[str]]
"""The usable ones of the columns found, given also the header's line; what is wrong with the others is appended."""

_BATCH_ROWS = 8192
_PARQUET_MAGIC = b"PAR1"
_INDEX = re.compile(r"__index_level_\d+__")
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_FORMATS = {
    b"PARE": "an encrypted Parquet file",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"PK\x03\x04": "a spreadsheet or a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the file holds it, unchecked."""

    number: int
    """From 1, the header not counted."""
    line: int | None
    """The file's line on which it starts; None for Parquet."""
    cells: dict[str, object]
    """By column; only the columns that can be used."""


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
        head = stream.read(8)
        stream.seek(0)
        found = next((what for magic, what in _FORMATS.items() if head.startswith(magic)), None)
        if not head:
            faults.append(Fault(None, None, "is empty; give Parquet, or CSV with a header"))
        elif found:
            faults.append(Fault(None, None, f"is {found}; give plain Parquet or CSV"))
        elif head.startswith(_PARQUET_MAGIC):
            yield from _parquet_rows(stream, faults, layout)
        elif suffix in {".parquet", ".pq"}:
            faults.append(Fault(None, None, f"is called {suffix} but is not Parquet; write it again, or call it .csv"))
        else:
            yield from _csv_rows(stream, faults, layout)


def _columns(found: Sequence[str], faults: list[Fault], line: int | None = None) -> list[str]:
    """The usable ones of the columns found; each unknown or repeated one, and a missing one of text, is a fault."""
    known = set(COLUMNS)
    unknown = [column for column in dict.fromkeys(found) if column not in known and not is_nameless(column)]
    missing = [column for column in COLUMNS if column not in found]
    for column in unknown:
        near = difflib.get_close_matches(column.strip().lower(), missing or COLUMNS, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"remove it; the columns are {', '.join(COLUMNS)}"
        faults.append(Fault(None, column, f"is not a column of a manifest; {hint}", line))
    faults += [Fault(None, column, "is missing; add it", line) for column in missing if column in TEXT_COLUMNS]
    for column in dict.fromkeys(found):
        if found.count(column) > 1 and not is_nameless(column):
            faults.append(Fault(None, column, f"is there {found.count(column)} times; keep one", line))
    return [column for column in COLUMNS if found.count(column) == 1]


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

    def absent(self, found: Collection[str]) -> dict[str, object]:
        """The cells of every row in columns that the file has left out."""
        return dict.fromkeys(column for column in self.optional if column not in found)


_NUMBERS = COLUMNS[len(TEXT_COLUMNS) :]
MANIFEST = Layout("manifest", _columns, frozenset(_NUMBERS), optional=_NUMBERS)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_number(kind.value_type)
    numbers = pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null
    return any(is_kind(kind) for is_kind in numbers)


def _index_columns(schema: pa.Schema) -> set[str]:
    """Columns that hold a data frame's nameless index, by the metadata that pandas keeps with it."""
    try:
        found = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, TypeError, ValueError):
        return set()
    # An index without a column is described by an object; one with a name of its own is a column like any other.
    return {column for column in found if isinstance(column, str) and _INDEX.fullmatch(column)}


def _parquet_rows(stream: io.BufferedReader | io.BytesIO, faults: list[Fault], layout: Layout) -> Iterator[RawRow]:
    try:
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
        names = [name for name in schema.names if name not in _index_columns(schema)]
    except UnicodeDecodeError:
        faults.append(Fault(None, None, "has names of columns that are not UTF-8 text; write it again"))
        return
    except (pa.ArrowException, OSError) as error:
        faults.append(
            Fault(
                None,
                None,
                f"starts as Parquet but can't be read, it may be cut short ({_brief(error)}); write it again",
            )
        )
        return
    usable = []
    absent = layout.absent(names)
    for column in layout.columns(names, faults, None):
        kind = schema.field(column).type
        empty = layout.sparse and pa.types.is_null(kind)
        if not (empty or (_is_number(kind) if column in layout.numbers else _is_text(kind))):
            wanted = pa.float64() if column in layout.numbers else pa.string()
            faults.append(Fault(None, column, f"holds {kind}; write it as {wanted}"))
        else:
            usable.append(column)
    if not usable:
        return
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=usable):
            columns = {}
            for column in usable:
                columns[column] = _cells(batch.column(column), column, number, faults, layout)
            for cells in zip(*columns.values(), strict=True):
                number += 1
                found = {c: v for c, v in zip(usable, cells, strict=True) if v is not _BROKEN}
                yield RawRow(number, None, found | absent)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        faults.append(Fault(None, None, f"can't be read past row {number} ({_brief(error)}); write it again"))


_BROKEN = object()
"""Stands for a cell that can't be decoded; its fault is reported where it is found."""


def _cells(array: pa.Array, column: str, before: int, faults: list[Fault], layout: Layout) -> list[object]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if column in layout.numbers:
        return list(array.cast(pa.float64(), safe=False).to_pylist())
    values: list[object] = []
    for number, value in enumerate(array.cast(pa.large_binary()).to_pylist(), start=before + 1):
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            faults.append(Fault(number, column, "is not UTF-8 text; write it again"))
            values.append(_BROKEN)
    return values


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
                continue  # a blank line, or a spreadsheet's row of separators
            if usable is None:
                if not _looks_like_text("".join(fields)):
                    faults.append(Fault(None, None, "is neither Parquet nor CSV; give one of them"))
                    return
                header = fields
                usable = layout.columns(header, faults, started)
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


def _brief(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(". ")[:160] if str(error) else type(error).__name__
