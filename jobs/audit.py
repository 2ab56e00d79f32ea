"""Audit a model, a checkpoint or an operator against a manifest, without editing; alone, or compared on common seeds.

python -m jobs.audit CONFIG.yaml --model s3://bucket/checkpoint       # under `ray job submit`, or on the head node
evenhand audit CONFIG.yaml --operator s3://bucket/prefix/runs/x/operator.safetensors     # with the model itself
evenhand audit CONFIG.yaml --model CHECKPOINT --base MODEL                               # with another model
evenhand audit CONFIG.yaml --model CHECKPOINT --against s3://bucket/prefix/runs/EARLIER  # with an earlier run

In the report of a comparison `base` is what was compared with, and `edited` what was audited.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from infra.storage import StorageSettings
from jobs.auditing.api import TallyWorker
from jobs.auditing.comparing import Matched, check_comparable, match, reference_shards
from jobs.auditing.figures import AuditedProfession, audit_figures
from jobs.auditing.pictures import Shown
from jobs.auditing.reporting import Outcome, code_of, conclude, pictured_shards, report_of, write_pictures
from jobs.auditing.session import RunKind, Session, open_session
from jobs.auditing.tally import TallyTask, part_name
from jobs.config import AuditConfig, RunConfig
from jobs.errors import ConfigError
from jobs.images.cells import audit_cells
from jobs.images.edits import Edit, operators_of, variant_of
from jobs.images.judging import PanelKind
from jobs.images.recipe import Recipe
from jobs.images.variants import Variant
from jobs.report.figure_schema import ComponentEdit
from jobs.report.reading import read_report
from jobs.report.schema import Reference
from jobs.runs.finished import FinishedRun, read_finished
from jobs.runs.identity import last_name
from jobs.runs.inputs import read_bytes
from jobs.runs.run import RunFinished
from jobs.worker.make import make_worker
from manifests import Manifest, Profession, resolved_targets
from time_ops import Component, EditError, EditOperator, Mixture
from time_ops.mixture import is_mixture

__all__ = ["Outcome", "audit", "profession_as_edited", "read_edit"]


def audit(config: RunConfig, console: Console, *, again: bool = True) -> Outcome:
    """Run the job on the Ray cluster that this process is connected to, or can reach.

    A comparison with `audit.base` first audits that model as a run of its own, unless that is finished.

    Args:
        config: the run; `audit` says what is audited and compared with.
        console: for people.
        again: where the run is finished already, go through it again (its shards are found); else its outcome is given
            back as it is.

    Raises:
        ConfigError: also where the earlier run is not finished, or can't be compared with.
        ManifestError, EditError: the input must be mended.
        ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: see `jobs.errors`.
    """
    settings = StorageSettings.from_environment()
    wanted = config.audit
    edit = None if wanted.operator is None else read_edit(wanted.operator, settings)
    earlier: FinishedRun | None = None
    reference: Reference | None = None
    if wanted.base is not None:
        earlier = _audit_base(wanted.base, config, console, settings)
        reference = earlier.reference("base model", last_name(wanted.base))
    elif wanted.against is not None:
        earlier = read_finished(wanted.against, settings)
        reference = earlier.reference("earlier run")

    def check(manifest: Manifest, recipe: Recipe) -> None:
        if earlier is not None:
            check_comparable(earlier, config, manifest, recipe)

    content = {
        "kind": "audit",
        "operator": None if edit is None else edit.digest,
        "reference": None if reference is None else reference.model_dump(exclude={"name"}),
        "evidence": None if earlier is None else earlier.evidence,
    }
    try:
        with open_session(config, console, make_worker, RunKind("audit", content, check, again)) as session:
            return _Audit(session, console, edit, earlier, reference).run()
    except RunFinished as finished:
        folder = finished.folder
        report = read_report(folder.get("report.json"), folder.url("report.json"))
        return Outcome(folder.run, folder.url(), report, code_of(report), reused=True)


def _audit_base(base: str, config: RunConfig, console: Console, settings: StorageSettings) -> FinishedRun:
    """The base's own run, whose name is derived from its contents: whatever is compared with it finds it again."""
    console.print(f"first, what to compare with: {last_name(base)}", markup=False, highlight=False, soft_wrap=True)
    alone = config.model_copy(update={"model": base, "run": None, "audit": AuditConfig()})
    return read_finished(audit(alone, console, again=False).url, settings)


def read_edit(url: str, settings: StorageSettings) -> Edit:
    """An operator's or a mixture's file, local or from an object store, that a model can be audited under.

    Raises:
        ConfigError: there is none, it is damaged, or an audit can't tell its images from another one's.
    """
    data = read_bytes(url, settings)
    with tempfile.TemporaryDirectory(prefix="evenhand-") as scratch:
        path = Path(scratch) / "edit.safetensors"
        path.write_bytes(data)
        try:
            edit: Edit = Mixture.load(path) if is_mixture(data) else EditOperator.load(path)
        except EditError as error:
            raise ConfigError(str(error).replace(str(path), url)) from error
    for operator in operators_of(edit):
        if operator.values_only:
            raise ConfigError(
                f"{url} edits value projections only, which is no transform of the prompts; fold it into the model, "
                "and audit the checkpoint: --model CHECKPOINT --base MODEL"
            )
        if not operator.steps:
            # Images are kept under the digest of what an operator was solved from: all such ones would share theirs.
            raise ConfigError(
                f"{url} does not say what it was solved from, so its images can't be told from another one's; solve it "
                "with time_ops, or fold it and audit the checkpoint: --model CHECKPOINT --base MODEL"
            )
    return edit


