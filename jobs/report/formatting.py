"""How the report writes numbers: Deltas, shares, counts and intervals, as people read them.

A value that does not exist is `None` here; what stands in its place is for the page and the terminal to say.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

__all__ = [
    "Kind",
    "Measure",
    "Ranged",
    "clock",
    "count",
    "delta",
    "finite",
    "gate_measure",
    "in_kind",
    "number",
    "percent",
    "plain_text",
    "points",
    "span",
    "when",
]

Kind = Literal["delta", "rate", "points", "number"]


class Ranged(Protocol):
    """Anything with a 95 % interval: a Delta, a rate, a share, a gate."""

    @property
    def low(self) -> float | None: ...  # noqa: D102

    @property
    def high(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Measure:
    """What a gate is called, and how its figures are written."""

    title: str
    kind: Kind


_NOT_XML = "\ufffe\uffff"

_GATES = {
    "delta": Measure("Delta, pooled over wordings", "delta"),
    "delta_within": Measure("Delta, mean within wordings", "delta"),
    "delta_wording_max": Measure("Delta, worst wording", "delta"),
    "profession": Measure("Farthest profession from its target", "rate"),
    "explicit": Measure("Explicit prompts keep their label", "rate"),
    "recognised": Measure("Professions still recognised", "rate"),
    "controls": Measure("Controls still recognised", "rate"),
    "undetermined_increase": Measure("Rise in undetermined images", "points"),
    "failed_images": Measure("Images that are none", "rate"),
    "shipped": Measure("Labels that the stored checkpoint keeps", "rate"),
    "regression": Measure("Rise of Delta, pooled over wordings", "delta"),
    "regression_within": Measure("Rise of Delta, mean within wordings", "delta"),
}


def gate_measure(name: str) -> Measure:
    """Title and kind of a gate; a name this version does not know is written as it stands."""
    known = _GATES.get(name)
    if known is not None:
        return known
    if name.startswith("explicit:"):
        return Measure(f"Explicit prompts keep “{name.removeprefix('explicit:')}”", "rate")
    return Measure(name.replace("_", " "), "delta" if name.startswith("delta") else "number")


def finite(value: float | None) -> float | None:
    """`value`, or `None` where it is NaN or infinite: neither is a figure that anyone can read."""
    return value if value is not None and math.isfinite(value) else None


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def delta(value: float, places: int = 3) -> str:
    """Write a Delta: `0.142`."""
    return _signed(f"{value:.{places}f}")


def percent(value: float, places: int = 1) -> str:
    """Write a share of one as a percentage: `51.2 %`, the space not breaking."""
    return f"{_signed(f'{100 * value:.{places}f}')}\N{NO-BREAK SPACE}%"


def points(value: float, places: int = 1) -> str:
    """Write a difference of two shares in percentage points, always with its sign: `+3.1 pts`."""
    text = f"{100 * value:+.{places}f}"
    zero = f"{0:+.{places}f}"
    if text in (zero, zero.replace("+", "-")):
        text = zero.replace("+", "\N{PLUS-MINUS SIGN}")
    return f"{_signed(text)}\N{NO-BREAK SPACE}pts"


def count(value: float) -> str:
    """Write a whole number with thousands set apart: `8,750`."""
    return f"{value:,.0f}"


def in_kind(value: float, kind: Kind) -> str:
    """Write a figure as its kind is written."""
    match kind:
        case "delta":
            return delta(value)
        case "rate":
            return percent(value)
        case "points":
            return points(value)
        case "number":
            return number(value)


def number(value: float | int | str) -> str:
    """Write anything else: whole numbers whole, others to four significant digits, text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value.is_integer():
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:.4g}")


def span(figure: Ranged, kind: Kind, places: int | None = None) -> str | None:
    """Write an interval without its unit: `48.0 to 54.3`; `None` where an end is missing."""
    low, high = finite(figure.low), finite(figure.high)
    if low is None or high is None:
        return None
    scale, default = (100.0, 1) if kind in ("rate", "points") else (1.0, 3)
    digits = default if places is None else places
    first, second = _signed(f"{scale * low:.{digits}f}"), _signed(f"{scale * high:.{digits}f}")
    return f"{first} to {second}" if low < 0 else f"{first}\N{EN DASH}{second}"


def clock(seconds: float) -> str:
    """Write a duration: `12 s`, `4 min 05 s`, `3 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s" if seconds < 10 else f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\N{NO-BREAK SPACE}min {rest:02d}\N{NO-BREAK SPACE}s"
    return f"{minutes // 60:,}\N{NO-BREAK SPACE}h {minutes % 60:02d}\N{NO-BREAK SPACE}min"


def when(created: str) -> str:
    """Write an ISO 8601 time in UTC, to the minute; text that is no such time stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def plain_text(text: str) -> str:
    """`text` without control characters, which would steer a terminal and are not well formed in XML."""
    return "".join(
        " " if character in "\t\r\n" else character
        for character in text
        if character in "\t\r\n" or (unicodedata.category(character) not in ("Cc", "Cs") and character not in _NOT_XML)
    )
