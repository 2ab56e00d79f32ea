"""How large a Parquet file becomes once it is decompressed, by what it says itself and before any of it is.

A file of a thousand bytes can hold a gigabyte, in its pages, or as one long cell that a million rows name. The footer's
sizes are the writer's word and nobody checks them. What a page becomes is bound by its own header: Arrow allocates that
much, and refuses a page that is more.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

__all__ = ["MOST_PAGE_BYTES", "MOST_SHARED_BYTES", "MOST_TOTAL_BYTES", "longest_cell", "oversize"]

MOST_PAGE_BYTES = 32 << 20
MOST_SHARED_BYTES = 4 << 20
"""Of a page that many rows may take the same bytes from: a dictionary, or prefixes. Writers end theirs at 1 MiB."""
MOST_TOTAL_BYTES = 128 << 20
_DICTIONARY, _PREFIXES = 2, 7
# Where a header holds that of a data page, of version 1 or 2, and where that holds the encoding.
_ENCODING = {5: 2, 8: 4}
_HEADER_BYTES = 1 << 16
_MOST_DEPTH = 16
# Thrift's compact protocol, in which Parquet's headers are written.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_NUMBERS = (4, 5, 6)
# Of a column's metadata: its bytes, its first page of data, and the dictionary before that.
_STORED, _DATA, _DICTIONARY_AT = 7, 9, 11
_TAIL_BYTES = 8
"""At a file's end: the footer's length, and the format's name."""


def oversize(
    file: pq.ParquetFile,
    stream: io.BufferedReader | io.BytesIO,
    columns: Collection[str],
    *,
    most_bytes: int = MOST_TOTAL_BYTES,
    most_page: int = MOST_PAGE_BYTES,
    most_values: int | None = None,
) -> str | None:
    """What is wrong with the sizes of these columns, None where nothing is.

    Args:
        file: opened, so that its footer is read.
        stream: the same file.
        columns: those that are going to be read.
        most_bytes: of all pages.
        most_page: of one page; of one that rows share cells of, `MOST_SHARED_BYTES` if that is less.
        most_values: of all pages; None: any number, for who reads them in batches.

    Raises:
        ValueError: a page's header can't be read.
    """
    total = values = 0
    for page in _pages(file, stream, columns):
        most = min(most_page, MOST_SHARED_BYTES) if page.is_shared else most_page
        if page.size > most:
            return f"has a page of {page.size:,} bytes, {most:,} are read at most; write it again in smaller ones"
        total += page.size
        if total > most_bytes:
            return f"holds more than the {most_bytes:,} bytes that are read at most; split it"
        values += page.values
        if most_values is not None and values > most_values:
            return f"holds {values:,} values, more than its rows can have"
    return None


def longest_cell(file: pq.ParquetFile, stream: io.BufferedReader | io.BytesIO, columns: Collection[str]) -> int:
    """The most bytes that many rows can take from the same place, by the sizes of such places; 1 where there is none.

    Args:
        file: as for `oversize`; so are the others.
        stream: .
        columns: .

    Raises:
        ValueError: a page's header can't be read.
    """
    return max((1, *(page.size for page in _pages(file, stream, columns) if page.is_shared)))


def _pages(file: pq.ParquetFile, stream: io.BufferedReader | io.BytesIO, columns: Collection[str]) -> Iterator[_Header]:
    metadata, groups = file.metadata, _Footer(_footer_of(stream)).groups()
    if len(groups) != metadata.num_row_groups:
        raise ValueError("the footer contradicts itself")
    for group, chunks in enumerate(groups):
        if metadata.row_group(group).num_rows == 0:
            continue  # no page need be there, and none is read
        for chunk in chunks:
            if chunk.column not in columns:
                continue
            at, end = chunk.at, chunk.at + chunk.stored
            while 0 <= at < end:
                stream.seek(at)
                header = _Header(stream.read(min(_HEADER_BYTES, end - at)))
                yield header
                at += header.length + header.stored


def _footer_of(stream: io.BufferedReader | io.BytesIO) -> bytes:
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, end - _TAIL_BYTES))
    length = int.from_bytes(stream.read(4), "little")
    stream.seek(max(0, end - _TAIL_BYTES - length))
    return stream.read(min(length, max(0, end - _TAIL_BYTES)))


