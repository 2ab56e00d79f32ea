"""The pool: what a run asks of its workers. Shards and other work are handed out as `jobs.cluster.dispatch` says."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar, TypeVarTuple

import ray
from ray.exceptions import RayTaskError

from infra.storage import StorageSettings
from jobs.cluster.api import ShardWorker
from jobs.cluster.crew import Crew
from jobs.cluster.dispatch import LOST, UNPLACEABLE, Dispatch, Failure
from jobs.cluster.progress import Advance
from jobs.cluster.remote import raised_there
from jobs.cluster.shared import Shared
from jobs.cluster.tree import Tree
from jobs.config import RunConfig
from jobs.errors import ClusterError, ShardsFailedError
from jobs.images.recipe import Probe
from jobs.images.requests import EditRequest
from jobs.images.shards import ShardOutcome, ShardSpec
from time_ops import EditOperator

__all__ = ["Pool", "Spent"]

_log = logging.getLogger(__name__)

# A piece holds enough images to fill a device's batches, and not so many that a lost worker costs much.
_PIECE_IMAGES = 64
_MOST_IMAGES = 256
_MOST_WASTE = 0.1
# So many failed shards above the limit are no accident: what is left would fail too, and cost as much.
_HOPELESS = 10
# A result that is lost with its node so often is no accident either.
_ATTEMPTS = 3

W = TypeVar("W")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


@dataclass
class Spent:
    """What drawing has cost so far, which the report says; `jobs.cluster.progress.Counts` has how far a stage is."""

    shards: int = 0
    reused: int = 0
    images_made: int = 0
    images_reused: int = 0
    worker_s: float = 0.0
    wall_s: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    """Digest of each shard that was given up -> why."""

    def add(self, outcome: ShardOutcome) -> None:
        """Count one committed shard."""
        self.shards += 1
        if outcome.reused:
            self.reused += 1
            self.images_reused += outcome.images
        else:
            self.images_made += outcome.images
            self.worker_s += outcome.seconds

    def __iadd__(self, other: Spent) -> Spent:
        self.shards += other.shards
        self.reused += other.reused
        self.images_made += other.images_made
        self.images_reused += other.images_reused
        self.worker_s += other.worker_s
        self.wall_s += other.wall_s
        self.failed |= other.failed
        return self


class Pool:
    """Workers on a Ray cluster. Use as a context manager; leaving it ends them.

    Args:
        config: the run's configuration.
        settings: how workers reach object storage.
        token: the run's staging folder, see `Worker`.
        worker: makes what makes shards, in its process: `jobs.worker.make.make_worker`, or a test's.
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
        self._shared = Shared()
        batch = config.sampler.batch_size
        # A worker that chooses lets a batch divide a shard, or hold several whole. Which, it says with the first ones.
        self._batch = config.shard_images if batch == "auto" else int(batch)

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
        self._shared = Shared()

    def probe(self) -> Probe:
        """One worker's answer: which models, which device. The others are then held to the same."""
        probe = self.call(ShardWorker.probe)
        self._expected = probe
        self._crew.grow()
        return probe

    def share(self, value: T) -> T:
        """Lay a value into the cluster's store while the pool lasts. Calls given what comes back send its reference."""
        return self._shared.put(value)

    def call(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One method of one worker, errors as they were raised there; on a lost worker another one is asked.

        Args:
            method: unbound, of a protocol that the worker follows. Its name is what is sent.
            args: of the method.
            kwargs: of the method.

        Raises:
            ClusterError: workers die of it, or none can be started.
        """
        name, attempts = method.__name__, self._config.workers.max_attempts
        for attempt in range(1, attempts + 1):
            number = self._crew.wait()[0]
            done, result = self._crew.send(number, name, *self._shared.sent(args), **kwargs)
            try:
                ray.get(done)
                self._crew.proved.add(number)
                answer: R = ray.get(result)
                return answer
            except RayTaskError as error:
                # The error is in both; one that nobody asks for is printed by Ray, traceback and all.
                with suppress(RayTaskError):
                    ray.get(result)
                raise raised_there(error) from error
            except UNPLACEABLE as error:
                raise ClusterError(f"no worker answers to {name}: {type(error).__name__}: {error}") from error
            except LOST as error:
                self._crew.replace(number)
                if attempt == attempts:
                    raise ClusterError(f"{attempt} workers died in {name}; the last one: {error}") from error
        raise ClusterError(f"no worker answered to {name}")

    def map(self, method: Callable[[W, *Ts], R], calls: Iterable[tuple[*Ts]]) -> Iterator[tuple[int, R]]:
        """One call of a method for each tuple of arguments, spread over the workers, taken as they are needed.

        Args:
            method: as of `call`.
            calls: arguments of each call.

        Yields:
            Index of the call and its result, as they are done. One that is lost with its node is made again.

        Raises:
            ModelError, EditError, JobError, StorageError: see `Dispatch`.
            ClusterError: workers die one after another, or a call's result is lost again and again.
            Exception: what a call keeps raising, as it was raised there.
        """
        work = self._dispatch(method.__name__, calls)
        for ((index, _),), result in _fetch(work, method.__name__):
            yield index, result
        _check(work, method.__name__)

    def reduce(
        self,
        method: Callable[[W, *Ts], R],
        calls: Callable[[], Iterable[tuple[*Ts]]],
        count: int,
        add: Callable[[Sequence[R]], R],
        finish: Callable[[R], S],
    ) -> S:
        """As `map`, but results are added up in the cluster, in an order that their number decides.

        Args:
            method: as of `call`.
            calls: gives the arguments of each call, from the first one at each attempt.
            count: how many calls they are.
            add: sums neighbouring results; a module's function.
            finish: what it makes of the whole sum is the result; a module's function. Small sums end in the driver.

        Raises:
            ClusterError: also where results are lost with their node again and again. All is begun again then, as sums
                may hold them already.
            ModelError, EditError, JobError, StorageError, Exception: as `map`.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                work, tree = self._dispatch(method.__name__, calls()), Tree(count, add)
                for ((index, _),), reference in work:
                    tree.add(index, reference)
                _check(work, method.__name__)
                return tree.finish(finish)
            except LOST as error:
                lost: Exception = error
            _log.warning("results of %s were lost, attempt %d of %d: %s", method.__name__, attempt, _ATTEMPTS, lost)
        raise ClusterError(f"results of {method.__name__} were lost {_ATTEMPTS} times; the last time: {lost}") from lost

    def _dispatch(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Dispatch[tuple[int, tuple[Any, ...]]]:
        """The calls of a method, each a piece by itself."""

        def send(worker: int, items: tuple[tuple[int, tuple[Any, ...]], ...]) -> tuple[Any, Any]:
            return self._crew.send(worker, method, *self._shared.sent(items[0][1]))

        pieces = (((i, args),) for i, args in enumerate(calls))
        return Dispatch(self._crew, pieces, send, lambda item: item[0], self._config.workers.max_attempts)

    def run(
        self,
        specs: Iterable[ShardSpec],
        operators: Sequence[EditOperator],
        advance: Advance,
        total: int,
        edits: Mapping[str, EditRequest] | None = None,
    ) -> Spent:
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
        shared = self._shared.put(tuple(operators))
        try:
            work = self._shard_work(specs, shared, edits, max(most, _HOPELESS))
            tallied = _commit(work, advance, self._hear)
        finally:
            self._shared.drop(shared)
        tallied.wall_s = time.monotonic() - start
        if len(work.failures) > most:
            some = "\n".join(f"  {why}" for why in list(tallied.failed.values())[:5])
            raise ShardsFailedError(
                f"{len(work.failures)} of {total} shards failed; {tallied.shards} are stored, and the same command "
                f"goes on from there. First failures:\n{some}"
            )
        return tallied

    def _shard_work(
        self,
        specs: Iterable[ShardSpec],
        operators: tuple[EditOperator, ...],
        edits: Mapping[str, EditRequest] | None,
        max_failures: int,
    ) -> Dispatch[ShardSpec]:
        name = ShardWorker.run.__name__

        def send(worker: int, items: tuple[ShardSpec, ...]) -> tuple[Any, Any]:
            (reference,) = self._shared.sent([operators])
            if edits is None:
                return self._crew.send(worker, name, items, reference)
            named = {spec.operator: edits[spec.operator] for spec in items if spec.operator in edits}
            return self._crew.send(worker, name, items, reference, named)

        attempts = self._config.workers.max_attempts
        pieces = _pieces(specs, lambda: self._batch)
        return Dispatch(self._crew, pieces, send, lambda spec: spec.digest, attempts, max_failures)

    def _hear(self, outcome: ShardOutcome) -> None:
        self._batch = outcome.batch or self._batch


def _fetch(work: Dispatch[T], name: str) -> Iterator[tuple[tuple[T, ...], Any]]:
    """Each piece with its result; one whose result is lost on the way is done again, a few times at most."""
    lost: Counter[tuple[object, ...]] = Counter()
    for items, reference in work:
        try:
            result = ray.get(reference)
        except LOST as error:
            key = tuple(map(work.key, items))
            lost[key] += 1
            _log.warning("a result of %s was lost, attempt %d of %d: %s", name, lost[key], _ATTEMPTS, error)
            if lost[key] == _ATTEMPTS:
                raise ClusterError(f"results of {name} were lost {_ATTEMPTS} times; the last time: {error}") from error
            work.again(items)
        else:
            yield items, result


def _check(work: Dispatch[Any], name: str) -> None:
    """Raise what a call kept raising, where every one of them is needed."""
    if work.failures:
        error = work.failures[0].error
        if isinstance(error, LOST):
            raise ClusterError(f"workers die of {name}; the last one: {error}") from error
        raise error


def _commit(work: Dispatch[ShardSpec], advance: Advance, hear: Callable[[ShardOutcome], None]) -> Spent:
    """Do the work, and count it; shards that are given up too."""
    tallied = Spent()

    def tell_failures() -> None:
        for failure in work.failures[len(tallied.failed) :]:
            tallied.failed[failure.item.digest] = _why(failure)
            advance(failure.item.count, shard_failed=True)

    for _, outcomes in _fetch(work, ShardWorker.run.__name__):
        for outcome in outcomes:
            tallied.add(outcome)
            hear(outcome)
            advance(outcome.images, outcome.reused, outcome.failed_images)
        tell_failures()
    tell_failures()
    return tallied


def _why(failure: Failure[ShardSpec]) -> str:
    spec, error = failure.item, failure.error
    return f"{spec.prompt!r} from image {spec.first}: {type(error).__name__}: {str(error)[:300]}"


def _pieces(specs: Iterable[ShardSpec], batch: Callable[[], int]) -> Iterator[tuple[ShardSpec, ...]]:
    """Shards to be made in one call: as whole batches, of the size that is known by then, as can be."""
    piece: list[ShardSpec] = []
    images = 0
    for spec in specs:
        piece.append(spec)
        images += spec.count
        waste = -images % batch() / images
        if images >= max(_MOST_IMAGES, batch()) or (images >= _PIECE_IMAGES and waste <= _MOST_WASTE):
            yield tuple(piece)
            piece, images = [], 0
    if piece:
        yield tuple(piece)
