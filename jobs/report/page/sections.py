"""Parts of the page: every label's share, and searches and mixtures within the page's budget of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.report.figure_schema import ShareFigure
from jobs.report.formatting import finite
from jobs.report.page.mixture_view import MAX_SATURATED, ended_by_component, saturated_panels, segments
from jobs.report.page.search_panels import MAX_PANELS, panels, state_counts
from jobs.report.schema import LabelCounts, Report
from time_ops.stats.intervals import wilson

__all__ = ["LabelShares", "Section", "calibration_section", "label_shares", "mixture_section"]

# Measured sizes of the page's parts, rounded up.
_PANEL_BYTES, _UNREACHABLE_BYTES = 2_300, 600
_EDITED_BYTES, _SATURATED_BYTES = 70, 450
_WEIGHTS_BYTES, _WEIGHT_BYTES = 150, 40


@dataclass(frozen=True, slots=True)
class Section:
    """What the template is given for a section, and about how many bytes of the page it takes."""

    parts: dict[str, object]
    size: int


@dataclass(frozen=True, slots=True)
class LabelShares:
    """One label over all professions and wordings: wanted (None: not everywhere), and its share in each variant."""

    label: str
    wanted: float | None
    shares: list[ShareFigure]


def label_shares(report: Report) -> list[LabelShares]:
    """Every label's shares, where there are more than two: of two, one says it all, and stands in the headline."""
    if len(report.labels) <= 2:
        return []
    variants = [[item.base for item in report.professions]]
    if report.summary.edited is not None:
        variants.append([item.edited for item in report.professions if item.edited is not None])
    shares = []
    for label in report.labels:
        targets = [target for item in report.professions if (target := finite(item.target.get(label))) is not None]
        wanted = sum(targets) / len(targets) if targets and len(targets) == len(report.professions) else None
        shares.append(LabelShares(label, wanted, [_pooled(counts, label) for counts in variants]))
    return shares


def _pooled(counts: Iterable[LabelCounts], label: str) -> ShareFigure:
    listed = list(counts)
    hits, n = sum(each.labels.get(label, 0) for each in listed), sum(each.n for each in listed)
    if not n:
        return ShareFigure(value=None, low=None, high=None)
    low, high = wilson(hits, n)
    return ShareFigure(value=hits / n, low=float(low), high=float(high))


def calibration_section(report: Report, budget: int, least: int) -> Section:
    """The calibration's panels: `least`, and as many more as `budget` bytes have room for."""
    search = report.calibration
    searched = panels(search, report.professions) if search else []
    unreachable = [panel for panel in searched if panel.item.state == "unreachable"]
    size = _UNREACHABLE_BYTES * len(unreachable)
    drawn = searched[: max(least, min(MAX_PANELS, (budget - size) // _PANEL_BYTES))]
    parts: dict[str, object] = {
        "panels": drawn,
        "panels_left_out": len(searched) - len(drawn),
        "unreachable": unreachable,
        "states": state_counts(search) if search else {},
    }
    return Section(parts, size + _PANEL_BYTES * len(drawn))


def mixture_section(report: Report, budget: int, least: int) -> Section:
    """A mixture's weights, what each component did, how strengths were found; sizes as in `calibration_section`."""
    mixture, search = report.mixture, report.saturation
    by_component = dict.fromkeys(label for item in report.professions for label in item.components or {})
    searched = saturated_panels(search, report.professions) if search else []
    size = _EDITED_BYTES * len(by_component) * len(report.professions)
    line = _SATURATED_BYTES * max(1, len(by_component))
    size += 0 if mixture is None else (_WEIGHTS_BYTES + _WEIGHT_BYTES * len(mixture.weights)) * len(mixture.professions)
    drawn = searched[: max(least, min(MAX_SATURATED, (budget - size) // line))]
    parts: dict[str, object] = {
        "weight_segments": segments(mixture.weights) if mixture else [],
        "by_component": list(by_component),
        "edits": sum(each.operator is not None for each in mixture.components) if mixture else 1,
        "saturated": drawn,
        "saturated_left_out": len(searched) - len(drawn),
        "shorts": sum(panel.short for panel in searched),
        "ended": ended_by_component(search) if search else {},
    }
    return Section(parts, size + line * len(drawn))
