"""The closed form: one float64 solve from token pairs to operator.

    A = I + (sum_p B_p / lam_p) (I + sum_p G_p / lam_p)^-1
    G_p = sum_i c_pi c_pi^T,   B_p = sum_i (c*_pi - c_pi) c_pi^T            (TIME, eq. 5, many edits in one solve)

Three ways in, one result. `solve` for once. `Problem` to solve again and again with other lams and shares. `Statistics`
to stream more edits than fit in memory, at lams that are fixed: they merge with `+` and travel as bytes.

Where the model reads a pooled embedding too, that is edited by the same formula with a G and B of its own, from one
vector for each prompt in place of its tokens. Its lam is the edit's in units of the pooled embeddings' own scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from time_ops.edit_statistics import check_preserved, one_encoder, record_of
from time_ops.encoders import EncoderDigest
from time_ops.encoding import TokenPairs
from time_ops.errors import EditError
from time_ops.factor import factored, token_form
from time_ops.lams import Lams, check_lams, pooled_ratio, scale_of
from time_ops.operator import EditOperator
from time_ops.records import SolveInputs
from time_ops.sums import Device, EditRows, Sums, spectral_norm

__all__ = ["Problem", "solve"]


# Up to here `Problem` keeps G_p and B_p of every edit (9.4 MB an edit and destination at d = 768); above, it sums the
# token matrices anew for every solve.
_STATISTICS_BYTES = 4 << 30


def solve(
    pairs: Sequence[TokenPairs],
    lam: Lams,
    preserve: Sequence[TokenPairs] | None = None,
    preserve_lam: float | None = None,
    *,
    values_only: bool = False,
    device: Device = "cpu",
    pooled: float = 1.0,
) -> EditOperator:
    """All edits in one solve.

    Args:
        pairs: token pairs of each edit, all of one width d.
        lam: strength, for all or for each edit; positive. Smaller is stronger; inf leaves an edit out exactly.
        preserve: pairs with c* = c, of prompts that must keep their meaning.
        preserve_lam: strength of every preserved prompt. Default: the smallest lam of the edits, so that no edit pulls
            harder at a token than a preserved prompt that shares it holds.
        values_only: edit the value projections only.
        device: where to compute; needs float64.
        pooled: how much weaker pooled embeddings are edited than token states: their lam is this times `lam`, each in
            units of its own scale (the median over edits of the spectral norm of B_p). inf leaves them alone.

    Returns:
        The operator, with the inputs and the estimated condition number as provenance.

    Raises:
        EditError: bad lams, mixed widths or encoders, preserved pairs that are none, or a lam so small that the sums
            can't be factored in float64.
    """
    plan = _Plan.of(pairs, preserve or (), values_only)
    strengths = plan.strengths(lam, preserve_lam)
    operator, second = _solved(plan, strengths, device), plan.pooled(pooled)
    if second is None:
        return operator
    of_pooled, ratio = second
    return replace(operator, pooled=_solved(of_pooled, [ratio * s for s in strengths], device))


def _solved(plan: _Plan, strengths: Sequence[float], device: Device) -> EditOperator:
    """Solve for the embeddings of one kind."""
    used = [(pair, 1 / s) for pair, s in zip(plan.pairs, strengths, strict=True) if math.isfinite(s)]
    if sum(len(pair.source) for pair, _ in used) < plan.d:
        return plan.operator(*token_form([(EditRows.of(p), w) for p, w in used], plan.d, device), strengths)
    sums = Sums(plan.d, device)
    for pair, weight in used:
        sums.add(EditRows.of(pair), weight)
    return plan.operator(*factored(*sums.total(), strengths), strengths)


class Problem:
    """Edits and preserved prompts, prepared to be solved again and again with other lams and shares.

    It keeps the cheapest of three forms: where there are fewer distinct tokens than d, the tokens' Gram matrix; else
    G_p, and B_p for each destination, summed once (a new lam vector is then one weighted sum and one factorisation);
    else, where those are too large, the token matrices. No prompt is ever encoded again.

    Args:
        pairs: as for `solve`.
        preserve: as for `solve`.
        values_only: as for `solve`.
        device: as for `solve`.
        statistics_bytes: most memory for G_p and B_p.
        pooled: as for `solve`.

    Raises:
        EditError: as for `solve`.
    """

    def __init__(
        self,
        pairs: Sequence[TokenPairs],
        preserve: Sequence[TokenPairs] = (),
        *,
        values_only: bool = False,
        device: Device = "cpu",
        statistics_bytes: int = _STATISTICS_BYTES,
        pooled: float = 1.0,
    ) -> None:
        self._plan = _Plan.of(pairs, preserve, values_only)
        self._pooled: tuple[Problem, float] | None = None
        second = self._plan.pooled(pooled)
        if second is not None:
            plan, ratio = second
            made = Problem(plan.edits, plan.kept, device=device, statistics_bytes=statistics_bytes)
            self._pooled = (made, ratio)
        self._device = device
        d = self._plan.d
        # The preserved prompts share one lam, so they are one edit to the sums.
        self._rows = [EditRows.each(p) for p in self._plan.edits]
        self._kept = EditRows.joined([EditRows.of(p) for p in self._plan.kept], d)
        self._gram: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None
        self._moves = [len(rows.shifts) > 0 for rows in self._rows]
        tokens = sum(len(rows.tokens) for rows in (*self._rows, self._kept))
        matrices = len(self._rows) + 1 + sum(len(rows.shifts) for rows in self._rows)
        if tokens < d:
            stacked = torch.cat([rows.tokens.double() for rows in (*self._rows, self._kept)]).to(device)
            self._gram = stacked @ stacked.T
        elif matrices * d * d * 8 <= statistics_bytes:
            self._sums = self._summed(matrices)
            self._rows = []  # all that is asked of them is in the sums

    def solve(
        self,
        lam: Lams,
        shares: Sequence[Mapping[str, float] | Sequence[float] | None] | None = None,
        preserve_lam: float | None = None,
    ) -> EditOperator:
        """Solve for these lams and shares; the same as `solve` of the same inputs.

        Args:
            lam: as for `solve`.
            shares: for each edit other shares of its destinations (see `TokenPairs.with_shares`), or None for its own.
            preserve_lam: as for `solve`.

        Raises:
            EditError: as for `solve`.
        """
        plan = self._plan if shares is None else self._plan.with_shares(shares)
        strengths = plan.strengths(lam, preserve_lam)
        operator = self._solved(plan, strengths)
        if self._pooled is None:
            return operator
        problem, ratio = self._pooled
        second = problem._plan if shares is None else problem._plan.with_shares(shares)
        return replace(operator, pooled=problem._solved(second, [ratio * s for s in strengths]))

    def _solved(self, plan: _Plan, strengths: Sequence[float]) -> EditOperator:
        """Solve for the embeddings of one kind."""
        weights = [1 / s for s in strengths[: len(plan.edits)]]
        kept_weight = 1 / strengths[-1] if plan.kept else 0.0
        if self._sums is not None:
            G, B = self._reweighted(self._sums, weights, kept_weight, plan)
            return plan.operator(*factored(G, B, strengths), strengths)
        blends = (rows.blended(pair.shares) for rows, pair in zip(self._rows, plan.edits, strict=True))
        used = chain(zip(blends, weights, strict=True), [(self._kept, kept_weight)])
        if self._gram is not None:
            return plan.operator(*token_form(list(used), plan.d, self._device, self._gram), strengths)
        sums = Sums(plan.d, self._device)
        for rows, weight in used:
            sums.add(rows, weight)
        return plan.operator(*factored(*sums.total(), strengths), strengths)

    def _reweighted(
        self, stored: torch.Tensor, weights: Sequence[float], kept_weight: float, plan: _Plan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight the stored sums: G and B, [d, d] float64."""
        count, flat = len(weights) + 1, stored.view(len(stored), -1)
        moving = [p.shares * w for p, w, moves in zip(plan.edits, weights, self._moves, strict=True) if moves]
        for_G = torch.tensor([*weights, kept_weight], dtype=torch.float64, device=stored.device)
        for_B = torch.cat([*moving, torch.zeros(0, dtype=torch.float64)]).to(stored.device)
        shape = (plan.d, plan.d)
        return (for_G @ flat[:count]).view(shape), (for_B @ flat[count:]).view(shape)

    def _summed(self, matrices: int) -> torch.Tensor:
        """G of every edit, G of the preserved, then B of every edit and destination: [M, d, d] float64."""
        sums = torch.zeros(matrices, self._plan.d, self._plan.d, dtype=torch.float64, device=self._device)
        at = len(self._rows) + 1
        for i, rows in enumerate((*self._rows, self._kept)):
            tokens = rows.tokens.to(self._device, torch.float64)
            scaled = tokens * rows.counts.to(self._device)[:, None]
            sums[i].addmm_(tokens.T, scaled)
            for shift in rows.shifts:
                sums[at].addmm_(shift.to(self._device).T, tokens)
                at += 1
        return sums


