"""Other forms of a finished run's edit, each checked once it is stored, and published only then.

evenhand export s3://bucket/prefix/runs/NAME --form lora --form operator
evenhand export s3://bucket/prefix/runs/NAME --form single-file --base-file sd15.safetensors

An export lies under `exports/<form>-candidate/` until its images have been compared with those of the audited edit, a
LoRA's until it has been audited at its rank too; then under `exports/<form>/`. Doing it again gives the same bytes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.audit import audit
from jobs.auditing.api import TallyWorker
from jobs.auditing.session import tally_tasks, text_embeddings
from jobs.cluster.pool import Pool
from jobs.config import AuditConfig, RunConfig, load_config
from jobs.errors import ConfigError, ExitCode, NotPassedError
from jobs.exports.api import ExportWorker
from jobs.exports.export_card import NOT_CHECKED, REVERT, export_card
from jobs.exports.forms.header import Provenance, lams_digest
from jobs.exports.mixture.forms import LOW_RANK_FILE
from jobs.exports.mixture.parts import MIXTURE_FILE
from jobs.exports.model_card import edited_title, licence_of, model_card
from jobs.exports.schema import FORMS, Exported, Form, RankAudit
from jobs.exports.verify.driver import Checking, check_export, check_mixture
from jobs.exports.write import RECORD, Dtype, ExportTask, main_file
from jobs.images.cells import audit_cells
from jobs.images.compiling import for_images
from jobs.images.judging import models_of
from jobs.models.files import is_single_file
from jobs.models.publishing import promote
from jobs.models.sources import refuse_pickled
from jobs.models.staging import Origin, cache_folder
from jobs.report.schema import Shipped
from jobs.runs.finished import FinishedRun, read_finished
from jobs.runs.lease import Lease
from jobs.worker.make import make_worker
from time_ops import EditError, EditOperator, Mixture, ModelError

__all__ = ["Wanted", "base_file_for", "default_forms", "export", "export_config", "known_forms"]

_FORCE = "--force exports it all the same, and says so in its metadata and card"
_FLAGS = {"model_layout": "--set model_layout="}
_CLOSE = 1e-3
"""What a LoRA may leave out of the edit and still be asked to draw the very same images."""


@dataclass(frozen=True)
class Wanted:
    """What to export, and how.

    Attributes:
        forms: which.
        base_file: see `ExportTask`; so are the next four.
        only_unet: .
        rank: .
        error: .
        dtype: .
        force: export although the run's gates did not pass; an export that does not pass its own check stays one.
    """

    forms: tuple[Form, ...]
    base_file: str | None = None
    only_unet: bool = False
    rank: int | None = None
    error: float = 1e-3
    dtype: Dtype | None = None
    force: bool = False


def known_forms(names: Sequence[str]) -> tuple[Form, ...]:
    """The forms of these names, each once.

    Raises:
        ConfigError: there is no such form.
    """
    unknown = [name for name in names if name not in FORMS]
    if unknown:
        raise ConfigError(f"there is no form {', '.join(unknown)}; give one of {', '.join(FORMS)}")
    return tuple(form for form in FORMS if form in names)


def default_forms(config: RunConfig) -> tuple[Form, ...]:
    """What is exported where nothing is asked for: the base model's own form."""
    return ("single-file",) if is_single_file(config.model) else ("diffusers",)


def base_file_for(config: RunConfig, given: str | None) -> str | None:
    """The base model's single file: the one that is given, else the model where that is one."""
    return config.model if given is None and is_single_file(config.model) else given


def export_config(
    url: str, settings: StorageSettings, flags: Mapping[str, str | None], assignments: Sequence[str] = ()
) -> tuple[RunConfig, FinishedRun]:
    """The configuration of a finished run, as it stands in its folder, and the run.

    Args:
        url: of the run's folder, `<output>/runs/<run>`; a local one may be relative.
        settings: how to reach it.
        flags: `model` and `classifier`, where the run's own were folders of another machine.
        assignments: `key=value` texts.

    Raises:
        ConfigError: there is no such run, or it says too little.
        StorageError: it can't be read.
    """
    if "://" not in url:
        url = Path(url).absolute().as_posix()
    earlier = read_finished(url, settings)
    if earlier.report.kind != "debias":
        raise ConfigError(f"{url} is an audit: it edited nothing. Give the folder of a run of `evenhand debias`")
    output, _, place = url.rstrip("/").rpartition("/runs/")
    if not output or place != earlier.run:
        raise ConfigError(f"{url}: give a run where it lies, <output>/runs/{earlier.run}")
    # Runs from before there were mixtures say no form.
    form = "single" if earlier.report.mixture is None else "mixture"
    lying = {"form": form, "manifest": earlier.store.url("manifest.parquet"), "output": output, "run": None}
    stored = yaml.safe_dump({**earlier.configuration, **lying})
    given = {key: value for key, value in flags.items() if value is not None}
    config = load_config(stored, name=f"{url}/run.json", flags={**lying, **given}, assignments=assignments)
    # Of a folder the run's configuration keeps the last name only; a hub's id has an owner.
    places = [("model", config.model), *(("classifier", model) for model in models_of(config))]
    if is_single_file(config.model) and config.model_layout is not None:
        places.append(("model_layout", config.model_layout))
    lost = [(k, v) for k, v in places if k not in given and "/" not in v and not Path(v).exists()]
    if lost:
        had = " and ".join(f"a {_kind(value)} {value!r} as its {key}" for key, value in lost)
        # A classifier with settings is given again as a whole: --classifier would put a name in its place.
        whole = not isinstance(config.classifier, str)
        advice = {key: f"{_FLAGS.get(key, f'--{key} ')}{_kind(value).upper()}" for key, value in lost}
        if whole and "classifier" in advice:
            advice["classifier"] = "--set 'classifier={model: FOLDER, ...}'"
        raise ConfigError(f"the run had {had}; say where it is now: {' '.join(advice.values())}")
    return config, earlier


