"""The main job: base audit, calibration, one solve, edited audit, checkpoint, report.

python -m jobs.debias CONFIG.yaml --set key=value      # under `ray job submit`, or on the head node
evenhand debias CONFIG.yaml                            # the same
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.calibrating import calibrate
from jobs.card import model_card
from jobs.cells import audit_cells
from jobs.config import RunConfig
from jobs.exports.checksums import CHECKSUMS
from jobs.report.schema import Report
from jobs.reporting import Outcome, conclude, first_shards, report_of, write_pictures
from jobs.results import EditedProfession, evaluate
from jobs.session import Session, open_session
from jobs.shards import BASE
from manifests import resolved_targets
from time_ops import EditOperator

__all__ = ["Outcome", "debias", "main"]


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
        pictures = write_pictures(session, tallies, first_shards(session, list(variants.values())), result)
        report = report_of(session, result, tallies, pictures, operator=operator, calibration=found.section)
        self._publish(report, operator)
        return conclude(session, self.console, report, pictures)

    def _publish(self, report: Report, operator: EditOperator) -> None:
        """`checkpoint/` once the gates pass; until then `candidate/`, marked ungated."""
        self.session.lease.check()
        name = "checkpoint" if report.verdict == "pass" else "candidate"
        self.session.reporter.say(f"writing {name}/")
        origin = self.session.pool.call("origin")
        card = model_card(
            report,
            self.config.model,
            self.session.probe.model,
            self.labels,
            hub_id=origin.hub_id,
            revision=origin.revision,
            base_card=origin.card,
        )
        prefix = f"{self.folder.prefix}/{name}"
        written = self.session.pool.call("write_checkpoint", self.session.probe.model, operator, card, prefix)
        self.folder.note(f"{name}/{CHECKSUMS}", written)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m jobs.debias`: the same as `evenhand debias`."""
    from jobs.cli import main as cli

    cli(["debias", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
