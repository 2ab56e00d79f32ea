"""What a report's two halves are called: base and edited, or what was compared with and the audited model."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.report.schema import Report

__all__ = ["Names", "variant_names"]


@dataclass(frozen=True, slots=True)
class Names:
    """Of `summary.base` (one) and `summary.edited` (other), short for tables and in full for headings."""

    one: str
    other: str
    one_full: str
    other_full: str


def variant_names(report: Report) -> Names:
    """Base and edited of a debiasing run; of a comparison what the reference is; of an audit alone "model"."""
    if report.reference is not None:
        reference = report.reference
        return Names(reference.kind, "audited", f"{reference.kind} {reference.name}", "audited model")
    if report.summary.edited is None:
        return Names("model", "", "this model", "")
    return Names("base", "edited", "base model", "edited model")
