"""A diagnosis for people: one table, and a sentence."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.doctor.schema import Diagnosis

__all__ = ["diagnosis_text"]

_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def diagnosis_text(diagnosis: Diagnosis) -> RenderableType:
    """Draw a diagnosis."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("how to mend it", overflow="fold")
    area = ""
    for finding in diagnosis.findings:
        if area and finding.area != area:
            table.add_section()
        area = finding.area
        table.add_row(
            Text(finding.check),
            Text(finding.outcome, style=_STYLES[finding.outcome]),
            Text(finding.found),
            Text(finding.mend),
        )
    return Group(table, escape(_sentence(diagnosis)))


def _sentence(diagnosis: Diagnosis) -> str:
    counts = Counter(finding.outcome for finding in diagnosis.findings)
    warnings = f"{counts['warning']} warning{'s' if counts['warning'] != 1 else ''}"
    if not counts["fault"]:
        return f"No fault, {warnings}."
    faults = f"{counts['fault']} fault{'s' if counts['fault'] != 1 else ''}"
    return f"{faults}, {warnings}; a job would end with exit code {diagnosis.exit_code}."
