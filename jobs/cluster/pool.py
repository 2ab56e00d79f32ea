"""The pool: what a run asks of its workers. Shards and other work are handed out as `jobs.cluster.dispatch` says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayTaskError

from infra.storage import StorageSettings
from jobs.cluster.crew import Crew
from jobs.cluster.dispatch import LOST, UNPLACEABLE, Dispatch, Failure
from jobs.cluster.progress import Advance
from jobs.cluster.remote import raised_there
from jobs.config import RunConfig
from jobs.errors import ClusterError, ShardsFailedError
from jobs.images.recipe import Probe
from jobs.images.requests import EditRequest
from jobs.images.shards import ShardOutcome, ShardSpec
from time_ops import EditOperator

__all__ = ["Pool", "Tallied"]

# A piece holds enough images to fill a device's batches, and not so many that a lost worker costs much.
_PIECE_IMAGES = 64
_MOST_IMAGES = 256
_MOST_WASTE = 0.1
# So many failed shards above the limit are no accident: what is left would fail too, and cost as much.
_HOPELESS = 10


@dataclass
class Tallied:
    """What a stage of generation came to."""

    shards: int = 0
    reused: int = 0
    images_made: int = 0
    images_reused: int = 0
    images_bad: int = 0
    worker_s: float = 0.0
    wall_s: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    """Digest of each shard that was given up -> why."""

    def add(self, outcome: ShardOutcome) -> None:
        """Count one committed shard."""
        self.shards += 1
        self.images_bad += outcome.failed_images
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
        self.images_bad += other.images_bad
        self.worker_s += other.worker_s
        self.wall_s += other.wall_s
        self.failed |= other.failed
        return self


class Pool:
    """Workers on a Ray cluster. Use as a context manager; leaving it ends them.

    Args:
        config: the run's configuration.
        settings: how workers reach object storage.
        token: the run's staging folder, see `AuditWorker`.
        worker: makes what makes shards, in its process: `jobs.worker.make.audit_worker`, or a test's.
        say: tells people what is waited for.

    Raises:
        ClusterError: no node has the resources that one worker asks for, and none with them will come.
    """

    def __init__(
        self,
        config: RunConfig,
        settings: StorageSettings,
        token: str,
        worker: Callable[..., object],
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self._expected: Probe | None = None

        def arguments() -> tuple[Any, ...]:
            threads = None if self._crew.demand.gpus else max(1, int(config.workers.num_cpus))
            return config, settings, token, threads, self._expected

        self._crew = Crew(worker, arguments, config.workers, say or (lambda _: None))

    @property
    def size(self) -> int:
        """How many workers there should be now."""
        return self._crew.size

    def __enter__(self) -> Pool:
        # One worker says which models there are; `probe` then starts the others, which check theirs against it.
        self._crew.spawn()
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.close()

    def probe(self) -> Probe:
        """One worker's answer: which models, which device. The others are then held to the same."""
        probe: Probe = self.call("probe")
        self._expected = probe
        self._crew.grow()
        return probe

    def call(self, method: str, *args: Any) -> Any:
        """One method of one worker, errors as they were raised there; on a lost worker another one is asked.

        Raises:
            ClusterError: workers die of it, or none can be started.
        """
        attempts = self._config.workers.max_attempts
        for attempt in range(1, attempts + 1):
            number = self._crew.wait()[0]
            done, result = self._crew.send(number, method, *args)
            try:
                ray.get(done)
                self._crew.proved.add(number)
                return ray.get(result)
            except RayTaskError as error:
                # The error is in both; one that nobody asks for is printed by Ray, traceback and all.
                with suppress(RayTaskError):
                    ray.get(result)
                raise raised_there(error) from error
            except UNPLACEABLE as error:
                raise ClusterError(f"no worker answers to {method}: {type(error).__name__}: {error}") from error
            except LOST as error:
                self._crew.replace(number)
                if attempt == attempts:
                    raise ClusterError(f"{attempt} workers died in {method}; the last one: {error}") from error
        raise ClusterError(f"no worker answered to {method}")

    def map(self, method: str, calls: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """One call of a method for each tuple of arguments, spread over the workers, taken as they are needed.

        Yields:
            Index of the call and the reference of its result, as they are done.

        Raises:
            As `Dispatch`; an error that a call keeps raising is raised as it was there.
        """

        def send(worker: int, items: tuple[tuple[int, Sequence[Any]], ...]) -> tuple[Any, Any]:
            return self._crew.send(worker, method, *items[0][1])

        pieces = (((i, args),) for i, args in enumerate(calls))
        work: Dispatch[tuple[int, Sequence[Any]]] = Dispatch(
            self._crew, pieces, send, lambda item: item[0], self._config.workers.max_attempts
        )
        for ((index, _),), result in work:
            yield index, result
        if work.failures:
            error = work.failures[0].error
            if isinstance(error, LOST):
                raise ClusterError(f"workers die of {method}; the last one: {error}") from error
            raise error

    def run(
        self,
        specs: Iterable[ShardSpec],
        operators: Sequence[EditOperator],
        advance: Advance,
        total: int,
        edits: Mapping[str, EditRequest] | None = None,
    ) -> Tallied:
        """Make all shards, each once; `advance` is told of each as it is committed, or given up.

        Args:
            specs: the shards, each once; taken as they are needed.
            operators: those that the shards name, the base aside.
            advance: told of each shard.
            total: how many shards they are.
            edits: where the shards name several operators: digest -> from what a worker solves it. Each call is sent
                those that its own shards name, so no matrix travels.

        Returns:
            What was made, found and given up; within `workers.failed_shards` a run goes on without the latter.

        Raises:
            ShardsFailedError: more shards failed than that; what was done is stored.
            ModelError, EditError: the model or the edit itself is at fault, so no retry can help.
            ClusterError: workers die one after another, or none can be started.
        """
        start = time.monotonic()
        most = int(self._config.workers.failed_shards * total)
        reference = ray.put(tuple(operators))
        batch = self._config.sampler.batch_size
        # Chosen by the worker, a batch divides a shard, or holds several whole.
        size = self._config.shard_images if batch == "auto" else int(batch)

        def send(worker: int, items: tuple[ShardSpec, ...]) -> tuple[Any, Any]:
            if edits is None:
                return self._crew.send(worker, "run", items, reference)
            named = {spec.operator: edits[spec.operator] for spec in items if spec.operator in edits}
            return self._crew.send(worker, "run", items, reference, named)

        work: Dispatch[ShardSpec] = Dispatch(
            self._crew,
            _pieces(specs, size),
            send,
            lambda spec: spec.digest,
            self._config.workers.max_attempts,
            max_failures=max(most, _HOPELESS),
        )
        tallied = Tallied()

        def tell_failures() -> None:
            for failure in work.failures[len(tallied.failed) :]:
                tallied.failed[failure.item.digest] = _why(failure)
                advance(failure.item.count, shard_failed=True)

        for _, result in work:
            for outcome in ray.get(result):
                tallied.add(outcome)
                advance(outcome.images, outcome.reused, outcome.failed_images)
            tell_failures()
        tell_failures()
        tallied.wall_s = time.monotonic() - start
        if len(work.failures) > most:
            some = "\n".join(f"  {why}" for why in list(tallied.failed.values())[:5])
            raise ShardsFailedError(
                f"{len(work.failures)} of {total} shards failed; {tallied.shards} are stored, and the same command "
                f"goes on from there. First failures:\n{some}"
            )
        return tallied


def _why(failure: Failure[ShardSpec]) -> str:
    spec, error = failure.item, failure.error
    return f"{spec.prompt!r} from image {spec.first}: {type(error).__name__}: {str(error)[:300]}"


def _pieces(specs: Iterable[ShardSpec], batch: int) -> Iterator[tuple[ShardSpec, ...]]:
    """Shards to be made in one call: as whole batches as can be."""
    piece: list[ShardSpec] = []
    images = 0
    for spec in specs:
        piece.append(spec)
        images += spec.count
        waste = -images % batch / images
        if images >= max(_MOST_IMAGES, batch) or (images >= _PIECE_IMAGES and waste <= _MOST_WASTE):
            yield tuple(piece)
            piece, images = [], 0
    if piece:
        yield tuple(piece)
