"""What every job on a cluster begins and ends with: inputs, workers, the run's folder under a lease, progress.

A job's own steps then are few: generate, tally, whatever it exists for, publish.
"""

from __future__ import annotations

import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Literal, Protocol, TypeVar

import ray
from rich.console import Console

from infra.storage import ObjectMissing, ObjectStore, StorageError, StorageSettings, open_store
from jobs.auditing.tally import Frame, PartTally, Tallies, TallyTask, part_name, parts_of
from jobs.cluster.metrics import Metrics
from jobs.cluster.pool import Pool, Tallied, audit_worker
from jobs.cluster.progress import Reporter
from jobs.config import RunConfig
from jobs.editing.solver import Solver, run_manifest_bytes
from jobs.errors import ExitCode, exit_code_of
from jobs.images.cells import Cell, check_held_out, shards_of
from jobs.images.components import check_mixture
from jobs.images.edits import Edit, operators_of, variant_of
from jobs.images.shards import Recipe, ShardOutcome, ShardSpec, stored_keys
from jobs.images.variants import Variant
from jobs.models.staging import cache_folder
from jobs.redact import redact
from jobs.runs.folder import BEAT_S, RunFolder
from jobs.runs.identity import Probe, identity_of, provenance_of, recipe_of, without_paths
from jobs.runs.inputs import read_inputs
from jobs.runs.lease import Lease
from manifests import Manifest
from time_ops.files import json_of

__all__ = [
    "DEBIAS",
    "Inputs",
    "Job",
    "Run",
    "RunFinished",
    "Session",
    "open_run",
    "open_session",
    "tally_tasks",
    "text_embeddings",
]

Kind = Literal["run", "audit", "evaluation"]

_LEASE_BEATS = 4
# A driver that is told to stop has seconds, not the minutes that it has for a store that is away.
_LAST_WORDS_S = 5.0


class RunFinished(Exception):  # noqa: N818 - no error: what was asked for is there
    """The run that was asked for is finished already, and that will do; see `Job.again`."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.run)
        self.folder = folder


@dataclass(frozen=True)
class Job:
    """What a session is opened for.

    Attributes:
        kind: the first word of a derived run's name, `run` for `debias`.
        content: what decides the result beside configuration, manifest and models, as digests; None for `debias`.
        check: told the manifest and the recipe before anything is written; raises ConfigError.
        again: go through a finished run of the same identity again; else `RunFinished` is raised.
    """

    kind: Kind
    content: Mapping[str, Any] | None = None
    check: Callable[[Manifest, Recipe], None] = lambda *_: None
    again: bool = True


DEBIAS = Job("run")
InputsT = TypeVar("InputsT", bound="Inputs")


class Inputs(Protocol):
    """What a run reads before it starts any worker."""

    @property
    def summary(self) -> str:
        """In words: "35 professions"."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Refuse, with a ConfigError, what could not end well, before anything is written."""
        ...

    def identity(self, recipe: Recipe) -> str:
        """Digest of all that decides the run's result."""
        ...

    def files(self) -> Mapping[str, bytes]:
        """What of it the run's folder keeps, by name: Parquet files."""
        ...


@dataclass
class Run:
    """One run under way, whatever it is for.

    Attributes:
        spent: what generation has come to so far.
        used: digests of the shards that the run rests on, those given up included.
    """

    config: RunConfig
    settings: StorageSettings
    store: ObjectStore
    pool: Pool
    probe: Probe
    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    lease: Lease
    token: str
    started: float = field(default_factory=time.monotonic)
    spent: Tallied = field(default_factory=Tallied)
    used: list[str] = field(default_factory=list)

    def complete(self, verdict: str, code: ExitCode) -> None:
        """The last write: the shards and files that the run rests on."""
        self.lease.check()
        self.folder.complete(verdict, int(code), [d for d in self.used if d not in self.spent.failed])


