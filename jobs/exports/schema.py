"""What is said of an export: `export.json` beside its files, and a section of the report for a run's own checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.report.figure_schema import DeltaFigure, Figure, RateFigure, Verdict
from jobs.report.schema import Shipped

__all__ = ["FILES", "FORMS", "Exported", "ExportedComponent", "Form", "RankAudit"]

Form = Literal["diffusers", "single-file", "lora", "operator", "tensors"]
FORMS: tuple[Form, ...] = ("diffusers", "single-file", "lora", "operator", "tensors")
FILES: dict[Form, str] = {
    "single-file": "model.safetensors",
    # The name that diffusers looks for in a folder.
    "lora": "pytorch_lora_weights.safetensors",
    "operator": "operator.safetensors",
    "tensors": "tensors.safetensors",
}
"""The file that holds the weights of each form but a diffusers folder."""


class RankAudit(Figure):
    """The audit of a LoRA at its rank, on the images' own seeds, beside the run's."""

    run: str = Field(description="the audit's own run, in the same output")
    verdict: Verdict
    delta: DeltaFigure
    delta_within: DeltaFigure
    explicit: RateFigure
    delta_of_run: DeltaFigure
    delta_within_of_run: DeltaFigure


class ExportedComponent(Figure):
    """One component of a mixture that was exported; by itself no debiased model."""

    label: str
    weight: float = Field(description="how often it draws an image of a prompt without weights of its own")
    place: str | None = Field(description="its folder or file; null: the unedited model")
    rank: int | None = Field(default=None, description="of a LoRA")
    error: float | None = Field(default=None, description="see the whole; so are the next two")
    weight_error: float | None = None
    stored_error: float | None = None


class Exported(Figure):
    """`export.json`: one export of a finished run."""

    form: Form
    run: str
    verdict: Verdict = Field(description="of the run's audit")
    forced: bool = Field(description="exported although a gate of the run did not pass")
    tensors: int = Field(description="how many of the edit's there are")
    pipeline: str = Field(default="StableDiffusionPipeline", description="diffusers' class of the base model")
    files: dict[str, int] = Field(description="bytes of each file but README.md, this one and SHA256SUMS")
    components: list[ExportedComponent] | None = Field(
        default=None, description="of a mixture, whose ranks and errors below are the largest; null: one edit"
    )
    rank: int | None = Field(default=None, description="of a LoRA")
    error: float | None = Field(default=None, description="what the rank leaves out, relative to the edit")
    weight_error: float | None = Field(default=None, description="the same, relative to the unedited weights")
    stored_error: float | None = Field(default=None, description="as `error`, of the rounded numbers in the file")
    shipped: Shipped | None = Field(default=None, description="how its images compare; null: not checked yet")
    audit: RankAudit | None = None

    @property
    def outcome(self) -> Verdict:
        """Whether it may be published: what its images say and, of a LoRA, that the audit at its rank did not fail.

        An audit that is inconclusive leaves it to the images: it is asked for a regression too, whose interval is wide
        for few images even where all are the same. Where the run was forced, its LoRA fails the same gates.
        """
        if self.audit is not None and self.audit.verdict == "fail" and not self.forced:
            return "fail"
        return "inconclusive" if self.shipped is None else self.shipped.gate.outcome
