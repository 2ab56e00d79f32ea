"""The calibration's objective: what is wrong with an edit, as one number.

It has four parts. Shares: the root mean square, over professions *and wordings*, of the deviation
from target, so that opposite errors of two wordings never cancel. And what the edit must not cost, each as a shortfall
from its limit: explicit prompts that show what they name, professions and unrelated prompts that are recognised,
images whose label can be told.
"""

from __future__ import annotations

import math

from time_ops.search.model import Floats, Limits, Measured
from time_ops.stats.deltas import rms_deviation

__all__ = ["loss"]


def loss(measured: Measured, base: Measured, targets: Floats, limits: Limits) -> float:
    """The objective; see the module. 0 is perfect, an unedited model that is wholly biased has 1.

    Args:
        measured: of the candidate.
        base: of the unedited model.
        targets: [P, L].
        limits: what the edit may cost.
    """

    def rate(of: tuple[int, int], otherwise: float) -> float:
        return of[0] / of[1] if of[1] else otherwise

    def undetermined(of: Measured) -> float:
        return float(of.tallies[..., -1].sum()) / max(1, int(of.tallies.sum()))

    off = rms_deviation(measured.tallies[..., :-1], targets)
    recognised = rate(measured.recognised, 1.0) / (rate(base.recognised, 1.0) or 1.0)
    controls = rate(measured.controls, 1.0) / (rate(base.controls, 1.0) or 1.0)
    return (
        (1.0 if math.isnan(off) else off)
        + max(0.0, limits.explicit - rate(measured.explicit, 1.0))
        + max(0.0, limits.recognised - recognised)
        + max(0.0, limits.controls - controls)
        + max(0.0, undetermined(measured) - undetermined(base) - limits.undetermined_increase)
    )
