"""What a figure says: a value, its interval, and from how many images."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeltaBounds", "Estimate", "PairedDeltas", "Rate"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A proportion of images with its interval; `value` is None when there are no images."""

    value: float | None
    n: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A Delta, or a difference of two, with its bounds."""

    value: float
    """Raw, as published; NaN when no cell has a determined image."""
    low: float
    high: float
    floor: float
    """What a model exactly on target would read at this n; 0 for a difference."""
    n: int
    """Determined images behind it."""
    reflected: float
    """The bootstrap's estimate free of most of the bias: twice the raw value less the mean of the resampled ones."""
    wording: int | None = None
    """Of a worst wording: its index."""


@dataclass(frozen=True, slots=True)
class DeltaBounds:
    """All Deltas of one audit."""

    pooled: Estimate
    """Shares over all wordings together: opposite errors of two wordings cancel in it."""
    within: Estimate
    """Mean over the wordings of each wording's Delta."""
    wordings: tuple[Estimate, ...]
    """Each wording's own."""
    worst: Estimate
    """The largest of them, with bounds for the largest."""


@dataclass(frozen=True, slots=True)
class PairedDeltas:
    """Two audits on the same image indices, and edited less base."""

    base: DeltaBounds
    edited: DeltaBounds
    difference: Estimate
    """Of the pooled Deltas."""
    difference_within: Estimate
    """Of the Deltas within wordings."""