class _Compact:
    """A reader of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _byte(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("a page's header is cut short")
        self._at += 1
        return self._data[self._at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a page's header has a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; whoever asks has to read or to pass over its value."""
        field = 0
        while kind := self._byte():
            step, kind = kind >> 4, kind & 0x0F
            field = field + step if step else self._signed()
            yield field, kind

    def _items(self) -> Iterator[int]:
        """The type of each item of a list, likewise."""
        head = self._byte()
        for _ in range(self._unsigned() if head >> 4 == 15 else head >> 4):
            yield head & 0x0F

    def _struct(self, depth: int) -> dict[int, int]:
        """Pass over one."""
        if depth > _MOST_DEPTH:
            raise ValueError("a page's header is nested too deeply")
        for _, kind in self._fields():
            self._pass(kind, depth + 1)
        return {}

    def _pass(self, kind: int, depth: int) -> None:
        """Pass over a field's value; that of a truth is its type."""
        if kind not in (_TRUE, _FALSE):
            self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE, _BYTE):
            self._byte()
        elif kind in _NUMBERS:
            self._unsigned()
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            size = self._unsigned()
            self._at += size
        elif kind == _STRUCT:
            self._struct(depth)
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(self._unsigned() if head >> 4 == 15 else head >> 4):
                self._skip(head & 0x0F, depth + 1)
        elif kind == _MAP:
            raise ValueError("a page's header has a map, which none has")
        else:
            raise ValueError("a page's header has a field of no known type")


@dataclass(frozen=True)
class _Chunk:
    """A column's pages in one row group: where they begin, and how many bytes they are."""

    column: str
    at: int
    stored: int


class _Footer(_Compact):
    """A file's footer. Arrow's own reader of it, asked for a column of a damaged one, ends the process."""

    def groups(self) -> list[list[_Chunk]]:
        """The columns of each row group."""
        groups: list[list[_Chunk]] = []
        for field, kind in self._fields():
            if (field, kind) == (4, _LIST):
                groups = [self._group() for _ in self._items()]
            else:
                self._pass(kind, 1)
        return groups

    def _group(self) -> list[_Chunk]:
        chunks: list[_Chunk] = []
        for field, kind in self._fields():
            if (field, kind) == (1, _LIST):
                chunks = [self._chunk() for _ in self._items()]
            else:
                self._pass(kind, 2)
        return chunks

    def _chunk(self) -> _Chunk:
        chunk = None
        for field, kind in self._fields():
            if (field, kind) == (3, _STRUCT):
                chunk = self._place()
            else:
                self._pass(kind, 3)
        if chunk is None:
            raise ValueError("the footer does not say where a column lies")
        return chunk

    def _place(self) -> _Chunk:
        numbers: dict[int, int] = {}
        path: list[str] = []
        for field, kind in self._fields():
            if kind in _NUMBERS:
                numbers[field] = self._signed()
            elif (field, kind) == (3, _LIST):
                path = [self._text() for _ in self._items()]
            else:
                self._pass(kind, 4)
        if not path or not {_STORED, _DATA} <= numbers.keys():
            raise ValueError("the footer does not say where a column lies")
        first = numbers.get(_DICTIONARY_AT, 0)
        at = first if 0 < first < numbers[_DATA] else numbers[_DATA]
        return _Chunk(path[0], at, numbers[_STORED])

    def _text(self) -> str:
        size = self._unsigned()
        self._at += size
        return self._data[self._at - size : self._at].decode("utf-8", "replace")


class _Header(_Compact):
    """A page's header.

    Attributes:
        size: of its content, in bytes.
        stored: likewise, as it is compressed.
        length: of the header.
        values: how many it holds; a dictionary's count for none.
        is_shared: whether many rows may take the same bytes from it.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._encodings: list[int] = []
        self.values = 0
        fields = self._struct(0)
        self.size, self.stored, self.length = fields.get(2, -1), fields.get(3, -1), self._at
        self.is_shared = fields.get(1) == _DICTIONARY or _PREFIXES in self._encodings
        if self.size < 0 or self.stored < 0:
            raise ValueError("a page says no size")

    def _struct(self, depth: int) -> dict[int, int]:
        """The integers among its fields, by number; all else is passed over."""
        if depth > _MOST_DEPTH:
            raise ValueError("a page's header is nested too deeply")
        fields: dict[int, int] = {}
        field = 0
        while kind := self._byte():
            step, kind = kind >> 4, kind & 0x0F
            field = field + step if step else self._signed()
            if kind in _NUMBERS:
                fields[field] = self._signed()
            elif kind == _STRUCT:
                inside = self._struct(depth + 1)
                if depth == 0 and field in _ENCODING:
                    self._encodings.append(inside.get(_ENCODING[field], 0))
                    self.values = max(0, inside.get(1, 0))
            elif kind not in (_TRUE, _FALSE):
                self._skip(kind, depth + 1)
        return fields