@dataclass(frozen=True, eq=False)
class _Plan:
    """Checked inputs of a solve, and the way from a matrix to an operator that knows them."""

    edits: tuple[TokenPairs, ...]
    kept: tuple[TokenPairs, ...]
    values_only: bool
    d: int
    encoder: EncoderDigest | None

    @property
    def pairs(self) -> tuple[TokenPairs, ...]:
        return (*self.edits, *self.kept)

    @classmethod
    def of(cls, pairs: Sequence[TokenPairs], preserve: Sequence[TokenPairs], values_only: bool) -> _Plan:
        every = [*pairs, *preserve]
        if not every:
            raise EditError("nothing to solve: there are no token pairs")
        widths = {p.source.shape[1] for p in every}
        if len(widths) > 1:
            raise EditError(f"token pairs are of different widths d: {sorted(widths)}")
        check_preserved(preserve)
        encoder = one_encoder([p.encoder for p in every])
        return cls(tuple(pairs), tuple(preserve), values_only, widths.pop(), encoder)

    def pooled(self, weaker: float) -> tuple[_Plan, float] | None:
        """Plan the pooled embeddings' solve, and give their lams in units of these; None: there is nothing to edit."""
        check_lams([weaker], "pooled")
        parts = [p.pooled for p in self.pairs]
        known = [p for p in parts if p is not None]
        if known and len(known) < len(parts):
            raise EditError("some token pairs have pooled embeddings and some have none: encode them all alike")
        if not known or not math.isfinite(weaker):
            return None
        plan = _Plan.of(known[: len(self.edits)], known[len(self.edits) :], values_only=False)
        return plan, weaker * pooled_ratio(plan.scale, self.scale)

    @property
    def scale(self) -> float:
        """The lam at which these edits begin to bite."""
        return scale_of([spectral_norm(EditRows.of(p)) for p in self.edits])

    def with_shares(self, shares: Sequence[Mapping[str, float] | Sequence[float] | None]) -> _Plan:
        if len(shares) != len(self.edits):
            raise EditError(f"{len(self.edits)} edits, but shares for {len(shares)}")
        faults: list[str] = []
        edits: list[TokenPairs] = []
        for pair, values in zip(self.edits, shares, strict=True):
            try:
                edits.append(pair if values is None else pair.with_shares(values))
            except EditError as error:
                faults.append(str(error))
        if faults:
            raise EditError.listing("these shares must be mended:", faults)
        return replace(self, edits=tuple(edits))

    def strengths(self, lam: Lams, preserve_lam: float | None) -> list[float]:
        """One lam for each of `pairs`."""
        try:
            given = np.asarray(lam, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise EditError(f"lam must be a number, or one number for each edit, not {lam!r}") from error
        if given.ndim > 1:
            raise EditError(f"lam must be a number, or one number for each edit, not of shape {list(given.shape)}")
        lams = [float(value) for value in (given if given.ndim else given.repeat(len(self.edits)))]
        if len(lams) != len(self.edits):
            raise EditError(f"{len(self.edits)} edits, but {len(lams)} lams: give one for each, or one number for all")
        check_lams(lams, "lam", [p.edit.source for p in self.edits])
        if preserve_lam is None:
            preserve_lam = min(lams, default=1.0)
        check_lams([preserve_lam], "preserve_lam")
        return lams + [float(preserve_lam)] * len(self.kept)

    def operator(self, matrix: torch.Tensor, condition: float, strengths: Sequence[float]) -> EditOperator:
        records = [record_of(pair, lam) for pair, lam in zip(self.pairs, strengths, strict=True)]
        count = len(self.edits)
        step = SolveInputs(tuple(records[:count]), tuple(records[count:]), self.encoder, self.values_only)
        return EditOperator(matrix, (step,), condition)
