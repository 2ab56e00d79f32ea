"""How an audit ends, after an edit or alone: pictures chosen, the report drawn up and written, the run completed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console

from jobs.auditing.figures import AuditResult
from jobs.auditing.mixture_figures import mixture_report
from jobs.auditing.pictures import Shown, choose_pictures
from jobs.auditing.sentence import audit_sentence
from jobs.auditing.session import Session
from jobs.auditing.tally import Tallies, TallyTask
from jobs.errors import ExitCode
from jobs.images.cells import cut_parts
from jobs.images.edits import Edit
from jobs.images.variants import Variant
from jobs.report.headline import headline_of
from jobs.report.junit import junit_xml
from jobs.report.page.render import render
from jobs.report.schema import Cost, PairedPicture, Reference, Report, Shipped
from jobs.report.search_schema import Calibration, Saturation
from jobs.report.terminal import summary_table
from jobs.runs.identity import made_on, provenance_of
from jobs.runs.run import Run
from time_ops import Mixture

__all__ = ["Outcome", "Pictures", "code_of", "conclude", "cost_of", "pictured_shards", "report_of", "write_pictures"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: its name.
        url: of its folder.
        report: what it found.
        code: what the driver exits with.
        reused: it was finished before, and nothing was done now.
    """

    run: str
    url: str
    report: Report
    code: ExitCode
    reused: bool = False


@dataclass(frozen=True)
class Pictures:
    """What the report shows, and the files of it, named below the run's folder."""

    pairs: list[PairedPicture]
    files: dict[str, bytes]


def pictured_shards(session: Session, variants: Sequence[Variant]) -> Callable[[TallyTask], list[Shown]]:
    """For `choose_pictures`: the first shards of a cell under each variant; none where one was given up."""

    def of(task: TallyTask) -> list[Shown]:
        shown: list[Shown] = []
        for variant in variants:
            cut = cut_parts(task.cell, session.recipe, variant, session.config)
            draws = variant.draws(task.cell.prompt, task.cell.images, session.config.shard_images)
            first = [(variant.parts[draw.part].label, specs[0]) for draw, specs in zip(draws, cut, strict=True)]
            shown.append([] if any(spec.digest in session.spent.failed for _, spec in first) else first)
        return shown

    return of


def write_pictures(
    session: Session,
    tallies: Tallies,
    shards: Callable[[TallyTask], Sequence[Shown]],
    result: AuditResult,
) -> Pictures:
    """Choose the pictures that the report shows, and write them into the run's folder."""
    labels = list(session.config.attribute)
    pairs, files = choose_pictures(session.store, tallies, shards, labels, result.professions)
    for name, data in files.items():
        session.folder.put(name, data, f"image/{name.rpartition('.')[2]}")
    return Pictures(pairs, files)


def report_of(
    session: Session,
    result: AuditResult,
    tallies: Tallies,
    pictures: Pictures,
    *,
    edit: Edit | None,
    kind: Literal["debias", "audit"] = "debias",
    reference: Reference | None = None,
    calibration: Calibration | None = None,
    saturation: Saturation | None = None,
    shipped: Shipped | None = None,
    compared_with: Mapping[str, object] | None = None,
) -> Report:
    """All of `report.json`; figures, cost and provenance as the session has them now.

    Args:
        session: the run's.
        result: its figures.
        tallies: what they are of.
        pictures: what is shown.
        edit: what the last variant was audited under.
        kind: of which job.
        reference: what an audit was compared with.
        calibration: how a single operator was found.
        saturation: how a mixture was found.
        shipped: how the stored checkpoint compares.
        compared_with: what is known of the making of the reference's images, where another run made them.
    """
    labels = list(session.config.attribute)
    report = Report(
        run=session.folder.run,
        kind=kind,
        reference=reference,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=result.verdict.value,
        sentence=audit_sentence(result),
        labels=labels,
        summary=result.summary,
        gates=result.gates,
        wordings=result.wordings,
        professions=result.professions,
        moved=result.moved,
        controls=result.controls,
        margin_sweep=result.margin_sweep,
        mixture=mixture_report(edit, tallies, session.manifest, labels) if isinstance(edit, Mixture) else None,
        calibration=calibration,
        saturation=saturation,
        shipped=shipped,
        pictures=pictures.pairs,
        cost=cost_of(session),
        provenance=_provenance(session, edit, tallies, compared_with),
    )
    return report.model_copy(update={"headline": headline_of(report)})


def _provenance(
    session: Session, edit: Edit | None, tallies: Tallies, compared_with: Mapping[str, object] | None
) -> dict[str, Any]:
    """What the run was made of: its inputs, its edit, and the machines that made its images."""
    solved = (
        {}
        if edit is None
        else {"operator": edit.digest, "operator_checksum": edit.checksum, "condition": edit.condition}
    )
    return {
        **provenance_of(session.config, session.probe, session.recipe),
        "manifest": session.manifest.digest,
        **solved,
        "workers": session.pool.size,
        **made_on(tallies.makers),
        **({} if compared_with is None else {"reference": dict(compared_with)}),
    }


def cost_of(run: Run) -> Cost:
    """What the run has spent so far."""
    spent = run.spent
    return Cost(
        wall_s=round(time.monotonic() - run.started, 2),
        worker_s=round(spent.worker_s, 2),
        images=spent.images_made,
        images_reused=spent.images_reused,
        images_per_s=round(spent.images_made / spent.wall_s, 2) if spent.images_made else None,
        shards=spent.shards,
        shards_reused=spent.reused,
        shards_failed=len(spent.failed),
    )


def conclude(session: Session, console: Console, report: Report, pictures: Pictures) -> Outcome:
    """Write the report in all its forms, complete the run, and tell people."""
    folder = session.folder
    folder.put("report.json", report.model_dump_json(indent=1).encode(), "application/json")
    folder.put("report.html", render(report, pictures.files).encode(), "text/html; charset=utf-8")
    folder.put("junit.xml", junit_xml(report), "application/xml")
    code = code_of(report)
    session.complete(report.verdict, code)
    console.print(summary_table(report))
    console.print(f"report: {folder.url('report.html')}", markup=False, soft_wrap=True)
    return Outcome(folder.run, folder.url(), report, code)


def code_of(report: Report) -> ExitCode:
    """What a driver exits with after this verdict."""
    return {"pass": ExitCode.DONE, "fail": ExitCode.GATE_FAILED}.get(report.verdict, ExitCode.GATE_INCONCLUSIVE)
