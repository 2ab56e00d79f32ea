"""`report.html`: the whole report in one file; no network, no server, and script only to sort, search and unpack.

    html = render(report, {"pictures/ceo-0-base.png": content, ...})

The page is drawn from `templates/` with autoescaping; every name and prompt in it is a user's text. Its content
security policy allows nothing but what is inside the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Literal

from jinja2 import Environment
from markupsafe import Markup

from jobs.report import formatting
from jobs.report.figure_schema import DeltaFigure, GateResult
from jobs.report.formatting import Kind, Measure, Ranged, finite
from jobs.report.headline import headline_of
from jobs.report.naming import Names, variant_names
from jobs.report.page.figures_csv import (
    components_csv,
    pack,
    professions_csv,
    saturation_csv,
    steps_csv,
    summary_csv,
    wordings_csv,
)
from jobs.report.page.lam_chart import lam_chart
from jobs.report.page.mixture_view import wording_tip
from jobs.report.page.picture_data import choose_pictures
from jobs.report.page.search_panels import best_step
from jobs.report.page.sections import calibration_section, label_shares, mixture_section
from jobs.report.page.templating import page_environment, part
from jobs.report.schema import LabelCounts, ProfessionReport, Report

__all__ = ["MAX_BYTES", "VISIBLE_ROWS", "flatten", "render", "shown"]

MAX_BYTES = 5_000_000
"""What the page stays under; pictures get what the figures leave."""

VISIBLE_ROWS = 60
"""Rows of a long list that show before "show all" is asked for."""

_WHOLE_CELLS = 6_000
"""Cells of the heat map that stand in the page as they are; the script draws the rest from numbers."""

_FIXED_BYTES, _PROFESSION_BYTES, _CELL_BYTES, _REST_CELL_BYTES = 150_000, 2_100, 330, 32
"""Measured sizes of the page's parts, rounded up: what is left of `MAX_BYTES` goes to pictures."""


@dataclass(frozen=True, slots=True)
class Row:
    """One profession as charts and tables show it; shares are of the report's first label."""

    index: int
    item: ProfessionReport
    target: float | None
    base: float | None
    edited: float | None
    change: float | None
    distance: float | None

    @property
    def label(self) -> str:
        """The profession's name, short enough for the chart's margin."""
        name = self.item.profession
        return name if len(name) <= 21 else f"{name[:20].rstrip()}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class Track:
    """Positions along a short horizontal scale, in percent of its width, for one figure with interval and limit."""

    value: float | None
    low: float | None
    high: float | None
    limit: float


