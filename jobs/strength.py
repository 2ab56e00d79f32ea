"""Strengths: fixed in the manifest, or one scalar sweep that takes the weakest edit reaching the target."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from time_ops import EditOperator, ratios

__all__ = ["Candidate", "calibration_parquet", "choose", "rounds_for_report", "scale_of", "sweep"]


@dataclass(frozen=True)
class Candidate:
    """One strength, tried.

    Attributes:
        relative: lambda in units of the scale.
        lam: lambda of each profession, fixed ones as they are.
        counts: [P, W, L + 1] labels, undetermined last, on the calibration cells.
        delta_within: mean over calibration wordings of each wording's Delta, free of most of the bias that few images
            bring (the reflected bootstrap): raw, a search with ten images per cell could never see less than 0.25.
        delta: the raw value of the same.
        floor: what a model on target would show there, raw, by chance.
    """

    relative: float
    lam: tuple[float, ...]
    operator: EditOperator
    counts: np.ndarray
    delta_within: float
    delta: float
    floor: float
    images: int


def scale_of(norms: Sequence[float]) -> float:
    """The lambda at which edits begin to bite: the median over edits of B_p's spectral norm, B_p = sum (c* - c) c^T.

    On the weak side A - I is about B_p / lam, so this carries over between text encoders, where the spectrum of
    sum c c^T, ruled by tokens that all prompts share, does not. Edits that change nothing do not count.

    Args:
        norms: of each edit, see `time_ops.rows.TokenRows.norms`.
    """
    positive = [n for n in norms if n > 0]
    return float(np.median(positive)) if positive else 1.0


def sweep(
    relatives: Sequence[float],
    scale: float,
    fixed: Sequence[float | None],
    solve: Callable[[tuple[float, ...]], EditOperator],
    audit: Callable[[EditOperator, str], np.ndarray],
    targets: np.ndarray,
    enough: float,
) -> list[Candidate]:
    """Try lambdas from the weak side until one suffices; the last candidate is never weaker than the one chosen.

    Args:
        relatives: candidates in units of the scale, weakest first.
        scale: see `scale_of`.
        fixed: per profession a lambda that stays, or None.
        solve: lambda per profession -> operator: `jobs.solving.Solver.solve`.
        audit: operator, name of the round -> [P, W, L + 1] labels on the calibration cells.
        targets: [P, L] wanted shares.
        enough: a Delta within wordings that suffices.
    """
    tried: list[Candidate] = []
    for number, relative in enumerate(relatives, start=1):
        lam = tuple(relative * scale if f is None else f for f in fixed)
        operator = solve(lam)
        counts = audit(operator, f"strength {number} of at most {len(relatives)}")
        found = ratios.delta_bounds(counts, targets, resamples=500).within
        candidate = Candidate(
            relative,
            lam,
            operator,
            counts,
            found.reflected if _decided(counts) else 1.0,
            found.value,
            found.floor,
            int(counts.sum()),
        )
        tried.append(candidate)
        if candidate.delta_within <= enough:
            break
    return tried


def _decided(counts: np.ndarray) -> bool:
    """Whether most images of [P, W, L + 1] can be labelled, and every profession has one that can.

    An edit after which nobody can tell what the pictures show is no success, whatever its Delta.
    """
    determined = counts[..., :-1].sum(axis=(1, 2))
    return bool((determined > 0).all() and 2 * determined.sum() >= counts.sum())


def choose(tried: Sequence[Candidate], enough: float) -> Candidate:
    """The weakest candidate that suffices; where none does, the one with the smallest Delta within wordings."""
    sufficient = [c for c in tried if c.delta_within <= enough]
    return sufficient[0] if sufficient else min(tried, key=lambda c: c.delta_within)


def calibration_parquet(
    tried: Sequence[Candidate], professions: Sequence[str], labels: Sequence[str], shares: Sequence[Sequence[float]]
) -> bytes:
    """`calibration.parquet`: a row for each round and profession."""
    rows = []
    for number, candidate in enumerate(tried, start=1):
        counts = candidate.counts.sum(axis=1)
        for p, name in enumerate(professions):
            determined = int(counts[p, :-1].sum())
            rows.append(
                {
                    "round": number,
                    "profession": name,
                    "lam": candidate.lam[p],
                    "shares": list(shares[p]),
                    "images": int(counts[p].sum()),
                    "determined": determined,
                    "undetermined": int(counts[p, -1]),
                    "label": labels[0],
                    "measured_share": counts[p, 0] / determined if determined else None,
                    "operator": candidate.operator.digest,
                }
            )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    return sink.getvalue()


def rounds_for_report(tried: Sequence[Candidate]) -> list[dict[str, float | int | str | None]]:
    """The search in a few numbers per round."""
    return [
        {
            "round": number,
            "lam_median": float(np.median(candidate.lam)),
            "delta_within": candidate.delta_within,
            "delta_raw": candidate.delta,
            "delta_floor": candidate.floor,
            "images": candidate.images,
        }
        for number, candidate in enumerate(tried, start=1)
    ]
