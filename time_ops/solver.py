"""The closed form: one float64 solve from token pairs to operator.

    A = I + (sum_p B_p / lam_p) (I + sum_p G_p / lam_p)^-1
    G_p = sum_i c_pi c_pi^T,   B_p = sum_i (c*_pi - c_pi) c_pi^T            (TIME, eq. 5, many edits in one solve)

Three ways in, one result. `solve` for once. `Problem` to solve again and again with other lams and shares. `Statistics`
to stream more edits than fit in memory, at lams that are fixed: they merge with `+` and travel as bytes.

Where the model reads a pooled embedding too, that is edited by the same formula with a G and B of its own, from one
vector for each prompt in place of its tokens. Its lam is the edit's in units of the pooled embeddings' own scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_bytes
from scipy.linalg import lapack

from time_ops.calibration import scale_of
from time_ops.encoders import EncoderDigest
from time_ops.encoding import TokenPairs
from time_ops.errors import EditError
from time_ops.files import header_of, json_of
from time_ops.operator import EditOperator, EditRecord, Inputs

__all__ = ["Problem", "Statistics", "solve", "solve_statistics"]

Device = str | torch.device
Lams = float | Sequence[float]

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
        pairs: Token pairs of each edit, all of one width d.
        lam: Strength, for all or for each edit; positive. Smaller is stronger; inf leaves an edit out exactly.
        preserve: Pairs with c* = c, of prompts that must keep their meaning.
        preserve_lam: Strength of every preserved prompt. Default: the smallest lam of the edits, so that no edit pulls
            harder at a token than a preserved prompt that shares it holds.
        values_only: Edit the value projections only.
        device: Where to compute; needs float64.
        pooled: How much weaker pooled embeddings are edited than token states: their lam is this times `lam`, each in
            units of its own scale (the median over edits of the spectral norm of B_p). inf leaves them alone.

    Returns:
        The operator, with the inputs and the estimated condition number as provenance.

    Raises:
        EditError: Bad lams, mixed widths or encoders, preserved pairs that are none, or a lam so small that the sums
            can't be factored in float64.

    """
    plan = _Plan.of(pairs, preserve or (), values_only)
    strengths = plan.strengths(lam, preserve_lam)
    found, second = _solved(plan, strengths, device), plan.pooled(pooled)
    if second is None:
        return found
    of_pooled, ratio = second
    return replace(found, pooled=_solved(of_pooled, [ratio * s for s in strengths], device))


