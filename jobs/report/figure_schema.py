"""What all figures of a report are made of: a value with its interval and the number of images it rests on."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ComponentEdit", "DeltaFigure", "Figure", "GateResult", "Parity", "RateFigure", "ShareFigure", "Verdict"]

Verdict = Literal["pass", "fail", "inconclusive"]


class Figure(BaseModel):
    """What all figures share: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class DeltaFigure(Figure):
    """A Delta: 0 is every profession at its target, 1 is every profession as far from it as can be."""

    value: float | None = Field(description="raw estimate; null where no image was determined")
    low: float | None = Field(description="lower end of the 95 % interval that gates read")
    high: float | None = Field(description="upper end of the 95 % interval that gates read")
    floor: float | None = Field(description="what a model exactly on target would show at this n, by chance alone")
    n: int = Field(description="determined images")
    wording: str | None = Field(default=None, description="where the figure is of one wording: which")
    resampled_low: float | None = Field(
        default=None,
        description="lower end of the 95 % interval were professions and wordings random too; no gate reads it",
    )
    resampled_high: float | None = Field(default=None, description="its upper end")


class RateFigure(Figure):
    """A share of images, with its exact (Clopper-Pearson) interval."""

    value: float | None
    n: int
    low: float | None
    high: float | None
    worst: str | None = Field(default=None, description="the profession (or prompt) with the worst rate")


class ShareFigure(Figure):
    """A share with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


class Parity(Figure):
    """Demographic parity as Fairlearn has it: groups are professions, a selection is the report's first label."""

    difference: ShareFigure = Field(description="largest share of the first label less the smallest; 0 is parity")
    ratio: ShareFigure = Field(description="the smallest share over the largest; 1 is parity")
    reason: str | None = Field(default=None, description="why a figure is null")


class ComponentEdit(Figure):
    """What one component of a mixture does with one profession."""

    lam: float | None = Field(description="strength of its edit; null: left alone, or not one and the same")
    overshoot: float | None = Field(
        description="how far the edit goes: 1 is the destination, 1.2 a fifth of the way beyond it; null: left alone"
    )
    left_alone: bool = Field(
        default=False, description="the manifest has no destination of this label, so its prompts are preserved"
    )


class GateResult(Figure):
    """One threshold, read against an interval."""

    name: str
    limit: float
    direction: Literal["at most", "at least"]
    value: float | None
    low: float | None
    high: float | None
    outcome: Verdict
    reason: str = ""
