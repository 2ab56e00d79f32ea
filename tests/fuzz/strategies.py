"""Hostile values: bytes that were whole once, JSON with one thing wrong, and texts that are no names."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

__all__ = ["broken_bytes", "broken_json", "json_text", "odd_texts", "odd_values", "safetensors_file"]

DEEP = "[" * 3000 + "]" * 3000
DEEPER = "[" * 200_000 + "]" * 200_000
_TEXTS = (
    "", " ", ".", "..", "../..", "../../../../etc/passwd", "/etc/passwd", "a/../b", "a//b", "a\\b", "C:\\x", "~",
    "\x00", "a\x00b", "\n", "\x1b[31m", "\ud800", "\u202e", "é" * 300, "a" * 5000, "{source}", "{0.__class__}", "%s", "s3://",
    "s3://b/../c", "file:///etc/passwd", "NaN", "None", "__class__", "-1", "1e999",
)  # fmt: skip
_NUMBERS = (b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 4, b"\0" * 4)
odd_texts = st.one_of(st.sampled_from(_TEXTS), st.text(max_size=40))
odd_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from((2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 10**4000)),
    st.floats(),
    odd_texts,
    st.sampled_from(([], {}, [[]], [None], {"": None}, [[[1]]], {"a": {"b": [1, 2]}})),
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), odd_texts), max_size=4),
    st.dictionaries(odd_texts, st.one_of(st.none(), st.integers(), odd_texts), max_size=3),
)


@st.composite
def broken_bytes(draw: Any, whole: bytes) -> bytes:
    """Cut short, bits flipped, pieces overwritten, doubled or taken out; or anything at all."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        # What is wrong at the ends, where headers and footers lie, is found out least by checksums.
        at = draw(st.sampled_from((at, min(at, at % 64), max(0, len(data) - 1 - at % 600))))
        kind = draw(st.sampled_from(("cut", "flip", "write", "double", "drop", "insert", "number")))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 50))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "number":
            data[at : at + 4] = draw(
                st.sampled_from((b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 4, b"\0" * 4))
            )
    return bytes(data)


def _places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above]
    if isinstance(value, dict):
        for key, under in value.items():
            found += _places(under, (*above, key))
    elif isinstance(value, list):
        for i, under in enumerate(value[:3]):
            found += _places(under, (*above, i))
    return found


@st.composite
def broken_json(draw: Any, whole: Any, most: int = 2) -> Any:
    """A copy with one or two things wrong: another value, one more or one less."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.sampled_from(_places(value)))
        # A copy: what is drawn may be one of a few lists, and the next fault may go into it.
        odd = copy.deepcopy(draw(odd_values))
        if not place:
            if draw(st.integers(0, 9)) == 0:
                return odd
            if isinstance(value, dict):
                value[draw(odd_texts)] = odd
            continue
        inside = value
        for step in place[:-1]:
            inside = inside[step]
        kind = draw(st.sampled_from(("replace", "replace", "drop", "more")))
        if kind == "drop":
            del inside[place[-1]]
        elif kind == "more" and isinstance(inside, list):
            inside.append(odd)
        elif kind == "more":
            inside[draw(odd_texts)] = odd
        else:
            inside[place[-1]] = odd
    return value


@st.composite
def json_text(draw: Any, whole: Any) -> bytes:
    """A JSON file with something wrong in it: in what it says, or in how."""
    kind = draw(st.sampled_from(("value",) * 6 + ("bytes", "deep", "twice", "encoding")))
    if kind == "bytes":
        return draw(broken_bytes(json.dumps(whole).encode()))
    if kind == "deep":
        deep = draw(st.sampled_from((DEEP, DEEPER, "9" * 5000, '"' + "x" * 100_000 + '"')))
        key = draw(st.sampled_from(list(whole) or ["x"])) if isinstance(whole, dict) else "x"
        return f"{{{json.dumps(key)}: {deep}}}".encode()
    text = json.dumps(draw(broken_json(whole)), ensure_ascii=False)
    if kind == "twice" and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]
    return text.encode("utf-16" if kind == "encoding" else "utf-8", "surrogatepass")


def safetensors_file(header: bytes, data: bytes, size: int | None = None) -> bytes:
    """The format's bytes, its length as it is or as it is said to be."""
    said = len(header) if size is None else size
    return (said % 2**64).to_bytes(8, "little") + header + data
