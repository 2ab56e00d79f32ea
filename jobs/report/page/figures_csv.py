"""The report's figures as CSV: in sum, per profession, per wording, per component, and per step of a search.

Spreadsheets run a cell that begins like a formula; names are users' text, so such a cell is led by an apostrophe.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
from collections.abc import Iterable, Sequence

from jobs.report.figure_schema import RateFigure
from jobs.report.formatting import finite
from jobs.report.schema import LabelCounts, Report

__all__ = [
    "components_csv",
    "pack",
    "professions_csv",
    "safe_cell",
    "saturation_csv",
    "steps_csv",
    "summary_csv",
    "wordings_csv",
]

_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")

Cell = str | int | float | None


def safe_cell(value: Cell) -> str:
    """One cell: numbers in full, a missing value empty, text that would run as a formula led by an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA_STARTS) else value
    if isinstance(value, int):
        return str(value)
    return "" if finite(value) is None else f"{value:.6g}"


def pack(text: str) -> str:
    """`text` as the page carries it: gzip, in base64; a CSV takes a third to a tenth of its length so."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def summary_csv(report: Report) -> str:
    """One row per figure and variant: Deltas, parity, rates; then components, gates, and who moved."""
    header = [
        "part",
        "figure",
        "variant",
        "value",
        "low",
        "high",
        "n",
        "floor",
        "direction",
        "limit",
        "outcome",
        "note",
    ]
    rows: list[Sequence[Cell]] = []
    variants = {"base": report.summary.base}
    if report.summary.edited is not None:
        variants["edited"] = report.summary.edited
    for variant, summary in variants.items():
        deltas = {
            "delta": summary.delta,
            "delta_within": summary.delta_within,
            "delta_wording_max": summary.delta_wording_max,
        }
        for name, delta in deltas.items():
            values: list[Cell] = [delta.value, delta.low, delta.high, delta.n, delta.floor]
            rows.append(["summary", name, variant, *values, None, None, None, delta.wording])
        if summary.parity is not None:
            for name, share in (("difference", summary.parity.difference), ("ratio", summary.parity.ratio)):
                ends: list[Cell] = [share.value, share.low, share.high]
                reason = summary.parity.reason if share.value is None else None
                rows.append(["parity", f"demographic_parity_{name}", variant, *ends, *[None] * 5, reason])
        rates = {"explicit": summary.explicit} | {f"explicit:{k}": v for k, v in summary.explicit_by_label.items()}
        rates |= {"recognised": summary.recognised, "controls": summary.controls, "undetermined": summary.undetermined}
        for name, rate in rates.items():
            rows.append(["summary", name, variant, *_rate(rate), *[None] * 4, rate.worst])
        rows.append(["summary", "off_target", variant, summary.off_target, *[None] * 7, None])
    for part in () if report.mixture is None else report.mixture.components:
        rows.append(["component", "weight", part.label, part.weight, *[None] * 7, None])
        for name, rate in (("own", part.own), ("explicit", part.explicit)):
            rows.append(["component", name, part.label, *_rate(rate), *[None] * 4, rate.worst])
    for gate in report.gates:
        read: list[Cell] = [gate.value, gate.low, gate.high, None, None, gate.direction, gate.limit, gate.outcome]
        rows.append(["gate", gate.name, None, *read, gate.reason])
    for each in report.moved:
        change: list[Cell] = [each.change.value, each.change.low, each.change.high, each.n]
        note = f"{safe_cell(each.before)} to {safe_cell(each.after)}, {'worse' if each.worse else 'not worse'}"
        rows.append(["moved", each.profession, None, *change, *[None] * 4, note])
    return _write(header, rows)


def professions_csv(report: Report) -> str:
    """One row per profession: target, strength, each variant's counts, share and interval; then what no gate reads."""
    first = report.labels[0] if report.labels else ""
    variants = ["base"] if report.summary.edited is None else ["base", "edited"]
    header = ["profession", "source", f"target_{first}", "lam"]
    for variant in variants:
        header += _columns(variant, report.labels)
    corrected = any(item.base.corrected for item in report.professions)
    for variant in variants:
        header += [f"{variant}_{name}" for name in ("worst_low", "worst_high")]
        header += [f"{variant}_{name}" for name in ("corrected", "corrected_low", "corrected_high") if corrected]
    header.append("off_target")
    components = list(dict.fromkeys(label for item in report.professions for label in item.components or {}))
    header += [f"{name}_{label}" for label in components for name in ("lam", "overshoot", "left_alone")]
    weights = {} if report.mixture is None else report.mixture.weights
    own = {} if report.mixture is None else {each.profession: each.weights for each in report.mixture.professions}
    header += [f"weight_{label}" for label in weights]
    rows: list[Sequence[Cell]] = []
    for item in report.professions:
        row: list[Cell] = [item.profession, item.source, item.target.get(first), item.lam]
        for counts in (item.base, item.edited)[: len(variants)]:
            row += _cells(counts, report.labels)
        for counts in (item.base, item.edited)[: len(variants)]:
            row += _beyond(counts, corrected)
        row.append(None if item.off_target is None else _said(item.off_target))
        for label in components:
            done = (item.components or {}).get(label)
            row += [None] * 3 if done is None else [done.lam, done.overshoot, _said(done.left_alone)]
        rows.append([*row, *(own.get(item.profession, weights).get(label) for label in weights)])
    return _write(header, rows)


