"""The main job: base audit, calibration, one solve, edited audit, checkpoint, report.

python -m jobs.debias CONFIG.yaml --set key=value      # under `ray job submit`, or on the head node
evenhand debias CONFIG.yaml                            # the same
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console

from jobs.calibrating import Calibrated, calibrate
from jobs.card import model_card
from jobs.cells import audit_cells, cut_cell
from jobs.config import RunConfig
from jobs.errors import ExitCode
from jobs.export import CHECKSUMS
from jobs.identity import made_on, provenance_of
from jobs.pictures import choose_pictures
from jobs.report.junit import junit_xml
from jobs.report.page import render
from jobs.report.schema import Cost, Report
from jobs.report.terminal import summary_table
from jobs.results import AuditResult, EditedProfession, evaluate, sentence
from jobs.session import Session, open_session
from jobs.shards import BASE, ShardSpec
from jobs.tally import Tallies, TallyTask
from manifests import resolved_targets
from time_ops import EditOperator

__all__ = ["Outcome", "debias", "main"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: str
    url: str
    report: Report
    code: ExitCode


def debias(config: RunConfig, console: Console) -> Outcome:
    """Run the whole job on the Ray cluster that this process is connected to, or can reach.

    Raises:
        As `open_session`; and ShardsFailedError, ClusterError, StorageError while it runs.
    """
    with open_session(config, console) as session:
        return _Job(session, console).run()


class _Job:
    """The steps of one run, in order."""

    def __init__(self, session: Session, console: Console) -> None:
        self.session, self.console = session, console
        self.config, self.manifest, self.folder = session.config, session.manifest, session.folder
        self.labels = list(self.config.attribute)
        self.cells = audit_cells(self.manifest, self.config)
        self.texts = session.texts()

    def run(self) -> Outcome:
        """All steps."""
        config, session = self.config, self.session
        session.generate(self.cells, None, "base audit")
        found = calibrate(session, self.texts)
        operator, chosen = found.operator, found.candidate
        self.folder.put("operator.safetensors", operator.to_bytes())
        session.generate(self.cells, operator, "edited audit")
        session.reporter.say("labelling and counting")
        variants = {"base": BASE, "edited": operator.digest}
        tallies = session.tally(session.tasks(self.cells), variants, self.texts, written=True)
        professions = [
            EditedProfession(
                p.name,
                p.source,
                resolved_targets(p, self.labels),
                float(chosen.lam[i]),
                # Means over the wordings; calibration.parquet and the operator hold each.
                {d.prompt: float(s) for d, s in zip(p.destinations, chosen.shares[i].mean(axis=0), strict=True)},
            )
            for i, p in enumerate(self.manifest.professions)
        ]
        result = evaluate(
            tallies,
            professions,
            self.labels,
            list(config.wordings.audit),
            config.gates,
            config.seed,
            confusion=config.confusion,
        )
        report = self._report(result, tallies, found)
        self._publish(report, operator)
        return self._finish(report)

    def _report(
        self,
        result: AuditResult,
        tallies: Tallies,
        found: Calibrated,
    ) -> Report:
        operator = found.operator
        digests = (BASE, operator.digest)

        def first_shards(task: TallyTask) -> list[ShardSpec]:
            specs = [cut_cell(task.cell, self.session.recipe, digest, self.config)[0] for digest in digests]
            return [] if any(s.digest in self.session.spent.failed for s in specs) else specs

        pictures, files = choose_pictures(self.session.store, tallies, first_shards, self.labels, result.professions)
        for name, data in files.items():
            self.folder.put(name, data, f"image/{name.rpartition('.')[2]}")
        self.pictures = files
        spent = self.session.spent
        return Report(
            run=self.folder.run,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            verdict=result.verdict.value,
            sentence=sentence(result),
            labels=self.labels,
            summary=result.summary,
            gates=result.gates,
            wordings=result.wordings,
            professions=result.professions,
            controls=result.controls,
            margin_sweep=result.margin_sweep,
            calibration=found.section,
            pictures=pictures,
            cost=Cost(
                wall_s=round(time.monotonic() - self.session.started, 2),
                worker_s=round(spent.worker_s, 2),
                images=spent.images_made,
                images_reused=spent.images_reused,
                images_per_s=round(spent.images_made / spent.wall_s, 2) if spent.images_made else None,
                shards=spent.shards,
                shards_reused=spent.reused,
                shards_failed=len(spent.failed),
            ),
            provenance={
                **provenance_of(self.config, self.session.probe, self.session.recipe),
                "manifest": self.manifest.digest,
                "operator": operator.digest,
                "operator_checksum": operator.checksum,
                "condition": operator.condition,
                "workers": self.session.pool.size,
                **made_on(tallies.makers),
            },
        )

    def _publish(self, report: Report, operator: EditOperator) -> None:
        """`checkpoint/` once the gates pass; until then `candidate/`, marked ungated."""
        self.session.lease.check()
        name = "checkpoint" if report.verdict == "pass" else "candidate"
        self.session.reporter.say(f"writing {name}/")
        card = model_card(report, self.config.model, self.session.probe.model, self.labels)
        prefix = f"{self.folder.prefix}/{name}"
        written = self.session.pool.call("write_checkpoint", self.session.probe.model, operator, card, prefix)
        self.folder.note(f"{name}/{CHECKSUMS}", written)

    def _finish(self, report: Report) -> Outcome:
        self.folder.put("report.json", report.model_dump_json(indent=1).encode(), "application/json")
        self.folder.put("report.html", render(report, self.pictures).encode(), "text/html; charset=utf-8")
        self.folder.put("junit.xml", junit_xml(report), "application/xml")
        code = {"pass": ExitCode.DONE, "fail": ExitCode.GATE_FAILED}.get(report.verdict, ExitCode.GATE_INCONCLUSIVE)
        self.session.complete(report.verdict, code)
        self.console.print(summary_table(report))
        self.console.print(f"report: {self.folder.url('report.html')}", soft_wrap=True)
        return Outcome(self.folder.run, self.folder.url(), report, code)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m jobs.debias`: the same as `evenhand debias`."""
    from jobs.cli import main as cli

    cli(["debias", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
