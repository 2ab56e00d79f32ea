"""Parquet objects of a store, read in bounded memory: somebody else may have written them.

Run-length encoding makes a million rows of ten bytes, and a dictionary lets all of them name one long cell. The sizes
that a footer states are checked first, and those of the pages, which is what is allocated.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.parquet_size import longest_cell, oversize

__all__ = ["bounded_rows", "bounded_table"]

_MOST_BYTES = 256 << 20
_PER_BYTE = 4
_BATCH_BYTES = 32 << 20
_BATCH_ROWS = 1024
_MOST_TEXT_BYTES = 10_000
_MOST_VALUES_PER_ROW = 4_000
"""Sixty labels in fifteen wordings, counted and shared, are half of it."""
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError, KeyError)


def bounded_table(data: bytes, columns: Collection[str], rows: int) -> pa.Table:
    """Some columns of a table that has so many rows.

    Args:
        data: the object.
        columns: those that are wanted.
        rows: how many there must be.

    Raises:
        ValueError: it is no such table, or becomes larger than such a one can be.
    """
    try:
        file, stream = _opened(data, columns)
        if file.metadata.num_rows != rows:
            raise ValueError(f"it holds {file.metadata.num_rows:,} rows, not {rows:,}")
        if longest_cell(file, stream, columns) * rows > _MOST_BYTES + _PER_BYTE * len(data):
            raise ValueError("its cells become larger than such a table's are")
        return file.read(columns=[*columns])
    except _UNREADABLE as error:
        raise ValueError(f"it can't be read: {error}") from error


def bounded_rows(data: bytes, columns: Collection[str], most: int) -> Iterator[dict[str, Any]]:
    """Rows of a table of short texts and numbers, one after another.

    Args:
        data: the object.
        columns: those that are wanted.
        most: how many rows there may be.

    Raises:
        ValueError: see `bounded_table`.
    """
    try:
        file, stream = _opened(data, columns)
        if file.metadata.num_rows > most:
            raise ValueError(f"it holds {file.metadata.num_rows:,} rows, {most:,} are possible")
        size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // longest_cell(file, stream, columns)))
        for batch in file.iter_batches(batch_size=size, columns=[*columns]):
            _check_texts(batch)
            yield from batch.to_pylist()
    except _UNREADABLE as error:
        raise ValueError(f"it can't be read: {error}") from error


def _opened(data: bytes, columns: Collection[str]) -> tuple[pq.ParquetFile, io.BytesIO]:
    stream = io.BytesIO(data)
    file = pq.ParquetFile(stream)
    metadata = file.metadata
    lacking = [name for name in columns if name not in file.schema_arrow.names]
    if lacking:
        raise ValueError(f"it has no column {', '.join(lacking)}")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError("its footer contradicts itself")
    most = _MOST_BYTES + _PER_BYTE * len(data)
    said = oversize(
        file, stream, columns, most_bytes=most, most_page=most, most_values=_MOST_VALUES_PER_ROW * metadata.num_rows
    )
    if said:
        raise ValueError(f"it {said}")
    return file, stream


def _check_texts(batch: pa.RecordBatch) -> None:
    for column in batch.columns:
        array = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
            longest = pc.max(pc.binary_length(array)).as_py() or 0
            if longest > _MOST_TEXT_BYTES:
                raise ValueError(f"a text of {longest:,} bytes, {_MOST_TEXT_BYTES:,} are read at most")