@dataclass(frozen=True, slots=True)
class Ends:
    """An interval that stands beside another one in the same figure."""

    low: float | None
    high: float | None


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Draw the page, as one self-contained HTML document.

    `pictures` maps the paths that `report.pictures` names to PNG, JPEG, GIF or WebP content. A picture that is not
    there is shown as missing; pairs past the page's budget of bytes are counted on the page, not shown.
    """
    rows = _rows(report)
    heat_rows = sorted(rows, key=lambda row: (row.base is None, -(row.base or 0), row.item.profession))
    wide = max(1, len(report.wordings))
    whole = len(rows) if wide * len(rows) <= _WHOLE_CELLS else VISIBLE_ROWS
    cells = wide * (_CELL_BYTES * min(whole, len(rows)) + _REST_CELL_BYTES * max(0, len(rows) - whole))
    budget = MAX_BYTES - _FIXED_BYTES - _PROFESSION_BYTES * len(report.professions) - cells
    csvs = _csvs(report)
    budget -= sum(map(len, csvs.values()))
    edited = report.summary.edited is not None
    first = report.labels[0] if report.labels else ""
    searches = [calibration_section(report, budget, VISIBLE_ROWS), mixture_section(report, budget, VISIBLE_ROWS)]
    budget -= sum(each.size for each in searches)
    lams = _strengths(report)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            headline=report.headline or headline_of(report),
            label_shares=label_shares(report),
            edited=edited,
            first=first or "first label",
            chart_rows=sorted(rows, key=partial(_chart_order, edited=edited)),
            heat_rows=heat_rows,
            heat_whole=whole,
            heat_rest=_heat_numbers(report, heat_rows[whole:]),
            table_rows=rows,
            tracks=[_track(gate) for gate in report.gates],
            gallery=choose_pictures(report.pictures, pictures, max(0, budget)),
            tested=any(item.off_target is not None for item in report.professions),
            bounded=any(item.base.worst_low is not None for item in report.professions),
            corrected=any(item.base.corrected for item in report.professions),
            lams=lams,
            lam_median=median(lams) if lams else None,
            provenance=_provenance(report),
            shows_edit=edited and (report.reference is None or bool(lams)),
            lam_chart=lam_chart(report.professions, first) if edited else None,
            names=variant_names(report),
            csvs=csvs,
            visible=VISIBLE_ROWS,
            css=part("report.css"),
            js=part("report.js"),
            **searches[0].parts,
            **searches[1].parts,
        )
    )


def _csvs(report: Report) -> dict[str, str]:
    """The downloads, as the page carries them; those that the report has nothing for are left out."""
    made = {
        "summary": summary_csv,
        "professions": professions_csv,
        "wordings": wordings_csv,
        "steps": steps_csv,
        "components": components_csv,
        "saturation": saturation_csv,
    }
    return {name: pack(text) for name, make in made.items() if (text := make(report))}


def _strengths(report: Report) -> list[float]:
    """Every lam that something was edited with, the strongest edit first."""
    lams = [item.lam for item in report.professions]
    lams += [done.lam for item in report.professions for done in (item.components or {}).values()]
    return sorted(lam for each in lams if (lam := finite(each)) is not None)


def _provenance(report: Report) -> list[tuple[str, str]]:
    """Provenance as rows, led by what the report was compared with and what its mixture is."""
    led: dict[str, object] = {}
    if report.reference is not None:
        led["compared_with"] = report.reference.model_dump()
    if report.mixture is not None:
        operators = {each.label: each.operator for each in report.mixture.components}
        led["mixture"] = {"digest": report.mixture.digest, "route": report.mixture.route, "operators": operators}
    return flatten(led | report.provenance)


@cache
def _environment() -> Environment:
    environment = page_environment()
    environment.filters.update(
        at=_at,
        count=formatting.count,
        clock=formatting.clock,
        delta=partial(shown, style=formatting.delta),
        delta2=partial(shown, style=partial(formatting.delta, places=2)),
        pct=partial(shown, style=formatting.percent),
        pct0=partial(shown, style=partial(formatting.percent, places=0)),
        pts=partial(shown, style=formatting.points),
        num=partial(shown, style=formatting.number),
        when=formatting.when,
        measure=formatting.gate_measure,
        column=_column,
        wording=_wording,
        sentence=_sentence,
        upfirst=_upfirst,
    )
    environment.globals.update(
        span=_span,
        tip=_tip,
        delta_track=_delta_track,
        ends=Ends,
        figure=_figure,
        absent=_none,  # not `none`: to a template that is the constant
        tilt=_tilt,
        finite=finite,
        best_step=best_step,
        wording_tip=wording_tip,
    )
    return environment


def _rows(report: Report) -> list[Row]:
    first = report.labels[0] if report.labels else ""
    rows = []
    for index, item in enumerate(report.professions):
        target, base = finite(item.target.get(first)), finite(item.base.share)
        edited = None if item.edited is None else finite(item.edited.share)
        latest = base if item.edited is None else edited
        rows.append(
            Row(
                index=index,
                item=item,
                target=target,
                base=base,
                edited=edited,
                change=None if base is None or edited is None else edited - base,
                distance=None if latest is None or target is None else abs(latest - target),
            )
        )
    return rows


def _heat_numbers(report: Report, rows: Sequence[Row]) -> str:
    """Rows of the heat map as JSON: the target, then per wording and variant images of the first label, n, and others.

    A cell that was not measured has n -1.
    """
    first = report.labels[0] if report.labels else ""
    variants: list[Literal["base", "edited"]] = ["base"] if report.summary.edited is None else ["base", "edited"]
    table = []
    for row in rows:
        line: list[float] = [0.5 if row.target is None else row.target]
        for wording in report.wordings:
            cell = row.item.wordings.get(wording.wording, {})
            for variant in variants:
                counts = cell.get(variant)
                line += (
                    [0, -1, 0]
                    if counts is None
                    else [counts.labels.get(first, 0), counts.n, counts.undetermined + counts.failed]
                )
        table.append(line)
    return json.dumps(table, separators=(",", ":")) if table else ""


def _chart_order(row: Row, edited: bool) -> tuple[bool, float, str]:
    """Sort the largest change first; where nothing was edited, farthest from the target first."""
    key = row.change if edited else row.distance
    return key is None, -abs(key or 0.0), row.item.profession


def _at(value: float) -> str:
    """Place a share along an axis from 0 to 100 %."""
    return f"{100 * min(1.0, max(0.0, value)):.4g}%"


def _none(reason: str) -> Markup:
    """Stand in where there is no value: a dash, with the reason for the pointer and for screen readers."""
    return Markup(
        '<span class="none" title="{0}"><span aria-hidden="true">\N{EN DASH}</span><span class="vh">{0}</span></span>'
    ).format(reason)


def shown(value: float | None, reason: str = "no value", *, style: Callable[[float], str]) -> str | Markup:
    """Write a figure; where there is none, a dash with the reason."""
    known = finite(value)
    return _none(reason) if known is None else style(known)


def _figure(value: float | None, kind: Kind, reason: str = "no value") -> str | Markup:
    return shown(value, reason, style=partial(formatting.in_kind, kind=kind))


def _span(figure: Ranged | None, kind: Kind = "rate", places: int | None = None) -> str | Markup:
    text = None if figure is None else formatting.span(figure, kind, places)
    return _none("no interval: nothing was measured") if text is None else text


def _tip(name: str, counts: LabelCounts | None) -> str:
    """Write one variant's figure for a tooltip: `base 91.2 % (86.1-94.6, n 240)`."""
    if counts is None:
        return f"{name} not measured"
    share = finite(counts.share)
    if share is None:
        return f"{name} no determined image of {counts.undetermined + counts.failed}"
    return f"{name} {formatting.percent(share)} ({formatting.span(counts, 'rate') or 'no interval'}, n {counts.n})"


