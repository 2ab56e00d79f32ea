"""What the search for a mixture's strengths tried and saw: `calibration.parquet`, and the report's section."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.auditing.as_reported import rate_figure
from jobs.config import RunConfig
from jobs.editing.single_evidence import EVIDENCE
from jobs.images.cells import Cell, saturation_cells
from jobs.images.tables import bounded_rows
from jobs.report.search_schema import SaturatedProfession, SaturationRound
from jobs.report.search_schema import Saturation as Section
from manifests import Manifest
from time_ops.mixture import UNEDITED
from time_ops.search.saturation import Saturation, Seen, Trial
from time_ops.stats.intervals import rate

State = Literal["fixed", "left alone", "saturated", "short"]

__all__ = ["EVIDENCE", "Tried", "evidence_bytes", "section_of", "tried_of"]

_MOST_ROUNDS = 200
_PAIR = pa.list_(pa.int64(), 2)
_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("component", pa.string()),
        ("profession", pa.string()),
        ("active", pa.bool_()),
        ("lam", pa.float64()),
        ("overshoot", pa.float64()),
        ("ratio", pa.float64()),
        # [L + 1], undetermined last.
        ("counts", pa.list_(pa.int64())),
        # (right, images) of other labels' explicit prompts.
        ("explicit", _PAIR),
        ("operator", pa.string()),
        # Of the whole component in that round: (hits, images).
        ("recognised", _PAIR),
        ("controls", _PAIR),
    ]
)


@dataclass(frozen=True)
class Tried:
    """One round: what was tried, what was found, and the digest of each component's operator."""

    trial: Trial
    seen: Seen
    operators: tuple[str, ...]


def evidence_bytes(tried: Sequence[Tried], manifest: Manifest, components: Sequence[str]) -> bytes:
    """`calibration.parquet`: a row for each round, component and profession, enough to resume from."""
    rows: list[dict[str, Any]] = []
    for one in tried:
        trial, seen = one.trial, one.seen
        for k, component in enumerate(components):
            for p, profession in enumerate(manifest.professions):
                rows.append(
                    {
                        "round": trial.number,
                        "component": component,
                        "profession": profession.name,
                        "active": bool(trial.active[k]),
                        "lam": float(trial.lam[k, p]),
                        "overshoot": float(trial.overshoot[k, p]),
                        "ratio": float(trial.ratio[k, p]),
                        "counts": seen.tallies[k, p].tolist(),
                        "explicit": seen.explicit[k, p].tolist(),
                        "operator": one.operators[k],
                        "recognised": seen.recognised[k].tolist(),
                        "controls": seen.controls[k].tolist(),
                    }
                )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def tried_of(data: bytes, manifest: Manifest, components: Sequence[str]) -> list[Tried]:
    """Read what `evidence_bytes` wrote.

    Raises:
        ValueError: it is no such file, or of other professions or components.
    """
    expected = [(component, p.name) for component in components for p in manifest.professions]
    rounds: dict[int, list[dict[str, Any]]] = {}
    try:
        for row in bounded_rows(data, _SCHEMA.names, _MOST_ROUNDS * len(expected)):
            rounds.setdefault(int(row["round"]), []).append(row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"no evidence of a mixture's strengths: {error}") from error
    if any([(row["component"], row["profession"]) for row in of_round] != expected for of_round in rounds.values()):
        raise ValueError("evidence of other professions or components, or not all of them")
    try:
        return [_tried(rounds[number], len(components)) for number in sorted(rounds)]
    except (TypeError, IndexError, OverflowError, AttributeError) as error:
        raise ValueError(f"no evidence of a mixture's strengths: {error}") from error


