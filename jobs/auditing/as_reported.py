"""Figures of statistics as the report holds them: what is no number is null."""

from __future__ import annotations

import math

from jobs.report.figure_schema import DeltaFigure, RateFigure, ShareFigure
from time_ops.stats.estimates import Estimate, Rate
from time_ops.stats.inference import Interval
from time_ops.stats.parity import ParityFigure

__all__ = ["delta_figure", "finite_float", "rate_figure", "share_figure"]


def finite_float(value: float | None) -> float | None:
    """`value`, or None where it is no number that a report can hold."""
    return None if value is None or not math.isfinite(value) else float(value)


def delta_figure(estimate: Estimate, wording: str | None = None, resampled: Interval | None = None) -> DeltaFigure:
    """A Delta; of the worst wording with its name, of all wordings with the interval over professions."""
    return DeltaFigure(
        value=finite_float(estimate.value),
        low=finite_float(estimate.low),
        high=finite_float(estimate.high),
        floor=finite_float(estimate.floor),
        n=estimate.n,
        wording=wording,
        resampled_low=None if resampled is None else finite_float(resampled.low),
        resampled_high=None if resampled is None else finite_float(resampled.high),
    )


def share_figure(share: ParityFigure | Rate) -> ShareFigure:
    """A share or a difference of shares, whose n stands elsewhere."""
    return ShareFigure(value=finite_float(share.value), low=finite_float(share.low), high=finite_float(share.high))


def rate_figure(rate: Rate, worst: str | None = None) -> RateFigure:
    """A rate, and whom it is worst for."""
    return RateFigure(
        value=finite_float(rate.value), n=rate.n, low=finite_float(rate.low), high=finite_float(rate.high), worst=worst
    )