def _tilt(share: float, target: float | None) -> str:
    """Measure how far a share lies from its target, -1 to 1, 0 on it: what the heat map's colours show."""
    middle = 0.5 if target is None else target
    room = 1 - middle if share > middle else middle
    return f"{0.0 if room == 0 else (share - middle) / room:.2f}"


def _delta_track(figure: DeltaFigure) -> Track:
    """Place a Delta along its scale from 0 to 1, its noise floor as the limit."""
    return Track(finite(figure.value), finite(figure.low), finite(figure.high), finite(figure.floor) or 0.0)


def _track(gate: GateResult) -> Track:
    """Place a gate along a scale of its own, with the limit where it is easily compared."""
    known = [end for end in map(finite, (gate.value, gate.low, gate.high)) if end is not None]
    if gate.direction == "at most":
        start, stop = min([0.0, *known]), max([2 * gate.limit, *known])
    else:
        start, stop = min([max(0.0, 2 * gate.limit - 1), *known]), max([1.0, *known])
    width = stop - start or 1.0

    def place(value: float | None) -> float | None:
        position = finite(value)
        return None if position is None else (position - start) / width

    return Track(place(gate.value), place(gate.low), place(gate.high), place(gate.limit) or 0.0)


def _wording(template: str) -> str:
    """Write a wording as people read it: the place of the profession is an ellipsis."""
    return template.replace("{source}", "\N{HORIZONTAL ELLIPSIS}")


def _upfirst(text: str) -> str:
    """Begin with a capital, and leave the rest as it is."""
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    """Keep a sentence's percentages from breaking before their sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _column(name: str, names: Names) -> Measure:
    """Find heading and kind of a free-form table's column, such as the margin sweep's."""
    stem, _, variant = name.rpartition("_")
    called = {"base": names.one, "edited": names.other}.get(variant)
    title = (name if called is None else f"{stem} {called}").replace("_", " ")
    if name.startswith("delta"):
        return Measure(f"Delta{title.removeprefix('delta')}", "delta")
    rate = name.startswith(("undetermined", "share", "explicit", "recognised"))
    return Measure(title.capitalize(), "rate" if rate else "number")


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of a table: dotted name, and text or JSON."""
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat += flatten(value, f"{name}.")
        elif isinstance(value, str):
            flat.append((name, value))
        else:
            flat.append((name, json.dumps(value, ensure_ascii=False, default=str)))
    return flat