@dataclass(kw_only=True)
class Session(Run):
    """A run over a manifest's professions, under way."""

    manifest: Manifest

    def generate(self, cells: Sequence[Cell], edit: Edit | None, stage: str, *, pictures: bool = True) -> None:
        """Make, or find, all shards of these cells under an edit, or of the base model."""
        self.draw([(cells, edit)], stage, pictures=pictures)

    def draw(self, wanted: Sequence[tuple[Sequence[Cell], Edit | None]], stage: str, *, pictures: bool = True) -> None:
        """The same of several edits at once: their shards share batches."""
        counts = [spec.count for cells, edit in wanted for spec in self._specs(cells, variant_of(edit), pictures)]
        used = chain.from_iterable(self.use(cells, variant_of(edit), pictures=pictures) for cells, edit in wanted)
        operators = {o.digest: o for _, edit in wanted for o in operators_of(edit)}
        with self.reporter.stage(stage, sum(counts)) as advance:
            self.spent += self.pool.run(used, tuple(operators.values()), advance, len(counts))

    def _specs(self, cells: Sequence[Cell], variant: Variant, pictures: bool) -> Iterator[ShardSpec]:
        return shards_of(cells, self.recipe, variant, self.config, pictures=pictures)

    def use(self, cells: Sequence[Cell], variant: Variant, *, pictures: bool = True) -> Iterator[ShardSpec]:
        """The shards of these cells; the run rests on those that are taken from here."""
        for spec in self._specs(cells, variant, pictures):
            self.used.append(spec.digest)
            yield spec

    def spend_again(self, specs: Sequence[ShardSpec]) -> None:
        """Count the shards of a round that an earlier attempt made; those that it gave up are not there."""
        stored = stored_keys(self.store, (spec.object_key for spec in specs))
        for spec in specs:
            if spec.object_key in stored:
                self.spent.add(ShardOutcome(spec.digest, spec.count, 0, True, 0.0))
            else:
                self.spent.failed[spec.digest] = "given up by an earlier attempt"

    def solver(self) -> Solver:
        """What solves the manifest's edits."""
        return Solver(self.pool, self.manifest, self.config, f"{self.folder.prefix}/manifest.parquet")

    def texts(self) -> Any:
        """Reference of the classifier's text embeddings, see `TextEmbeddings`."""
        return text_embeddings(self.pool, self.manifest, self.config)

    def tasks(self, cells: Sequence[Cell]) -> list[TallyTask]:
        """The cells with their rows in the text embeddings: professions first, then controls."""
        return tally_tasks(cells, self.manifest, self.config)

    def tally(
        self,
        tasks: Sequence[TallyTask],
        variants: dict[str, Variant],
        texts: Any,
        *,
        written: bool,
        first_part: int = 0,
    ) -> Tallies:
        """Label and count, part by part in the workers, which also write a row for each image where that is asked.

        Args:
            tasks: the cells.
            variants: by name, see `Frame`.
            texts: see `texts`.
            written: whether `images/part-*.parquet` is wanted.
            first_part: number of the first of them.
        """
        self.lease.check()
        frame = Frame(self.recipe, variants, frozenset(self.spent.failed))
        parts = list(parts_of(tasks, len(variants)))
        names = [part_name(first_part + i) for i in range(len(parts))]
        calls = (
            (part, frame, texts, f"{self.folder.prefix}/{name}" if written else None)
            for part, name in zip(parts, names, strict=True)
        )
        found: dict[int, PartTally] = {}
        for i, reference in self.pool.map("tally", calls):
            found[i] = ray.get(reference)
            if (digest := found[i].sha256) is not None:
                self.folder.note(names[i], digest)
        return Tallies(tasks, [found[i] for i in range(len(parts))])


@dataclass(frozen=True)
class _ManifestInputs:
    """A manifest, checked, and the job that reads it."""

    config: RunConfig
    manifest: Manifest
    job: Job

    @property
    def summary(self) -> str:
        return f"{len(self.manifest.professions)} professions"

    def check(self, recipe: Recipe) -> None:
        self.job.check(self.manifest, recipe)

    def identity(self, recipe: Recipe) -> str:
        return identity_of(self.config, self.manifest, recipe, self.job.content)

    def files(self) -> Mapping[str, bytes]:
        return {"manifest.parquet": run_manifest_bytes(self.manifest)}


def text_embeddings(pool: Pool, manifest: Manifest, config: RunConfig) -> Any:
    """Reference of the classifier's text embeddings, see `TextEmbeddings`."""
    subjects = [(p.name, p.source) for p in manifest.professions]
    return ray.put(pool.call("texts", subjects, config.controls))


def tally_tasks(cells: Sequence[Cell], manifest: Manifest, config: RunConfig) -> list[TallyTask]:
    """The cells with their rows in the text embeddings: professions first, then controls."""
    names = [p.name for p in manifest.professions]
    subjects = {name: i for i, name in enumerate(names)}
    controls = {prompt: len(names) + i for i, prompt in enumerate(config.controls)}
    return [
        TallyTask(cell, None, controls[cell.subject])
        if cell.kind == "control"
        else TallyTask(cell, subjects[cell.subject], subjects[cell.subject])
        for cell in cells
    ]


@contextmanager
def open_session(
    config: RunConfig, console: Console, worker: Callable[..., object] = audit_worker, job: Job = DEBIAS
) -> Iterator[Session]:
    """Check a manifest and what goes with it, and open a run over its professions; see `open_run`.

    Args:
        config: the run.
        console: for people.
        worker: makes a worker, in its process.
        job: what it is for.

    Raises:
        ManifestError, ConfigError, EditError: the input must be mended; nothing was written.
        As `open_run`.
    """

    def read(settings: StorageSettings, token: str) -> _ManifestInputs:
        manifest = read_inputs(config, settings, token)
        check_held_out(manifest, config)
        if job.kind == "run":
            check_mixture(manifest, config)
        return _ManifestInputs(config, manifest, job)

    with open_run(config, console, read, kind=job.kind, worker=worker, again=job.again) as (run, inputs):
        yield Session(**{f.name: getattr(run, f.name) for f in fields(run)}, manifest=inputs.manifest)


