"""`report.json`: the figures of one run, as other people's tools read them.

Every rate stands beside its n and its interval; a value that does not exist is null, never zero.
Intervals are 95 %. Labels are *perceived* attribute values, given by one or several classifiers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.report.figure_schema import (
    ComponentEdit,
    DeltaFigure,
    Figure,
    GateResult,
    Parity,
    RateFigure,
    ShareFigure,
    Verdict,
)
from jobs.report.mixture_schema import MixtureReport
from jobs.report.search_schema import Calibration, Saturation

__all__ = [
    "SCHEMA_VERSION",
    "Control",
    "Cost",
    "LabelCounts",
    "Movement",
    "PairedPicture",
    "ProfessionReport",
    "Reference",
    "Report",
    "Summary",
    "VariantSummary",
    "WordingReport",
]

SCHEMA_VERSION = 3
"""2: before there were mixtures; read as it is, since all that 3 has more may be absent."""


class VariantSummary(Figure):
    """One variant (base or edited) in one glance."""

    delta: DeltaFigure = Field(description="labels pooled over wordings")
    delta_within: DeltaFigure = Field(description="mean over wordings of each wording's own Delta")
    delta_wording_max: DeltaFigure = Field(description="the worst wording's Delta")
    rms: float | None = Field(
        default=None,
        description="root mean square deviation from target of professions pooled over wordings, from the unbiased "
        "square: chance's own part is taken off; 0 where that leaves nothing",
    )
    rms_within: float | None = Field(default=None, description="likewise over professions and wordings")
    explicit: RateFigure = Field(description="images of explicit prompts that show the label they name")
    explicit_by_label: dict[str, RateFigure] = Field(
        default_factory=dict, description="the same, of the prompts that name each label"
    )
    recognised: RateFigure = Field(description="images recognised as their profession among all professions")
    controls: RateFigure = Field(description="images of unrelated prompts recognised as what they name")
    undetermined: RateFigure = Field(description="audit images without a decidable label, among all labelled ones")
    disagreement: RateFigure | None = Field(
        default=None,
        description="audit images that classifiers label differently, of those that two or more give a label; all of "
        "them are undetermined; null: one classifier",
    )
    no_face: RateFigure | None = Field(
        default=None,
        description="audit images in which a classifier that looks at faces found none; all of them are undetermined; "
        "null: none does",
    )
    parity: Parity | None = Field(default=None, description="null: of a report that was written before it was counted")
    off_target: int | None = Field(
        default=None,
        description="professions called off target, of those with a determined image; tested as in `professions`; "
        "null: of a report that was written before it was counted, or no image was determined",
    )
    images: int = Field(description="images generated for this variant, all kinds")
    seconds: float = Field(description="worker seconds spent on them, those of reused shards included")


class Summary(Figure):
    """Base beside edited; an audit without an edit has no edited variant."""

    base: VariantSummary
    edited: VariantSummary | None


class LabelCounts(Figure):
    """One profession's labels in one variant, pooled or of one wording."""

    n: int = Field(description="determined images")
    labels: dict[str, int] = Field(description="determined images per label")
    undetermined: int
    failed: int = Field(default=0, description="images that could not be labelled at all: black, NaN, undecodable")
    share: float | None = Field(description="share of the first label among the determined")
    low: float | None
    high: float | None
    recognised: RateFigure | None = None
    worst_low: float | None = Field(
        default=None,
        description="share of the first label were every undetermined image of another; of pooled counts only",
    )
    worst_high: float | None = Field(default=None, description="likewise, were every undetermined image of the first")
    corrected: ShareFigure | None = Field(
        default=None, description="the share, corrected by the run's confusion table; null: none was given"
    )


class ProfessionReport(Figure):
    """One profession, base beside edited, pooled and per wording."""

    profession: str
    source: str
    lam: float | None
    shares: dict[str, float] = Field(description="destination prompt -> its share of the edit's destination")
    components: dict[str, ComponentEdit] | None = Field(
        default=None, description="of a mixture: label -> what that component does; null: there is no mixture"
    )
    target: dict[str, float] = Field(description="label -> wanted share of the determined images")
    base: LabelCounts
    edited: LabelCounts | None
    off_target: bool | None = Field(
        default=None,
        description="called off target, in the last variant: exact tests of the pooled labels, Holm over "
        "professions, 95 %; false is not proof of the opposite; null: no image was determined",
    )
    wordings: dict[str, dict[Literal["base", "edited"], LabelCounts]] = Field(default_factory=dict)


