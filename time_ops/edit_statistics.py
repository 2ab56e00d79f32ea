"""Sums of an edit as values: they merge with `+`, travel as bytes, and are solved once all are in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_bytes

from time_ops.encoders import EncoderDigest
from time_ops.encoding import TokenPairs
from time_ops.errors import EditError
from time_ops.factor import factored
from time_ops.files import header_of, json_of
from time_ops.lams import check_lams
from time_ops.operator import EditOperator
from time_ops.records import EditRecord, SolveInputs, record_from
from time_ops.sums import EditRows, Sums

__all__ = ["Statistics", "check_preserved", "one_encoder", "record_of", "solve_statistics"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over token pairs, of one edit or of many.

    Attributes:
        G: sum c c^T, [d, d] float64; divided by lam once weighted.
        B: sum (c* - c) c^T, [d, d] float64; likewise.
        edits: records of the edits in the sums.
        preserved: records of the preserved prompts in the sums.
        encoder: the text encoder, where known.
        pooled: the same of the pooled embeddings; None where the model reads none.
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
            pairs: its tokens.
            preserved: it is a preserved prompt.

        Raises:
            EditError: it is said to be preserved, but c* differs from c.
        """
        if preserved:
            check_preserved([pairs])
        sums = Sums(pairs.source.shape[1], "cpu")
        sums.add(EditRows.of(pairs), 1.0)
        record = (record_of(pairs, None),)
        second = None if pairs.pooled is None else cls.of(pairs.pooled, preserved=preserved)
        return cls(*sums.total(), () if preserved else record, record if preserved else (), pairs.encoder, second)

    def weighted(self, lam: float, ratio: float = 1.0) -> Statistics:
        """Divide by lam (inf gives zeros), which is then on record.

        Args:
            lam: the strength.
            ratio: the pooled statistics' lam, in units of this one; see `time_ops.rows.TokenRows.pooled_ratio`.

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
            EditError: another width or another text encoder.
        """
        if not isinstance(other, Statistics):
            return NotImplemented
        if self.G.shape != other.G.shape:
            raise EditError(f"statistics of width {self.G.shape[0]} and {other.G.shape[0]} do not merge")
        if (self.pooled is None) != (other.pooled is None):
            raise EditError("statistics with pooled embeddings and without do not merge")
        encoder = one_encoder([self.encoder, other.encoder])
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
            EditError: the bytes are no statistics.
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
                    tuple(record_from(r) for r in records[f"{prefix}edits"]),
                    tuple(record_from(r) for r in records[f"{prefix}preserved"]),
                    encoder,
                    parts.get("pooled."),
                )
            return parts[""]
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise EditError(f"these bytes are no statistics: {error!r}") from error


def solve_statistics(total: Statistics, *, values_only: bool = False) -> EditOperator:
    """Solve merged, weighted statistics.

    Args:
        total: the sum of `Statistics.of(...).weighted(lam)` over all edits and preserved prompts.
        values_only: as for `solve`.

    Raises:
        EditError: some statistics were merged without a lam, or the sums can't be factored in float64.
    """
    missing = [r.source for r in (*total.edits, *total.preserved) if r.lam is None]
    if missing:
        raise EditError.listing("statistics were merged without a lam:", [repr(s) for s in missing])
    strengths = [r.lam for r in (*total.edits, *total.preserved) if r.lam is not None]
    matrix, condition = factored(total.G.clone(), total.B, strengths)
    pooled = None if total.pooled is None else solve_statistics(total.pooled)
    step = SolveInputs(total.edits, total.preserved, total.encoder, values_only)
    return EditOperator(matrix, (step,), condition, pooled=pooled)


def check_preserved(preserve: Sequence[TokenPairs]) -> None:
    """Refuse, with an EditError that names them, pairs that would move what is to be preserved."""
    moved = [repr(p.edit.source) for p in preserve if not p.is_preserved]
    if moved:
        raise EditError.listing("preserved prompts must have themselves as destination (c* = c):", moved)


def one_encoder(encoders: Sequence[EncoderDigest | None]) -> EncoderDigest | None:
    """The text encoder of all, None where none is known; raises EditError where they are several."""
    known = list(dict.fromkeys(e for e in encoders if e is not None))
    if len(known) > 1:
        raise EditError.listing("token pairs are of several text encoders:", [e.exact for e in known])
    return known[0] if known else None


def record_of(pairs: TokenPairs, lam: float | None) -> EditRecord:
    """What of an edit's token pairs decides the operator."""
    return EditRecord(
        source=pairs.edit.source,
        destinations=tuple(sorted(pairs.edit.destinations.items())),
        lam=lam,
        augmentations=tuple(sorted(pairs.augmentations)),
        alignment=pairs.alignment,
        tokens="" if pairs.encoder is not None else pairs.tokens_digest,
    )