def _solved(plan: _Plan, strengths: Sequence[float], device: Device) -> EditOperator:
    """Solve for the embeddings of one kind."""
    used = [(pair, 1 / s) for pair, s in zip(plan.pairs, strengths, strict=True) if math.isfinite(s)]
    if sum(len(pair.source) for pair, _ in used) < plan.d:
        return plan.operator(*_token_form([(Rows.of(p), w) for p, w in used], plan.d, device), strengths)
    sums = Sums(plan.d, device)
    for pair, weight in used:
        sums.add(Rows.of(pair), weight)
    return plan.operator(*_factored(*sums.total(), strengths), strengths)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over token pairs, of one edit or of many.

    Attributes:
        G: sum c c^T, [d, d] float64; divided by lam once weighted.
        B: sum (c* - c) c^T, [d, d] float64; likewise.
        edits: Records of the edits in the sums.
        preserved: Records of the preserved prompts in the sums.
        encoder: The text encoder, where known.
        pooled: The same of the pooled embeddings; None where the model reads none.

    """

    G: torch.Tensor
    B: torch.Tensor
    edits: tuple[EditRecord, ...] = ()
    preserved: tuple[EditRecord, ...] = ()
    encoder: EncoderDigest | None = None
    pooled: Statistics | None = None

    def __post_init__(self) -> None:
        square = self.G.ndim == 2 and self.G.shape[0] == self.G.shape[1] and self.G.shape == self.B.shape
        if not square or {self.G.dtype, self.B.dtype} != {torch.float64}:
            raise EditError("statistics are two [d, d] float64 matrices of one d")

    @classmethod
    def of(cls, pairs: TokenPairs, *, preserved: bool = False) -> Statistics:
        """Statistics of one edit, not yet weighted.

        Args:
            pairs: Its tokens.
            preserved: It is a preserved prompt.

        Raises:
            EditError: It is said to be preserved, but c* differs from c.

        """
        if preserved:
            _check_preserved([pairs])
        sums = Sums(pairs.source.shape[1], "cpu")
        sums.add(Rows.of(pairs), 1.0)
        record = (_record(pairs, None),)
        second = None if pairs.pooled is None else cls.of(pairs.pooled, preserved=preserved)
        return cls(*sums.total(), () if preserved else record, record if preserved else (), pairs.encoder, second)

    def weighted(self, lam: float, ratio: float = 1.0) -> Statistics:
        """Divide by lam (inf gives zeros), which is then on record.

        Args:
            lam: The strength.
            ratio: The pooled statistics' lam, in units of this one; see `time_ops.rows.TokenRows.pooled_ratio`.

        Raises:
            EditError: lam is not positive, or they have a lam already.

        """
        check_lams([lam], "lam")
        if any(r.lam is not None for r in (*self.edits, *self.preserved)):
            raise EditError("these statistics have their lam already")
        weight = 1 / lam
        return replace(
            self,
            G=self.G * weight,
            B=self.B * weight,
            edits=tuple(replace(r, lam=float(lam)) for r in self.edits),
            preserved=tuple(replace(r, lam=float(lam)) for r in self.preserved),
            pooled=None if self.pooled is None else self.pooled.weighted(ratio * lam),
        )

    def __add__(self, other: Statistics) -> Statistics:
        """Merge; associative and commutative up to rounding.

        Raises:
            EditError: Another width or another text encoder.

        """
        if not isinstance(other, Statistics):
            return NotImplemented
        if self.G.shape != other.G.shape:
            raise EditError(f"statistics of width {self.G.shape[0]} and {other.G.shape[0]} do not merge")
        if (self.pooled is None) != (other.pooled is None):
            raise EditError("statistics with pooled embeddings and without do not merge")
        encoder = _one_encoder([self.encoder, other.encoder])
        return Statistics(
            self.G + other.G,
            self.B + other.B,
            self.edits + other.edits,
            self.preserved + other.preserved,
            encoder,
            None if self.pooled is None or other.pooled is None else self.pooled + other.pooled,
        )

    def to_bytes(self) -> bytes:
        """As safetensors."""
        parts = {"": self} if self.pooled is None else {"": self, "pooled.": self.pooled}
        records: dict[str, Any] = {"encoder": None if self.encoder is None else asdict(self.encoder)}
        stored: dict[str, torch.Tensor] = {}
        for prefix, part in parts.items():
            records[f"{prefix}edits"] = [asdict(r) for r in part.edits]
            records[f"{prefix}preserved"] = [asdict(r) for r in part.preserved]
            # Clones, as safetensors refuses tensors that share memory, which zeros and views may.
            stored |= {f"{prefix}{name}": getattr(part, name).cpu().contiguous().clone() for name in ("B", "G")}
        return tensors_bytes(stored, metadata={"statistics": json.dumps(records, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Statistics:
        """Read what `to_bytes` wrote.

        Raises:
            EditError: The bytes are no statistics.

        """
        try:
            tensors = load_tensors(data)
            records = json_of(header_of(data)["statistics"])
            encoder = None if records["encoder"] is None else EncoderDigest(**records["encoder"])
            parts: dict[str, Statistics] = {}
            for prefix in ("pooled.", "") if "pooled.G" in tensors else ("",):
                parts[prefix] = cls(
                    tensors[f"{prefix}G"],
                    tensors[f"{prefix}B"],
                    tuple(_stored_record(r) for r in records[f"{prefix}edits"]),
                    tuple(_stored_record(r) for r in records[f"{prefix}preserved"]),
                    encoder,
                    parts.get("pooled."),
                )
            return parts[""]
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise EditError(f"these bytes are no statistics: {error!r}") from error


def solve_statistics(total: Statistics, *, values_only: bool = False) -> EditOperator:
    """Solve merged, weighted statistics.

    Args:
        total: The sum of `Statistics.of(...).weighted(lam)` over all edits and preserved prompts.
        values_only: As for `solve`.

    Raises:
        EditError: Some statistics were merged without a lam, or the sums can't be factored in float64.

    """
    missing = [r.source for r in (*total.edits, *total.preserved) if r.lam is None]
    if missing:
        raise EditError.listing("statistics were merged without a lam:", [repr(s) for s in missing])
    strengths = [r.lam for r in (*total.edits, *total.preserved) if r.lam is not None]
    matrix, condition = _factored(total.G.clone(), total.B, strengths)
    pooled = None if total.pooled is None else solve_statistics(total.pooled)
    step = Inputs(total.edits, total.preserved, total.encoder, values_only)
    return EditOperator(matrix, (step,), condition, pooled=pooled)


class Problem:
    """Edits and preserved prompts, prepared to be solved again and again with other lams and shares.

    It keeps the cheapest of three forms: where there are fewer distinct tokens than d, the tokens' Gram matrix; else
    G_p, and B_p for each destination, summed once (a new lam vector is then one weighted sum and one factorisation);
    else, where those are too large, the token matrices. No prompt is ever encoded again.

    Args:
        pairs: As for `solve`.
        preserve: As for `solve`.
        values_only: As for `solve`.
        device: As for `solve`.
        statistics_bytes: Most memory for G_p and B_p.
        pooled: As for `solve`.

    Raises:
        EditError: As for `solve`.

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
        self._rows = [Rows.each(p) for p in self._plan.edits]
        self._kept = Rows.joined([Rows.of(p) for p in self._plan.kept], d)
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
            lam: As for `solve`.
            shares: For each edit other shares of its destinations (see `TokenPairs.with_shares`), or None for its own.
            preserve_lam: As for `solve`.

        Raises:
            EditError: As for `solve`.

        """
        plan = self._plan if shares is None else self._plan.with_shares(shares)
        strengths = plan.strengths(lam, preserve_lam)
        found = self._solved(plan, strengths)
        if self._pooled is None:
            return found
        problem, ratio = self._pooled
        second = problem._plan if shares is None else problem._plan.with_shares(shares)
        return replace(found, pooled=problem._solved(second, [ratio * s for s in strengths]))

    def _solved(self, plan: _Plan, strengths: Sequence[float]) -> EditOperator:
        """Solve for the embeddings of one kind."""
        weights = [1 / s for s in strengths[: len(plan.edits)]]
        kept_weight = 1 / strengths[-1] if plan.kept else 0.0
        if self._sums is not None:
            G, B = self._reweighted(self._sums, weights, kept_weight, plan)
            return plan.operator(*_factored(G, B, strengths), strengths)
        blends = (rows.blended(pair.shares) for rows, pair in zip(self._rows, plan.edits, strict=True))
        used = chain(zip(blends, weights, strict=True), [(self._kept, kept_weight)])
        if self._gram is not None:
            return plan.operator(*_token_form(list(used), plan.d, self._device, self._gram), strengths)
        sums = Sums(plan.d, self._device)
        for rows, weight in used:
            sums.add(rows, weight)
        return plan.operator(*_factored(*sums.total(), strengths), strengths)

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
        found = torch.zeros(matrices, self._plan.d, self._plan.d, dtype=torch.float64, device=self._device)
        at = len(self._rows) + 1
        for i, rows in enumerate((*self._rows, self._kept)):
            tokens = rows.tokens.to(self._device, torch.float64)
            scaled = tokens * rows.counts.to(self._device)[:, None]
            found[i].addmm_(tokens.T, scaled)
            for shift in rows.shifts:
                found[at].addmm_(shift.to(self._device).T, tokens)
                at += 1
        return found


@dataclass(frozen=True, eq=False)
class Rows:
    """Distinct token rows of one edit.

    Attributes:
        tokens: [u, d], in the pairs' dtype.
        counts: How often each occurs, [u] float64.
        shifts: Sums of c* - c over its occurrences, [K, u, d] float64; [0, u, d] for preserved prompts: none moves.

    """

    tokens: torch.Tensor
    counts: torch.Tensor
    shifts: torch.Tensor

    @classmethod
    def each(cls, pairs: TokenPairs) -> Rows:
        """With the shifts of every destination apart."""
        return cls._made(pairs, np.eye(len(pairs.shares)).tolist())

    @classmethod
    def of(cls, pairs: TokenPairs) -> Rows:
        """With the blend of the destinations; sum_k a_k (c*_k - c)."""
        return cls._made(pairs, [pairs.shares.tolist()])

    @classmethod
    def _made(cls, pairs: TokenPairs, blends: Sequence[Sequence[float]]) -> Rows:
        source = pairs.source.detach().cpu().numpy()
        first, repeats, counts = _distinct(source)
        tokens = torch.from_numpy(source[first])
        if pairs.is_preserved:
            return cls(tokens, counts, torch.zeros(0, *tokens.shape, dtype=torch.float64))
        shifts = np.zeros((len(blends), *source.shape))
        destinations = pairs.destinations.detach().cpu().numpy()
        for shift, shares in zip(shifts, blends, strict=True):
            for share, destination in zip(shares, destinations, strict=True):
                if share == 1.0 and sum(shares) == 1.0:
                    # In place and widened on the fly: fresh temporaries cost more than the arithmetic.
                    np.subtract(destination, source, out=shift, dtype=np.float64)
                elif share != 0.0:
                    shift += share * np.subtract(destination, source, dtype=np.float64)
        for again, place in repeats:
            shifts[:, place] += shifts[:, again]
        return cls(tokens, counts, torch.from_numpy(shifts if len(first) == len(source) else shifts[:, first]))

    @classmethod
    def joined(cls, parts: Sequence[Rows], d: int) -> Rows:
        """Rows of several preserved prompts, those that they share summed once."""
        if not parts:
            empty = torch.zeros(0, d, dtype=torch.float64)
            return cls(empty, torch.zeros(0, dtype=torch.float64), empty.reshape(0, 0, d))
        tokens, counts = torch.cat([p.tokens for p in parts]), torch.cat([p.counts for p in parts])
        first, repeats, _ = _distinct(tokens.numpy())
        for again, place in repeats:
            counts[place] += counts[again]
        return cls(tokens[first], counts[first], torch.zeros(0, len(first), d, dtype=torch.float64))

    def blended(self, shares: torch.Tensor) -> Rows:
        """With one shift, the blend of those of the destinations."""
        if len(self.shifts) == 0:
            return self
        return replace(self, shifts=torch.einsum("k,kud->ud", shares, self.shifts)[None])


class Sums:
    """Weighted G and B over many rows, some hundreds of one weight multiplied at a time.

    Products of float32 tokens are exact in float64, so a weight is applied to sums of them, never to tokens; and sums
    are formed apart and then added, as each addition to a large total rounds with it. At 35 edits and a first token of
    thirty times the others' norm, 2e-10 of the edit is lost so; one running sum of scaled rows lost 5e-9.

    Beyond `_WIDE` the totals are far larger than a processor's caches: more rows are multiplied before one is touched,
    and of G only what is on and above its diagonal blocks, the rest being the same.

    Args:
        d: Width.
        device: Where to sum.
        shifts: How many shifts each row has, K; G is summed once for all of them.

    """

    _WIDE = 2048
    _CAPACITY, _WIDE_CAPACITY = 320, 1280
    _BLOCK = 512

    def __init__(self, d: int, device: Device, shifts: int = 1) -> None:
        self._G = torch.zeros(d, d, dtype=torch.float64, device=device)
        self._B = torch.zeros(shifts, d, d, dtype=torch.float64, device=device)
        self._capacity = self._CAPACITY if d <= self._WIDE else self._WIDE_CAPACITY
        self._tokens = torch.empty(self._capacity, d, dtype=torch.float64, device=device)
        self._counted = torch.empty_like(self._tokens)
        self._shifts = torch.empty(shifts, self._capacity, d, dtype=torch.float64, device=device)
        self._filled, self._weight = 0, 0.0

    def add(self, rows: Rows, weight: float) -> None:
        """G += weight sum c c^T, B_k += weight sum (c*_k - c) c^T; rows have K shifts, or none where nothing moves."""
        if weight == 0:
            return
        if weight != self._weight:
            self._flush()
            self._weight = weight
        counts = rows.counts.to(self._tokens.device)[:, None]
        for start in range(0, len(rows.tokens), self._capacity):
            part = slice(start, start + self._capacity)
            count = len(rows.tokens[part])
            if self._filled + count > self._capacity:
                self._flush()
            to = slice(self._filled, self._filled + count)
            self._tokens[to].copy_(rows.tokens[part])
            torch.mul(self._tokens[to], counts[part], out=self._counted[to])
            if len(rows.shifts):
                self._shifts[:, to].copy_(rows.shifts[:, part])
            else:
                self._shifts[:, to].zero_()
            self._filled += count

    def add_shifts(self, tokens: torch.Tensor, shifts: torch.Tensor, weight: float) -> None:
        """B += weight sum (c* - c) c^T of tokens [u, d] that G counts elsewhere, with their shifts [u, d] float64."""
        device = self._B.device
        self._B[0].addmm_(shifts.to(device).T, tokens.to(device, torch.float64), alpha=weight)

    def totals(self) -> tuple[torch.Tensor, torch.Tensor]:
        """G [d, d] and the B of each shift [K, d, d], float64."""
        self._flush()
        for rows, right in self._blocks():
            self._G[right, rows] = self._G[rows, right].T
        return self._G, self._B

    def total(self) -> tuple[torch.Tensor, torch.Tensor]:
        """G and the B of the only shift, [d, d] float64."""
        G, B = self.totals()
        return G, B[0]

    def _flush(self) -> None:
        tokens, counted = self._tokens[: self._filled], self._counted[: self._filled]
        if len(self._G) <= self._WIDE:
            self._G.add_(tokens.T @ counted, alpha=self._weight)
        for rows, right in self._blocks():
            for columns in (rows, right):
                self._G[rows, columns].add_(tokens[:, rows].T @ counted[:, columns], alpha=self._weight)
        for B, shifts in zip(self._B, self._shifts, strict=True):
            B.add_(shifts[: self._filled].T @ tokens, alpha=self._weight)
        self._filled = 0

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Of a wide G each diagonal block's rows, and all columns right of it; of another none."""
        d = len(self._G)
        for start in range(0, d if d > self._WIDE else 0, self._BLOCK):
            stop = min(start + self._BLOCK, d)
            yield slice(start, stop), slice(stop, d)


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
        _check_preserved(preserve)
        encoder = _one_encoder([p.encoder for p in every])
        return cls(tuple(pairs), tuple(preserve), values_only, widths.pop(), encoder)

    def pooled(self, weaker: float) -> tuple[_Plan, float] | None:
        """Plan the pooled embeddings' solve, and give their lams in units of these; None: there is nothing to edit."""
        check_lams([weaker], "pooled")
        parts = [p.pooled for p in self.pairs]
        found = [p for p in parts if p is not None]
        if found and len(found) < len(parts):
            raise EditError("some token pairs have pooled embeddings and some have none: encode them all alike")
        if not found or not math.isfinite(weaker):
            return None
        plan = _Plan.of(found[: len(self.edits)], found[len(self.edits) :], values_only=False)
        return plan, weaker * pooled_ratio(plan.scale, self.scale)

    @property
    def scale(self) -> float:
        """The lam at which these edits begin to bite."""
        return scale_of([spectral_norm(Rows.of(p)) for p in self.edits])

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
        records = [_record(pair, lam) for pair, lam in zip(self.pairs, strengths, strict=True)]
        count = len(self.edits)
        step = Inputs(tuple(records[:count]), tuple(records[count:]), self.encoder, self.values_only)
        return EditOperator(matrix, (step,), condition)


