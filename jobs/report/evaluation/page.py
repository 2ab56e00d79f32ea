"""`report.html` of an evaluation, in one file; no network, no server, no script of its own.

html = render_evaluation(report, {"pictures/edit-00001-base.png": content, ...})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from jinja2 import Environment

from jobs.report import formatting
from jobs.report.evaluation.schema import (
    Drift,
    EditFigures,
    EvaluationReport,
    PictureRow,
    TestedEditReport,
    VariantFigures,
)
from jobs.report.figure_schema import RateFigure
from jobs.report.formatting import finite
from jobs.report.page.picture_data import Picture, picture_of
from jobs.report.page.render import flatten, shown
from jobs.report.page.templating import page_environment, part

__all__ = ["Dot", "TradeOff", "best_of", "render_evaluation", "trade_off"]

_MOST_EDITS = 2_000
_PICTURE_BYTES = 3_000_000


@dataclass(frozen=True, slots=True)
class Dot:
    """One variant in the chart; places are in percent of its box, from the left and from the top."""

    kind: str
    text: str
    tip: str
    x: float
    y: float
    x_low: float | None
    x_high: float | None
    y_low: float | None
    y_high: float | None
    side: str
    dy: str


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Generality across, specificity up. `trail` joins the lams in order, in a box of 1000 by 1000."""

    across: list[tuple[str, float]]
    down: list[tuple[str, float]]
    dots: list[Dot]
    trail: str
    summary: str


def render_evaluation(report: EvaluationReport, pictures: Mapping[str, bytes]) -> str:
    """Draw the page, as one self-contained HTML document.

    Args:
        report: what was found.
        pictures: content of the paths that `report.pictures` names; one that is not there is shown as missing.
    """
    best = best_of(report.summary)
    drifts: list[tuple[str | None, float, Drift]] = [
        (None, each.lam, each.drift) for each in report.summary if each.drift is not None and each.lam is not None
    ]
    drifts += [(control.prompt, control.lam, control) for control in report.controls if control.lam == best.lam]
    return (
        _environment()
        .get_template("evaluation.html")
        .render(
            report=report,
            best=best,
            rows=[_row(edit, best.lam) for edit in report.edits[:_MOST_EDITS]],
            hidden=max(0, len(report.edits) - _MOST_EDITS),
            chart=trade_off(report.summary),
            drifts=drifts,
            shots=_shots(report, pictures),
            provenance=flatten(report.provenance),
            css=part("report.css") + part("trend.css") + part("evaluation.css"),
        )
    )


def best_of(summary: Sequence[VariantFigures]) -> VariantFigures:
    """The edited variant with the best harmonic mean; where that is the same, or none, with the largest lam."""
    edited = [each for each in summary if each.variant == "edited"]
    return max(edited, key=lambda each: (each.harmonic.value or 0.0, each.f1.value or 0.0, each.lam or 0.0))


def trade_off(summary: Sequence[VariantFigures]) -> TradeOff | None:
    """The chart of a sweep; None of a single lam, or where nothing was measured."""
    known = [
        (each, x, y)
        for each in summary
        if (x := finite(each.generality.value)) is not None and (y := finite(each.specificity.value)) is not None
    ]
    edited = [(x, y) for each, x, y in known if each.variant == "edited"]
    if len(edited) < 2:
        return None
    left = _floor([low for each, x, _ in known for low in (each.generality.low, x) if low is not None])
    bottom = _floor([low for each, _, y in known for low in (each.specificity.low, y) if low is not None])

    def across(value: float | None) -> float | None:
        return None if value is None else 100 * (max(value, left) - left) / (1 - left)

    def down(value: float | None) -> float | None:
        return None if value is None else 100 * (1 - (max(value, bottom) - bottom) / (1 - bottom))

    dots: list[Dot] = []
    boxes = [_box(across(x) or 0.0, down(y) or 0.0, "", "left", "0") for _, x, y in known]
    for each, x, y in known:
        text = formatting.number(each.lam) if each.lam is not None else each.variant
        name = f"lam {text}" if each.lam is not None else text
        place = across(x) or 0.0, down(y) or 0.0
        side, dy = _beside(*place, text, boxes, above=each.variant != "edited")
        boxes.append(_box(*place, text, side, dy))
        dots.append(
            Dot(
                each.variant,
                text,
                f"{name}: generality {_tip(each.generality)}, specificity {_tip(each.specificity)}",
                *place,
                across(each.generality.low),
                across(each.generality.high),
                down(each.specificity.low),
                down(each.specificity.high),
                side,
                dy,
            )
        )
    trail = "M" + "L".join(f"{10 * (across(x) or 0.0):.4g} {10 * (down(y) or 0.0):.4g}" for x, y in edited)
    return TradeOff(
        [(formatting.percent(value, 0), across(value) or 0.0) for value in _ticks(left)],
        [(formatting.percent(value, 0), down(value) or 0.0) for value in _ticks(bottom)],
        dots,
        trail,
        "Generality against specificity: " + "; ".join(dot.tip for dot in dots),
    )


