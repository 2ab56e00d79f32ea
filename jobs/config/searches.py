"""The sections that say how strengths are searched for: of a single edit, and of a mixture."""

from __future__ import annotations

from pydantic import Field, model_validator

from jobs.config.base import Section
from jobs.config.sections import Probability
from time_ops.lams import POOLED_RATIO
from time_ops.prompts import MOST_OVERSHOOT, NEUTRAL_PROMPTS

__all__ = ["CalibrationConfig", "MixtureConfig"]


class CalibrationConfig(Section):
    """The search for lambdas and shares that the manifest leaves open, see `time_ops.search.calibration`.

    Of `form: single` only. Lambdas are in units of the edit's own scale. At that scale an edit begins to have an
    effect, whatever the text encoder.
    """

    lam: float = Field(0.2, gt=0, description="where open lambdas start, and the largest")
    least_lam: float = Field(0.02, gt=0, description="the smallest, and so the strongest edit, that is tried")
    images: int = Field(4, ge=2, description="images per profession and calibration wording, per round")
    explicit_images: int = Field(1, ge=0, description="images per explicit prompt, per round")
    control_images: int = Field(4, ge=0, description="images per control, per round")
    base_rounds: int = Field(
        6, ge=1, description="most rounds that look for professions that are balanced without an edit"
    )
    search_rounds: int = Field(6, ge=1, description="most rounds that move all professions at once")
    verify_rounds: int = Field(4, ge=1, description="most rounds that decide, on new images, what the search found")
    tolerance: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="a share is on target if it is this near. A smaller tolerance takes more images to prove",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence of each decision on one profession")

    @model_validator(mode="after")
    def _ordered(self) -> CalibrationConfig:
        if self.least_lam > self.lam:
            raise ValueError("least_lam must not be larger than lam, where the search starts")
        return self


class MixtureConfig(Section):
    """A mixture's components, and the search for their strengths, see `time_ops.search.saturation`.

    Lambdas are in units of the edit's own scale, as in `calibration`.
    """

    lam: float = Field(0.1, gt=0, description="where open lambdas start, and the largest")
    least_lam: float = Field(0.01, gt=0, description="the smallest, and so the strongest edit, that is tried")
    overshoot: float = Field(
        1.5,
        ge=1,
        le=MOST_OVERSHOOT,
        description="where overshoot starts. 1 aims at the destination, 1.2 a fifth beyond it",
    )
    most_overshoot: float = Field(1.9, ge=1, le=MOST_OVERSHOOT, description="the largest overshoot that is tried")
    explicit_ratio: float | None = Field(
        None,
        gt=0,
        description="lambda of the other labels' destination prompts, in units of the edit's. Smaller holds them more. "
        "null: 1 with up to 12 professions, up to 3 with 36 and more. With few professions, few prompts have to hold "
        "the direction",
    )
    explicit_push: float = Field(
        1.0,
        ge=0,
        le=2,
        description="how far the other labels' destination prompts are pushed away from their source. It makes up for "
        "what the edit takes from them in unseen wordings. 0: they are kept as they are",
    )
    pooled_ratio: float = Field(
        POOLED_RATIO,
        gt=0,
        description="lambda of the pooled embedding (SDXL, SD3, FLUX), in units of the token states' lambda. Each is "
        "in its own scale. Smaller edits it more strongly",
    )
    neutral: tuple[str, ...] = Field(NEUTRAL_PROMPTS, description="prompts about no people, kept as they are")
    images: int = Field(4, ge=1, description="most images per profession and component, per round")
    explicit_images: int = Field(1, ge=0, description="images of other labels' explicit prompts, likewise")
    control_images: int = Field(2, ge=0, description="images per control and component, per round")
    budget: int = Field(
        20, ge=0, description="most images per profession in all rounds together. 0: strengths stay where they start"
    )
    rounds: int = Field(4, ge=0, description="most rounds")
    own: Probability = Field(0.98, description="share of its own label at which a component is saturated")

    @model_validator(mode="after")
    def _ordered(self) -> MixtureConfig:
        if self.least_lam > self.lam:
            raise ValueError("least_lam must not be larger than lam, where the search starts")
        if self.most_overshoot < self.overshoot:
            raise ValueError("most_overshoot must not be smaller than overshoot, where the search starts")
        if len({p.casefold() for p in self.neutral}) < len(self.neutral):
            raise ValueError("neutral repeats a prompt")
        return self

    def ratio_of(self, professions: int) -> float:
        """`explicit_ratio`, or what it is with so many professions."""
        return self.explicit_ratio or min(3.0, max(1.0, professions / 12))

    def images_of(self, components: int) -> int:
        """Images per profession and component, per round: with many components fewer, so that two rounds are left."""
        return min(self.images, max(1, self.budget // (2 * components) - self.explicit_images))

    def rounds_of(self, components: int) -> int:
        """How many rounds the budget allows, with so many components; one at least, unless there is to be none."""
        each = components * (self.images_of(components) + self.explicit_images)
        return min(self.rounds, max(1, self.budget // each) if self.budget else 0)
