"""How strengths were found, as a report shows it: the rounds of either search."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.report.figure_schema import (
    Figure,
    RateFigure,
)

__all__ = [
    "CalibratedProfession",
    "Calibration",
    "CalibrationRound",
    "CalibrationStep",
    "SaturatedProfession",
    "Saturation",
    "SaturationRound",
]


class CalibrationStep(Figure):
    """One round of one profession: what was moved, and what was measured."""

    round: int
    lam: float
    shares: dict[str, float] = Field(description="destination prompt -> its share of the edit's destination, tried")
    share: float | None = Field(description="measured share of the first label among the determined")
    low: float | None = Field(description="lower end of the share's Wilson interval, of this round's images alone")
    high: float | None
    n: int = Field(description="determined images of this round")
    undetermined: int


class CalibratedProfession(Figure):
    """How calibration ended for one profession."""

    profession: str
    state: Literal["fixed", "balanced", "on target", "undecided", "unreachable"] = Field(
        description="fixed: by the manifest; balanced: on target without an edit, left alone; on target: the "
        "confidence sequence lies within the tolerance; undecided: the rounds ended first; unreachable: at the end of "
        "what shares and lambda allow, and off target"
    )
    reason: str = ""
    images: int = Field(description="calibration images spent on it, base included")
    steps: list[CalibrationStep] = Field(default_factory=list)


class CalibrationRound(Figure):
    """One round of the search, over the professions that took part in it."""

    round: int
    professions: int = Field(description="professions that were still open, and so took images")
    images: int = Field(description="images that the round asked for, failed ones included")
    delta: float | None = Field(description="raw Delta pooled over calibration wordings, of this round's images")
    delta_within: float | None = Field(description="mean over the wordings of each one's raw Delta")
    floor_within: float | None = Field(description="what a model on target would show there by chance")
    undetermined: float | None = Field(description="share of the round's images")
    explicit: float | None = Field(default=None, description="share of explicit prompts that show what they name")
    chosen: bool = Field(description="the round whose operator the run went on with")


class Calibration(Figure):
    """How strengths and shares were found."""

    label: str = Field(description="the label that measured shares are of")
    rule: str = Field(description="the stopping rule in one sentence")
    wordings: list[str]
    rounds: list[CalibrationRound]
    professions: list[CalibratedProfession]
    images: int = Field(description="in all rounds together")


class SaturationRound(Figure):
    """One round of the search for strengths: one component, on wordings that its solve has not seen."""

    round: int
    component: str
    lam: float = Field(description="median over professions, in units of the edits' own scale")
    overshoot: float = Field(description="median over professions")
    professions: int = Field(description="professions that took images")
    images: int = Field(description="images that the round asked for, failed ones included")
    own: RateFigure = Field(description="determined images that show the component's label")
    explicit: RateFigure
    recognised: RateFigure
    controls: RateFigure
    undetermined: RateFigure
    chosen: bool = Field(description="whether the component went on at this round's strength")


class SaturatedProfession(Figure):
    """How the search ended for one profession in one component."""

    profession: str
    component: str
    state: Literal["fixed", "left alone", "saturated", "short"] = Field(
        description="fixed: by the manifest; left alone: without a destination of this label; saturated: as far as its "
        "images tell; short: at the end of what strength allows"
    )
    lam: float | None
    overshoot: float | None
    own: RateFigure = Field(description="of its images at the chosen strength, on wordings the solve had not seen")


class Saturation(Figure):
    """How a mixture's strengths and weights were found."""

    rule: str = Field(description="in one sentence")
    wordings: list[str] = Field(description="held out of the solve while strengths were tried")
    rounds: list[SaturationRound]
    professions: list[SaturatedProfession]
    images: int = Field(description="in all rounds together")
    images_per_profession: float = Field(description="of these, the largest number that one profession took")
