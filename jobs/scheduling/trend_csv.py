"""A series of audits as CSV: one table of audits, one of professions; see `jobs.scheduling.trend` for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from jobs.report.figure_schema import DeltaFigure
from jobs.report.page.figures_csv import Cell, safe_cell
from jobs.scheduling.entries import Entry
from jobs.scheduling.ticks import tick_text

__all__ = ["audits_csv", "form_of", "limit_of", "professions_csv"]


def audits_csv(entries: Iterable[Entry]) -> str:
    """One row per audit: verdict, digests, and every figure with interval and n."""
    deltas, rates = (
        ("delta", "delta_within", "delta_wording_max"),
        ("explicit", "recognised", "controls", "undetermined"),
    )
    header = [
        "tick",
        "created",
        "run",
        "verdict",
        "exit_code",
        "reused_from",
        "model",
        "model_digest",
        "form",
        "operator",
    ]
    header += [f"{name}{end}" for name in deltas for end in ("", "_low", "_high", "_floor", "_n")]
    header += [f"{name}{end}" for name in rates for end in ("", "_low", "_high", "_n")]
    header += ["limit_delta", "limit_delta_within", "against", "manifest", "classifier", "sampler", "wordings"]

    def row(entry: Entry) -> list[Cell]:
        cells: list[Cell] = [tick_text(entry.tick), entry.created, entry.run, entry.verdict, entry.exit_code]
        cells += [entry.reused_from, entry.model, entry.model_digest, form_of(entry), entry.operator]
        for name in deltas:
            delta: DeltaFigure = getattr(entry, name)
            cells += [delta.value, delta.low, delta.high, delta.floor, delta.n]
        for name in rates:
            rate = getattr(entry, name)
            cells += [rate.value, rate.low, rate.high, rate.n]
        basis = entry.basis
        return [
            *cells,
            *(limit_of(entry, name) for name in ("delta", "delta_within")),
            *(entry.against, basis.manifest, basis.classifier, basis.sampler, basis.wordings),
        ]

    return _csv(header, map(row, entries))


def form_of(entry: Entry) -> str | None:
    """What a model was audited under, in a word; None: nothing."""
    if entry.operator is None:
        return None
    return "mixture" if entry.mixture else "operator"


def professions_csv(entries: Iterable[Entry]) -> str:
    """One row per audit and profession: target, share of the label, interval and n."""
    rows = (
        [tick_text(entry.tick), entry.run, p.profession, entry.label, p.target, p.share, p.low, p.high, p.n]
        for entry in entries
        for p in entry.professions
    )
    return _csv(["tick", "run", "profession", "label", "target", "share", "low", "high", "n"], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([safe_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def limit_of(entry: Entry, name: str) -> float | None:
    """The limit of a gate in one audit; None: it had no such gate."""
    return next((gate.limit for gate in entry.gates if gate.name == name), None)
