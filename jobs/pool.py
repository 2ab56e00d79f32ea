"""The pool: Ray actors that make shards, fed through a window, with attempts counted per shard.

Ray Core rather than Ray Data (docs/decisions): a shard is committed by its worker, so a lost worker costs only what
it had in flight, and a shard that kills its process is counted and set aside instead of ending the run.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from infra.storage import StorageError, StorageSettings
from jobs.config import RunConfig
from jobs.errors import ClusterError, ShardsFailedError
from jobs.remote import raised_there
from jobs.shards import ShardSpec
from jobs.worker import AuditWorker, Probe, ShardOutcome
from time_ops import EditError, EditOperator, ModelError

__all__ = ["Pool", "Tallied"]

# Two calls per actor: one runs, one waits in the actor's queue, so that no actor idles while the driver decides.
_IN_FLIGHT = 2
_GROUP_IMAGES = 64
# Losing a worker is mostly no fault of the shard; one that is lost this often is.
_MAX_LOSSES = 4
_START_S = 600.0
_ACTOR_LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
_UNPLACEABLE = (ActorUnschedulableError, RuntimeEnvSetupError)


@dataclass
class Tallied:
    """What a stage of generation came to."""

    shards: int = 0
    reused: int = 0
    images_made: int = 0
    images_reused: int = 0
    worker_s: float = 0.0
    wall_s: float = 0.0

    def add(self, outcome: ShardOutcome) -> None:
        """Count one committed shard."""
        self.shards += 1
        if outcome.reused:
            self.reused += 1
            self.images_reused += outcome.images
        else:
            self.images_made += outcome.images
            self.worker_s += outcome.seconds

    def __iadd__(self, other: Tallied) -> Tallied:
        self.shards += other.shards
        self.reused += other.reused
        self.images_made += other.images_made
        self.images_reused += other.images_reused
        self.worker_s += other.worker_s
        self.wall_s += other.wall_s
        return self


@dataclass
class _Call:
    number: int
    specs: list[ShardSpec]
    actor: int


@dataclass
class _Stage:
    """The book of one stage: what is left, what runs, what went wrong with which shard."""

    queue: deque[list[ShardSpec]]
    calls: dict[Any, _Call] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    lost_in_a_row: int = 0


class Pool:
    """Workers on a Ray cluster. Use as a context manager; leaving it ends the actors.

    Args:
        config: the run's configuration.
        settings: how workers reach object storage.
        token: the run's staging folder, see `AuditWorker`.
        worker: the class that makes shards; tests put another one here.

    Raises:
        ClusterError: no node has the resources that one worker asks for.
    """

    def __init__(
        self, config: RunConfig, settings: StorageSettings, token: str, worker: type[AuditWorker] = AuditWorker
    ) -> None:
        self._config = config
        self._settings = settings
        self._token = token
        self._worker = worker
        self._expected: Probe | None = None
        # Per node: what two nodes have together is of no use to one worker.
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        wanted = config.workers
        has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
        gpus = wanted.num_gpus if wanted.num_gpus is not None else float(has_gpu)
        self._demand = {"CPU": wanted.num_cpus, "GPU": gpus}
        needs = {name: need for name, need in self._demand.items() if need > 0}
        room = sum(min(int(node.get(name, 0) / need) for name, need in needs.items()) for node in nodes)
        if room < 1:
            raise ClusterError(
                f"one worker asks for {needs}, and no node has that; the nodes have "
                f"{[{name: node.get(name, 0) for name in needs} for node in nodes]}. "
                "Lower workers.num_cpus or workers.num_gpus, or add larger nodes"
            )
        self.size = min(room, wanted.count or room)
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._next = 0
        self._calls = 0

    def __enter__(self) -> Pool:
        # One worker says which models there are; `probe` then starts the others, which check theirs against it.
        self._spawn()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors.values():
            ray.kill(actor)

    def _replace(self, number: int) -> None:
        actor = self._actors.pop(number, None)
        if actor is not None:
            self._starting = {ref: n for ref, n in self._starting.items() if n != number}
            ray.kill(actor)
            self._spawn()

    def _spawn(self) -> None:
        threads = max(1, int(self._config.workers.num_cpus)) if not self._demand["GPU"] else None
        actor: Any = (
            ray.remote(self._worker)
            .options(num_cpus=self._demand["CPU"], num_gpus=self._demand["GPU"], max_restarts=0, max_task_retries=0)
            .remote(self._config, self._settings, self._token, threads, self._expected)
        )
        number, self._next = self._next, self._next + 1
        self._actors[number] = actor
        self._starting[actor.pid.remote()] = number

    def _ready(self) -> list[int]:
        """Actors that have answered once. One that Ray can't place yet gets no work, so none is stuck with it."""
        if self._starting:
            answered, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            for ref in answered:
                # A failed start is seen, and counted, by the first call given to it.
                del self._starting[ref]
        waiting = set(self._starting.values())
        return [number for number in self._actors if number not in waiting]

    def probe(self) -> Probe:
        """One worker's answer: which models, which device. The others are then held to the same."""
        probe: Probe = self.call("probe")
        self._expected = probe
        while len(self._actors) < self.size:
            self._spawn()
        return probe

    def call(self, method: str, *args: Any) -> Any:
        """One method of one worker, errors as they were raised there; on a lost worker another one is asked.

        Raises:
            ClusterError: workers die of it, or none can be started.
        """
        for attempt in range(1, self._config.workers.max_attempts + 1):
            number = next(iter(self._ready() or self._actors))
            try:
                return ray.get(getattr(self._actors[number], method).remote(*args), timeout=_START_S)
            except RayTaskError as error:
                raise raised_there(error) from error
            except (*_UNPLACEABLE, ray.exceptions.GetTimeoutError) as error:
                raise ClusterError(f"no worker answers to {method}: {type(error).__name__}: {error}") from error
            except _ACTOR_LOST as error:
                self._replace(number)
                if attempt == self._config.workers.max_attempts:
                    raise ClusterError(f"{attempt} workers died in {method}; the last one: {error}") from error
        raise ClusterError(f"no worker answered to {method}")

    def run(self, specs: Iterable[ShardSpec], operator: EditOperator | None, advance: Callable[[int], None]) -> Tallied:
        """Make all shards, each once; `advance` is told of images as their shards are committed.

        Raises:
            ShardsFailedError: some shards failed for good; all others are committed.
            ModelError, EditError: the model or the edit itself is at fault, so no retry can help.
            ClusterError: workers die one after another, or none can be started.
        """
        start = time.monotonic()
        stage = _Stage(deque(_groups(list(specs))))
        total = sum(len(group) for group in stage.queue)
        reference = ray.put(operator) if operator is not None else None
        tallied = Tallied()
        last_answer = start
        while stage.queue or stage.calls:
            self._fill(stage, reference)
            if not stage.calls:
                if time.monotonic() - last_answer > _START_S:
                    raise ClusterError(f"no worker could be started within {_START_S:.0f} s; see `ray status`")
                time.sleep(0.1)
                continue
            last_answer = time.monotonic()
            ray.wait(list(stage.calls), num_returns=1, timeout=1.0)
            ready, _ = ray.wait(list(stage.calls), num_returns=len(stage.calls), timeout=0)
            # In the order of their submission: what was done before a worker died is done, not blamed.
            for done in sorted(ready, key=lambda ref: stage.calls[ref].number):
                if done in stage.calls:
                    self._collect(done, stage, tallied, advance)
        tallied.wall_s = time.monotonic() - start
        if stage.failed:
            some = "\n".join(f"  {why}" for why in list(stage.failed.values())[:5])
            raise ShardsFailedError(
                f"{len(stage.failed)} of {total} shards failed; the others are stored, and the same command goes on "
                f"from there. First failures:\n{some}"
            )
        return tallied

    def _fill(self, stage: _Stage, reference: Any) -> None:
        busy = Counter(call.actor for call in stage.calls.values())
        ready = self._ready()
        # One each first, then the second: the last groups of a stage spread over all workers.
        for depth in range(_IN_FLIGHT):
            for number in ready:
                if stage.queue and busy[number] <= depth:
                    group = stage.queue.popleft()
                    self._calls += 1
                    call = self._actors[number].run.remote(group, reference)
                    stage.calls[call] = _Call(self._calls, group, number)
                    busy[number] += 1

    def _collect(self, done: Any, stage: _Stage, tallied: Tallied, advance: Callable[[int], None]) -> None:
        call = stage.calls.pop(done)
        try:
            outcomes: list[ShardOutcome] = ray.get(done)
        except RayTaskError as error:
            # A process with a broken device fails fast and would draw the whole queue: the retry meets a fresh one.
            behind = self._take_back(call, stage)
            self._replace(call.actor)
            stage.queue.extend(other.specs for other in behind)
            self._retry(call, raised_there(error), stage.attempts, self._config.workers.max_attempts, stage)
        except _UNPLACEABLE as error:
            raise ClusterError(f"a worker can't be started: {type(error).__name__}: {error}") from error
        except _ACTOR_LOST as error:
            # Only the call that ran is to blame, the oldest; those that waited behind it are just put back.
            running, *behind = sorted([call, *self._take_back(call, stage)], key=lambda c: c.number)
            self._replace(call.actor)
            stage.queue.extend(other.specs for other in behind)
            stage.lost_in_a_row += 1
            if stage.lost_in_a_row > _MAX_LOSSES * self.size:
                raise ClusterError(
                    f"{stage.lost_in_a_row} workers died one after another and none made a shard; the last one: {error}"
                ) from error
            self._retry(running, error, stage.losses, _MAX_LOSSES, stage)
        else:
            stage.lost_in_a_row = 0
            for outcome in outcomes:
                tallied.add(outcome)
                advance(outcome.images)

    @staticmethod
    def _take_back(call: _Call, stage: _Stage) -> list[_Call]:
        """Calls that wait behind this one in the same actor's queue; they will never run there."""
        waiting = [ref for ref, other in stage.calls.items() if other.actor == call.actor]
        return [stage.calls.pop(ref) for ref in waiting]

    @staticmethod
    def _retry(call: _Call, error: Exception, counts: Counter[str], most: int, stage: _Stage) -> None:
        if isinstance(error, (ModelError, EditError)):
            raise error
        for spec in call.specs:
            counts[spec.digest] += 1
            if counts[spec.digest] < most:
                # Alone from now on: whichever shard of the group is at fault then stands alone too.
                stage.queue.append([spec])
            elif isinstance(error, StorageError):
                raise error
            else:
                why = f"{spec.prompt!r} from image {spec.first}: {type(error).__name__}: {str(error)[:300]}"
                stage.failed[spec.digest] = why


def _groups(specs: Sequence[ShardSpec]) -> list[list[ShardSpec]]:
    """Shards to be made in one call: enough images to fill a device's batches."""
    groups: list[list[ShardSpec]] = []
    for spec in specs:
        if groups and sum(s.count for s in groups[-1]) + spec.count <= _GROUP_IMAGES:
            groups[-1].append(spec)
        else:
            groups.append([spec])
    return groups
