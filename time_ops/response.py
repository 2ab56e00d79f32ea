"""How measured shares answer to the shares that were asked for: one curve, a threshold for each profession and wording.

    P(label) = logistic(slope * (asked - middle - profession - wording))

Near its threshold a profession's share answers steeply and alike everywhere; what differs is where the threshold lies:
by profession, and by wording in common to all professions. Both are found together from all rounds so far (a penalised
logistic fit, ridge priors, newer rounds counting more), so a round of few images is enough for a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

__all__ = ["Observed", "Response", "fit_response"]

Floats = NDArray[np.float64]

_SLOPE, _SLOPE_SD, _LEAST_SLOPE = 10.0, 4.0, 4.0
"""Prior of the slope, per unit of share, and what it never falls below: a flat curve would ask for endless steps."""
_PROFESSION_SD, _WORDING_SD = 0.12, 0.05
"""Priors of the thresholds, in units of share."""
_HALF_LIFE = 2.0
"""Rounds after which evidence counts half: edits share one operator, so each round moves the thresholds a little."""
_STEPS, _DAMPING = 80, 0.4
_MOST_CERTAIN = 0.98
"""A target nearer to 0 or 1 than this leaves is asked for as this: its logit is out of reach."""


@dataclass(frozen=True)
class Observed:
    """One round of one label.

    Attributes:
        asked: [P, W] share of the label's destination.
        hits: [P, W] images with that label.
        images: [P, W] determined images; 0 where a cell was not audited.
    """

    asked: Floats
    hits: Floats
    images: Floats


@dataclass(frozen=True)
class Response:
    """The fitted curve.

    Attributes:
        slope: logits per unit of share.
        middle: threshold in common.
        professions: [P] thresholds beside it.
        wordings: [W] thresholds beside both.
    """

    slope: float
    middle: float
    professions: Floats
    wordings: Floats

    def share_for(self, targets: Floats) -> Floats:
        """Share to ask for, [P, W], so that each profession's label comes at its target [P], in every wording alike."""
        sure = np.clip(targets, 1 - _MOST_CERTAIN, _MOST_CERTAIN)
        threshold = self.middle + self.professions[:, None] + self.wordings[None, :]
        found: Floats = threshold + (logit(sure) / self.slope)[:, None]
        return found

    def predict(self, asked: Floats) -> Floats:
        """Expected share of the label, [P, W], at shares asked for."""
        found: Floats = expit(self.slope * (asked - self.middle - self.professions[:, None] - self.wordings[None, :]))
        return found


def fit_response(rounds: Sequence[Observed]) -> Response:
    """Fit the curve to all rounds, oldest first, by damped Newton steps on one coordinate of all cells at a time.

    Args:
        rounds: at least one.
    """
    shape = rounds[0].asked.shape
    professions, wordings = np.zeros(shape[0]), np.zeros(shape[1])
    middle, slope = 0.5, _SLOPE
    weights = [0.5 ** ((len(rounds) - 1 - i) / _HALF_LIFE) for i in range(len(rounds))]
    for _ in range(_STEPS):
        gradient, curvature = np.zeros(shape), np.full(shape, 1e-9)
        of_slope, bend = (_SLOPE - slope) / _SLOPE_SD**2, 1 / _SLOPE_SD**2
        for weight, seen in zip(weights, rounds, strict=True):
            off = seen.asked - middle - professions[:, None] - wordings[None, :]
            expected = expit(slope * off)
            residual = weight * (seen.hits - seen.images * expected)
            variance = weight * seen.images * expected * (1 - expected)
            gradient -= slope * residual
            curvature += slope**2 * variance
            of_slope += float((residual * off).sum())
            bend += float((variance * off**2).sum())
        middle += _DAMPING * float(gradient.sum() / curvature.sum())
        professions += _DAMPING * _newton(gradient.sum(axis=1), curvature.sum(axis=1), professions, _PROFESSION_SD)
        wordings += _DAMPING * _newton(gradient.sum(axis=0), curvature.sum(axis=0), wordings, _WORDING_SD)
        slope = max(_LEAST_SLOPE, slope + _DAMPING * of_slope / bend)
    return Response(slope, middle, professions, wordings)


def _newton(gradient: Floats, curvature: Floats, value: Floats, prior_sd: float) -> Floats:
    """One step of a ridge-penalised maximum."""
    step: Floats = (gradient - value / prior_sd**2) / (curvature + 1 / prior_sd**2)
    return step
