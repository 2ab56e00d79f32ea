"""An edit as one low-rank update of all projections: W_l A - W_l = up_l @ down, with one `down` that all layers share.

    low = truncate(operator, weights, error=1e-3)
    edited = weight + low.up(weight) @ low.down           # strength 1; times s for strength s

Every projection reads the same embeddings, so every update W_l (A - I) has the same right factor. The best `down` of a
given rank for all layers together is made of the leading right singular vectors of the stacked W_l (A - I) (Eckart and
Young, 1936). The stack is never formed: with R the triangular factor of the stacked W_l, it has the singular values
and right singular vectors of R (A - I), [d, d]. R comes from QR, not from the Gram matrix, whose eigenvalues lose half
of the digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from time_ops.errors import EditError, ModelError
from time_ops.operator import EditOperator
from time_ops.records import SolveInputs

__all__ = ["LowRank", "truncate"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """What of an edit a rank keeps.

    Attributes:
        down: [rank, d] float64, orthonormal rows, the strongest direction first.
        lift: [d, rank] float64, (A - I) down^T.
        singular_values: [rank] float64, descending: the Frobenius norm of what each direction adds to all layers.
        error: what is left out, Frobenius over all layers, relative to the whole edit.
        weight_error: the same relative to the unedited weights.
    """

    down: torch.Tensor
    lift: torch.Tensor
    singular_values: torch.Tensor
    error: float
    weight_error: float

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return self.down.shape[0]

    def up(self, weight: torch.Tensor) -> torch.Tensor:
        """Give a layer's own factor, [out, rank] float64.

        Args:
            weight: the layer's unedited weight, [out, d].
        """
        return weight.double() @ self.lift

    def operator(self, whole: EditOperator) -> EditOperator:
        """Give the edit at this rank as an operator: what an audit of it takes, without any weight.

        W + up @ down = W (I + lift @ down), so it is a transform of the embeddings like the whole one.

        Args:
            whole: the edit that was truncated.
        """
        kept = SolveInputs((), encoder=whole.encoder, values_only=whole.values_only, rank=self.rank)
        eye = torch.eye(whole.d, dtype=torch.float64)
        return EditOperator(eye + self.lift @ self.down, (*whole.steps, kept), whole.condition, pooled=whole.pooled)


def truncate(
    operator: EditOperator, weights: Iterable[torch.Tensor], *, rank: int | None = None, error: float = 1e-3
) -> LowRank:
    """Find the best shared low-rank form of an edit.

    Args:
        operator: the edit.
        weights: the unedited projections that it edits, each [out, d]; read once, a few at a time.
        rank: directions to keep; None: as few as keep to `error`. Directions below float64's resolution are never kept,
            so that few edits come back exactly, at their own rank.
        error: largest Frobenius norm of what may be left out, relative to the whole edit; 0: all of it is kept.

    Raises:
        EditError: rank below 1, error outside [0, 1), or the edit changes none of these weights.
        ModelError: weights of another width, not finite, or none.
    """
    if rank is not None and rank < 1:
        raise EditError(f"the rank must be at least 1, not {rank}")
    if not 0 <= error < 1:
        raise EditError(f"the error is relative to the edit, at least 0 and below 1, not {error}")
    shift = operator.matrix - torch.eye(operator.d, dtype=torch.float64)
    factor = _triangular_factor(weights, operator.d)
    scale = float(torch.linalg.norm(factor))
    _, values, directions = torch.linalg.svd(factor @ shift, full_matrices=False)
    # A was rounded to float64 beside I: below this a direction is rounding, however weak the edit.
    noise = torch.finfo(torch.float64).eps * operator.d**0.5 * scale
    present = int((values > noise).sum())
    if present == 0:
        raise EditError("the edit changes none of these weights; there is nothing to write")
    tails = _tails(values[:present]) / torch.linalg.norm(values)
    enough = int((tails > error).sum()) if rank is None else rank
    kept = min(max(enough, 1), present)
    down = directions[:kept].contiguous()
    lost = float(torch.linalg.norm(values[kept:]))
    return LowRank(down, shift @ down.T, values[:kept], lost / float(torch.linalg.norm(values)), lost / scale)


def _tails(values: torch.Tensor) -> torch.Tensor:
    """At i the norm of values[i:]; summed from the small end."""
    return values.flip(0).square().cumsum(0).sqrt().flip(0)


def _triangular_factor(weights: Iterable[torch.Tensor], d: int) -> torch.Tensor:
    """R of the stacked weights' QR, [at most d, d]; one block of 3 d rows of memory, however many layers."""
    # Filled in place: blocks made anew for each of 140 layers leave the allocator with gigabytes that nobody uses.
    block = torch.empty(3 * d, d, dtype=torch.float64)
    filled = 0
    for i, weight in enumerate(weights):
        if weight.ndim != 2 or weight.shape[1] != d:
            raise ModelError(f"weight {i} has shape {list(weight.shape)}, the operator width {d}")
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(f"weight {i} is not finite")
        for rows in torch.split(weight.detach(), 2 * d):
            if filled + len(rows) > len(block):
                filled = _compress(block, filled)
            block[filled : filled + len(rows)].copy_(rows)
            filled += len(rows)
    if not filled:
        raise ModelError("there are no weights to edit")
    return block[: _compress(block, filled)].clone()


def _compress(block: torch.Tensor, filled: int) -> int:
    """Put R of the filled rows' QR in their place; returns how many rows it has."""
    factor = torch.linalg.qr(block[:filled], mode="r").R
    block[: len(factor)].copy_(factor)
    return len(factor)
