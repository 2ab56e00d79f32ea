"""How measured shares answer to the shares that were asked for: one curve, a threshold for each profession and wording.

    P(label) = logistic(slope * (asked - middle - profession - wording))

Near its threshold a profession's share answers steeply and alike everywhere; what differs is where the threshold lies:
by profession, and by wording in common to all professions. All are found together from all rounds so far (a logistic
fit with normal priors, newer rounds counting more), so a round of few images is enough for a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

__all__ = ["Observed", "Response", "fit_response"]

Floats = NDArray[np.float64]

_SLOPE, _SLOPE_SD, _SLOPES = 12.0, 4.0, (4.0, 60.0)
"""Prior of the slope, per unit of share, and its ends: a flat curve would ask for endless steps."""
_MIDDLE_SD, _PROFESSION_SD, _WORDING_SD = 0.15, 0.2, 0.05
"""Priors of the thresholds, in units of share. They keep a profession that never answers from pulling on the others."""
_HALF_LIFE = 2.0
"""Rounds after which evidence counts half: edits share one operator, so each round moves the thresholds a little."""
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
        share: Floats = threshold + (logit(sure) / self.slope)[:, None]
        return share


def fit_response(rounds: Sequence[Observed]) -> Response:
    """Fit the curve to all rounds, oldest first: the largest posterior probability, by L-BFGS.

    Args:
        rounds: at least one.
    """
    P, W = rounds[0].asked.shape
    weights = [0.5 ** ((len(rounds) - 1 - i) / _HALF_LIFE) for i in range(len(rounds))]
    # Parameters in units of their priors' standard deviations, so that all are of one size.
    scales = np.concatenate([[_SLOPE_SD, _MIDDLE_SD], np.full(P, _PROFESSION_SD), np.full(W, _WORDING_SD)])

    def loss(u: Floats) -> tuple[float, Floats]:
        slope, middle = _SLOPE + _SLOPE_SD * u[0], 0.5 + _MIDDLE_SD * u[1]
        threshold = middle + _PROFESSION_SD * u[2 : 2 + P, None] + _WORDING_SD * u[None, 2 + P :]
        value, of_slope, of_threshold = 0.0, 0.0, np.zeros((P, W))
        for weight, seen in zip(weights, rounds, strict=True):
            off = seen.asked - threshold
            logits = slope * off
            value += weight * float((seen.images * np.logaddexp(0, logits) - seen.hits * logits).sum())
            residual = weight * (seen.images * expit(logits) - seen.hits)
            of_slope += float((residual * off).sum())
            of_threshold -= slope * residual
        gradient = np.concatenate([[of_slope, of_threshold.sum()], of_threshold.sum(axis=1), of_threshold.sum(axis=0)])
        return value + 0.5 * float(u @ u), gradient * scales + u

    bounds: list[tuple[float | None, float | None]] = [(None, None)] * (2 + P + W)
    bounds[0] = ((_SLOPES[0] - _SLOPE) / _SLOPE_SD, (_SLOPES[1] - _SLOPE) / _SLOPE_SD)
    fit = minimize(loss, np.zeros(2 + P + W), jac=True, method="L-BFGS-B", bounds=bounds)
    u = np.asarray(fit.x, dtype=np.float64)
    return Response(
        _SLOPE + _SLOPE_SD * float(u[0]),
        0.5 + _MIDDLE_SD * float(u[1]),
        _PROFESSION_SD * u[2 : 2 + P],
        _WORDING_SD * u[2 + P :],
    )
