"""Strengths of edits: what is a lam at all, and the scale at which one begins to bite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from time_ops.errors import EditError

__all__ = ["POOLED_RATIO", "Lams", "check_lams", "pooled_ratio", "scale_of"]


def scale_of(norms: Sequence[float]) -> float:
    """The lambda at which edits begin to bite: the median over edits of B_p's spectral norm, B_p = sum (c* - c) c^T.

    On the weak side A - I is about B_p / lam, so this carries over between text encoders, where the spectrum of
    sum c c^T, ruled by tokens that all prompts share, does not. Edits that change nothing do not count.

    Args:
        norms: of each edit, see `time_ops.rows.TokenRows.norms`.
    """
    positive = [n for n in norms if n > 0]
    return float(np.median(positive)) if positive else 1.0


Lams = float | Sequence[float]

POOLED_RATIO = 0.01
"""Lam of a mixture's pooled embeddings, in units of the token states', each in its own scale.

A prompt has one pooled embedding, and many token states. A ridge that the many average out is all that decides on the
one in a wording that the edit has not seen: at 1 it ended on the other label's side (docs/calibration.md).
"""


def pooled_ratio(pooled: float, tokens: float) -> float:
    """Lam of pooled embeddings in units of the token states', by their scales; see `time_ops.lams.scale_of`.

    To six digits, so that it is one number on all machines though norms differ in their last bits.
    """
    return float(f"{pooled / tokens:.6g}")


def check_lams(lams: Sequence[float], name: str, sources: Sequence[str] | None = None, *, of: str = "edit") -> None:
    """Refuse strengths that are not positive; all of them are named, by the edits' source prompts where given."""
    faults = []
    for i, value in enumerate(lams):
        # 1 / lam must be a number too, which it is not for the least subnormal ones.
        if not value > 0 or 1 / value == math.inf:
            what = f"{of} {i} ({sources[i]!r}): " if sources is not None else ""
            faults.append(f"{what}{name} {value!r}")
    if faults:
        raise EditError.listing(f"{name} must be positive (inf leaves the {of} out):", faults)
