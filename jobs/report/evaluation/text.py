"""What an evaluation says in the terminal when it ends."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.report.evaluation.schema import EvaluationReport
from jobs.report.figure_schema import RateFigure
from jobs.report.formatting import count, number, percent, plain_text, span

__all__ = ["evaluation_table"]


def evaluation_table(report: EvaluationReport) -> RenderableType:
    """Draw the end of a run: its sentence, every variant's figures, and what was left out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for title in ("efficacy", "generality", "specificity", "harmonic mean"):
        table.add_column(title, justify="right")
    for each in report.summary:
        name = each.variant if each.lam is None else f"{each.variant}, lam {number(each.lam)}"
        table.add_row(name, *map(_cell, (each.efficacy, each.generality, each.specificity, each.harmonic)))
    parts: list[RenderableType] = [Text(plain_text(report.sentence), style="bold"), table]
    if report.left_out:
        some = [plain_text(f"  {item.place}: {item.reason}") for item in report.left_out[:5]]
        more = [f"  and {count(len(report.left_out) - 5)} more, in the report"] if len(report.left_out) > 5 else []
        parts.append(Text("\n".join(["Left out:", *some, *more])))
    return Group(*parts)


def _cell(figure: RateFigure) -> str:
    if figure.value is None:
        return "\N{EN DASH}"
    return f"{percent(figure.value)} [{span(figure, 'rate')}]"