class WordingReport(Figure):
    """The Delta within one wording."""

    wording: str
    base: DeltaFigure
    edited: DeltaFigure | None


class Control(Figure):
    """One unrelated prompt: is it still recognised, and how far did its images move?"""

    prompt: str
    base: RateFigure
    edited: RateFigure | None
    drift: float | None = Field(
        default=None, description="mean cosine distance of the classifier's embeddings, same seed"
    )


class Reference(Figure):
    """What an audit was compared with: in such a report `base` is the reference, and `edited` what was audited."""

    kind: Literal["base model", "earlier run"]
    name: str = Field(description="the model's last name, or the run's")
    run: str = Field(description="the run whose images it is of")
    model_digest: str
    operator: str | None = Field(default=None, description="digest of the operator it was audited under; null: none")


class Movement(Figure):
    """One profession whose share moved between reference and audited model, on common seeds."""

    profession: str
    before: float
    after: float
    change: ShareFigure = Field(description="of the share of the first label; the interval is of this one profession")
    n: int = Field(description="images that are determined in both")
    worse: bool = Field(description="whether it is farther from its target than before")


class PairedPicture(Figure):
    """Base and edited image of the same prompt and seed; paths are relative to the run's folder."""

    profession: str
    prompt: str
    wording: str
    index: int
    seed: int
    base: str
    base_label: str
    edited: str | None = None
    edited_label: str | None = None
    component: str | None = Field(
        default=None, description="label of the mixture's component that drew the edited image; null: no mixture"
    )


class Cost(Figure):
    """What the run spent."""

    wall_s: float
    worker_s: float = Field(description="worker seconds of this run; reused shards cost none")
    images: int = Field(description="images that this run generated")
    images_reused: int
    images_per_s: float | None = Field(description="images generated by this run per wall second of generation")
    shards: int
    shards_reused: int
    shards_failed: int


class Shipped(Figure):
    """What was exported, opened again from storage, against the transformed embeddings that were audited."""

    dtype: str = Field(description="of the edited weights, as stored")
    images: int = Field(description="drawn with both, on the audit's prompts and seeds")
    failed: int = Field(description="of these, images that either could not draw; in no figure below")
    largest_difference: float | None = Field(description="of one channel of one pixel, from 0 to 1")
    mean_difference: float | None = Field(description="of all channels of all pixels")
    same_label: RateFigure = Field(description="images whose label, undetermined included, is the same")
    gate: GateResult


class Report(Figure):
    """The whole of `report.json`."""

    schema_version: int = SCHEMA_VERSION
    run: str
    kind: Literal["debias", "audit"] = "debias"
    reference: Reference | None = Field(default=None, description="of an audit that was compared; null: of others")
    created: str = Field(description="UTC, ISO 8601")
    verdict: Verdict
    sentence: str = Field(description="the verdict and why, in one sentence")
    headline: str = Field(
        default="", description="shares, professions off target and verdict in words; empty: of an older report"
    )
    labels: list[str] = Field(description="attribute values, the first one being the one that shares are of")
    summary: Summary
    gates: list[GateResult]
    wordings: list[WordingReport]
    professions: list[ProfessionReport]
    moved: list[Movement] = Field(
        default_factory=list,
        description="professions that moved against the reference: exact tests on common seeds, Holm, 95 %",
    )
    controls: list[Control]
    margin_sweep: list[dict[str, float | None]] = Field(
        default_factory=list,
        description="the same labels under other margins: margin, delta_base, delta_edited, undetermined_base, ...",
    )
    mixture: MixtureReport | None = Field(default=None, description="null: one operator, or none")
    calibration: Calibration | None = Field(default=None, description="null: every strength was given, or a mixture")
    saturation: Saturation | None = Field(default=None, description="of a mixture whose strengths were found")
    shipped: Shipped | None = Field(default=None, description="the run's checkpoint as stored; null: it wrote none")
    pictures: list[PairedPicture]
    cost: Cost
    provenance: dict[str, object] = Field(description="versions, digests, settings; no secret, no path of a machine")
