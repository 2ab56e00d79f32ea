"""What a run says in the terminal when it ends: the verdict, the figures before and after, the worst professions."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.report.figures import count, delta, finite, percent, plain_text, points, span
from jobs.report.naming import variant_names
from jobs.report.schema import Calibration, DeltaFigure, LabelCounts, ProfessionReport, RateFigure, Report
from jobs.report.search_panels import state_counts

__all__ = ["summary_table"]

_VERDICTS = {
    "pass": ("PASS", "bold green"),
    "fail": ("FAIL", "bold red"),
    "inconclusive": ("INCONCLUSIVE", "bold yellow"),
}
_MISSING = "\N{EN DASH}"
_FIGURES = (
    ("Delta, pooled", "delta"),
    ("Delta, mean within wordings", "delta_within"),
    ("Delta, worst wording", "delta_wording_max"),
    ("explicit prompts kept", "explicit"),
    ("professions recognised", "recognised"),
    ("controls recognised", "controls"),
    ("undetermined", "undetermined"),
)
_MOVED = 5
_SECTION_ENDS = ("delta_wording_max", "undetermined")


def summary_table(report: Report, worst: int = 5) -> RenderableType:
    """Draw the end of a run: verdict and sentence, the figures of both variants, calibration, the `worst` professions.

    The worst are those farthest from their target, in the edited model where there is one.
    """
    badge, style = _VERDICTS[report.verdict]
    verdict = Text.assemble((f" {badge} ", f"{style} reverse"), "  ", (plain_text(report.sentence), "bold"))
    parts: list[RenderableType] = [verdict, Text()]
    if report.reference is not None:
        parts += [Text(plain_text(f"Audited against the {variant_names(report).one_full}:"))]
    parts.append(_figures(report))
    if report.reference is not None:
        parts += [Text(_moved(report)), Text()]
    if report.calibration is not None:
        parts += [Text(_calibration(report.calibration)), Text()]
    tested = [item for item in report.professions if item.off_target is not None]
    if tested:
        off = sum(bool(item.off_target) for item in tested)
        parts += [Text(f"Called off target: {count(off)} of {count(len(tested))} professions (95 %, Holm)"), Text()]
    ranking = sorted(
        ((distance, item) for item in report.professions if (distance := _distance(report, item)) is not None),
        key=lambda pair: (-pair[0], pair[1].profession),
    )[:worst]
    if ranking:
        title = Text(f"Farthest from their target, share perceived as {plain_text(report.labels[0])}:", style="italic")
        parts += [title, _professions(report, [item for _, item in ranking])]
    return Group(*parts)


def _moved(report: Report) -> str:
    """Write who moved against the reference in one line, the farthest first."""
    if not report.moved:
        return "Moved: no profession is shown to have (95 %, Holm)"
    told = [f"{each.profession} {points(each.after - each.before)}" for each in report.moved[:_MOVED]]
    more = f" and {count(len(report.moved) - _MOVED)} more" if len(report.moved) > _MOVED else ""
    return plain_text(f"Moved: {', '.join(told)}{more} (95 %, Holm)")


def _calibration(search: Calibration) -> str:
    """Write a search in one line: what it spent, and how many professions ended in which state."""
    ended = state_counts(search)
    said = [f"{count(ended[state])} {state}" for state in ("on target", "undecided", "unreachable")]
    said += [f"{count(ended[state])} {state}" for state in ("balanced", "fixed") if ended[state]]
    spent = f"{count(len(search.rounds))} rounds, {count(search.images)} images"
    return f"Calibration: {spent}; {', '.join(said)}"


def _figures(report: Report) -> Table:
    names = variant_names(report)
    variants = {names.one: report.summary.base}
    if report.summary.edited is not None:
        variants[names.other] = report.summary.edited
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("")
    for heading in ("value", "95 % interval", "floor", "n"):
        table.add_column(heading, justify="right", no_wrap=True)

    for title, field in _FIGURES:
        for turn, (name, summary) in enumerate(variants.items()):
            figure: DeltaFigure | RateFigure = getattr(summary, field)
            cells = _delta(figure) if isinstance(figure, DeltaFigure) else _rate(figure.value, figure)
            last = turn == len(variants) - 1
            style = "bold" if turn else None
            table.add_row("" if turn else title, name, *cells, style=style, end_section=last and field in _SECTION_ENDS)
        if field == "explicit":
            for label in report.labels:
                for turn, (name, summary) in enumerate(variants.items()):
                    by_label = summary.explicit_by_label.get(label)
                    if by_label is not None:
                        of_label = Text("" if turn else f"  of these, {plain_text(label)}")
                        table.add_row(of_label, name, *_rate(by_label.value, by_label), style="bold" if turn else None)
    for turn, (name, summary) in enumerate(variants.items()):
        table.add_row("" if turn else "images", name, count(summary.images))
    return table


def _professions(report: Report, items: list[ProfessionReport]) -> Table:
    edited = report.summary.edited is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("profession", overflow="fold", max_width=32)
    names = variant_names(report)
    for heading in ("target", names.one, "95 %", "n", *((names.other, "95 %", "n", "points") if edited else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in items:
        target = finite(item.target.get(report.labels[0]))
        cells = [plain_text(item.profession), _MISSING if target is None else percent(target, 0), *_share(item.base)]
        if edited:
            before = finite(item.base.share)
            after = None if item.edited is None else finite(item.edited.share)
            change = _MISSING if before is None or after is None else points(after - before).split()[0]
            cells += [*_share(item.edited), change]
        table.add_row(*map(Text, cells))
    return table


def _distance(report: Report, item: ProfessionReport) -> float | None:
    latest = item.base if item.edited is None else item.edited
    share = finite(latest.share)
    target = finite(item.target.get(report.labels[0])) if report.labels else None
    return None if share is None or target is None else abs(share - target)


def _delta(figure: DeltaFigure) -> tuple[str, str, str, str]:
    value, floor = finite(figure.value), finite(figure.floor)
    return (
        _MISSING if value is None else delta(value),
        span(figure, "delta") or _MISSING,
        _MISSING if floor is None else delta(floor),
        count(figure.n),
    )


def _rate(value: float | None, figure: RateFigure | LabelCounts) -> tuple[str, str, str, str]:
    share = finite(value)
    return _MISSING if share is None else percent(share), span(figure, "rate") or _MISSING, "", count(figure.n)


def _share(counts: LabelCounts | None) -> tuple[str, str, str]:
    if counts is None:
        return _MISSING, _MISSING, _MISSING
    value, interval, _, n = _rate(counts.share, counts)
    return value, interval, n