def wordings_csv(report: Report) -> str:
    """One row per profession and wording: each variant's counts, share and interval."""
    variants: list[str] = ["base"] if report.summary.edited is None else ["base", "edited"]
    header = ["profession", "wording"]
    for variant in variants:
        header += _columns(variant, report.labels)
    rows: list[Sequence[Cell]] = []
    for item in report.professions:
        for wording, counts in item.wordings.items():
            row: list[Cell] = [item.profession, wording, *_cells(counts.get("base"), report.labels)]
            if "edited" in variants:
                row += _cells(counts.get("edited"), report.labels)
            rows.append(row)
    return _write(header, rows)


def steps_csv(report: Report) -> str:
    """One row per profession and round of the calibration: what was tried, what was measured.

    `tried` is the share of `destination`, the edit's first one. A profession without a step has one row, for its state.
    Empty where there was no calibration.
    """
    search = report.calibration
    if search is None:
        return ""
    header = ["profession", "state", "round", "lam", "destination", "tried", f"share_{search.label}", "low", "high"]
    rows: list[Sequence[Cell]] = []
    for item in search.professions:
        for step in item.steps:
            destination, tried = next(iter(step.shares.items()), (None, None))
            moved: list[Cell] = [step.round, step.lam, destination, tried]
            measured: list[Cell] = [step.share, step.low, step.high, step.n, step.undetermined]
            rows.append([item.profession, item.state, *moved, *measured])
        if not item.steps:
            rows.append([item.profession, item.state, *[None] * 9])
    return _write([*header, "n", "undetermined"], rows)


def components_csv(report: Report) -> str:
    """Of a mixture, per component: one row per wording, then one per rate over all of them. Empty where there is none.

    `weight` is the one of prompts that have none of their own.
    """
    if report.mixture is None:
        return ""
    header = ["component", "weight", "figure", "wording", "value", "low", "high", "n", *report.labels, "undetermined"]
    rows: list[Sequence[Cell]] = []
    for each in report.mixture.components:
        led: list[Cell] = [each.label, each.weight]
        for line in each.wordings:
            counted = [line.labels.get(label, 0) for label in report.labels]
            share: list[Cell] = [line.share, line.low, line.high, line.n]
            rows.append([*led, "own", line.wording, *share, *counted, line.undetermined, None])
        rates = {"own": each.own, "explicit": each.explicit}
        rates |= {f"explicit:{label}": rate for label, rate in each.explicit_by_label.items()}
        rates |= {"recognised": each.recognised, "controls": each.controls, "undetermined": each.undetermined}
        for name, rate in rates.items():
            rows.append([*led, name, None, *_rate(rate), *[None] * (len(report.labels) + 1), rate.worst])
    return _write([*header, "worst"], rows)


def saturation_csv(report: Report) -> str:
    """One row per profession and component of the search for strengths; empty where there was none."""
    if report.saturation is None:
        return ""
    header = ["profession", "component", "state", "lam", "overshoot", "own", "low", "high", "n"]
    rows = [
        [each.profession, each.component, each.state, each.lam, each.overshoot, *_rate(each.own)]
        for each in report.saturation.professions
    ]
    return _write(header, rows)


def _said(yes: bool) -> str:
    return "yes" if yes else "no"


def _rate(rate: RateFigure) -> list[Cell]:
    return [rate.value, rate.low, rate.high, rate.n]


def _columns(variant: str, labels: Sequence[str]) -> list[str]:
    counted = [f"{variant}_{label}" for label in labels]
    return [
        f"{variant}_n",
        *counted,
        f"{variant}_undetermined",
        f"{variant}_failed",
        f"{variant}_share",
        f"{variant}_low",
        f"{variant}_high",
    ]


def _cells(counts: LabelCounts | None, labels: Sequence[str]) -> list[Cell]:
    if counts is None:
        return [None] * (len(labels) + 6)
    counted = [counts.labels.get(label, 0) for label in labels]
    return [counts.n, *counted, counts.undetermined, counts.failed, counts.share, counts.low, counts.high]


def _beyond(counts: LabelCounts | None, corrected: bool) -> list[Cell]:
    if counts is None:
        return [None] * (5 if corrected else 2)
    worst: list[Cell] = [counts.worst_low, counts.worst_high]
    if not corrected:
        return worst
    share = counts.corrected
    return [*worst, *((None,) * 3 if share is None else (share.value, share.low, share.high))]


def _write(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([safe_cell(name) for name in header])
    writer.writerows([safe_cell(cell) for cell in row] for row in rows)
    return text.getvalue()
