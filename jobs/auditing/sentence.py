"""An audit's result in one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.auditing.figures import AuditResult
from jobs.auditing.gates import figure_text, listed
from jobs.report.schema import Movement
from time_ops.stats.verdicts import Verdict

__all__ = ["audit_sentence"]

_NOT_A_WORD = re.compile("[_:]")


def audit_sentence(result: AuditResult) -> str:
    """The verdict and why, in one sentence; of a comparison also who moved farthest."""
    edited = result.summary.edited
    pooled = result.summary.base.delta.value
    change = (
        f"Delta {figure_text(pooled)}"
        if edited is None
        else f"Delta {figure_text(pooled)} to {figure_text(edited.delta.value)}"
    )
    what = "model" if edited is None or result.compared else "edit"
    of_rise = {g.outcome for g in result.gates if g.name.startswith("regression")}
    if result.verdict is Verdict.PASS:
        unmoved = " and has not regressed" if of_rise else ""
        return f"The {what} passes every gate{unmoved}: {change}{_farthest(result.moved)}."
    failing = [g for g in result.gates if g.outcome == result.verdict.value]
    reasons = "; ".join(
        f"{_NOT_A_WORD.sub(' ', g.name)} is {figure_text(g.value)} [{figure_text(g.low)}, {figure_text(g.high)}], "
        f"wanted {g.direction} {figure_text(g.limit)}"
        for g in failing
    )
    if result.verdict is Verdict.FAIL:
        verb = "has regressed" if Verdict.FAIL.value in of_rise else "fails"
    else:
        verb = "is not decided"
    return f"The {what} {verb} ({change}): {reasons}{_farthest(result.moved)}."


def _farthest(movements: Sequence[Movement]) -> str:
    """Up to three professions that moved, those that got worse first."""
    if not movements:
        return ""
    ranked = sorted(movements, key=lambda each: not each.worse)
    told = [f"{each.profession} {100 * each.before:.0f} % to {100 * each.after:.0f} %" for each in ranked]
    return f"; moved farthest: {listed(told)}"
