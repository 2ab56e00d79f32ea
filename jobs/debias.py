"""The main job: base audit, search for strengths, edited audit, gates, checkpoint, report.

python -m jobs.debias CONFIG.yaml --set key=value      # under `ray job submit`, or on the head node
evenhand debias CONFIG.yaml                            # the same
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from rich.console import Console

from infra.storage import ObjectStore
from jobs.auditing.figures import AuditedProfession, AuditResult, audit_figures, with_gate
from jobs.auditing.reporting import Outcome, conclude, pictured_shards, report_of, write_pictures
from jobs.auditing.session import Session, open_session
from jobs.config import RunConfig
from jobs.editing.search_mixture import saturate
from jobs.editing.search_single import calibrate
from jobs.exports.api import ExportWorker
from jobs.exports.export_card import NOT_CHECKED
from jobs.exports.forms.header import Provenance, lams_digest
from jobs.exports.model_card import edited_title, model_card
from jobs.exports.verify.driver import Checking, check_export, check_mixture
from jobs.images.cells import audit_cells
from jobs.images.edits import Edit, variant_of
from jobs.images.judging import PanelKind
from jobs.images.variants import Variant
from jobs.models.checksums import CHECKSUMS
from jobs.models.publishing import promote, remove
from jobs.report.figure_schema import Verdict
from jobs.report.schema import Report, Shipped
from jobs.report.search_schema import Calibration, Saturation
from jobs.worker.make import make_worker
from manifests import resolved_targets
from time_ops import Mixture

__all__ = ["Outcome", "debias", "settle"]

_CANDIDATE, _CHECKPOINT = "candidate", "checkpoint"


def debias(config: RunConfig, console: Console) -> Outcome:
    """Run the whole job on the Ray cluster that this process is connected to, or can reach.

    Raises:
        ManifestError, ConfigError, EditError: the input must be mended.
        ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: see `jobs.errors`.
    """
    with open_session(config, console, make_worker) as session:
        return _Job(session, console).run()


@dataclass(frozen=True)
class _Solved:
    """What was found, of either form.

    Attributes:
        name: of its file in the run's folder, without the ending.
        edit: what the model is audited under.
        professions: what was asked and done for each.
        calibration: how a single operator was found; None: its strengths were given.
        saturation: likewise of a mixture.
    """

    name: str
    edit: Edit
    professions: list[AuditedProfession]
    calibration: Calibration | None = None
    saturation: Saturation | None = None


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
        session.say_what_is_drawn_again(self.cells, Variant.plain())
        session.generate(self.cells, None, "base audit")
        solved = self._find()
        self.folder.put(f"{solved.name}.safetensors", solved.edit.to_bytes())
        session.generate(self.cells, solved.edit, "edited audit")
        session.reporter.say("labelling and counting")
        variants = {"base": Variant.plain(), "edited": variant_of(solved.edit)}
        tallies = session.tally(session.tasks(self.cells), variants, self.texts, written=True)
        result = audit_figures(
            tallies,
            solved.professions,
            self.labels,
            list(config.wordings.audit),
            config.gates,
            config.seed,
            confusion=config.confusion,
            panel=PanelKind.of(config),
        )
        shipped = self._write_candidate(solved.edit, result)
        result = with_gate(result, shipped.gate)
        pictures = write_pictures(session, tallies, pictured_shards(session, list(variants.values())), result)
        report = report_of(
            session,
            result,
            tallies,
            pictures,
            edit=solved.edit,
            calibration=solved.calibration,
            saturation=solved.saturation,
            shipped=shipped,
        )
        self._publish(report)
        return conclude(session, self.console, report, pictures)

    def _find(self) -> _Solved:
        """The edit of the form that is asked for, calibrated."""
        return self._find_mixture() if self.config.form == "mixture" else self._find_operator()

    def _find_mixture(self) -> _Solved:
        saturated = saturate(self.session, self.cells, self.texts)
        professions = [
            replace(asked, components=edits) for asked, edits in zip(self._professions(), saturated.edits, strict=True)
        ]
        return _Solved("mixture", saturated.mixture, professions, saturation=saturated.section)

    def _find_operator(self) -> _Solved:
        calibrated = calibrate(self.session, self.texts)
        chosen = calibrated.candidate
        professions = [
            replace(
                asked,
                lam=float(chosen.lam[i]),
                # Means over the wordings; calibration.parquet and the operator hold each.
                shares={d.prompt: float(s) for d, s in zip(p.destinations, chosen.shares[i].mean(axis=0), strict=True)},
            )
            for i, (asked, p) in enumerate(zip(self._professions(), self.manifest.professions, strict=True))
        ]
        return _Solved("operator", calibrated.operator, professions, calibration=calibrated.section)

    def _professions(self) -> list[AuditedProfession]:
        return [
            AuditedProfession(p.name, p.source, resolved_targets(p, self.labels)) for p in self.manifest.professions
        ]

    def _write_candidate(self, edit: Edit, result: AuditResult) -> Shipped:
        """The checkpoint as `candidate/`, opened again from storage and compared with what was audited."""
        session = self.session
        session.lease.check()
        session.reporter.say(f"writing {_CANDIDATE}/")
        prefix = f"{self.folder.prefix}/{_CANDIDATE}"
        made = Provenance(
            session.probe.model, self.manifest.digest, lams_digest(edit), self.folder.run, result.verdict.value
        )
        title = edited_title(self.config.model, len(self.manifest.professions))
        tasks, say = session.tasks(self.cells), session.reporter.say
        checking = Checking(session.pool, self.config, tasks, self.texts, say)
        if isinstance(edit, Mixture):
            session.pool.call(ExportWorker.write_mixture, edit, made, title, NOT_CHECKED, prefix)
            return check_mixture("diffusers", prefix, edit, checking)
        session.pool.call(ExportWorker.write_checkpoint, edit, made, title, NOT_CHECKED, prefix)
        return check_export("diffusers", prefix, edit, checking)

    def _publish(self, report: Report) -> None:
        """`checkpoint/` once every gate passes; else it stays `candidate/`, and its card says that it is ungated."""
        self.session.lease.check()
        origin = self.session.pool.call(ExportWorker.origin)
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


if __name__ == "__main__":
    from jobs.cli import main

    main(["debias", *sys.argv[1:]])
