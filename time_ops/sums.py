"""Sums over token rows: G and B of many edits, each distinct row multiplied once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from time_ops.encoding import TokenPairs

__all__ = ["Device", "EditRows", "Sums", "spectral_norm"]

Device = str | torch.device


@dataclass(frozen=True, eq=False)
class EditRows:
    """Distinct token rows of one edit.

    Attributes:
        tokens: [u, d], in the pairs' dtype.
        counts: how often each occurs, [u] float64.
        shifts: sums of c* - c over its occurrences, [K, u, d] float64; [0, u, d] for preserved prompts: none moves.
    """

    tokens: torch.Tensor
    counts: torch.Tensor
    shifts: torch.Tensor

    @classmethod
    def each(cls, pairs: TokenPairs) -> EditRows:
        """With the shifts of every destination apart."""
        return cls._made(pairs, np.eye(len(pairs.shares)).tolist())

    @classmethod
    def of(cls, pairs: TokenPairs) -> EditRows:
        """With the blend of the destinations; sum_k a_k (c*_k - c)."""
        return cls._made(pairs, [pairs.shares.tolist()])

    @classmethod
    def _made(cls, pairs: TokenPairs, blends: Sequence[Sequence[float]]) -> EditRows:
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
    def joined(cls, parts: Sequence[EditRows], d: int) -> EditRows:
        """Rows of several preserved prompts, those that they share summed once."""
        if not parts:
            empty = torch.zeros(0, d, dtype=torch.float64)
            return cls(empty, torch.zeros(0, dtype=torch.float64), empty.reshape(0, 0, d))
        tokens, counts = torch.cat([p.tokens for p in parts]), torch.cat([p.counts for p in parts])
        first, repeats, _ = _distinct(tokens.numpy())
        for again, place in repeats:
            counts[place] += counts[again]
        return cls(tokens[first], counts[first], torch.zeros(0, len(first), d, dtype=torch.float64))

    def blended(self, shares: torch.Tensor) -> EditRows:
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
        d: width.
        device: where to sum.
        shifts: how many shifts each row has, K; G is summed once for all of them.
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

    def add(self, rows: EditRows, weight: float) -> None:
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


def spectral_norm(rows: EditRows) -> float:
    """Largest singular value of sum (c* - c) c^T, for the first of the rows' shifts."""
    if len(rows.shifts) == 0:
        return 0.0
    moved = rows.shifts[0].any(dim=1)
    if not bool(moved.any()):
        return 0.0
    # |E^T C| = |R_E R_C^T| for the QR factors of E^T and C^T: as small as the number of tokens that move.
    factors = [torch.linalg.qr(m[moved].double().T, mode="r").R for m in (rows.shifts[0], rows.tokens)]
    return float(torch.linalg.matrix_norm(factors[0] @ factors[1].T, ord=2))
