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
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from infra.storage import StorageSettings
from jobs.cells import audit_cells
from jobs.comparing import Matched, check_comparable, match, reference_shard
from jobs.config import AuditConfig, RunConfig
from jobs.earlier import Earlier, read_earlier
from jobs.errors import ConfigError
from jobs.identity import last_name
from jobs.inputs import read_bytes
from jobs.redraw import read_report
from jobs.report.schema import Reference
from jobs.reporting import Outcome, code_of, conclude, first_shards, report_of, write_pictures
from jobs.results import EditedProfession, evaluate
from jobs.session import Job, RunFinished, Session, open_session
from jobs.shards import BASE, Recipe, ShardSpec
from jobs.tally import TallyTask, part_name
from manifests import Manifest, Profession, resolved_targets
from time_ops import EditError, EditOperator

__all__ = ["Outcome", "audit", "main", "read_operator"]


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
        As `open_session`; and ShardsFailedError, ClusterError, StorageError while it runs.
    """
    settings = StorageSettings.from_environment()
    wanted = config.audit
    operator = None if wanted.operator is None else read_operator(wanted.operator, settings)
    earlier: Earlier | None = None
    reference: Reference | None = None
    if wanted.base is not None:
        earlier = _audited_base(wanted.base, config, console, settings)
        reference = earlier.reference("base model", last_name(wanted.base))
    elif wanted.against is not None:
        earlier = read_earlier(wanted.against, settings)
        reference = earlier.reference("earlier run")

    def check(manifest: Manifest, recipe: Recipe) -> None:
        if earlier is not None:
            check_comparable(earlier, config, manifest, recipe)

    content = {
        "kind": "audit",
        "operator": None if operator is None else operator.digest,
        "reference": None if reference is None else reference.model_dump(exclude={"name"}),
        "evidence": None if earlier is None else earlier.evidence,
    }
    try:
        with open_session(config, console, job=Job("audit", content, check, again)) as session:
            return _Audit(session, console, operator, earlier, reference).run()
    except RunFinished as finished:
        folder = finished.folder
        report = read_report(folder.get("report.json"), folder.url("report.json"))
        return Outcome(folder.run, folder.url(), report, code_of(report), reused=True)


def _audited_base(base: str, config: RunConfig, console: Console, settings: StorageSettings) -> Earlier:
    """The base's own run, whose name is derived from its contents: whatever is compared with it finds it again."""
    console.print(f"first, what to compare with: {last_name(base)}", markup=False, highlight=False, soft_wrap=True)
    alone = config.model_copy(update={"model": base, "run": None, "audit": AuditConfig()})
    return read_earlier(audit(alone, console, again=False).url, settings)


def read_operator(url: str, settings: StorageSettings) -> EditOperator:
    """An operator's file, local or from an object store, that a model can be audited under.

    Raises:
        ConfigError: there is none, it is damaged, or an audit can't tell its images from another one's.
    """
    data = read_bytes(url, settings)
    with tempfile.TemporaryDirectory(prefix="evenhand-") as scratch:
        path = Path(scratch) / "operator.safetensors"
        path.write_bytes(data)
        try:
            operator = EditOperator.load(path)
        except EditError as error:
            raise ConfigError(str(error).replace(str(path), url)) from error
    if operator.values_only:
        raise ConfigError(
            f"{url} edits value projections only, which is no transform of the prompts; fold it into the model, and "
            "audit the checkpoint: --model CHECKPOINT --base MODEL"
        )
    if not operator.steps:
        # Images are kept under the digest of what an operator was solved from: all such ones would share theirs.
        raise ConfigError(
            f"{url} does not say what it was solved from, so its images can't be told from another one's; solve it "
            "with time_ops, or fold it and audit the checkpoint: --model CHECKPOINT --base MODEL"
        )
    return operator


class _Audit:
    """The steps of one audit, in order."""

    def __init__(
        self,
        session: Session,
        console: Console,
        operator: EditOperator | None,
        earlier: Earlier | None,
        reference: Reference | None,
    ) -> None:
        self.session, self.console = session, console
        self.operator, self.earlier, self.reference = operator, earlier, reference
        self.config, self.manifest, self.folder = session.config, session.manifest, session.folder
        self.labels = list(self.config.attribute)
        self.cells = audit_cells(self.manifest, self.config)
        self.rows = 0
        self.audited = BASE if operator is None else operator.digest
        if operator is not None and reference is None:
            name = last_name(self.config.model)
            model = session.probe.model
            self.reference = Reference(kind="base model", name=name, run=self.folder.run, model_digest=model)

    def run(self) -> Outcome:
        """All steps."""
        config, session = self.config, self.session
        matched = self._matched()
        if self.operator is not None:
            # Before any image: what is wrong with the operator is told at once.
            session.pool.call("check_operator", self.operator)
            self.folder.put("operator.safetensors", self.operator.to_bytes())
        variants = {"base": self.audited}
        if matched is not None:
            variants = {"edited": self.audited}
        elif self.operator is not None:
            variants = {"base": BASE, "edited": self.audited}
            session.generate(self.cells, None, "base audit")
        session.generate(self.cells, self.operator, "audit")
        session.reporter.say("labelling and counting")
        texts = session.texts()
        tasks = session.tasks(self.cells)
        tallies = session.tally(tasks, variants, texts, written=True, first_part=self.rows)
        if matched is not None:
            tallies = tallies.after(matched.part)
        result = evaluate(
            tallies,
            [_asked(p, self.labels, self.operator) for p in self.manifest.professions],
            self.labels,
            list(config.wordings.audit),
            config.gates,
            config.seed,
            confusion=config.confusion,
            compared=self.reference is not None,
        )
        own = first_shards(session, list(variants.values()))

        def shards(task: TallyTask) -> list[ShardSpec | None]:
            found = own(task)
            if matched is None or self.earlier is None or not found or found[0] is None:
                return found
            return [reference_shard(matched, self.earlier, found[0], task.cell, session.store), *found]

        pictures = write_pictures(session, tallies, shards, result)
        report = report_of(
            session,
            result,
            tallies,
            pictures,
            operator=self.operator,
            kind="audit",
            reference=self.reference,
            compared_with=None if self.earlier is None else self.earlier.makers,
        )
        session.lease.check()
        return conclude(session, self.console, report, pictures)

    def _matched(self) -> Matched | None:
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


def _asked(profession: Profession, labels: Sequence[str], operator: EditOperator | None) -> EditedProfession:
    """What is wanted of a profession, and what an operator says was done: its lambda, its blend over all wordings."""
    records = [
        edit
        for step in (operator.steps if operator is not None else ())
        for edit in step.edits
        if edit.source == profession.source
    ]
    lams = {edit.lam for edit in records}
    blends: dict[str, float] = defaultdict(float)
    wordings = sum(len(edit.augmentations) for edit in records)
    for edit in records:
        for prompt, share in edit.destinations:
            if prompt != profession.source:
                blends[prompt] += share * len(edit.augmentations) / wordings
    known = lams.pop() if len(lams) == 1 else None
    lam = None if known is None or not math.isfinite(known) else known
    return EditedProfession(profession.name, profession.source, resolved_targets(profession, labels), lam, dict(blends))


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m jobs.audit`: the same as `evenhand audit`."""
    from jobs.cli import main as cli

    cli(["audit", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
