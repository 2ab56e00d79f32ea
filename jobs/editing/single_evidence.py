"""What calibration tried and saw: `calibration.parquet`, from which a search goes on, and the report's section."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config import CalibrationConfig, RunConfig
from jobs.images.cells import calibration_cells
from jobs.images.tables import bounded_rows
from jobs.report.search_schema import CalibratedProfession, Calibration, CalibrationRound, CalibrationStep
from manifests import Manifest
from time_ops.search import calibration
from time_ops.search.model import Candidate, Measured
from time_ops.stats.deltas import delta, delta_within, noise_floor
from time_ops.stats.intervals import wilson

__all__ = ["EVIDENCE", "Trial", "evidence_bytes", "section_of", "trials_of"]

EVIDENCE = "calibration.parquet"
_MOST_ROUNDS = 200

_PAIR = pa.list_(pa.int64(), 2)
_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("phase", pa.string()),
        ("profession", pa.string()),
        ("active", pa.bool_()),
        ("lam", pa.float64()),
        # [W][K], by calibration wording and destination; what they leave of 1 stays with the source.
        ("shares", pa.list_(pa.list_(pa.float64()))),
        # [W][L + 1], undetermined last.
        ("counts", pa.list_(pa.list_(pa.int64()))),
        ("images", pa.int64()),
        ("determined", pa.int64()),
        ("undetermined", pa.int64()),
        ("label", pa.string()),
        ("measured_share", pa.float64()),
        ("operator", pa.string()),
        # Of the whole round: (hits, images).
        ("recognised", _PAIR),
        ("explicit", _PAIR),
        ("controls", _PAIR),
    ]
)


@dataclass(frozen=True)
class Trial:
    """One round: what was tried, what was found, and the digest of the operator that it was tried with."""

    candidate: Candidate
    measured: Measured
    operator: str


def evidence_bytes(trials: Sequence[Trial], manifest: Manifest, labels: Sequence[str]) -> bytes:
    """`calibration.parquet`: a row for each round and profession, enough to resume from."""
    rows: list[dict[str, Any]] = []
    for trial in trials:
        candidate, measured = trial.candidate, trial.measured
        for p, profession in enumerate(manifest.professions):
            counts = measured.tallies[p]
            determined = int(counts[:, :-1].sum())
            rows.append(
                {
                    "round": candidate.number,
                    "phase": candidate.phase,
                    "profession": profession.name,
                    "active": bool(candidate.active[p]),
                    "lam": float(candidate.lam[p]),
                    "shares": candidate.shares[p].tolist(),
                    "counts": counts.tolist(),
                    "images": int(counts.sum()),
                    "determined": determined,
                    "undetermined": int(counts[:, -1].sum()),
                    "label": labels[0],
                    "measured_share": float(counts[:, 0].sum() / determined) if determined else None,
                    "operator": trial.operator,
                    "recognised": measured.recognised,
                    "explicit": measured.explicit,
                    "controls": measured.controls,
                }
            )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def trials_of(data: bytes, manifest: Manifest) -> list[Trial]:
    """Read what `evidence_bytes` wrote.

    Raises:
        ValueError: it is no such file, or of other professions.
    """
    names = [p.name for p in manifest.professions]
    rounds: dict[int, list[dict[str, Any]]] = {}
    try:
        for row in bounded_rows(data, _SCHEMA.names, _MOST_ROUNDS * len(names)):
            rounds.setdefault(int(row["round"]), []).append(row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"no calibration evidence: {error}") from error
    if any([row["profession"] for row in of_round] != names for of_round in rounds.values()):
        raise ValueError("calibration evidence of other professions, or not all of them")
    try:
        return [_trial(rounds[number]) for number in sorted(rounds)]
    except (TypeError, IndexError, OverflowError, AttributeError) as error:
        raise ValueError(f"no calibration evidence: {error}") from error


def _trial(rows: Sequence[dict[str, Any]]) -> Trial:
    first = rows[0]
    candidate = Candidate(
        first["round"],
        first["phase"],
        np.array([row["lam"] for row in rows]),
        tuple(np.array(row["shares"]) for row in rows),
        np.array([row["active"] for row in rows]),
    )
    recognised, explicit, controls = (tuple(first[name]) for name in ("recognised", "explicit", "controls"))
    measured = Measured(np.array([row["counts"] for row in rows]), recognised, explicit, controls)
    return Trial(candidate, measured, first["operator"])


def section_of(
    search: calibration.CalibrationSearch, trials: Sequence[Trial], manifest: Manifest, config: RunConfig
) -> Calibration:
    """The report's section. Shares shown are means over the wordings; the file has each."""
    chosen = search.chosen_rounds()
    professions = []
    for p, (profession, outcome) in enumerate(zip(manifest.professions, search.outcomes(), strict=True)):
        prompts = [d.prompt for d in profession.destinations]
        steps = [_step(t, p, prompts) for t in trials if t.candidate.phase != "base" and t.candidate.active[p]]
        professions.append(
            CalibratedProfession(
                profession=profession.name,
                state=outcome.state.value,
                reason=outcome.reason,
                images=outcome.images,
                steps=steps,
            )
        )
    rounds = [
        _round(t, search.targets, _drawn(t.candidate, manifest, config), chosen=t.candidate.number in chosen)
        for t in trials
    ]
    return Calibration(
        label=next(iter(config.attribute)),
        rule=_rule(config.calibration),
        wordings=list(config.wordings.calibration),
        rounds=rounds,
        professions=professions,
        images=sum(r.images for r in rounds),
    )


def _step(trial: Trial, p: int, prompts: Sequence[str]) -> CalibrationStep:
    counts = trial.measured.tallies[p].sum(axis=0)
    n = int(counts[:-1].sum())
    low, high = wilson(counts[0], n)
    return CalibrationStep(
        round=trial.candidate.number,
        lam=float(trial.candidate.lam[p]),
        shares=dict(zip(prompts, trial.candidate.shares[p].mean(axis=0).tolist(), strict=True)),
        share=float(counts[0] / n) if n else None,
        low=float(low) if n else None,
        high=float(high) if n else None,
        n=n,
        undetermined=int(counts[-1]),
    )


def _drawn(candidate: Candidate, manifest: Manifest, config: RunConfig) -> int:
    """Images that a round asked for: those that failed cost as much as the others."""
    return sum(cell.images for cell in calibration_cells(manifest, config, candidate.number, candidate.active.tolist()))


def _round(trial: Trial, targets: np.ndarray, drawn: int, *, chosen: bool) -> CalibrationRound:
    candidate, measured = trial.candidate, trial.measured
    tallies, wanted = measured.tallies[candidate.active], targets[candidate.active]
    counts, labelled = tallies[..., :-1], int(tallies.sum())
    hits, asked = measured.explicit
    floor = noise_floor(counts.sum(axis=-1), wanted[:, None, :])
    return CalibrationRound(
        round=candidate.number,
        professions=int(candidate.active.sum()),
        images=drawn,
        delta=_known(delta(counts.sum(axis=1), wanted)),
        delta_within=_known(delta_within(counts, wanted)),
        floor_within=_known(floor),
        undetermined=float(tallies[..., -1].sum() / labelled) if labelled else None,
        explicit=hits / asked if asked else None,
        chosen=chosen,
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _rule(config: CalibrationConfig) -> str:
    return (
        f"A profession is on target once its {config.confidence:.0%} confidence sequence lies within "
        f"{config.tolerance:.0%} of its target; at most {config.base_rounds} rounds looked for professions that need "
        f"no edit, {config.search_rounds} moved all others at once, {config.verify_rounds} decided, on new images"
    )
