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
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError, WorkerCrashedError

from infra.storage import StorageError, StorageSettings
from jobs.config import RunConfig
from jobs.errors import ClusterError, ShardsFailedError
from jobs.shards import ShardSpec
from jobs.worker import AuditWorker, Probe, ShardOutcome
from time_ops import EditError, EditOperator, ModelError

__all__ = ["Pool", "Tallied"]

# Two calls per actor: one runs, one waits in the actor's queue, so that no actor idles while the driver decides.
_IN_FLIGHT = 2
_GROUP_IMAGES = 64
# Losing a worker is mostly no fault of the shard; one that is lost this often is.
_MAX_LOSSES = 8
_ACTOR_LOST = (ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError)


@dataclass
class Tallied:
    """What a stage of generation came to."""

    shards: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
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
        self.failed |= other.failed
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


class Pool:
    """Workers on a Ray cluster. Use as a context manager; leaving it ends the actors.

    Raises:
        ClusterError: the cluster has not the resources that one worker asks for.
    """

    def __init__(self, config: RunConfig, settings: StorageSettings, token: str) -> None:
        self._config = config
        self._settings = settings
        self._token = token
        self._expected: tuple[str, str] | None = None
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        wanted = config.workers
        gpus = wanted.num_gpus if wanted.num_gpus is not None else (1.0 if total.get("GPU", 0) >= 1 else 0.0)
        self._demand = {"CPU": wanted.num_cpus, "GPU": gpus}
        room = min(int(total.get(name, 0) / need) for name, need in self._demand.items() if need > 0)
        if room < 1:
            raise ClusterError(
                f"one worker asks for {self._demand}, and the whole cluster has "
                f"{ {name: total.get(name, 0) for name in self._demand} }; lower workers.num_cpus or workers.num_gpus, "
                "or add nodes"
            )
        self.size = min(room, wanted.count or room)
        self._actors: dict[int, Any] = {}
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
        ray.kill(self._actors.pop(number))
        self._spawn()

    def _spawn(self) -> None:
        threads = max(1, int(self._config.workers.num_cpus)) if not self._demand["GPU"] else None
        actor = (
            ray.remote(AuditWorker)
            .options(num_cpus=self._demand["CPU"], num_gpus=self._demand["GPU"], max_restarts=0, max_task_retries=0)
            .remote(self._config, self._settings, self._token, threads, self._expected)
        )
        number, self._next = self._next, self._next + 1
        self._actors[number] = actor

    def probe(self) -> Probe:
        """One worker's answer: which models, which device. The others are then held to the same models."""
        probe: Probe = self.call("probe")
        self._expected = (probe.model, probe.classifier)
        while len(self._actors) < self.size:
            self._spawn()
        return probe

    def call(self, method: str, *args: Any) -> Any:
        """One method of one worker, errors as they were raised there."""
        actor = next(iter(self._actors.values()))
        try:
            return ray.get(getattr(actor, method).remote(*args))
        except RayTaskError as error:
            raise _cause(error) from error
        except _ACTOR_LOST as error:
            raise ClusterError(f"a worker died in {method}; see the cluster's logs: {error}") from error

    def run(self, specs: Iterable[ShardSpec], operator: EditOperator | None, advance: Callable[[int], None]) -> Tallied:
        """Make all shards, each once; `advance` is told of images as their shards are committed.

        Raises:
            ShardsFailedError: more than the allowed share failed; all others are committed.
            ModelError, EditError: the model or the edit itself is at fault, so no retry can help.
        """
        start = time.monotonic()
        queue = deque(_groups(list(specs)))
        total = sum(len(group) for group in queue)
        reference = ray.put(operator) if operator is not None else None
        attempts: Counter[str] = Counter()
        losses: Counter[str] = Counter()
        calls: dict[Any, _Call] = {}
        tallied = Tallied()
        while queue or calls:
            self._fill(queue, calls, reference)
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=5.0)
            for done in ready:
                call = calls.pop(done)
                try:
                    outcomes: list[ShardOutcome] = ray.get(done)
                except RayTaskError as error:
                    self._retry(call, _cause(error), attempts, self._config.workers.max_attempts, queue, tallied)
                except _ACTOR_LOST as error:
                    # Only the call that ran is to blame, the oldest; those that waited behind it are just put back.
                    waiting = [ref for ref, other in calls.items() if other.actor == call.actor]
                    running, *behind = sorted([call, *(calls.pop(ref) for ref in waiting)], key=lambda c: c.number)
                    self._replace(call.actor)
                    queue.extend(other.specs for other in behind)
                    self._retry(running, error, losses, _MAX_LOSSES, queue, tallied)
                else:
                    for outcome in outcomes:
                        tallied.add(outcome)
                        advance(outcome.images)
        tallied.wall_s = time.monotonic() - start
        if len(tallied.failed) > self._config.workers.failed_shards * total:
            some = "\n".join(f"  {prompt}: {why}" for prompt, why in list(tallied.failed.items())[:5])
            raise ShardsFailedError(
                f"{len(tallied.failed)} of {total} shards failed, {self._config.workers.failed_shards:.1%} may; "
                f"the others are stored, and the same command goes on from there. First failures:\n{some}"
            )
        return tallied

    def _fill(self, queue: deque[list[ShardSpec]], calls: dict[Any, _Call], reference: Any) -> None:
        busy = Counter(call.actor for call in calls.values())
        for _ in range(_IN_FLIGHT):
            for number, actor in self._actors.items():
                if queue and busy[number] < _IN_FLIGHT:
                    group = queue.popleft()
                    self._calls += 1
                    calls[actor.run.remote(group, reference)] = _Call(self._calls, group, number)
                    busy[number] += 1

    @staticmethod
    def _retry(
        call: _Call,
        error: Exception,
        counts: Counter[str],
        most: int,
        queue: deque[list[ShardSpec]],
        tallied: Tallied,
    ) -> None:
        if isinstance(error, (ModelError, EditError)):
            raise error
        for spec in call.specs:
            counts[spec.digest] += 1
            if counts[spec.digest] < most:
                # Alone from now on: whichever shard of the group is at fault then stands alone too.
                queue.append([spec])
            elif isinstance(error, StorageError):
                raise error
            else:
                tallied.failed[f"{spec.prompt} [{spec.first}]"] = f"{type(error).__name__}: {str(error)[:300]}"


def _groups(specs: Sequence[ShardSpec]) -> list[list[ShardSpec]]:
    """Shards to be made in one call: enough images to fill a device's batches."""
    groups: list[list[ShardSpec]] = []
    for spec in specs:
        if groups and sum(s.count for s in groups[-1]) + spec.count <= _GROUP_IMAGES:
            groups[-1].append(spec)
        else:
            groups.append([spec])
    return groups


def _cause(error: RayTaskError) -> Exception:
    """What the worker itself raised."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else error
