"""What the calibration is told and proposes: professions, rules, candidates, and what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Candidate",
    "Floats",
    "Ints",
    "Limits",
    "Measured",
    "Phase",
    "ProfessionOutcome",
    "Rules",
    "SearchedProfession",
    "State",
]

Floats = NDArray[np.float64]


Ints = NDArray[np.int64]


Phase = Literal["base", "search", "verify"]


class State(StrEnum):
    """How a profession ended."""

    FIXED = "fixed"
    BALANCED = "balanced"
    ON_TARGET = "on target"
    UNDECIDED = "undecided"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class SearchedProfession:
    """What may be moved for one profession.

    Attributes:
        name: for messages.
        target: [L] wanted share of each label.
        labels: [K] label of each destination, by index.
        shares: [K] shares that the manifest fixes; None: found.
        lam: likewise its lambda.
    """

    name: str
    target: tuple[float, ...]
    labels: tuple[int, ...]
    shares: tuple[float | None, ...]
    lam: float | None = None

    @property
    def is_free(self) -> bool:
        """Whether its labels' shares can be moved; destinations that are all of one label share with the source."""
        open_labels = {label for label, share in zip(self.labels, self.shares, strict=True) if share is None}
        return len(open_labels) >= (1 if len(set(self.labels)) == 1 else 2)


@dataclass(frozen=True)
class Limits:
    """What the edit may cost: least rates, as a share of the base's for the recognised; and the most undetermined."""

    explicit: float = 0.95
    recognised: float = 0.95
    controls: float = 0.98
    undetermined_increase: float = 0.05


@dataclass(frozen=True)
class Rules:
    """The budget and when to stop.

    Attributes:
        lam: where open lambdas start, and the largest.
        least_lam: the smallest that is tried.
        images: of each cell (profession, wording) in a round.
        base_rounds: most rounds of the unedited model.
        search_rounds: most rounds of the search.
        verify_rounds: most rounds on found candidates.
        tolerance: a share this near to its target is on target.
        confidence: of a decision on one profession.
    """

    lam: float
    least_lam: float
    images: int = 4
    base_rounds: int = 6
    search_rounds: int = 6
    verify_rounds: int = 4
    tolerance: float = 0.15
    confidence: float = 0.95
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What to audit in one round.

    Attributes:
        number: of the round, from 1. No two rounds share an image, so that their noise averages out.
        phase: see the module.
        lam: [P] lambda; inf in the base phase, whose operator is none.
        shares: for each profession [W, K] shares of its destinations; what they leave of 1 stays with the source.
        active: [P] professions that take images.
    """

    number: int
    phase: Phase
    lam: Floats
    shares: tuple[Floats, ...]
    active: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Measured:
    """What an audit of a candidate found.

    Attributes:
        tallies: [P, W, L + 1] images of each label, undetermined last; zeros where nothing was audited.
        recognised: (hits, images) of professions recognised as themselves.
        explicit: (hits, images) of explicit prompts that show what they name.
        controls: (hits, images) of unrelated prompts recognised.
    """

    tallies: Ints
    recognised: tuple[int, int] = (0, 0)
    explicit: tuple[int, int] = (0, 0)
    controls: tuple[int, int] = (0, 0)

    def __add__(self, other: Measured) -> Measured:
        def both(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
            return one[0] + two[0], one[1] + two[1]

        return Measured(
            self.tallies + other.tallies,
            both(self.recognised, other.recognised),
            both(self.explicit, other.explicit),
            both(self.controls, other.controls),
        )


@dataclass(frozen=True)
class ProfessionOutcome:
    """How one profession ended, and why."""

    state: State
    reason: str
    images: int
