"""What the page of a series draws: where each audit lies, its marks, and where figures stop being comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.report import formatting
from jobs.report.figure_schema import DeltaFigure
from jobs.report.formatting import finite
from jobs.scheduling.entries import Entry, ProfessionPoint
from jobs.scheduling.ticks import tick_text
from jobs.scheduling.trend_csv import limit_of

__all__ = ["breaks_of", "charts_of", "dates_of", "kinds_of", "panels_of", "places_of"]

# Measured sizes of the page's parts, rounded up.
_PANEL_BYTES, _POINT_BYTES, _PANELS_BYTES = 500, 30, 1_400_000
_MAX_PANELS = 1_500
_WIDTH, _HEIGHT = 150, 56


@dataclass(frozen=True, slots=True)
class Mark:
    """One audit in a chart: places in percent of the plot, from its left and from its top."""

    x: float
    y: float
    low: float | None
    high: float | None
    verdict: str
    reused: bool
    tip: str


@dataclass(frozen=True, slots=True)
class Break:
    """Where points on either side are of different kinds, and why."""

    x: float
    tick: str
    what: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One Delta through time. Paths are in a box of 1000 by 1000.

    Attributes:
        scale: values along the vertical axis, with their places in percent from the top.
        trail: joins what is of one kind.
        bands: the intervals, likewise.
        limit: the gate's, which may change; empty where no audit had one.
        limit_text: the last limit.
        summary: for screen readers.
    """

    name: str
    title: str
    about: str
    scale: list[tuple[str, float]]
    trail: str
    bands: str
    limit: str
    limit_text: str
    marks: list[Mark]
    summary: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One profession through time; paths are in a box of 150 by 56, which is 0 to 100 % high."""

    name: str
    share: float | None
    target: float | None
    distance: float | None
    n: int
    span: str | None
    goal: float | None
    trail: str
    band: str
    last: tuple[float, float] | None


def places_of(entries: Sequence[Entry]) -> list[float]:
    """Where each tick lies between the first and the last, 0 to 1."""
    if not entries:
        return []
    start = entries[0].tick
    width = (entries[-1].tick - start) / timedelta(seconds=1)
    return [0.5 if width == 0 else (e.tick - start) / timedelta(seconds=1) / width for e in entries]


def dates_of(entries: Sequence[Entry]) -> list[tuple[float, str]]:
    """Up to five times along the axis, in percent."""
    if not entries:
        return []
    start, stop = entries[0].tick, entries[-1].tick
    if start == stop:
        return [(50.0, f"{start:%Y-%m-%d %H:%M}")]
    style = "%Y-%m-%d" if stop - start > timedelta(days=4) else "%m-%d %H:%M"
    return [(25.0 * i, f"{_between(start, stop, i / 4):{style}}") for i in range(5)]


def _between(start: datetime, stop: datetime, part: float) -> datetime:
    return start + (stop - start) * part


def kinds_of(entries: Sequence[Entry]) -> Iterator[range]:
    """Runs of neighbours whose figures are of one kind."""
    start = 0
    for i in range(1, len(entries) + 1):
        if i == len(entries) or entries[i].basis != entries[i - 1].basis:
            yield range(start, i)
            start = i


def breaks_of(entries: Sequence[Entry]) -> list[Break]:
    """Where the figures stop being comparable, and what has changed there."""
    places = places_of(entries)
    return [
        Break(
            50 * (places[i - 1] + places[i]),
            tick_text(entries[i].tick),
            ", ".join(entries[i - 1].basis.changed(entries[i].basis)),
        )
        for i in range(1, len(entries))
        if entries[i].basis != entries[i - 1].basis
    ]


def charts_of(entries: Sequence[Entry]) -> list[Chart]:
    """The charts of both Deltas, on one scale."""
    top = _top(entries)
    return [
        _chart(entries, top, "delta", "Delta, pooled over wordings", "Opposite errors in wordings can cancel."),
        _chart(entries, top, "delta_within", "Delta, mean within wordings", "Each wording’s own: nothing cancels."),
    ]


def _top(entries: Sequence[Entry]) -> float:
    """Upper end of both charts' scale: a whole number of tenths, so that they compare."""
    ends = [0.1]
    for entry in entries:
        for name in ("delta", "delta_within"):
            figure: DeltaFigure = getattr(entry, name)
            ends += [
                end for end in (finite(figure.value), finite(figure.high), limit_of(entry, name)) if end is not None
            ]
    return min(1.0, math.ceil(10 * max(ends) + 0.2) / 10)


def _chart(entries: Sequence[Entry], top: float, name: str, title: str, about: str) -> Chart:
    places = places_of(entries)
    deltas: list[DeltaFigure] = [getattr(entry, name) for entry in entries]

    def down(value: float) -> float:
        return 1 - min(1.0, max(0.0, value / top))

    points = [(x, finite(f.value), finite(f.low), finite(f.high)) for x, f in zip(places, deltas, strict=True)]
    trail, bands = _paths(points, kinds_of(entries), down, 1000, 1000)
    marks = [
        Mark(
            100 * x,
            100 * down(value),
            None if low is None else 100 * down(low),
            None if high is None else 100 * down(high),
            entry.verdict,
            entry.reused_from is not None,
            _tip(entry, figure),
        )
        for entry, figure, (x, value, low, high) in zip(entries, deltas, points, strict=True)
        if value is not None
    ]
    limits = [(x, limit_of(entry, name)) for x, entry in zip(places, entries, strict=True)]
    last = next((limit for _, limit in reversed(limits) if limit is not None), None)
    steps = max(1, round(10 * top))
    every = 2 if steps > 5 else 1
    return Chart(
        name,
        title,
        about,
        [(f"{i / 10:.1f}", 100 * down(i / 10)) for i in range(0, steps + 1, every)],
        trail,
        bands,
        _limit_path(limits, down),
        "" if last is None else formatting.number(last),
        marks,
        _summary(title, entries, deltas),
    )


