"""The matrix of an edit from its sums: one Cholesky factorisation in float64, and how well it was conditioned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.linalg import lapack

from time_ops.errors import EditError
from time_ops.sums import Device, EditRows

__all__ = ["factored", "token_form"]


def factored(G: torch.Tensor, B: torch.Tensor, strengths: Sequence[float]) -> tuple[torch.Tensor, float]:
    """Compute A = I + B (I + G)^-1 of sums already weighted (G is overwritten), and the condition number of I + G."""
    G.diagonal().add_(1.0)
    solve_with, condition = _cholesky(G, strengths)
    matrix = solve_with(B.T).T
    matrix.diagonal().add_(1.0)
    return matrix, condition


def token_form(
    used: Sequence[tuple[EditRows, float]], d: int, device: Device, gram: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Compute the same A from a system as large as the number of tokens, where those are fewer than d.

    With token rows C, their weights w on the diagonal of S^2, and shifts E already weighted,
    E^T C (I + C^T S^2 C)^-1 = E^T S^-1 (I + S C C^T S)^-1 S C.
    """
    identity = torch.eye(d, dtype=torch.float64, device=device)
    weights = torch.cat([rows.counts * w for rows, w in used] or [torch.zeros(0, dtype=torch.float64)])
    present = weights > 0
    if not bool(present.any()):
        return identity, 1.0
    tokens = torch.cat([rows.tokens.double() for rows, _ in used])[present].to(device)
    shifts = torch.cat([rows.shifts[0] * w if len(rows.shifts) else torch.zeros_like(rows.tokens) for rows, w in used])
    shifts = shifts[present].to(device)
    scale = weights[present].sqrt().to(device)
    if gram is None:
        gram = tokens @ tokens.T
    else:
        at = present.nonzero()[:, 0].to(gram.device)
        gram = gram[at][:, at]
    system = scale[:, None] * gram * scale
    system.diagonal().add_(1.0)
    solve_with, condition = _cholesky(system, [1 / w for _, w in used if w > 0])
    return identity + (shifts / scale[:, None]).T @ solve_with(scale[:, None] * tokens), condition


def _cholesky(system: torch.Tensor, strengths: Sequence[float]) -> tuple[Callable[[torch.Tensor], torch.Tensor], float]:
    """Solver for a symmetric positive definite matrix, and its estimated condition number (1-norm).

    Raises:
        EditError: not finite, not positive definite in float64, or so ill-conditioned that no digit would be left.
    """
    norm = float(torch.linalg.matrix_norm(system, 1))
    smallest = min(strengths, default=math.inf)
    if not math.isfinite(norm):
        raise EditError(f"lam {smallest:g} is too small: the weighted sums overflow float64")
    lower, info = torch.linalg.cholesky_ex(system)
    reciprocal = 0.0
    if int(info) == 0:
        # LAPACK is column-major: the row-major lower factor is its upper one.
        rcond, status = lapack.dpocon(lower.cpu().numpy().T, norm, uplo="U")
        reciprocal = float(rcond) if status == 0 else 0.0
    if reciprocal < np.finfo(np.float64).eps:
        enough = smallest * norm * np.finfo(np.float64).eps * 1e3
        raise EditError(
            f"lam {smallest:g} is too small: I + sum G / lam can't be factored in float64 (its norm is {norm:.1e}). "
            f"Raise it (to {enough:.1e}, say), or weaken the strongest edits"
        )
    return (lambda right: torch.cholesky_solve(right, lower)), 1 / reciprocal
