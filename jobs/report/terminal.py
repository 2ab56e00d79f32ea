"""What a run says in the terminal when it ends: the verdict, the figures before and after, the worst professions."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.report.figures import count, delta, finite, percent, plain_text, points, span
from jobs.report.schema import DeltaFigure, LabelCounts, ProfessionReport, RateFigure, Report, VariantSummary

__all__ = ["summary_table"]

_VERDICTS = {
    "pass": ("PASS", "bold green"),
    "fail": ("FAIL", "bold red"),
    "inconclusive": ("INCONCLUSIVE", "bold yellow"),
}
_MISSING = "\N{EN DASH}"


def summary_table(report: Report, worst: int = 5) -> RenderableType:
    """Draw the end of a run: verdict and sentence, the figures of both variants, and the `worst` professions.

    The worst are those farthest from their target, in the edited model where there is one.
    """
    badge, style = _VERDICTS[report.verdict]
    verdict = Text.assemble((f" {badge} ", f"{style} reverse"), "  ", (plain_text(report.sentence), "bold"))
    parts: list[RenderableType] = [verdict, Text(), _figures(report)]
    ranking = sorted(
        ((distance, item) for item in report.professions if (distance := _distance(report, item)) is not None),
        key=lambda pair: (-pair[0], pair[1].profession),
    )[:worst]
    if ranking:
        parts += [Text(), _professions(report, [item for _, item in ranking])]
    return Group(*parts)


def _figures(report: Report) -> Table:
    base, edited = report.summary.base, report.summary.edited
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("")
    table.add_column("base", justify="right")
    if edited is not None:
        table.add_column("edited", justify="right", style="bold")

    def row(name: str, before: str, after: str | None) -> None:
        table.add_row(name, before, *([] if edited is None else [after or _MISSING]))

    def deltas(name: str, field: str) -> None:
        row(name, _delta(getattr(base, field)), None if edited is None else _delta(getattr(edited, field)))

    def rates(name: str, field: str) -> None:
        row(name, _rate(getattr(base, field)), None if edited is None else _rate(getattr(edited, field)))

    deltas("Delta, pooled", "delta")
    deltas("Delta, mean within wordings", "delta_within")
    deltas("Delta, worst wording", "delta_wording_max")
    table.add_section()
    rates("explicit prompts kept", "explicit")
    rates("professions recognised", "recognised")
    rates("controls recognised", "controls")
    rates("undetermined", "undetermined")
    table.add_section()
    row("images", _images(base), None if edited is None else _images(edited))
    return table


def _professions(report: Report, items: list[ProfessionReport]) -> Table:
    label = plain_text(report.labels[0]) if report.labels else "share"
    edited = report.summary.edited is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Farthest from their target", title_justify="left")
    table.add_column("profession", overflow="fold", max_width=32)
    table.add_column("target", justify="right")
    table.add_column(Text(f"base, {label}"), justify="right")
    if edited:
        table.add_column(Text(f"edited, {label}"), justify="right", style="bold")
        table.add_column("change", justify="right")
    for item in items:
        target = finite(item.target.get(report.labels[0]))
        cells = [Text(plain_text(item.profession)), Text(_MISSING if target is None else percent(target, 0))]
        cells.append(Text(_share(item.base)))
        if edited:
            cells.append(Text(_share(item.edited)))
            before = finite(item.base.share)
            after = None if item.edited is None else finite(item.edited.share)
            cells.append(Text(_MISSING if before is None or after is None else points(after - before)))
        table.add_row(*cells)
    return table


def _distance(report: Report, item: ProfessionReport) -> float | None:
    latest = item.base if item.edited is None else item.edited
    share = finite(latest.share)
    target = finite(item.target.get(report.labels[0])) if report.labels else None
    return None if share is None or target is None else abs(share - target)


def _delta(figure: DeltaFigure) -> str:
    value, floor = finite(figure.value), finite(figure.floor)
    if value is None:
        return f"{_MISSING}  (n {count(figure.n)})"
    noise = "" if floor is None else f", floor {delta(floor)}"
    return f"{delta(value)}  ({span(figure, 'delta') or 'no interval'}{noise}, n {count(figure.n)})"


def _rate(figure: RateFigure | LabelCounts, value: float | None = None) -> str:
    share = finite(figure.value if isinstance(figure, RateFigure) else value)
    if share is None:
        return f"{_MISSING}  (n {count(figure.n)})"
    return f"{percent(share)}  ({span(figure, 'rate') or 'no interval'}, n {count(figure.n)})"


def _share(counts: LabelCounts | None) -> str:
    return _MISSING if counts is None else _rate(counts, counts.share)


def _images(variant: VariantSummary) -> str:
    return count(variant.images)
