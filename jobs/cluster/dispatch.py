"""Handing out work: pieces go to workers through a window, each item is done once, failures are told apart.

Ray Core rather than Ray Data (docs/decisions/0001): a worker commits its shards itself, so a lost worker costs only
what it had in flight, and an item that kills its process is counted and set aside instead of ending the run.

A worker that is lost and an item that raises are different things. The first is mostly no fault of the item, so it
uses up none of its attempts: items that were in flight go back, each alone on a worker until it is done, and only one
that is lost while alone is blamed. A node that is gone blames nobody, nor does a worker that never started. And an item
is not given up for errors of workers that have never done anything right, as long as there is one that has.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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

from infra.storage import StorageError
from jobs.cluster.crew import CONCURRENCY, Crew
from jobs.cluster.remote import raised_there
from jobs.errors import ClusterError, JobError
from time_ops import EditError, ModelError

__all__ = ["LOST", "MAX_LOSSES", "UNPLACEABLE", "Dispatch", "Failure"]

MAX_LOSSES = 4
"""An item that loses its worker this often, alone, is at fault."""
_MAX_ERRORS = 3
LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
UNPLACEABLE = (ActorUnschedulableError, RuntimeEnvSetupError)

T = TypeVar("T")


@dataclass(frozen=True)
class Failure(Generic[T]):
    """An item that is given up."""

    item: T
    error: Exception


@dataclass(frozen=True)
class _Piece(Generic[T]):
    items: tuple[T, ...]
    alone: bool = False
    """With nothing else on its worker."""
    for_proved: bool = False
    """On a worker that has finished something, as long as there is one."""


@dataclass(frozen=True)
class _Call(Generic[T]):
    number: int
    piece: _Piece[T]
    worker: int
    result: Any


class Dispatch(Generic[T]):
    """One stage of work. Iterate to run it: yields each finished piece and the reference of its result.

    Args:
        crew: the workers.
        pieces: the work, in tuples of items that go to a worker together; taken as they are needed.
        send: (worker, items) -> `Crew.send`'s two references.
        key: what an item is counted by.
        max_attempts: tries of an item that raises.
        max_failures: once more items than this are given up, the rest is left undone.

    Attributes:
        key: what an item is counted by.
        failures: items that were given up, in the order in which they were.

    Raises:
        ModelError, EditError, JobError: as raised by a worker; no retry can help.
        StorageError: the store stayed away for as long as a worker is patient, or refused an item on every attempt.
        ClusterError: workers die one after another, or none can be started.
    """

    def __init__(
        self,
        crew: Crew,
        pieces: Iterable[tuple[T, ...]],
        send: Callable[[int, tuple[T, ...]], tuple[Any, Any]],
        key: Callable[[T], object],
        max_attempts: int,
        max_failures: int = 0,
    ) -> None:
        self._crew, self._pieces, self._send, self.key = crew, iter(pieces), send, key
        self._max_attempts, self._max_failures = max_attempts, max_failures
        self._calls: dict[Any, _Call[T]] = {}
        self._again: deque[_Piece[T]] = deque()
        self._attempts: Counter[object] = Counter()
        self._losses: Counter[object] = Counter()
        self._lost_in_a_row = 0
        self._errors: dict[int, set[object]] = defaultdict(set)
        self._sure: set[object] = set()
        self._sent = 0
        self.failures: list[Failure[T]] = []

    def again(self, items: tuple[T, ...]) -> None:
        """Have a piece done once more, whose result is lost; while iterating."""
        self._again.append(_Piece(items))

    def __iter__(self) -> Iterator[tuple[tuple[T, ...], Any]]:
        self._ahead: tuple[T, ...] | None = next(self._pieces, None)
        try:
            yield from self._all()
        finally:
            self._crew.settle()

    def _all(self) -> Iterator[tuple[tuple[T, ...], Any]]:
        while (self._calls or self._again or self._ahead) and len(self.failures) <= self._max_failures:
            if self._ahead:
                self._crew.grow()
            self._fill(self._crew.ready())
            if not self._calls:
                self._crew.wait()
                continue
            ray.wait(list(self._calls), num_returns=1, timeout=1.0)
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
            # In the order of their submission: what was done before a worker died is done, not blamed.
            for done in sorted(ready, key=lambda ref: self._calls[ref].number):
                if done in self._calls:
                    call = self._calls.pop(done)
                    if self._settle(call, done):
                        yield call.piece.items, call.result

    def _fill(self, ready: list[int]) -> None:
        busy = Counter(call.worker for call in self._calls.values())
        taken = {call.worker for call in self._calls.values() if call.piece.alone}
        # One each first, then the second: the last pieces of a stage spread over all workers.
        for depth in range(CONCURRENCY):
            for number in ready:
                if number in taken or busy[number] > depth:
                    continue
                piece = self._next(number, is_idle=busy[number] == 0)
                if piece is None:
                    continue
                if piece.alone:
                    taken.add(number)
                busy[number] += 1
                self._sent += 1
                done, result = self._send(number, piece.items)
                self._calls[done] = _Call(self._sent, piece, number, result)

    def _next(self, worker: int, *, is_idle: bool) -> _Piece[T] | None:
        """The next piece that a worker may take; one that must run alone waits for an idle worker, others behind it."""
        if self._again:
            first = self._again[0]
            if first.for_proved and worker not in self._crew.proved and self._crew.others_proved(worker):
                return None
            return self._again.popleft() if is_idle or not first.alone else None
        items, self._ahead = self._ahead, next(self._pieces, None) if self._ahead is not None else None
        return None if items is None else _Piece(items)

    def _settle(self, call: _Call[T], done: Any) -> bool:
        try:
            ray.get(done)
        except RayTaskError as error:
            on_proved = call.worker in self._crew.proved
            self._doubt(call)
            self._on_error(call, raised_there(error), on_proved=on_proved)
        except UNPLACEABLE as error:
            raise ClusterError(f"a worker can't be started: {type(error).__name__}: {error}") from error
        except LOST as error:
            self._on_lost(call, error)
        else:
            self._lost_in_a_row = 0
            self._crew.proved.add(call.worker)
            self._errors.pop(call.worker, None)
            return True
        return False

    def _doubt(self, call: _Call[T]) -> None:
        """After an error: a process whose device has broken fails fast and would draw the whole queue, so it goes.

        One that has never done anything is likely as good as the next, and is given a few items to try.
        """
        worker = call.worker
        errors = self._errors[worker]
        errors.update(self.key(item) for item in call.piece.items[:1])
        is_proved = worker in self._crew.proved
        if is_proved or len(errors) >= _MAX_ERRORS:
            self._again.extend(other.piece for other in self._take_back(call))
            if not is_proved and self._crew.others_proved(worker):
                self._crew.shun(worker)
            else:
                self._crew.replace(worker)

    def _take_back(self, call: _Call[T]) -> list[_Call[T]]:
        """The other calls of the same worker; they will not end well there."""
        others = [ref for ref, other in self._calls.items() if other.worker == call.worker]
        return [self._calls.pop(ref) for ref in others]

    def _on_lost(self, call: _Call[T], error: Exception) -> None:
        together = sorted([call, *self._take_back(call)], key=lambda c: c.number)
        never_started = not self._crew.has_answered(call.worker)
        blames_nobody = never_started or self._crew.is_node_lost(call.worker)
        if not (blames_nobody and self._crew.others_proved(call.worker)):
            self._lost_in_a_row += 1
        self._crew.replace(call.worker)
        if self._lost_in_a_row > MAX_LOSSES * self._crew.largest:
            raise ClusterError(
                f"{self._lost_in_a_row} workers died one after another and finished nothing; the last one: {error}"
            ) from error
        if blames_nobody:
            self._again.extend(c.piece for c in together)
        elif len(together) > 1:
            self._again.extend(_Piece((item,), alone=True) for c in together for item in c.piece.items)
        else:
            for item in call.piece.items:
                self._count(item, error, self._losses, MAX_LOSSES)

    def _on_error(self, call: _Call[T], error: Exception, *, on_proved: bool) -> None:
        # A model that one node can't load, while others have, is that node's trouble.
        is_nodes_own = isinstance(error, ModelError) and not on_proved and self._crew.others_proved(call.worker)
        if isinstance(error, (ModelError, EditError, JobError)) and not is_nodes_own:
            raise error
        if isinstance(error, StorageError) and error.retriable:
            raise error  # the worker has waited for the store already
        for item in call.piece.items:
            if on_proved:
                self._sure.add(self.key(item))
            self._count(item, error, self._attempts, self._max_attempts)

    def _count(self, item: T, error: Exception, counts: Counter[object], most: int) -> None:
        key = self.key(item)
        counts[key] += 1
        is_sure = counts is self._losses or key in self._sure or not self._crew.proved
        if counts[key] < most or not is_sure:
            # Alone from now on: whichever item of the piece is at fault then stands alone.
            self._again.append(_Piece((item,), alone=True, for_proved=counts[key] >= most))
        elif isinstance(error, StorageError):
            raise error
        else:
            self.failures.append(Failure(item, error))
