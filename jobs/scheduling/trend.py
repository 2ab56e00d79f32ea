"""`trend.html`: a series of audits through time, in one file; no network, no server.

    html = render_trend(history.entries(), "nightly", link=lambda entry: f"../../{entry.prefix}/report.html")

Points are joined only where manifest, classifier, sampler and wordings are the same: figures of different kinds are no
trend. All names are users' text; the page is drawn with autoescaping, and its content security policy allows nothing
but what is inside the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from jinja2 import Environment

from jobs.report import formatting
from jobs.report.formatting import finite
from jobs.report.page.templating import page_environment, part
from jobs.scheduling.entries import Entry
from jobs.scheduling.ticks import tick_text
from jobs.scheduling.trend_charts import breaks_of, charts_of, dates_of, panels_of
from jobs.scheduling.trend_csv import audits_csv, form_of, professions_csv

__all__ = ["MAX_ENTRIES", "MAX_PAGE_BYTES", "render_trend"]

MAX_ENTRIES = 1_000
"""Audits that the page has, the last ones."""

MAX_PAGE_BYTES = 5_000_000
"""What the page stays under."""

VISIBLE_PANELS = 60
"""Professions that show before "show all" is asked for."""

_CSV_BYTES, _CSV_ROW_BYTES = 700_000, 90


@dataclass(frozen=True, slots=True)
class Line:
    """One audit in the table."""

    entry: Entry
    url: str | None
    new: str
    changed: tuple[str, ...]
    worse: list[str]


def render_trend(
    entries: Sequence[Entry],
    series: str,
    *,
    link: Callable[[Entry], str | None],
    total: int | None = None,
    gone: str = "no audit",
) -> str:
    """Draw the page, as one self-contained HTML document.

    Args:
        entries: of one series, by tick.
        series: its name.
        link: where an entry's report lies, as seen from the page; None: a browser can't open it.
        total: how many entries the series has; None: these.
        gone: what is said where there is no entry at all.
    """
    shown = list(entries[-MAX_ENTRIES:])
    panels, kept, left_out = panels_of(shown)
    detailed = list(_within(shown, _CSV_BYTES))[::-1]
    return (
        _environment()
        .get_template("trend.html")
        .render(
            series=series,
            last=shown[-1] if shown else None,
            first=shown[0] if shown else None,
            count_all=len(entries) if total is None else total,
            shown=len(shown),
            charts=charts_of(shown),
            breaks=breaks_of(shown),
            dates=dates_of(shown),
            panels=panels,
            panels_kept=kept,
            panels_left_out=left_out,
            lines=_lines(shown, link),
            audits_csv=audits_csv(shown),
            professions_csv=professions_csv(detailed),
            detailed=len(detailed),
            gone=gone,
            visible=VISIBLE_PANELS,
            css=part("report.css") + part("trend.css"),
            js=part("trend.js"),
        )
    )


def _within(entries: Sequence[Entry], budget: int) -> Iterator[Entry]:
    """The last audit, and as many before it as the professions' CSV has room for; the latest first."""
    for i, entry in enumerate(reversed(entries)):
        budget -= sum(_CSV_ROW_BYTES + len(p.profession.encode()) for p in entry.professions)
        if i and budget < 0:
            return
        yield entry


def _lines(entries: Sequence[Entry], link: Callable[[Entry], str | None]) -> list[Line]:
    """The table's rows, the latest first."""
    lines = []
    for i, entry in enumerate(entries):
        before = entries[i - 1] if i else None
        lines.append(
            Line(
                entry,
                link(entry),
                "" if before is None else _new(before, entry),
                () if before is None else before.basis.changed(entry.basis),
                [m.profession for m in entry.moved if m.worse],
            )
        )
    return lines[::-1]


def _new(before: Entry, entry: Entry) -> str:
    if before.model_digest != entry.model_digest:
        return "Another model. "
    if before.operator == entry.operator:
        return ""
    form = form_of(entry)
    if form is None:
        return f"Without the {form_of(before)} of before. "
    return (
        f"Another {form}. "
        if form_of(before) == form
        else f"Now under {'an operator' if form == 'operator' else 'a mixture'}. "
    )


@cache
def _environment() -> Environment:
    environment = page_environment()
    environment.filters.update(
        count=formatting.count,
        delta=partial(_shown, style=formatting.delta),
        pct=partial(_shown, style=formatting.percent),
        when=formatting.when,
        tick=tick_text,
        form=form_of,
        place=lambda value: f"{value:.4g}%",
        sentence=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
    )
    environment.globals.update(span=formatting.span)
    return environment


def _shown(value: float | None, *, style: Callable[[float], str]) -> str:
    known = finite(value)
    return "\N{EN DASH}" if known is None else style(known)
