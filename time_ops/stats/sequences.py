"""Confidence sequences: intervals of a share that hold at every n at once, so that looking early costs nothing.

A fixed-n interval such as Wilson's misses 5 % of the time at one n; looked at after every batch, with the right to
stop, it misses far more often (tests/time_ops/stats/test_sequences.py has both figures, exactly). Calibration stops on
what it sees, so it reads these. Pure: numpy, scipy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import elementwise
from scipy.special import betaln, xlog1py

__all__ = ["confidence_sequence"]

Floats = NDArray[np.float64]


def confidence_sequence(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Interval of a share from k of n images, elementwise, valid at all n together; (0, 1) where n is 0.

    With probability `confidence` no look, whenever and however often taken, leaves the true share p out; their
    intersection holds as well. It is Robbins' mixture: under p, B(k + 1, n - k + 1) / (p^k (1 - p)^(n - k)), the
    likelihood ratio averaged over all other shares alike, is a martingale from 1, and reaches 1 / alpha with a chance
    of at most alpha (Ville). The interval is every p for which it has not.

    The share must stay what it is from look to look: after an edit has changed, count from zero. Images of several
    wordings may be mixed if each look adds equally many of each: the ratio is then a supermartingale for their mean
    share (a product of factors that average 1 is at most 1).

    Args:
        k: images of the label; whole numbers from 0 to n.
        n: images; broadcast against k.
        confidence: of all looks of one sequence together, between 0 and 1.

    Returns:
        Lower and upper ends, in the broadcast shape.

    Raises:
        ValueError: if a k lies outside 0 to n, or `confidence` outside 0 to 1.

    Source: Robbins, "Statistical methods related to the law of the iterated logarithm", Annals of Mathematical
    Statistics 41 (1970); Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
    Statistics 49 (2021).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not np.all((k >= 0) & (k <= n)):
        raise ValueError("k must be from 0 to n")
    # The images of the other label have the mirrored interval; 1 - exp(x) is exact for shares close to 0 that way.
    return np.exp(_log_low(k, n, confidence)), -np.expm1(_log_low(n - k, n, confidence))


def _log_low(k: Floats, n: Floats, confidence: float) -> Floats:
    """Logarithm of the lower end: where the log likelihood k x + (n - k) log(1 - e^x) falls to `least`.

    It rises up to log(k / n), where it is above `least`, and is at most k x: so it is below at (least - 1) / k.
    """
    logs = np.full(k.shape, -np.inf)
    some = k > 0
    if some.any():
        k, n = k[some], n[some]
        least = betaln(k + 1, n - k + 1) + np.log1p(-confidence)

        def above(x: Floats, k: Floats, n: Floats, least: Floats) -> Floats:
            return np.asarray(k * x + xlog1py(n - k, -np.exp(x)) - least)

        logs[some] = elementwise.find_root(above, ((least - 1) / k, np.log(k / n)), args=(k, n, least)).x
    return logs
