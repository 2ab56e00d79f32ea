"""What a report says of a mixture: its components, and who is sent where."""

from __future__ import annotations

from pydantic import Field

from jobs.report.figure_schema import (
    Figure,
    RateFigure,
)

__all__ = ["ComponentReport", "ComponentWording", "MixtureReport", "ProfessionWeights"]


class ComponentWording(Figure):
    """One component's labels in one audit wording, over all professions."""

    wording: str
    n: int = Field(description="determined images that the component drew")
    labels: dict[str, int] = Field(description="determined images per label")
    undetermined: int
    share: float | None = Field(description="share of the component's own label among the determined")
    low: float | None
    high: float | None


class ComponentReport(Figure):
    """One component of a mixture, by the images that it drew. It is no debiased model by itself."""

    label: str = Field(description="the label that it sends professions to; `unedited`: it is the model itself")
    operator: str | None = Field(description="digest of its operator; null: the unedited model")
    weight: float = Field(description="how often it draws an image of a prompt without weights of its own")
    images: int = Field(description="images of the audit that it drew, all kinds")
    own: RateFigure = Field(description="determined audit images that show its own label; `worst` names a profession")
    wordings: list[ComponentWording]
    explicit: RateFigure = Field(description="its images of explicit prompts that show the label they name")
    explicit_by_label: dict[str, RateFigure] = Field(default_factory=dict)
    recognised: RateFigure
    controls: RateFigure
    undetermined: RateFigure


class ProfessionWeights(Figure):
    """A profession whose images are drawn by weights of its own."""

    profession: str
    source: str
    weights: dict[str, float] = Field(description="label of the component -> weight")


class MixtureReport(Figure):
    """The mixture that the edited variant was drawn with."""

    digest: str
    route: int = Field(description="version of the function that picks a component by an image's seed")
    weights: dict[str, float] = Field(
        description="label of the component -> weight, where a prompt has none of its own"
    )
    professions: list[ProfessionWeights] = Field(description="those with weights of their own")
    components: list[ComponentReport]
    left_alone: dict[str, list[str]] = Field(
        default_factory=dict,
        description="label -> professions that lack a destination of it, and keep their prompts in that component",
    )