def _factored(G: torch.Tensor, B: torch.Tensor, strengths: Sequence[float]) -> tuple[torch.Tensor, float]:
    """Compute A = I + B (I + G)^-1 of sums already weighted (G is overwritten), and the condition number of I + G."""
    G.diagonal().add_(1.0)
    solve_with, condition = _cholesky(G, strengths)
    matrix = solve_with(B.T).T
    matrix.diagonal().add_(1.0)
    return matrix, condition


def _token_form(
    used: Sequence[tuple[Rows, float]], d: int, device: Device, gram: torch.Tensor | None = None
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
        EditError: Not finite, not positive definite in float64, or so ill-conditioned that no digit would be left.

    """
    norm = float(torch.linalg.matrix_norm(system, 1))
    smallest = min(strengths, default=math.inf)
    if not math.isfinite(norm):
        raise EditError(f"lam {smallest:g} is too small: the weighted sums overflow float64")
    lower, info = torch.linalg.cholesky_ex(system)
    reciprocal = 0.0
    if int(info) == 0:
        # LAPACK is column-major: the row-major lower factor is its upper one.
        found, status = lapack.dpocon(lower.cpu().numpy().T, norm, uplo="U")
        reciprocal = float(found) if status == 0 else 0.0
    if reciprocal < np.finfo(np.float64).eps:
        enough = smallest * norm * np.finfo(np.float64).eps * 1e3
        raise EditError(
            f"lam {smallest:g} is too small: I + sum G / lam can't be factored in float64 (its norm is {norm:.1e}). "
            f"Raise it (to {enough:.1e}, say), or weaken the strongest edits"
        )
    return (lambda right: torch.cholesky_solve(right, lower)), 1 / reciprocal


def _distinct(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]], torch.Tensor]:
    """Places of the distinct rows, (place, first place) of each repeated one, how often each distinct occurs [u]."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    counts: list[float] = []
    repeats: list[tuple[int, int]] = []
    for i, row in enumerate(np.ascontiguousarray(rows)):
        number = seen.setdefault(row.tobytes(), len(first))
        if number < len(first):
            repeats.append((i, first[number]))
            counts[number] += 1
        else:
            first.append(i)
            counts.append(1)
    return np.asarray(first, dtype=np.int64), repeats, torch.tensor(counts, dtype=torch.float64)


def pooled_ratio(pooled: float, tokens: float) -> float:
    """Lam of pooled embeddings in units of the token states', by their scales; see `time_ops.calibration.scale_of`.

    To six digits, so that it is one number on all machines though norms differ in their last bits.
    """
    return float(f"{pooled / tokens:.6g}")


def spectral_norm(rows: Rows) -> float:
    """Largest singular value of sum (c* - c) c^T, for the first of the rows' shifts."""
    if len(rows.shifts) == 0:
        return 0.0
    moved = rows.shifts[0].any(dim=1)
    if not bool(moved.any()):
        return 0.0
    # |E^T C| = |R_E R_C^T| for the QR factors of E^T and C^T: as small as the number of tokens that move.
    factors = [torch.linalg.qr(m[moved].double().T, mode="r").R for m in (rows.shifts[0], rows.tokens)]
    return float(torch.linalg.matrix_norm(factors[0] @ factors[1].T, ord=2))


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


def _check_preserved(preserve: Sequence[TokenPairs]) -> None:
    moved = [repr(p.edit.source) for p in preserve if not p.is_preserved]
    if moved:
        raise EditError.listing("preserved prompts must have themselves as destination (c* = c):", moved)


def _one_encoder(encoders: Sequence[EncoderDigest | None]) -> EncoderDigest | None:
    known = list(dict.fromkeys(e for e in encoders if e is not None))
    if len(known) > 1:
        raise EditError.listing("token pairs are of several text encoders:", [e.exact for e in known])
    return known[0] if known else None


def _record(pairs: TokenPairs, lam: float | None) -> EditRecord:
    return EditRecord(
        source=pairs.edit.source,
        destinations=tuple(sorted(pairs.edit.destinations.items())),
        lam=lam,
        augmentations=tuple(sorted(pairs.augmentations)),
        alignment=pairs.alignment,
        tokens="" if pairs.encoder is not None else pairs.tokens_digest,
    )


def _stored_record(stored: Mapping[str, Any]) -> EditRecord:
    destinations = tuple((prompt, float(share)) for prompt, share in stored["destinations"])
    return EditRecord(**{**stored, "destinations": destinations, "augmentations": tuple(stored["augmentations"])})
