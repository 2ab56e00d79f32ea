"""Rows of a Parquet file, in batches: as many rows at a time as fit in memory whatever their cells hold."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.cells import MOST_CHARACTERS
from manifests.errors import Fault
from manifests.layout import Layout, RawRow, is_enough
from manifests.parquet_size import longest_cell, oversize

__all__ = ["parquet_rows"]

_BATCH_ROWS = 8192
_BATCH_BYTES = 32 << 20
_INDEX = re.compile(r"__index_level_\d+__")


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
        columns = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        if not isinstance(columns, list):
            return set()
    except (KeyError, TypeError, ValueError, RecursionError):
        return set()
    # An index without a column is described by an object; one with a name of its own is a column like any other.
    return {column for column in columns if isinstance(column, str) and _INDEX.fullmatch(column)}


def parquet_rows(stream: io.BufferedReader | io.BytesIO, faults: list[Fault], layout: Layout) -> Iterator[RawRow]:
    """Stream the rows; what is wrong is appended to `faults`, see `manifests.read.iter_rows`."""
    try:
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
        index = _index_columns(schema)
        names = [name for name in schema.names if name not in index]
    except UnicodeDecodeError:
        faults.append(Fault(None, None, "has names of columns that are not UTF-8 text; write it again"))
        return
    except (pa.ArrowException, OSError) as error:
        faults.append(_unreadable(error))
        return
    usable = _usable(schema, names, faults, layout)
    if not usable:
        return
    try:
        too_large = oversize(file, stream, usable)
        most = longest_cell(file, stream, usable)
    except ValueError as error:
        faults.append(_unreadable(error))
        return
    if too_large:
        faults.append(Fault(None, None, too_large))
        return
    number, absent = 0, layout.absent(names)
    # All rows of a batch may name the same cell.
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // most))
    try:
        for batch in file.iter_batches(batch_size=rows, columns=usable):
            columns = {}
            for column in usable:
                array = batch.column(column)
                if _has_long_cell(array, column, number, faults):
                    return
                columns[column] = _cells(array, column, number, faults, layout)
            for cells in zip(*columns.values(), strict=True):
                number += 1
                if is_enough(number, faults):
                    return
                row = {c: v for c, v in zip(usable, cells, strict=True) if v is not _BROKEN}
                yield RawRow(number, None, row | absent)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        faults.append(Fault(None, None, f"can't be read past row {number} ({_brief(error)}); write it again"))


def _unreadable(error: Exception) -> Fault:
    said = f"starts as Parquet but can't be read, it may be cut short ({_brief(error)}); write it again"
    return Fault(None, None, said)


def _usable(schema: pa.Schema, names: list[str], faults: list[Fault], layout: Layout) -> list[str]:
    """The columns that can be read; one of another type is a fault."""
    usable = []
    for column in layout.usable(names, faults, None):
        kind = schema.field(column).type
        empty = layout.sparse and pa.types.is_null(kind)
        if empty or (_is_number(kind) if column in layout.numbers else _is_text(kind)):
            usable.append(column)
        else:
            wanted = pa.float64() if column in layout.numbers else pa.string()
            faults.append(Fault(None, column, f"holds {str(kind)[:80]}; write it as {wanted}"))
    return usable


def _has_long_cell(array: pa.Array, column: str, before: int, faults: list[Fault]) -> bool:
    """Whether a cell is so long that nothing is read any further: a batch of such is not taken into memory."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not _is_text(array.type):
        return False
    # By bytes, of which a character has four at most.
    lengths = pc.binary_length(array.cast(pa.large_binary()))
    longest = pc.max(lengths).as_py() or 0
    if longest <= 4 * MOST_CHARACTERS:
        return False
    row = before + 1 + pc.index(lengths, longest).as_py()
    said = f"has {longest:,} bytes, {MOST_CHARACTERS:,} characters are read at most; nothing behind it is read"
    faults.append(Fault(row, column, said))
    return True


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


def _brief(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(". ")[:160] if str(error) else type(error).__name__