def _tried(rows: Sequence[dict[str, Any]], components: int) -> Tried:
    def grid(name: str, dtype: type = float) -> np.ndarray:
        values: np.ndarray = np.array([row[name] for row in rows], dtype=dtype)
        return values.reshape(components, -1, *values.shape[1:])

    firsts = rows[:: len(rows) // components]

    def of_component(name: str) -> np.ndarray:
        return np.array([row[name] for row in firsts])

    trial = Trial(rows[0]["round"], grid("lam"), grid("overshoot"), grid("ratio"), of_component("active"))
    seen = Seen(grid("counts", int), grid("explicit", int), of_component("recognised"), of_component("controls"))
    return Tried(trial, seen, tuple(row["operator"] for row in firsts))


def section_of(
    search: Saturation,
    tried: Sequence[Tried],
    manifest: Manifest,
    config: RunConfig,
    components: Sequence[str],
    wordings: Sequence[str],
) -> Section:
    """The report's section."""
    # Without an open lambda there is no scale, and none of them is in its units.
    is_open = any(p.lam is None for p in manifest.professions)
    chosen, scale = search.chosen, search.rules.lam / config.mixture.lam if is_open else 1.0
    rounds, per_profession = [], np.zeros(len(manifest.professions))
    drawn: set[tuple[str, Cell]] = set()
    for one in tried:
        for k in np.flatnonzero(one.trial.active).tolist():
            cells = list(
                saturation_cells(manifest, config, wordings, one.trial.number, components[k], search.edited[k].tolist())
            )
            places = {p.name: i for i, p in enumerate(manifest.professions)}
            for cell in cells:
                # What several components leave alone is the base model in all of them: drawn once.
                if cell.kind != "control" and (one.operators[k], cell) not in drawn:
                    drawn.add((one.operators[k], cell))
                    per_profession[places[cell.subject]] += cell.images
            images = sum(cell.images for cell in cells)
            is_chosen = chosen.rounds[k] == one.trial.number
            rounds.append(_round(search, one, k, components[k], scale, images, chosen=is_chosen))
    return Section(
        rule=_rule(config, len(components)),
        wordings=list(wordings),
        rounds=rounds,
        professions=[
            _profession(search, tried, k, p, component, profession.name)
            for p, profession in enumerate(manifest.professions)
            for k, component in enumerate(components)
            if component != UNEDITED
        ],
        images=sum(r.images for r in rounds),
        images_per_profession=float(per_profession.max(initial=0)),
    )


def _round(
    search: Saturation, one: Tried, k: int, component: str, scale: float, images: int, *, chosen: bool
) -> SaturationRound:
    trial, seen, label = one.trial, one.seen, search.own[k]
    edited = search.edited[k]
    counts = seen.tallies[k][edited].sum(axis=0)
    labels = search.labels
    hits = 0 if label is None else int(counts[label])
    return SaturationRound(
        round=trial.number,
        component=component,
        lam=float(np.median(trial.lam[k][edited]) / scale) if edited.any() else 0.0,
        overshoot=float(np.median(trial.overshoot[k][edited])) if edited.any() else 1.0,
        professions=int((seen.tallies[k].sum(axis=1) > 0).sum()),
        images=images,
        own=rate_figure(rate(hits, int(counts[:labels].sum()))),
        explicit=rate_figure(rate(*(int(n) for n in seen.explicit[k].sum(axis=0)))),
        recognised=rate_figure(rate(*(int(n) for n in seen.recognised[k]))),
        controls=rate_figure(rate(*(int(n) for n in seen.controls[k]))),
        undetermined=rate_figure(rate(int(counts[labels]), int(counts.sum()))),
        chosen=chosen,
    )


def _profession(
    search: Saturation, tried: Sequence[Tried], k: int, p: int, component: str, name: str
) -> SaturatedProfession:
    chosen, label = search.chosen, search.own[k]
    edited = bool(search.edited[k, p])
    counts = sum(
        (one.seen.tallies[k, p] for one in tried if one.trial.number == chosen.rounds[k]),
        np.zeros(search.labels + 1, np.int64),
    )
    n, hits = int(counts[: search.labels].sum()), 0 if label is None else int(counts[label])
    state = (
        "left alone"
        if not edited
        else "fixed"
        if not search.open[k, p]
        else "saturated"
        if n and hits == n
        else "short"
    )
    return SaturatedProfession(
        profession=name,
        component=component,
        state=state,
        lam=float(chosen.lam[k, p]) if edited else None,
        overshoot=float(chosen.overshoot[k, p]) if edited else None,
        own=rate_figure(rate(hits, n)),
    )


def _rule(config: RunConfig, components: int) -> str:
    search = config.mixture
    return (
        f"At most {search.rounds_of(components)} rounds of {search.images_of(components)} images a profession and "
        "component, in "
        f"wordings that the edit was solved without, and {search.explicit_images} of other labels' explicit prompts; "
        f"what falls short is strengthened, until {search.own:.0%} of a component's images show its label"
    )
