"""Share against lam: where each profession's edited share lies, over how strongly it was edited.

Across is lam, logarithmic, in percent of the chart's width; down is the share from 100 to 0 %, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.report import formatting
from jobs.report.formatting import finite
from jobs.report.schema import ProfessionReport

__all__ = ["Dot", "LamChart", "lam_chart"]

_HEIGHT_PX, _TOP_PX = 220, 10
_MARGIN = 3.0
_TICKS = 8


@dataclass(frozen=True, slots=True)
class Dot:
    """One profession; `from_y` is its base's height, None where it has none."""

    tip: str
    x: str
    y: str
    from_y: str | None


@dataclass(frozen=True, slots=True)
class LamChart:
    """Ready to draw: dots, and labelled places along both axes; `target` is its height where all have the same."""

    height: int
    target: str | None
    dots: list[Dot]
    ticks: list[tuple[str, str]]
    rungs: list[tuple[int, str]]


def lam_chart(professions: Sequence[ProfessionReport], label: str) -> LamChart | None:
    """The chart of those that have a lam and a share of `label`; None of fewer than two, which show no relation."""
    known = []
    for item in professions:
        lam, share = finite(item.lam), None if item.edited is None else finite(item.edited.share)
        if lam is not None and lam > 0 and share is not None:
            known.append((item, lam, share))
    if len(known) < 2:
        return None
    low, high = min(lam for _, lam, _ in known), max(lam for _, lam, _ in known)
    width = math.log(high / low)

    def across(lam: float) -> str:
        part = 0.5 if width == 0 else math.log(lam / low) / width
        return f"{_MARGIN + (100 - 2 * _MARGIN) * part:.4g}"

    dots = []
    for item, lam, share in known:
        base = finite(item.base.share)
        moved = (
            formatting.percent(share) if base is None else f"{formatting.percent(base)} to {formatting.percent(share)}"
        )
        tip = f"{item.profession}: lam {formatting.number(lam)}, {moved}"
        dots.append(Dot(tip, across(lam), _down(share), None if base is None else _down(base)))
    targets = {finite(item.target.get(label)) for item, _, _ in known}
    target = targets.pop() if len(targets) == 1 else None
    return LamChart(
        _HEIGHT_PX + 2 * _TOP_PX,
        None if target is None else _down(target),
        dots,
        [(formatting.number(lam), across(lam)) for lam in _round(low, high)],
        [(percent, _down(percent / 100)) for percent in (0, 25, 50, 75, 100)],
    )


def _down(share: float) -> str:
    return f"{_TOP_PX + _HEIGHT_PX * (1 - min(1.0, max(0.0, share))):.4g}"


def _round(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, 1, 2 and 5 of each decade or only powers of ten; the ends of a short axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [value for value in ticks if low <= value <= high]
        if 2 <= len(ticks) <= _TICKS:
            return ticks
    return [low] if low == high else [low, high]
