"""The stages of a run, as a plan counts them."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.images.variants import Variant

__all__ = ["Count", "KnownBefore", "Round", "Stage"]


@dataclass(frozen=True)
class Round:
    """A round of the calibration that was made already.

    Attributes:
        number: from 1.
        phase: of the search for a single edit; "" of a mixture's.
        operators: digest of the only operator, or of each component's.
        active: which professions, or components, took images.
    """

    number: int
    phase: str
    operators: tuple[str, ...]
    active: tuple[bool, ...]


@dataclass(frozen=True)
class Stage:
    """One variant to generate.

    Attributes:
        variant: what it is drawn under; None where that is not known yet.
        made: the round of the calibration that it is; None: the audit, or rounds that are still to be made.
        rounds: how many of those, at most, each under another operator; None: the audit.
    """

    name: str
    variant: Variant | None
    made: Round | None = None
    rounds: int | None = None


@dataclass
class Count:
    """Distinct shards: how many, of how many images, and how many bytes they take."""

    shards: int = 0
    images: int = 0
    bytes: int = 0

    def add(self, images: int, size: int) -> None:
        """Count one more shard."""
        self.shards += 1
        self.images += images
        self.bytes += size


@dataclass(frozen=True)
class KnownBefore:
    """What a run's folder knows already.

    Attributes:
        rounds: the calibration's, as far as it came.
        variant: the chosen edit; None where calibration has not ended.
    """

    rounds: tuple[Round, ...] = ()
    variant: Variant | None = None
    note: str | None = None