@contextmanager
def open_run(
    config: RunConfig,
    console: Console,
    read: Callable[[StorageSettings, str], InputsT],
    *,
    kind: Kind,
    worker: Callable[..., object] = audit_worker,
    again: bool = True,
) -> Iterator[tuple[Run, InputsT]]:
    """Read the inputs, start workers, take the run's lease and open its folder; on a failure run.json says so.

    Args:
        config: the run.
        console: for people.
        read: reads and checks the inputs, given how to reach object storage and the run's staging token.
        kind: the first word of a derived run's name.
        worker: makes a worker, in its process.
        again: see `Job`.

    Raises:
        RunFinished: there is nothing to do, see `Job.again`.
        ConfigError: the output or the run's name must be mended; nothing was written.
        ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: see `jobs.errors`.
        What `read` raises.
    """
    started = time.monotonic()
    token = uuid.uuid4().hex[:12]
    settings = StorageSettings.from_environment()
    try:
        inputs = read(settings, token)
        # Without patience: a wrong address or bucket is told at once.
        open_store(config.output, settings).check_writable()
        settings = settings.model_copy(update={"patience_s": config.storage.patience_s})
        store = open_store(config.output, settings)
        hasty = open_store(config.output, settings.model_copy(update={"patience_s": _LAST_WORDS_S}))
        with _folders(store, hasty, config.run) as folders, ExitStack() as held:

            def say(text: str) -> None:
                console.print(redact(text), markup=False, highlight=False, soft_wrap=True)

            def take(folder: RunFolder) -> tuple[Lease, Metrics]:
                metrics = Metrics(folder.run)

                def beat() -> None:
                    folder.beat()
                    metrics.beat()

                ttl_s = _LEASE_BEATS * BEAT_S
                lease = Lease(store, f"{folder.prefix}/LEASE", ttl_s=ttl_s, on_beat=beat, say=say)
                return held.enter_context(lease), metrics

            # A run with a name is leased before it takes up a worker: a second driver is told at once.
            leases = [take(folder) for folder in folders]
            with Pool(config, settings, token, worker, say) as pool:
                say(f"{inputs.summary}, {pool.size} worker(s); loading the models")
                probe = pool.probe()
                recipe = recipe_of(config, probe)
                inputs.check(recipe)
                identity = inputs.identity(recipe)
                derived = RunFolder(store, f"{kind}-{identity[:16]}", last_words=hasty)
                if not again and _is_finished(folders[0] if folders else derived, identity):
                    raise RunFinished(folders[0] if folders else derived)
                if not folders:
                    folders.append(derived)
                    leases.append(take(derived))
                folder, (lease, metrics) = folders[0], leases[0]
                folder.open(identity, _facts(config, probe, recipe, pool))
                for name, data in inputs.files().items():
                    folder.put(name, data, "application/vnd.apache.parquet")
                reporter = Reporter(console, lambda *_: lease.check(), folder.progress, metrics.progress)
                run = Run(config, settings, store, pool, probe, recipe, folder, reporter, lease, token, started)
                yield run, inputs
    finally:
        # This node's staged models; other nodes' caches are theirs to age out.
        shutil.rmtree(cache_folder() / token, ignore_errors=True)


def _is_finished(folder: RunFolder, identity: str) -> bool:
    try:
        state = json_of(folder.get("run.json"))
        folder.get("COMPLETE")
    except (ObjectMissing, ValueError):
        # What is no JSON is told by `RunFolder.open`.
        return False
    return bool(isinstance(state, dict) and state.get("identity") == identity)


@contextmanager
def _folders(store: ObjectStore, hasty: ObjectStore, run: str | None) -> Iterator[list[RunFolder]]:
    """The run's folder where its name is given, so that it is seen to be queued; and on a failure, to have failed."""
    folders = [RunFolder(store, run, last_words=hasty)] if run else []
    try:
        for folder in folders:
            folder.queue("waiting for workers")
        yield folders
    except BaseException as error:
        for folder in folders:
            # If the store is what failed, its error must reach the user, not the one of saying so.
            with suppress(StorageError):
                folder.fail(error, _code(error))
        raise


def _facts(config: RunConfig, probe: Probe, recipe: Recipe, pool: Pool) -> dict[str, Any]:
    return {
        "configuration": without_paths(config.model_dump(mode="json")),
        "provenance": provenance_of(config, probe, recipe),
        "environment": {"python": platform.python_version(), "workers": pool.size, "device": probe.device},
    }


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return int(exit_code_of(error) or ExitCode.FAULT)
