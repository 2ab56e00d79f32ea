"""Demographic parity as Fairlearn counts it, with intervals that hold. Pure: numpy, scipy, statsmodels.

Groups are professions, a selection is an image of one label. The difference is the largest group's share less the
smallest (`fairlearn.metrics.demographic_parity_difference`), the ratio the smallest over the largest
(`demographic_parity_ratio`).

Both are of extremes, which raw shares exaggerate: with 35 groups at one half and 250 images each the difference reads
0.13 where it is 0. No bootstrap mends that, so the intervals are made of exact ones (Clopper and Pearson):

- The end away from parity needs the intervals of two groups only, the truly largest and the truly smallest, whichever
  they are: the largest upper end is not below the one's, the smallest lower end not above the other's.
- The end towards parity takes the largest of all lower ends, so all groups' must hold together (Bonferroni).

Each end by itself holds with half of what may be missed; tests/time_ops/stats/test_parity.py simulates it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from time_ops.stats.intervals import exact_interval

__all__ = ["DemographicParity", "ParityFigure", "demographic_parity"]


@dataclass(frozen=True, slots=True)
class ParityFigure:
    """A figure from 0 to 1 with its interval; all None where it does not exist."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class DemographicParity:
    """Difference (0 is parity) and ratio (1 is parity) of the groups' shares."""

    difference: ParityFigure
    ratio: ParityFigure
    reason: str | None
    """Why a figure does not exist."""


_NONE = ParityFigure(None, None, None)


def demographic_parity(selected: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> DemographicParity:
    """Difference and ratio of the shares `selected / n` of G groups, from `[G]` images each.

    A group without an image has no share; its true one may be anything, which the intervals carry.

    Raises:
        ValueError: if the shapes don't fit, or `selected` is not from 0 to `n`.
    """
    k, n = np.asarray(selected, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if k.ndim != 1 or k.shape != n.shape:
        raise ValueError(f"counts of shapes {k.shape} and {n.shape} don't fit")
    some = n > 0
    if not some.any():
        return DemographicParity(_NONE, _NONE, "no image was determined")
    shares = k[some] / n[some]
    least, most = float(shares.min()), float(shares.max())
    # A quarter of what may be missed for each of two groups' ends, on either side of the figure.
    miss = (1 - confidence) / 2
    outer = exact_interval(k, n, 1 - miss)
    inner = exact_interval(k, n, 1 - miss / len(k))
    apart = float(outer[0].min()), float(outer[1].max())
    near = float(inner[1].min()), float(inner[0].max())
    difference = ParityFigure(most - least, max(0.0, near[1] - near[0]), apart[1] - apart[0])
    if most == 0:
        return DemographicParity(difference, _NONE, "no image is selected in any group: the ratio would be 0 over 0")
    high = min(1.0, near[0] / near[1]) if near[1] > 0 else 1.0
    return DemographicParity(difference, ParityFigure(least / most, apart[0] / apart[1], high), None)
