"""How a mixture looks: its weights as one bar, and how the search for its strengths ended, one panel per profession."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.report.formatting import count, finite
from jobs.report.mixture_schema import ComponentWording
from jobs.report.schema import ProfessionReport
from jobs.report.search_schema import SaturatedProfession, Saturation

__all__ = [
    "MAX_SATURATED",
    "SATURATION_STATES",
    "SaturatedPanel",
    "Segment",
    "ended_by_component",
    "saturated_panels",
    "segments",
    "wording_tip",
]

MAX_SATURATED = 240
"""Panels on a page, professions that are short first: the rest is counted there, and listed in the CSV."""

SATURATION_STATES = ("short", "saturated", "fixed", "left alone")
"""Ends of a search, in the order that they are told in: what a reader must act on comes first."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One component in the bar of weights; `start` and `width` are parts of the bar, which is 1 wide."""

    label: str
    weight: float
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class SaturatedPanel:
    """One profession's search in every component; `index` is its place in the report's professions, None: not there."""

    index: int | None
    profession: str
    lines: list[SaturatedProfession]

    @property
    def short(self) -> bool:
        """Whether it is short in any component."""
        return any(line.state == "short" for line in self.lines)


def segments(weights: Mapping[str, float]) -> list[Segment]:
    """The bar's parts in order. They fill it, whatever the weights' last digit is off their sum."""
    total = sum(weights.values()) or 1.0
    parts, start = [], 0.0
    for label, weight in weights.items():
        parts.append(Segment(label, weight, start, weight / total))
        start += weight / total
    return parts


def wording_tip(counts: ComponentWording) -> str:
    """Write one component's labels in one wording: `female 412, male 6, undetermined 4`."""
    told = [f"{label} {count(images)}" for label, images in counts.labels.items()]
    return ", ".join([*told, f"undetermined {count(counts.undetermined)}"])


def ended_by_component(saturation: Saturation) -> dict[str, dict[str, int]]:
    """How many professions ended in which state, by component, in the order of `SATURATION_STATES`."""
    labels = dict.fromkeys([line.component for line in saturation.rounds])
    labels |= dict.fromkeys(each.component for each in saturation.professions)
    return {
        label: {
            state: sum(each.component == label and each.state == state for each in saturation.professions)
            for state in SATURATION_STATES
        }
        for label in labels
    }


def saturated_panels(saturation: Saturation, professions: Sequence[ProfessionReport]) -> list[SaturatedPanel]:
    """One panel per profession of the search: those that are short first, the farthest from saturation first."""
    places = {item.profession: index for index, item in enumerate(professions)}
    lines: dict[str, list[SaturatedProfession]] = {}
    for each in saturation.professions:
        lines.setdefault(each.profession, []).append(each)
    panels = [SaturatedPanel(places.get(name), name, some) for name, some in lines.items()]
    return sorted(panels, key=_order)


def _order(panel: SaturatedPanel) -> tuple[bool, float, str]:
    shares = [share for line in panel.lines if (share := finite(line.own.value)) is not None]
    return not panel.short, min(shares, default=1.0), panel.profession