class _Audit:
    """The steps of one audit, in order."""

    def __init__(
        self,
        session: Session,
        console: Console,
        edit: Edit | None,
        earlier: FinishedRun | None,
        reference: Reference | None,
    ) -> None:
        self.session, self.console = session, console
        self.edit, self.earlier, self.reference = edit, earlier, reference
        self.config, self.manifest, self.folder = session.config, session.manifest, session.folder
        self.labels = list(self.config.attribute)
        self.cells = audit_cells(self.manifest, self.config)
        self.rows = 0
        self.audited = variant_of(edit)
        if edit is not None and reference is None:
            name = last_name(self.config.model)
            model = session.probe.model
            self.reference = Reference(kind="base model", name=name, run=self.folder.run, model_digest=model)

    def run(self) -> Outcome:
        """All steps."""
        config, session = self.config, self.session
        matched = self._match_earlier()
        if self.edit is not None:
            # Before any image: what is wrong with an operator is told at once.
            for operator in operators_of(self.edit):
                session.pool.call(TallyWorker.check_operator, operator)
            name = "mixture" if isinstance(self.edit, Mixture) else "operator"
            self.folder.put(f"{name}.safetensors", self.edit.to_bytes())
        variants = {"base": self.audited}
        if matched is not None:
            variants = {"edited": self.audited}
        elif self.edit is not None:
            variants = {"base": Variant.plain(), "edited": self.audited}
            session.generate(self.cells, None, "base audit")
        session.say_what_is_drawn_again(self.cells, self.audited)
        session.generate(self.cells, self.edit, "audit")
        session.reporter.say("labelling and counting")
        texts = session.texts()
        tasks = session.tasks(self.cells)
        tallies = session.tally(tasks, variants, texts, written=True, first_part=self.rows)
        if matched is not None:
            tallies = tallies.after(matched.part)
        result = audit_figures(
            tallies,
            [profession_as_edited(p, self.labels, self.edit) for p in self.manifest.professions],
            self.labels,
            list(config.wordings.audit),
            config.gates,
            config.seed,
            confusion=config.confusion,
            panel=PanelKind.of(config),
            compared=self.reference is not None,
        )
        own = pictured_shards(session, list(variants.values()))

        def shards(task: TallyTask) -> list[Shown]:
            shown = own(task)
            if matched is None or self.earlier is None or not shown[-1]:
                return shown
            (_, first), *_ = shown[-1]
            return [reference_shards(matched, self.earlier, first, task.cell, session.store), *shown]

        pictures = write_pictures(session, tallies, shards, result)
        report = report_of(
            session,
            result,
            tallies,
            pictures,
            edit=self.edit,
            kind="audit",
            reference=self.reference,
            compared_with=None if self.earlier is None else self.earlier.makers,
        )
        session.lease.check()
        return conclude(session, self.console, report, pictures)

    def _match_earlier(self) -> Matched | None:
        """The earlier run's images; its rows become the first of this run's, so that the folder stands alone."""
        if self.earlier is None:
            return None
        self.session.reporter.say(f"reading {self.earlier.store.url()}")

        def write(rows: pa.Table) -> None:
            self.session.lease.check()
            sink = pa.BufferOutputStream()
            pq.write_table(rows, sink, compression="zstd")
            self.folder.put(part_name(self.rows), bytes(sink.getvalue()), "application/vnd.apache.parquet")
            self.rows += 1

        return match(self.earlier, self.cells, self.labels, self.config.seed, write)


def profession_as_edited(profession: Profession, labels: Sequence[str], edit: Edit | None) -> AuditedProfession:
    """What is wanted of a profession, and what an edit says was done: its lambda, its blend over all wordings."""
    asked = AuditedProfession(profession.name, profession.source, resolved_targets(profession, labels))
    if isinstance(edit, Mixture):
        return replace(asked, components={c.label: _component_edit(profession, c) for c in edit.components})
    if edit is None:
        return asked
    lam, blends = _as_solved(profession, edit)
    return replace(asked, lam=lam, shares={p: share for p, share in blends.items() if p != profession.source})


def _component_edit(profession: Profession, component: Component) -> ComponentEdit:
    lam, blends = _as_solved(profession, component.operator)
    # Of means over wordings: their last digits are the mean's.
    overshoot = round(sum(share for prompt, share in blends.items() if prompt != profession.source), 9)
    if not overshoot:
        return ComponentEdit(lam=None, overshoot=None, left_alone=True)
    return ComponentEdit(lam=lam, overshoot=overshoot)


def _as_solved(profession: Profession, operator: EditOperator) -> tuple[float | None, dict[str, float]]:
    """The lambda of a profession's edit, None where it has none or several; its blend, the source's share too."""
    records = [edit for step in operator.steps for edit in step.edits if edit.source == profession.source]
    lams = {edit.lam for edit in records}
    blends: dict[str, float] = defaultdict(float)
    wordings = sum(len(edit.augmentations) for edit in records)
    for edit in records:
        for prompt, share in edit.destinations:
            blends[prompt] += share * len(edit.augmentations) / wordings
    known = lams.pop() if len(lams) == 1 else None
    return (None if known is None or not math.isfinite(known) else known), dict(blends)


if __name__ == "__main__":
    from jobs.cli import main

    main(["audit", *sys.argv[1:]])
