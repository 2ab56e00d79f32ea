"""Manifests and edit sets: every Arrow type and encoding, files that were whole once, and bombs."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import ManifestError, read_edit_set, read_manifest
from tests.fuzz.judging import judged
from tests.fuzz.profiles import inputs
from tests.fuzz.strategies import broken_bytes, odd_texts

TEXTS = ("profession", "source", "destination", "label")
COLUMNS = (*TEXTS, "target", "share", "lam")
EDITS = ("old", "new", "positive1", "gt1", "negative1", "gn1", "ex1", "validation")
ROWS: dict[str, list[Any]] = {
    "profession": ["CEO", "CEO", "nurse", "nurse"],
    "source": ["a CEO", "a CEO", "a nurse", "a nurse"],
    "destination": ["a female CEO", "a male CEO", "a female nurse", "a male nurse"],
    "label": ["female", "male"] * 2,
    "target": [0.5, 0.5, None, None],
    "share": [None] * 4,
    "lam": [None, None, 0.1, 0.1],
}
PAIRS: dict[str, list[Any]] = {
    "old": ["a pack of roses", "a door"],
    "new": ["a pack of blue roses", "a red door"],
    "positive1": ["roses", "the door"],
    "gt1": ["blue roses", "the red door"],
    "negative1": ["a tulip", None],
    "gn1": ["a blue tulip", None],
}


def parquet(columns: dict[str, list[Any]], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def csv_text(columns: dict[str, list[Any]], mark: str = ",") -> str:
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(mark.join("" if cell is None else str(cell) for cell in row) for row in rows) + "\n"


def both(kind: str, data: bytes) -> None:
    judged(f"manifest, {kind}", lambda: read_manifest(data, name="hostile.file"), says="hostile.file", size=len(data))
    judged(f"edit set, {kind}", lambda: read_edit_set(data, name="hostile.file"), says="hostile.file", size=len(data))


SIMPLE = (
    pa.null(), pa.bool_(), pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
    pa.decimal128(38, 5), pa.decimal256(76, 10), pa.string(), pa.large_string(), pa.binary(), pa.large_binary(),
    pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.timestamp("ns"), pa.timestamp("us", "UTC"),
    pa.duration("s"), pa.binary(4),
)  # fmt: skip


@st.composite
def arrays(draw: Any, rows: int) -> pa.Array:
    """A column of any type, its cells as they may be."""
    kind = draw(st.sampled_from(SIMPLE))
    texts = st.one_of(odd_texts, st.sampled_from(("CEO", "a CEO", "female", "0.5", "1e5")))
    cells: st.SearchStrategy[Any] = st.one_of(st.none(), st.integers(0, 100))
    if pa.types.is_floating(kind):
        cells = st.one_of(st.none(), st.floats(width=16))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cells = st.one_of(st.none(), texts.filter(_is_unicode))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        cells = st.one_of(st.none(), st.binary(max_size=8))
    elif pa.types.is_fixed_size_binary(kind):
        cells = st.one_of(st.none(), st.binary(min_size=4, max_size=4))
    elif pa.types.is_boolean(kind):
        cells = st.one_of(st.none(), st.booleans())
    elif pa.types.is_null(kind):
        cells = st.none()
    try:
        array = pa.array(draw(st.lists(cells, min_size=rows, max_size=rows)), kind)
    except (pa.ArrowException, ValueError, TypeError):
        array = pa.nulls(rows, kind)
    shape = draw(st.sampled_from(("plain",) * 4 + ("dictionary", "list", "struct")))
    if shape == "list":
        return pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), array)
    if shape == "struct":
        return pa.StructArray.from_arrays([array], names=[draw(st.sampled_from(COLUMNS))])
    if shape == "dictionary" and not pa.types.is_null(kind):
        return array.dictionary_encode()
    return array


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


NOTES = (None, b"{", b"[]", b'{"index_columns": 3}', b'{"index_columns": [3, null]}', b"[" * 99_999)


@st.composite
def tables(draw: Any) -> bytes:
    """A Parquet file of any types, by any encoding and codec."""
    whole = draw(st.sampled_from((ROWS, PAIRS)))
    rows = len(next(iter(whole.values())))
    columns = [(name, pa.array(cells)) for name, cells in whole.items()]
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from((*whole, *whole, "", "Unnamed: 0", "x", "__index_level_0__")))
        at = draw(st.integers(0, len(columns)))
        columns[at : at + draw(st.integers(0, 1))] = [(name, draw(arrays(rows)))]
    names = [name for name, _ in columns]
    table = pa.Table.from_arrays([array for _, array in columns], names=names)
    notes = draw(st.sampled_from(NOTES))
    if notes is not None:
        table = table.replace_schema_metadata({b"pandas": notes})
    options = {
        "compression": draw(st.sampled_from(("none", "snappy", "gzip", "zstd", "brotli", "lz4"))),
        "version": draw(st.sampled_from(("1.0", "2.4", "2.6"))),
        "data_page_version": draw(st.sampled_from(("1.0", "2.0"))),
        "use_dictionary": draw(st.booleans()),
        "store_schema": draw(st.booleans()),
    }
    if not options["use_dictionary"] and draw(st.booleans()):
        encodings = ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT")
        options["column_encoding"] = dict.fromkeys(dict.fromkeys(names), draw(st.sampled_from(encodings)))
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, **options)
    except (pa.ArrowException, OSError):  # this writer has no such encoding of such a type
        sink = io.BytesIO()
        pq.write_table(pa.table({name: pa.nulls(rows) for name in dict.fromkeys(names) or ["x"]}), sink)
    return sink.getvalue()


@given(tables())
@inputs(40)
def test_parquet_of_any_types_and_encodings(data: bytes) -> None:
    both("Parquet types", data)


WHOLE = [
    parquet(columns, compression=codec, use_dictionary=codec == "zstd")
    for columns in (ROWS, PAIRS)
    for codec in ("none", "zstd")
]


@given(st.sampled_from(WHOLE).flatmap(broken_bytes))
@inputs(120)
def test_parquet_that_was_whole_once(data: bytes) -> None:
    both("broken Parquet", data)


@given(st.sampled_from([csv_text(c, m).encode() for c in (ROWS, PAIRS) for m in ",;\t"]).flatmap(broken_bytes))
@inputs(40)
def test_csv_that_was_whole_once(data: bytes) -> None:
    both("broken CSV", data)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))))
@inputs(40)
def test_anything_at_all(data: bytes) -> None:
    both("anything", data)


CELLS = st.one_of(
    st.none(), odd_texts, st.sampled_from(("CEO", "a CEO", "a male CEO", "male", "0.5", "1,5", "5 %", "1e999"))
)


@st.composite
def csv_of_any_cells(draw: Any) -> bytes:
    names = draw(st.sampled_from((COLUMNS, EDITS)))
    rows = draw(st.lists(st.lists(CELLS, min_size=len(names), max_size=len(names)), max_size=4))
    quoted = [",".join('"' + (cell or "").replace('"', '""') + '"' for cell in row) for row in rows]
    return "\n".join([",".join(names), *quoted]).encode("utf-8", "surrogatepass")


@given(csv_of_any_cells())
@inputs(40)
def test_csv_with_any_cells(data: bytes) -> None:
    both("CSV cells", data)


def test_what_is_broken_here_is_whole_before() -> None:
    for data in (*WHOLE[:2], csv_text(ROWS).encode()):
        assert len(read_manifest(data).rows) == 4
    for data in (*WHOLE[2:], csv_text(PAIRS).encode()):
        assert len(read_edit_set(data).edits) == 2


def _page_that_lies() -> bytes:
    """A page that says it becomes two gigabytes, in a footer that says nothing of it."""
    data = bytearray(parquet({name: ["x" * 1000] for name in TEXTS}, compression="zstd", use_dictionary=False))
    honest = _zigzag(1010)
    at = data.index(honest)
    data[at : at + len(honest)] = _zigzag(2**31 - 1)
    return bytes(data)


def _zigzag(number: int) -> bytes:
    number, found = number << 1, bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def bombs() -> dict[str, bytes]:
    """Small files that become large, each in its own way."""
    many = 300_000
    head = b",".join(name.encode() for name in TEXTS) + b"\n"
    prefixed = {"use_dictionary": False, "column_encoding": dict.fromkeys(TEXTS, "DELTA_BYTE_ARRAY")}
    plain = {"compression": "zstd", "use_dictionary": False}
    names = [f"c{i}" for i in range(20_000)]
    return {
        "one cell that many rows name": parquet({n: ["x" * 200_000] * 1000 for n in TEXTS}, compression="zstd"),
        "one prefix that many rows have": parquet({n: ["x" * 200_000] * 100 for n in TEXTS}, **prefixed),
        "large cells": parquet({name: ["x" * 5_000_000] * 4 for name in TEXTS}, **plain),
        "large pages": parquet({n: ["x" * 1000] * 40_000 for n in TEXTS}, **plain, data_page_size=1 << 30),
        "many pages": parquet({n: ["x" * 1900] * 40_000 for n in TEXTS}, **plain),
        "a page that lies": _page_that_lies(),
        "many rows": parquet({n: ["x"] * many for n in TEXTS}, compression="zstd"),
        "many columns": parquet({n: [1] for n in names[:2000]}),
        "many columns of CSV": ",".join(names).encode() + b"\n1\n",
        "many rows of CSV": head + b"a\n" * many,
        "many blank lines": head + b"\n" * 5_000_000,
        "one long line": b"x" * 30_000_000,
        "a large file": b"a,b\n" * 9_000_000,
    }


def test_small_files_that_become_large_are_refused_before_they_do() -> None:
    for name, data in bombs().items():
        for read in (read_manifest, read_edit_set):
            found: Any = judged("manifest, bombs", partial(read, data, name=name), says=name, size=len(data))
            assert found is None, name


def test_a_file_without_rows_has_no_pages_to_look_at() -> None:
    table = pa.table({name: pa.array([], pa.string()) for name in TEXTS})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(ManifestError, match="has no rows"):
        read_manifest(sink.getvalue())
