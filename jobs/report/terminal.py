"""What a run says in the terminal when it ends: the verdict in words, one short table, a line per component."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.report.figure_schema import DeltaFigure, RateFigure
from jobs.report.formatting import count, delta, finite, percent, plain_text, points, span
from jobs.report.headline import headline_of
from jobs.report.mixture_schema import MixtureReport
from jobs.report.naming import variant_names
from jobs.report.page.mixture_view import SATURATION_STATES
from jobs.report.page.search_panels import state_counts
from jobs.report.schema import ProfessionReport, Report, VariantSummary
from jobs.report.search_schema import Calibration, Saturation

__all__ = ["summary_table"]

_VERDICTS = {
    "pass": ("PASS", "bold green"),
    "fail": ("FAIL", "bold red"),
    "inconclusive": ("INCONCLUSIVE", "bold yellow"),
}
_MISSING = "\N{EN DASH}"
# Ten lines at most, headings included: narrow enough for the 80 columns of a log.
_FIGURES = (
    ("Delta, pooled", "delta"),
    ("Delta, within", "delta_within"),
    ("Delta, worst", "delta_wording_max"),
    ("explicit", "explicit"),
    ("recognised", "recognised"),
    ("controls", "controls"),
    ("undetermined", "undetermined"),
    ("disagreement", "disagreement"),
    ("no face", "no_face"),
)
_NAMED, _FARTHEST = 5, 3
_COMPONENTS = 8


def summary_table(report: Report) -> RenderableType:
    """Draw the end of a run: verdict and headline, the figures of both variants, components, the farthest professions.

    The page has all else: intervals by label and by profession, and why a gate said what it said.
    """
    badge, style = _VERDICTS[report.verdict]
    headline = plain_text(report.headline or headline_of(report))
    parts: list[RenderableType] = [
        Text.assemble((f" {badge} ", f"{style} reverse"), "  ", (headline, "bold")),
        Text(plain_text(report.sentence), style="dim"),
        Text(),
    ]
    if report.reference is not None:
        parts.append(Text(plain_text(f"Audited against the {variant_names(report).one_full}:")))
    parts.append(_figures(report))
    if report.mixture is not None:
        parts += [_components(report.mixture), Text()]
    said = [] if report.reference is None else [_moved(report)]
    if report.calibration is not None:
        said.append(_calibration(report.calibration))
    if report.saturation is not None:
        said.append(_saturation(report.saturation))
    said.append(_farthest(report))
    return Group(*parts, *(Text(line) for line in said if line))


def _figures(report: Report) -> Table:
    """One line per figure: the variants side by side, each with its interval and n; the floor is the last one's."""
    names = variant_names(report)
    # Of "earlier run" the first word: the line above the table has it in full.
    variants = [(names.one.split()[0], report.summary.base)]
    if report.summary.edited is not None:
        variants.append((names.other, report.summary.edited))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name, _ in variants:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == names.other else None)
        for heading in ("95 %", "n"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("floor", justify="right", no_wrap=True)
    for title, field in _FIGURES:
        given: list[DeltaFigure | RateFigure | None] = [getattr(summary, field) for _, summary in variants]
        known = [figure for figure in given if figure is not None]
        # Those of one classifier, or of an earlier run that has them not.
        if len(known) < len(given):
            continue
        cells = [cell for figure in known for cell in _cells(figure)]
        last = known[-1]
        floor = finite(last.floor) if isinstance(last, DeltaFigure) else None
        table.add_row(title, *cells, "" if floor is None else delta(floor))
    off = [_off_target(report, summary) for _, summary in variants]
    if any(off):
        table.add_row("off target", *(cell for text in off for cell in (text or _MISSING, "", "")), "")
    return table


def _off_target(report: Report, summary: VariantSummary) -> str:
    """How many professions are called off target, of how many with an image; empty where nobody counted."""
    edited = summary is report.summary.edited
    of_last = edited or report.summary.edited is None
    tested = [item for item in report.professions if item.off_target is not None]
    if of_last and tested:
        return f"{count(sum(bool(item.off_target) for item in tested))}/{count(len(tested))}"
    if summary.off_target is None:
        return ""
    counts = [item.edited if edited else item.base for item in report.professions]
    return f"{count(summary.off_target)}/{count(sum(each is not None and each.n > 0 for each in counts))}"


def _components(mixture: MixtureReport) -> Table:
    """One line per component: how often it draws, how often its label shows, and explicit prompts."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("component", overflow="fold", max_width=24)
    for heading in ("weight", "own label", "95 %", "n", "explicit", "95 %", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in mixture.components[:_COMPONENTS]:
        name = Text(plain_text(each.label))
        table.add_row(name, percent(each.weight), *_cells(each.own), *_cells(each.explicit))
    left = len(mixture.components) - _COMPONENTS
    if left > 0:
        table.add_row(f"and {count(left)} more")
    return table


def _moved(report: Report) -> str:
    """Write who moved against the reference in one line, the farthest first."""
    if not report.moved:
        return "Moved: no profession is shown to have (95 %, Holm)"
    told = [f"{each.profession} {points(each.after - each.before)}" for each in report.moved[:_NAMED]]
    more = f" and {count(len(report.moved) - _NAMED)} more" if len(report.moved) > _NAMED else ""
    return plain_text(f"Moved: {', '.join(told)}{more} (95 %, Holm)")


def _calibration(search: Calibration) -> str:
    """Write a search in one line: what it spent, and how many professions ended in which state."""
    ended = state_counts(search)
    said = [f"{count(ended[state])} {state}" for state in ("on target", "undecided", "unreachable")]
    said += [f"{count(ended[state])} {state}" for state in ("balanced", "fixed") if ended[state]]
    spent = f"{count(len(search.rounds))} rounds, {count(search.images)} images"
    return f"Calibration: {spent}; {', '.join(said)}"


def _saturation(search: Saturation) -> str:
    """Write a mixture's search in one line; a profession counts once in each component."""
    ended = {state: sum(each.state == state for each in search.professions) for state in SATURATION_STATES}
    said = [f"{count(ended[state])} {state}" for state in ("saturated", "short")]
    said += [f"{count(ended[state])} {state}" for state in ("fixed", "left alone") if ended[state]]
    spent = f"{count(len({line.round for line in search.rounds}))} rounds, {count(search.images)} images"
    return f"Strengths: {spent}; each profession in each component: {', '.join(said)}"


def _farthest(report: Report) -> str:
    """Name the professions farthest from their target in one line: share of the first label and what is wanted."""
    distances = []
    for item in report.professions:
        counts, target = item.edited or item.base, finite(item.target.get(report.labels[0]))
        share = finite(counts.share)
        if share is not None and target is not None:
            distances.append((-abs(share - target), item.profession, _told(item, share, target)))
    if not distances:
        return ""
    told = ", ".join(text for _, _, text in sorted(distances)[:_FARTHEST])
    return plain_text(f"Farthest from their target, share perceived as {report.labels[0]}: {told}")


def _told(item: ProfessionReport, share: float, target: float) -> str:
    """Write one profession: `CEO 71.2 % (65-77, n 240, wanted 50 %)`."""
    counts = item.edited or item.base
    interval = span(counts, "rate", 0) or _MISSING
    return f"{item.profession} {percent(share)} ({interval}, n {count(counts.n)}, wanted {percent(target, 0)})"


def _cells(figure: DeltaFigure | RateFigure) -> tuple[str, str, str]:
    value = finite(figure.value)
    is_delta = isinstance(figure, DeltaFigure)
    interval = span(figure, "delta", 2) if is_delta else span(figure, "rate")
    write = delta if is_delta else percent
    n = count(figure.n) if figure.n < 1_000_000 else f"{figure.n / 1e6:.1f} M"
    return _MISSING if value is None else write(value), interval or _MISSING, n