def _kind(place: str) -> str:
    return "file" if is_single_file(place) else "folder"


def export(
    config: RunConfig, earlier: FinishedRun, wanted: Wanted, console: Console
) -> tuple[list[Exported], ExitCode]:
    """Write, check and publish every form that is wanted.

    Args:
        config: see `export_config`.
        earlier: the run.
        wanted: what to export.
        console: for people.

    Returns:
        What was exported, and the code to end with: 5 or 6 where one of them does not pass, and stays a candidate.

    Raises:
        NotPassedError: the run's gates did not pass.
        ConfigError: a flag is missing.
        ModelError, EditError, StorageError, ClusterError: see `jobs.errors`.
    """
    passed = earlier.report.verdict == "pass"
    if not passed and not wanted.force:
        verdict = earlier.report.verdict
        raise NotPassedError(f"the run's verdict is {verdict}, so nothing of it is exported; {_FORCE}", verdict)
    if "single-file" in wanted.forms and wanted.base_file is None:
        raise ConfigError("a single file is made from the base model's own single file: --base-file FILE")
    if wanted.base_file is not None:
        refuse_pickled(wanted.base_file)
    return _Export(config, earlier, wanted, console).run()


class _Export:
    """The steps, in order."""

    def __init__(self, config: RunConfig, earlier: FinishedRun, wanted: Wanted, console: Console) -> None:
        # What it draws are some images of each form.
        self.config = for_images(config, 0)
        self.earlier, self.wanted, self.console = earlier, wanted, console
        self.settings = StorageSettings.from_environment().model_copy(update={"patience_s": config.storage.patience_s})
        self.store: ObjectStore = open_store(config.output, self.settings)
        self.prefix = f"runs/{earlier.run}/exports"
        self.edit = _edit_of(earlier)
        self.token = uuid.uuid4().hex[:12]

    def run(self) -> tuple[list[Exported], ExitCode]:
        """All steps."""
        with Lease(self.store, f"{self.prefix}/LEASE", say=self._say) as lease:
            try:
                checked = self._write_and_check(lease.check)
            finally:
                shutil.rmtree(cache_folder() / self.token, ignore_errors=True)
            exports = [self._publish(exported, origin) for exported, origin in map(self._audit_rank, checked)]
        outcomes = {exported.outcome for exported in exports}
        code = ExitCode.DONE
        if "inconclusive" in outcomes:
            code = ExitCode.GATE_INCONCLUSIVE
        return exports, ExitCode.GATE_FAILED if "fail" in outcomes else code

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _candidate(self, form: Form) -> str:
        return f"{self.prefix}/{form}-candidate"

    def _main(self, exported: Exported) -> str:
        mixture = isinstance(self.edit, Mixture)
        return main_file(exported.form, only_unet=self.wanted.only_unet, mixture=mixture, pipeline=exported.pipeline)

    def _write_and_check(self, check: Callable[[], None]) -> list[tuple[Exported, Origin]]:
        """Every form written, opened again and compared, on the cluster."""
        checked = []
        with Pool(self.config, self.settings, self.token, make_worker, self._say) as pool:
            self._say(f"{pool.size} worker(s); loading the models")
            probe = pool.probe()
            base = str(self.earlier.report.provenance["model_digest"])
            if probe.model != base:
                raise ModelError(
                    f"{self.config.model} is not the base model of {self.earlier.run}: its tensors differ "
                    f"({probe.model[:12]}, the run's were {base[:12]}); give the one that was edited"
                )
            pool.call(TallyWorker.check_operator, self.edit)
            origin = pool.call(ExportWorker.origin)
            texts = text_embeddings(pool, self.earlier.manifest, self.config)
            tasks = tally_tasks(audit_cells(self.earlier.manifest, self.config), self.earlier.manifest, self.config)
            checking = Checking(pool, self.config, tasks, texts, self._say)
            for form in self.wanted.forms:
                check()
                self._say(f"writing {form}")
                beside = tuple(f"runs/{self.earlier.run}/{name}" for name in ("checkpoint", "candidate"))
                exported = pool.call(ExportWorker.write_export, self._task(form, origin), beside)
                shipped = self._compare(exported, checking)
                checked.append((exported.model_copy(update={"shipped": shipped}), origin))
        return checked

    def _compare(self, exported: Exported, checking: Checking) -> Shipped:
        """What was stored, opened again and drawn with beside the audited edit."""
        form, prefix = exported.form, self._candidate(exported.form)
        approximate = (exported.error or 0.0) > _CLOSE
        if isinstance(self.edit, Mixture):
            return check_mixture(form, prefix, self.edit, checking, approximate=approximate)
        return check_export(form, prefix, self.edit, checking, approximate=approximate)

    def _task(self, form: Form, origin: Origin) -> ExportTask:
        report, wanted = self.earlier.report, self.wanted
        provenance = Provenance(
            base_digest=str(report.provenance["model_digest"]),
            manifest_digest=str(report.provenance["manifest"]),
            lams_digest=lams_digest(self.edit),
            run=self.earlier.run,
            verdict=report.verdict,
            forced=report.verdict != "pass",
        )
        return ExportTask(
            form,
            self.edit,
            provenance,
            title=edited_title(str(report.provenance["model"]), len(report.professions)),
            date=report.created,
            prefix=self._candidate(form),
            card=NOT_CHECKED,
            base_file=wanted.base_file if form == "single-file" else None,
            only_unet=wanted.only_unet,
            rank=wanted.rank,
            error=wanted.error,
            dtype=wanted.dtype,
            licence=licence_of(origin.card),
        )

    def _card(self, origin: Origin, form: Form) -> str:
        return model_card(
            self.earlier.report,
            self.config.model,
            str(self.earlier.report.provenance["model_digest"]),
            list(self.config.attribute),
            hub_id=origin.hub_id,
            revision=origin.revision,
            base_card=origin.card,
            revert=REVERT.get(form),
            loading=False,
        )

    def _audit_rank(self, checked: tuple[Exported, Origin]) -> tuple[Exported, Origin]:
        """A LoRA at its rank, audited on the run's own seeds and compared with it; other forms are the edit itself."""
        exported, origin = checked
        if exported.form != "lora":
            return checked
        self._say(f"auditing the LoRA at rank {exported.rank}")
        name = f"operator-rank-{exported.rank}.safetensors" if exported.components is None else LOW_RANK_FILE
        asked = AuditConfig(
            operator=self.store.url(f"{self._candidate('lora')}/{name}"), base=None, against=self.earlier.store.url()
        )
        outcome = audit(self.config.model_copy(update={"run": None, "audit": asked}), self.console, again=False)
        mine, theirs = outcome.report.summary.edited, self.earlier.summary
        if mine is None:
            raise ConfigError(f"{outcome.url} compares nothing; remove that run, and export again")
        rank_audit = RankAudit(
            run=outcome.run,
            verdict=outcome.report.verdict,
            delta=mine.delta,
            delta_within=mine.delta_within,
            explicit=mine.explicit,
            delta_of_run=theirs.delta,
            delta_within_of_run=theirs.delta_within,
        )
        return exported.model_copy(update={"audit": rank_audit}), origin

    def _publish(self, exported: Exported, origin: Origin) -> Exported:
        """Under its own name once it passes; else it stays a candidate, with what was found in it."""
        form, candidate = exported.form, self._candidate(exported.form)
        target = f"{self.prefix}/{form}" if exported.outcome == "pass" else candidate
        changed = {
            RECORD: exported.model_dump_json(indent=1).encode(),
            "README.md": export_card(
                self._card(origin, form),
                exported,
                only_unet=self.wanted.only_unet,
                mixture=self.earlier.report.mixture,
            ).encode(),
        }
        promote(self.store, candidate, target, changed, main=self._main(exported))
        shipped = exported.shipped
        same = "" if shipped is None else f"{shipped.same_label.value:.1%} of {shipped.same_label.n} labels as audited"
        self._say(f"{self.store.url(target)}: {exported.outcome}, {same}")
        return exported


def _edit_of(earlier: FinishedRun) -> EditOperator | Mixture:
    kind: type[EditOperator] | type[Mixture] = EditOperator if earlier.report.mixture is None else Mixture
    name = "operator.safetensors" if kind is EditOperator else MIXTURE_FILE
    with tempfile.TemporaryDirectory(prefix="evenhand-") as scratch:
        path = Path(scratch) / name
        path.write_bytes(earlier.read(name))
        try:
            edit = kind.load(path)
        except EditError as error:
            raise ConfigError(str(error).replace(str(path), earlier.store.url(name))) from error
    if edit.digest != earlier.report.provenance.get("operator"):
        raise ConfigError(f"{earlier.store.url(name)} is not the edit that the run audited")
    return edit


if __name__ == "__main__":
    from jobs.cli import main

    main(["export", *sys.argv[1:]])
