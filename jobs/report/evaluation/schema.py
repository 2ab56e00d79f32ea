"""`report.json` of an evaluation: efficacy, generality and specificity of an edit set, as other people's tools read it.

Every rate stands beside its n and its 95 % interval; a value that does not exist is null, never zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.report.figure_schema import Figure, RateFigure
from jobs.report.schema import Cost

__all__ = [
    "SCHEMA_VERSION",
    "ControlDrift",
    "Drift",
    "EditFigures",
    "EvaluationReport",
    "LeftOut",
    "MeanFigure",
    "PictureRow",
    "TestedEditReport",
    "VariantFigures",
]

SCHEMA_VERSION = 1
Variant = Literal["base", "oracle", "edited"]


class MeanFigure(Figure):
    """A mean over edits, with the interval of a bootstrap over them; null ends with fewer than two edits."""

    value: float | None
    low: float | None
    high: float | None
    n: int = Field(description="images")


class Drift(Figure):
    """What an edit does to unrelated prompts, the run's controls."""

    clip_base: float | None = Field(
        description="CLIP score of the base model's images: 100 x cosine of image and prompt"
    )
    clip_edited: float | None = Field(description="likewise of the edited ones")
    clip_change: MeanFigure = Field(description="edited less base, at equal seeds")
    distance: MeanFigure = Field(
        description="cosine distance of the CLIP image embeddings of base and edited, equal seeds"
    )
    spread: float | None = Field(description="the same distance between two base images of other seeds: a scale for it")


class ControlDrift(Drift):
    """The same, of one control."""

    prompt: str
    lam: float


class EditFigures(Figure):
    """One edit in one variant; intervals are exact (Clopper-Pearson)."""

    variant: Variant
    lam: float | None = None
    efficacy: RateFigure
    generality: RateFigure
    specificity: RateFigure
    condition: float | None = Field(default=None, description="estimated condition number of the solve")
    operator: str | None = Field(default=None, description="the operator's digest")


class VariantFigures(Figure):
    """All edits in one variant: means over edits. Intervals are of edits as a sample, see docs/evaluation.md."""

    variant: Variant
    lam: float | None = None
    efficacy: RateFigure
    generality: RateFigure
    specificity: RateFigure
    harmonic: RateFigure = Field(description="harmonic mean of the three")
    f1: RateFigure = Field(description="harmonic mean of generality and specificity")
    specificity_kept: RateFigure | None = Field(default=None, description="specificity in parts of the base model's")
    lead: float | None = Field(description="mean lead, in probability, of the prompt that an image was given to")
    drift: Drift | None = None


class TestedEditReport(Figure):
    """One edit."""

    # Not a class of tests, whatever its name makes pytest think.
    __test__ = False

    row: int = Field(description="of the file, from 1, the header not counted")
    source: str
    destination: str
    positives: int
    negatives: int
    variants: list[EditFigures]


class LeftOut(Figure):
    """What of the file could not be used."""

    place: str
    reason: str


class PictureRow(Figure):
    """One edit in each variant; a path is null where there is no picture.

    A seed depends on the prompt: base and edited image have this one, and the oracle's prompt its own.
    """

    row: int
    source: str
    destination: str
    seed: int
    base: str | None
    oracle: str | None
    edited: list[str | None]


class EvaluationReport(Figure):
    """All of `report.json`."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["evaluation"] = "evaluation"
    run: str
    created: str
    sentence: str
    edit_set: str = Field(description="the file's name")
    rows: int = Field(description="of the file")
    images: int = Field(description="per prompt and variant")
    control_images: int = Field(description="per control, edit and strength")
    lams: list[float]
    summary: list[VariantFigures] = Field(description="base, oracle, then edited at each lam")
    edits: list[TestedEditReport]
    controls: list[ControlDrift]
    left_out: list[LeftOut]
    statuses: dict[str, int] = Field(description="images that are none, by their status")
    pictures: list[PictureRow]
    cost: Cost
    provenance: dict[str, Any]
