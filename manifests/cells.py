"""What one cell of a manifest may hold. Each function returns the cell's value or raises ValueError with what to do."""

from __future__ import annotations

import math
import re
import unicodedata

__all__ = ["MOST_CHARACTERS", "lam_cell", "share_cell", "text_cell"]

MOST_CHARACTERS = 2_000
"""Of one cell. A text encoder reads some 300 characters of a prompt."""
_FORBIDDEN = {
    "Cc": "a control character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
    "Cs": "half of a surrogate pair",
    "Cn": "an unassigned code point",
    "Co": "a private-use code point",
}
_INVISIBLE = {"\u200b", "\u2060", "\ufeff", "\u00ad", "\u202a", "\u202b", "\u202c", "\u202d", "\u202e"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_PERCENT = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*%")
_NAMES = {"\n": "a line break", "\r": "a line break", "\t": "a tab", "\x00": "a NUL"}


def text_cell(text: object) -> str:
    """A name, a label or a prompt: not empty, one line, nothing that can't be seen."""
    if text is None:
        raise ValueError("is null; fill it in")
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not text; write it as a string")
    if not text:
        raise ValueError("is empty; fill it in")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters, {MOST_CHARACTERS:,} are read at most; shorten it")
    if text.isspace():
        raise ValueError("holds only white space; fill it in")
    for position, character in enumerate("" if text.isprintable() else text, start=1):
        category = unicodedata.category(character)
        if category in _FORBIDDEN or character in _INVISIBLE:
            kind = _NAMES.get(character) or _FORBIDDEN.get(category, "an invisible character")
            raise ValueError(f"has {kind} (U+{ord(character):04X}) at character {position}; remove it")
    if text != text.strip():
        raise ValueError(f"has white space at an end ({text!r}); remove it")
    return text


def _number(value: object) -> float | None:
    """A float64; nothing, or empty CSV text, is None."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        if len(text) > 400:
            raise ValueError(f"has {len(text):,} characters; give a number with a decimal point, or leave it empty")
        try:
            return float(text.replace("_", "?"))
        except ValueError:
            raise ValueError(_no_number(text)) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number; give one, or null")
    return float(value)


def _no_number(text: str) -> str:
    """Why a text is none, as people and spreadsheets write them."""
    percent = _PERCENT.fullmatch(text)
    if percent:
        number = float(percent[1].replace(",", "."))
        return f"{text!r} is a percentage; write the number itself, {number / 100:g}"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"{text!r} has a decimal comma; write it with a point, {text.replace(',', '.')}"
    return f"{text!r} is not a number; give one with a decimal point, or leave it empty"


def share_cell(cell: object) -> float | None:
    """A proportion."""
    value = _number(cell)
    if value is None:
        return None
    if not math.isfinite(value):
        raise ValueError(f"is {value}; give a number from 0 to 1, or leave it empty")
    if not 0.0 <= value <= 1.0:
        hint = f" ({value / 100:g} for {value:g} percent?)" if 1.0 < value <= 100.0 else ""
        raise ValueError(f"is {value:g}; it is a proportion, give a number from 0 to 1{hint}")
    return value + 0.0


def lam_cell(cell: object) -> float | None:
    """An edit's strength: positive and finite."""
    value = _number(cell)
    if value is None:
        return None
    if not math.isfinite(value):
        raise ValueError(f"is {value}; give a positive number, or leave it empty to have it calibrated")
    if value <= 0.0:
        raise ValueError(f"is {value:g}; lam is positive, leave it empty to have it calibrated")
    return value