Box = tuple[float, float, float, float]


def _box(x: float, y: float, text: str, side: str, dy: str) -> Box:
    """Left, top, right and bottom of a name beside a dot, or of the dot itself; roughly, in percent of the chart."""
    if not text:
        return x - 1.2, y - 1.8, x + 1.2, y + 1.8
    width, top = 1.4 + 1.9 * len(text), y + {"-.6em": -6.0, ".35em": -2.5, "1.3em": 1.0}[dy]
    left = x - width if side == "left" else x + 1.4
    return left, top, left + width, top + 5


def _beside(x: float, y: float, text: str, taken: Sequence[Box], *, above: bool) -> tuple[str, str]:
    """Where a dot's name covers least: which side, and how far down; rather above it, or below."""

    def covered(option: tuple[str, str]) -> float:
        left, top, right, bottom = _box(x, y, text, *option)
        outside = max(0.0, right - 101) + max(0.0, -left) + max(0.0, bottom - 100)
        shared = (
            max(0.0, min(right, b[2]) - max(left, b[0])) * max(0.0, min(bottom, b[3]) - max(top, b[1])) for b in taken
        )
        return 10 * outside + sum(shared)

    heights = ("-.6em", "1.3em", ".35em") if above else ("1.3em", "-.6em", ".35em")
    return min([(side, dy) for dy in heights for side in ("right", "left")], key=covered)


def _floor(values: Sequence[float]) -> float:
    """Where an axis begins: a whole number of tenths, and at most nine of them."""
    return min(0.9, max(0.0, math.floor(10 * min(values)) / 10))


def _ticks(start: float) -> list[float]:
    steps = round(10 * (1 - start))
    every = 2 if steps > 5 else 1
    return [1 - i / 10 for i in range(0, steps + 1, every)]


def _tip(figure: RateFigure) -> str:
    value = "–" if figure.value is None else formatting.percent(figure.value)
    return f"{value} ({formatting.span(figure, 'rate') or 'no interval'})"


def _row(edit: TestedEditReport, lam: float | None) -> tuple[TestedEditReport, EditFigures, EditFigures, EditFigures]:
    figures = {(each.variant, each.lam): each for each in edit.variants}
    return edit, figures["base", None], figures["oracle", None], figures["edited", lam]


def _shots(
    report: EvaluationReport, pictures: Mapping[str, bytes]
) -> list[tuple[PictureRow, list[tuple[str, Picture]]]]:
    """The pictures that there is room for."""
    shots, left = [], _PICTURE_BYTES
    for row in report.pictures:
        named = [("base", row.base)]
        named += [(f"lam {formatting.number(lam)}", name) for lam, name in zip(report.lams, row.edited, strict=True)]
        named.append(("oracle", row.oracle))
        images = [(text, picture_of(None if name is None else pictures.get(name), text)) for text, name in named]
        left -= sum(len(picture.uri or "") for _, picture in images)
        if left < 0:
            break
        shots.append((row, images))
    return shots


@cache
def _environment() -> Environment:
    environment = page_environment()
    environment.filters.update(
        clock=formatting.clock,
        count=formatting.count,
        num=partial(shown, style=formatting.number),
        pct=partial(shown, style=formatting.percent),
        three=partial(shown, style=partial(formatting.delta, places=3)),
        two=partial(shown, style=partial(formatting.delta, places=2)),
        when=formatting.when,
        place=lambda value: f"{value:.4g}%",
        sentence=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
    )
    environment.globals.update(span=formatting.span)
    return environment