def _tip(entry: Entry, figure: DeltaFigure) -> str:
    span = formatting.span(figure, "delta")
    parts = [formatting.when(tick_text(entry.tick)), f"Delta {formatting.delta(figure.value or 0.0)}"]
    if span:
        parts[-1] += f" ({span}, n {formatting.count(figure.n)})"
    parts.append(entry.verdict)
    if entry.reused_from is not None:
        parts.append(f"unchanged, reused from {entry.reused_from}")
    return "; ".join(parts)


def _summary(title: str, entries: Sequence[Entry], deltas: Sequence[DeltaFigure]) -> str:
    known = [(e, v) for e, f in zip(entries, deltas, strict=True) if (v := finite(f.value)) is not None]
    if not known:
        return f"{title}: no value"
    (first, start), (last, end) = known[0], known[-1]
    return (
        f"{title}: {len(known)} audits, from {formatting.delta(start)} on {first.tick:%Y-%m-%d} "
        f"to {formatting.delta(end)} on {last.tick:%Y-%m-%d}; the table below has each"
    )


def _paths(
    points: Sequence[tuple[float, float | None, float | None, float | None]],
    kinds: Iterable[range],
    down: Callable[[float], float],
    width: float,
    height: float,
) -> tuple[str, str]:
    """The line through each kind's points, and the band of their intervals, as path data."""

    def place(x: float, value: float) -> str:
        return f"{width * x:.4g} {height * down(value):.4g}"

    trails, bands = [], []
    for kind in kinds:
        known = [(x, value) for x, value, *_ in (points[i] for i in kind) if value is not None]
        if known:
            # A point alone: a line of no length, whose round ends show it.
            trails.append("M" + "L".join(place(*p) for p in known) + ("h0" if len(known) == 1 else ""))
        ends = [(x, low, high) for x, _, low, high in (points[i] for i in kind) if low is not None and high is not None]
        if len(ends) > 1:
            upper = [place(x, high) for x, _, high in ends]
            lower = [place(x, low) for x, low, _ in reversed(ends)]
            bands.append("M" + "L".join(upper + lower) + "Z")
    return "".join(trails), "".join(bands)


def _limit_path(limits: Sequence[tuple[float, float | None]], down: Callable[[float], float]) -> str:
    """The gate's limit as a line with steps: each audit's reaches half-way to its neighbours."""
    path, before = "", None
    for i, (x, limit) in enumerate(limits):
        start = 0.0 if i == 0 else (limits[i - 1][0] + x) / 2
        stop = 1.0 if i == len(limits) - 1 else (x + limits[i + 1][0]) / 2
        if limit is not None:
            y = 1000 * down(limit)
            path += f"{f'M{1000 * start:.4g} {y:.4g}' if before is None else f'V{y:.4g}'}H{1000 * stop:.4g}"
        before = limit
    return path


def panels_of(entries: Sequence[Entry]) -> tuple[list[Panel], int, int]:
    """A panel per profession of the last audit, farthest from target first; how many audits each draws; left out."""
    if not entries:
        return [], 0, 0
    wanted = entries[-1].professions
    drawn = min(len(wanted), _MAX_PANELS)
    room = _PANELS_BYTES - _PANEL_BYTES * drawn
    kept = max(10, min(len(entries), room // (_POINT_BYTES * max(1, drawn))))
    recent = entries[-kept:]
    places, kinds = places_of(recent), list(kinds_of(recent))
    by_name = [{p.profession: p for p in entry.professions} for entry in recent]
    panels = [_panel(item, [known.get(item.profession) for known in by_name], places, kinds) for item in wanted]
    panels.sort(key=lambda panel: (panel.distance is None, -(panel.distance or 0.0), panel.name))
    return panels[:drawn], len(recent), len(panels) - drawn


def _panel(
    item: ProfessionPoint,
    history: Sequence[ProfessionPoint | None],
    places: Sequence[float],
    kinds: Iterable[range],
) -> Panel:
    points = [
        (x, *((None,) * 3 if p is None else (finite(p.share), finite(p.low), finite(p.high))))
        for x, p in zip(places, history, strict=True)
    ]
    trail, band = _paths(points, kinds, lambda share: 1 - share, _WIDTH, _HEIGHT)
    share, target = finite(item.share), finite(item.target)
    return Panel(
        item.profession,
        share,
        target,
        None if share is None or target is None else abs(share - target),
        item.n,
        formatting.span(item, "rate"),
        None if target is None else round(_HEIGHT * (1 - target), 2),
        trail,
        band,
        None if share is None else (round(_WIDTH * places[-1], 2), round(_HEIGHT * (1 - share), 2)),
    )
