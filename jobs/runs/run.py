"""A run under way: its inputs read, workers started, its folder opened under a lease; and closed again."""

from __future__ import annotations

import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from rich.console import Console

from infra.storage import ObjectMissing, ObjectStore, StorageError, StorageSettings, open_store
from jobs.cluster.metrics import Metrics
from jobs.cluster.pool import Pool, Spent
from jobs.cluster.progress import Reporter
from jobs.config import RunConfig
from jobs.errors import ExitCode, exit_code_of
from jobs.images.compiling import for_images
from jobs.images.recipe import Probe, Recipe, recipe_of
from jobs.models.staging import cache_folder
from jobs.redact import redact
from jobs.runs.folder import BEAT_S, RunFolder
from jobs.runs.identity import provenance_of, without_paths
from jobs.runs.lease import Lease
from time_ops.files import json_of

__all__ = ["Inputs", "Kind", "Run", "RunFinished", "open_run"]

Kind = Literal["run", "audit", "evaluation"]
_LEASE_BEATS = 4
# A driver that is told to stop has seconds, not the minutes that it has for a store that is away.
_LAST_WORDS_S = 5.0


class RunFinished(Exception):  # noqa: N818 - no error: what was asked for is there
    """The run that was asked for is finished already, and that will do; see `RunKind.again`."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.run)
        self.folder = folder


InputsT = TypeVar("InputsT", bound="Inputs")


class Inputs(Protocol):
    """What a run reads before it starts any worker."""

    @property
    def summary(self) -> str:
        """In words: "35 professions"."""
        ...

    @property
    def images(self) -> int:
        """How many images the run draws, at least."""
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
    spent: Spent = field(default_factory=Spent)
    used: list[str] = field(default_factory=list)

    def complete(self, verdict: str, code: ExitCode) -> None:
        """The last write: the shards and files that the run rests on."""
        self.lease.check()
        self.folder.complete(verdict, int(code), [d for d in self.used if d not in self.spent.failed])


@contextmanager
def open_run(
    config: RunConfig,
    console: Console,
    read: Callable[[StorageSettings, str], InputsT],
    *,
    kind: Kind,
    worker: Callable[..., object],
    again: bool = True,
) -> Iterator[tuple[Run, InputsT]]:
    """Read the inputs, start workers, take the run's lease and open its folder; on a failure run.json says so.

    Args:
        config: the run.
        console: for people.
        read: reads and checks the inputs, given how to reach object storage and the run's staging token.
        kind: the first word of a derived run's name.
        worker: makes a worker, in its process.
        again: see `RunKind`.

    Raises:
        RunFinished: there is nothing to do, see `RunKind.again`.
        ConfigError: the output or the run's name must be mended; nothing was written.
        ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: see `jobs.errors`.
        Exception: what `read` raises.
    """
    started, token = time.monotonic(), uuid.uuid4().hex[:12]
    settings = StorageSettings.from_environment()
    try:
        inputs = read(settings, token)
        config = for_images(config, inputs.images / (config.workers.count or 1))
        # Without patience: a wrong address or bucket is told at once.
        open_store(config.output, settings).check_writable()
        settings = settings.model_copy(update={"patience_s": config.storage.patience_s})
        store, hasty = _stores(config, settings)
        say = _say_on(console)
        with _place_of(store, hasty, config.run) as place, ExitStack() as held:
            # A run with a name is leased before it takes up a worker: a second driver is told at once.
            taken = None if place.folder is None else _take_lease(store, place.folder, say, held)
            with Pool(config, settings, token, worker, say) as pool:
                say(f"{inputs.summary}, {pool.size} worker(s); loading the models")
                probe = pool.probe()
                recipe = recipe_of(config, probe)
                inputs.check(recipe)
                identity = inputs.identity(recipe)
                folder = place.folder or RunFolder(store, f"{kind}-{identity[:16]}", last_words=hasty)
                if not again and _is_finished(folder, identity):
                    raise RunFinished(folder)
                place.folder = folder
                lease, metrics = taken or _take_lease(store, folder, say, held)
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


def _say_on(console: Console) -> Callable[[str], None]:
    """Lines for people, without secrets."""
    return lambda text: console.print(redact(text), markup=False, highlight=False, soft_wrap=True)


def _stores(config: RunConfig, settings: StorageSettings) -> tuple[ObjectStore, ObjectStore]:
    """The run's output, and the same for whoever has only seconds left."""
    hasty = settings.model_copy(update={"patience_s": _LAST_WORDS_S})
    return open_store(config.output, settings), open_store(config.output, hasty)


def _take_lease(
    store: ObjectStore, folder: RunFolder, say: Callable[[str], None], held: ExitStack
) -> tuple[Lease, Metrics]:
    """The lease of a run's folder, given back as `held` closes, and the run's metrics; both beat."""
    metrics = Metrics(folder.run)

    def beat() -> None:
        folder.beat()
        metrics.beat()

    ttl_s = _LEASE_BEATS * BEAT_S
    lease = Lease(store, f"{folder.prefix}/LEASE", ttl_s=ttl_s, on_beat=beat, say=say)
    return held.enter_context(lease), metrics


@dataclass
class _Place:
    """Where a failure is told: the run's folder, once it is known."""

    folder: RunFolder | None


@contextmanager
def _place_of(store: ObjectStore, hasty: ObjectStore, run: str | None) -> Iterator[_Place]:
    """The run's folder where its name is given, so that it is seen to be queued; and on a failure, to have failed."""
    place = _Place(RunFolder(store, run, last_words=hasty) if run else None)
    try:
        if place.folder is not None:
            place.folder.queue("waiting for workers")
        yield place
    except BaseException as error:
        if place.folder is not None:
            # If the store is what failed, its error must reach the user, not the one of saying so.
            with suppress(StorageError):
                place.folder.fail(error, _code(error))
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
