"""How edits are weighted in a solve: strengths, and the blends of their destinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from time_ops.errors import EditError

__all__ = ["SHARE_TOLERANCE", "Floats", "Strengths", "checked_blends"]

Floats = npt.NDArray[np.float64]

# As for `PromptEdit`, whose shares are given here too: a sum is 1 if it is within this of 1.
SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Strengths:
    """How one operator is solved from token rows.

    Attributes:
        lam: of each edit.
        shares: of each edit's destinations; None: its own. See `TokenRows.statistics`.
        preserve_lam: of all preserved prompts, or of each.
        push: of each edit's destinations, in all augmentations and where they are preserved: how far they are pushed
            away from the source, c* = c + push (c - c_source), to make up for what the edit takes. None: nowhere.
        ratio: lam of the pooled embeddings, in units of all these lams; see `TokenRows.pooled_ratio`.
    """

    lam: Sequence[float]
    shares: Sequence[npt.ArrayLike] | None
    preserve_lam: float | Sequence[float]
    push: Sequence[Sequence[float]] | None = None
    ratio: float = 1.0

    def of_pooled(self) -> Strengths:
        """Strengths of the pooled embeddings."""
        kept = np.multiply(self.preserve_lam, self.ratio).tolist()
        return Strengths([self.ratio * float(s) for s in self.lam], self.shares, kept, self.push)


def checked_blends(
    sources: Sequence[str],
    destinations: Sequence[int],
    augmentations: int,
    shares: Sequence[npt.ArrayLike],
    most: float = 1.0,
) -> list[Floats]:
    """Shares of each edit's destinations in each augmentation, once they are known to be usable.

    Args:
        sources: source prompt of each edit.
        destinations: its number of destinations, K.
        augmentations: number of augmentations, W.
        shares: its shares, [K] or [W, K]; finite, none negative, sum at most `most`.
        most: 1, or more where edits may overshoot.

    Returns:
        For each edit [W, K] float64, read only.

    Raises:
        EditError: shares are not as above; all bad edits are named.
    """
    if len(shares) != len(sources):
        raise EditError(f"{len(sources)} edits, but shares for {len(shares)}: give them for each")
    blends: list[Floats] = []
    faults: list[str] = []
    for source, count, given in zip(sources, destinations, shares, strict=True):
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            faults.append(f"edit of {source!r}: shares must be numbers, [{count}] or [{augmentations}, {count}]")
            continue
        if values.shape not in ((count,), (augmentations, count)):
            faults.append(
                f"edit of {source!r} has {count} destinations and {augmentations} augmentations, so its shares are "
                f"[{count}] or [{augmentations}, {count}], not {list(values.shape)}"
            )
            continue
        rows = np.atleast_2d(values)
        with np.errstate(invalid="ignore", over="ignore"):
            good = ((rows >= 0) & np.isfinite(rows)).all(axis=1) & (rows.sum(axis=1) <= most + SHARE_TOLERANCE)
        if not good.all():
            bad = rows[~good].tolist()
            faults.append(
                f"edit of {source!r}: shares must be finite, not negative and sum to at most {most:g}, not {bad}"
            )
        blends.append(np.broadcast_to(values, (augmentations, count)))
    if faults:
        raise EditError.listing("these shares must be mended:", faults)
    return blends
