"""How calibration looks: one small panel per profession, what was tried against what was measured.

Across a panel runs the share of the edit's first destination, up it the measured share of the report's label; both from
0 to 100 %. Coordinates are in the units of the panel's view box, whose frame the template draws once for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.report import formatting
from jobs.report.formatting import finite
from jobs.report.schema import ProfessionReport
from jobs.report.search_schema import CalibratedProfession, Calibration, CalibrationStep

__all__ = ["MAX_PANELS", "MAX_STEPS", "STATES", "Panel", "best_step", "panels", "state_counts"]

MAX_PANELS = 240
"""Panels on a page, those off target first: the rest is counted there, and listed in the CSV."""

MAX_STEPS = 12
"""Rounds drawn in a panel: the first, and the last eleven."""

STATES = ("unreachable", "undecided", "on target", "balanced", "fixed")
"""Ends of a search, in the order that panels stand in: what a reader must act on comes first."""

_LEFT, _TOP, _WIDTH, _HEIGHT = 24, 6, 120, 100


@dataclass(frozen=True, slots=True)
class Panel:
    """One profession's search, ready to draw; `index` is its place in the report's professions, `None` if not there.

    `whiskers`, `trail` and `dots` are SVG path data; `last` is the emphasised point, `target` the target's height.
    """

    index: int | None
    item: CalibratedProfession
    goal: float | None
    target: float | None
    whiskers: str
    trail: str
    dots: str
    last: tuple[str, str] | None
    drawn: int
    tip: str


def panels(calibration: Calibration, professions: Sequence[ProfessionReport]) -> list[Panel]:
    """One panel per profession of the search: unreachable and undecided ones first, the farthest from target first."""
    known = {item.profession: (index, item) for index, item in enumerate(professions)}
    drawn = []
    for each in calibration.professions:
        index, item = known.get(each.profession, (None, None))
        goal = None if item is None else finite(item.target.get(calibration.label))
        drawn.append(_panel(index, each, goal, calibration.label))
    return sorted(drawn, key=_order)


def state_counts(calibration: Calibration) -> dict[str, int]:
    """How many professions ended in each state, in the order of `STATES`."""
    return {state: sum(each.state == state for each in calibration.professions) for state in STATES}


def best_step(item: CalibratedProfession, goal: float | None) -> CalibrationStep | None:
    """The step that came closest to the target; `None` where none was measured or there is no target."""
    measured = [(share, step) for step in item.steps if (share := finite(step.share)) is not None]
    if goal is None or not measured:
        return None
    return min(measured, key=lambda pair: abs(pair[0] - goal))[1]


def _order(panel: Panel) -> tuple[int, float, str]:
    steps = panel.item.steps
    share = finite(steps[-1].share) if steps else None
    distance = 0.0 if share is None or panel.goal is None else abs(share - panel.goal)
    return STATES.index(panel.item.state), -distance, panel.item.profession


def _panel(index: int | None, item: CalibratedProfession, goal: float | None, label: str) -> Panel:
    steps = item.steps if len(item.steps) <= MAX_STEPS else [item.steps[0], *item.steps[1 - MAX_STEPS :]]
    points: list[tuple[str, str]] = []
    whiskers = []
    for step in steps:
        tried, share = finite(next(iter(step.shares.values()), None)), finite(step.share)
        if tried is None or share is None:
            continue
        across = _across(tried)
        points.append((across, _up(share)))
        low, high = finite(step.low), finite(step.high)
        if low is not None and high is not None:
            whiskers.append(f"M{across} {_up(low)}V{_up(high)}")
    return Panel(
        index=index,
        item=item,
        goal=goal,
        target=None if goal is None else float(_up(goal)),
        whiskers="".join(whiskers),
        trail=_joined(points) if len(points) > 1 else "",
        # Segments of no length: with round caps each is a dot.
        dots="".join(f"M{x} {y}h0" for x, y in points[:-1]),
        last=points[-1] if points else None,
        drawn=len(points),
        tip=f"{item.profession}, {item.state}. " + "; ".join(_told(step, label) for step in steps),
    )


def _told(step: CalibrationStep, label: str) -> str:
    """Write one step: `round 2: lam 60, share 46 %, female 52.6 % (37.1-67.5, n 38)`."""
    tried, share = finite(next(iter(step.shares.values()), None)), finite(step.share)
    moved = f"round {step.round}: lam {formatting.number(step.lam)}"
    if tried is not None:
        moved += f", share {formatting.percent(tried, 0)}"
    if share is None:
        return f"{moved}, no determined image of {step.undetermined}"
    return (
        f"{moved}, {label} {formatting.percent(share)} ({formatting.span(step, 'rate') or 'no interval'}, n {step.n})"
    )


def _joined(points: Iterable[tuple[str, str]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _across(share: float) -> str:
    return f"{_LEFT + _WIDTH * min(1.0, max(0.0, share)):.4g}"


def _up(share: float) -> str:
    return f"{_TOP + _HEIGHT * (1 - min(1.0, max(0.0, share))):.4g}"
