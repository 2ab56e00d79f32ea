"""The main job: base audit, calibration, one solve, edited audit, checkpoint, report.

python -m jobs.debias CONFIG.yaml --set key=value      # under `ray job submit`, or on the head node
evenhand debias CONFIG.yaml                            # the same
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from infra.storage import ObjectStore
from jobs.calibrating import calibrate
from jobs.card import edited_title, model_card
from jobs.cells import audit_cells
from jobs.config import RunConfig
from jobs.exports.card import NOT_CHECKED
from jobs.exports.checking import check_export
from jobs.exports.checksums import CHECKSUMS
from jobs.exports.header import Provenance, lams_digest
from jobs.exports.publishing import promote, remove
from jobs.report.schema import Report, Shipped, Verdict
from jobs.reporting import Outcome, conclude, first_shards, report_of, write_pictures
from jobs.results import AuditResult, EditedProfession, evaluate, with_gate
from jobs.session import Session, open_session
from jobs.shards import BASE
from manifests import resolved_targets
from time_ops import EditOperator

__all__ = ["Outcome", "debias", "main", "settle"]

_CANDIDATE, _CHECKPOINT = "candidate", "checkpoint"


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
        shipped = self._write_candidate(operator, result)
        result = with_gate(result, shipped.gate)
        pictures = write_pictures(session, tallies, first_shards(session, list(variants.values())), result)
        report = report_of(
            session, result, tallies, pictures, operator=operator, calibration=found.section, shipped=shipped
        )
        self._publish(report)
        return conclude(session, self.console, report, pictures)

    def _write_candidate(self, operator: EditOperator, result: AuditResult) -> Shipped:
        """The checkpoint as `candidate/`, opened again from storage and compared with what was audited."""
        self.session.lease.check()
        self.session.reporter.say(f"writing {_CANDIDATE}/")
        prefix = f"{self.folder.prefix}/{_CANDIDATE}"
        made = Provenance(
            self.session.probe.model,
            self.manifest.digest,
            lams_digest(operator),
            self.folder.run,
            result.verdict.value,
        )
        title = edited_title(self.config.model, len(self.manifest.professions))
        self.session.pool.call("write_checkpoint", operator, made, title, NOT_CHECKED, prefix)
        return check_export(
            "diffusers",
            prefix,
            operator,
            pool=self.session.pool,
            config=self.config,
            tasks=self.session.tasks(self.cells),
            texts=self.texts,
            say=self.session.reporter.say,
        )

    def _publish(self, report: Report) -> None:
        """`checkpoint/` once every gate passes; else it stays `candidate/`, and its card says that it is ungated."""
        self.session.lease.check()
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
        name, written = settle(self.session.store, self.folder.prefix, report.verdict, card)
        self.folder.note(f"{name}/{CHECKSUMS}", written)


def settle(store: ObjectStore, run: str, verdict: Verdict, card: str) -> tuple[str, str]:
    """Give a run's candidate the name that its verdict allows, and its card.

    Args:
        store: of the run's output.
        run: its folder there, which holds `candidate/`.
        verdict: of its report; unless it is a pass, no `checkpoint/` of an earlier attempt stays either.
        card: text of README.md.

    Returns:
        The name, `checkpoint` or `candidate`, and the digest of its SHA256SUMS.

    Raises:
        StorageError: the store refuses or fails; the same again goes on.
    """
    name = _CHECKPOINT if verdict == "pass" else _CANDIDATE
    if name != _CHECKPOINT:
        remove(store, f"{run}/{_CHECKPOINT}")
    return name, promote(store, f"{run}/{_CANDIDATE}", f"{run}/{name}", {"README.md": card.encode()})


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m jobs.debias`: the same as `evenhand debias`."""
    from jobs.cli import main as cli

    cli(["debias", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
