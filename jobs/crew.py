"""The crew: a run's worker actors, started where there is room, replaced when lost, more of them as nodes come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from jobs import placement
from jobs.config import WorkersConfig
from jobs.errors import ClusterError

__all__ = ["CONCURRENCY", "Crew"]

# Two calls per worker: while one labels and stores its last images, the next one draws.
CONCURRENCY = 2
_GROW_EVERY_S = 5.0
_SAY_EVERY_S = 15.0
_START_S = 600.0


def _node_id(_: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


def _invoke(worker: object, method: str, *args: Any) -> tuple[None, Any]:
    """The result behind a marker, so that whoever waits can see success without fetching the result."""
    return None, getattr(worker, method)(*args)


class Crew:
    """Actors by number; a number is never used twice.

    Args:
        worker: the class that does the work.
        arguments: what the next one is made with.
        config: how many, of which size, how long to wait for an autoscaler.
        say: tells people what is waited for.

    Raises:
        ClusterError: no node can hold a worker, and no autoscaler can bring one that does.
    """

    def __init__(
        self,
        worker: type,
        arguments: Callable[[], Sequence[Any]],
        config: WorkersConfig,
        say: Callable[[str], None],
    ) -> None:
        self._worker, self._arguments, self._config, self._say = worker, arguments, config, say
        self.demand = placement.demand_of(config)
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._where: dict[int, str] = {}
        self._next = 0
        self._grown = 0.0

    @property
    def size(self) -> int:
        """How many workers there should be now: as many as asked for, or as the nodes hold."""
        return max(1, self._config.count or placement.room(self.demand))

    def __len__(self) -> int:
        return len(self._actors)

    def close(self) -> None:
        """End all workers."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._starting.clear()

    def grow(self) -> None:
        """Start workers where nodes have come; looked at every few seconds at most."""
        if time.monotonic() - self._grown >= _GROW_EVERY_S:
            self._grown = time.monotonic()
            for _ in range(self.size - len(self._actors)):
                self.spawn()

    def spawn(self) -> None:
        """Start one worker. Where there is no room for it yet, its demand is what an autoscaler sees."""
        actor: Any = (
            ray.remote(self._worker)
            .options(
                num_cpus=self.demand.cpus,
                num_gpus=self.demand.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CONCURRENCY,
            )
            .remote(*self._arguments())
        )
        number, self._next = self._next, self._next + 1
        self._actors[number] = actor
        self._starting[actor.__ray_call__.remote(_node_id)] = number

    def replace(self, number: int) -> None:
        """End a worker that is lost or broken, and start another."""
        actor = self._actors.pop(number, None)
        if actor is not None:
            self._starting = {ref: n for ref, n in self._starting.items() if n != number}
            ray.kill(actor)
            self.spawn()

    def ready(self) -> list[int]:
        """Workers that have answered once. One that Ray can't place yet gets no work, so none is stuck with it."""
        if self._starting:
            answered, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0, fetch_local=False)
            for ref in answered:
                number = self._starting.pop(ref)
                # A failed start is seen, and counted, by the first call given to it.
                try:
                    self._where[number] = ray.get(ref)
                except ray.exceptions.RayError:
                    self._where.pop(number, None)
        waiting = set(self._starting.values())
        return [number for number in self._actors if number not in waiting]

    def wait(self) -> list[int]:
        """The ready workers, at least one.

        Raises:
            ClusterError: none was started in time.
        """
        start = said = time.monotonic()
        while not (ready := self.ready()):
            has_room = placement.room(self.demand) > 0
            limit = _START_S if has_room else self._config.wait_s
            waited = time.monotonic() - start
            if waited > limit:
                raise ClusterError(
                    f"no worker could be started within {limit:.0f} s (one asks for {self.demand.needs}); "
                    "see `ray status`" + ("" if has_room else ", or raise workers.wait_s")
                )
            if time.monotonic() - said >= _SAY_EVERY_S or (waited > 2 and said == start):
                said = time.monotonic()
                what = "a worker to start" if has_room else f"the autoscaler to bring {self.demand.needs}"
                self._say(f"waiting for {what}: {waited:.0f} s of at most {limit:.0f} s")
            time.sleep(0.1)
        return ready

    def is_node_lost(self, number: int) -> bool:
        """Whether the node that this worker ran on is gone: preempted, removed, crashed."""
        where = self._where.get(number)
        return where is not None and where not in placement.nodes()

    def send(self, number: int, method: str, *args: Any) -> tuple[Any, Any]:
        """Call a method of a worker: (reference that is ready, or fails, with the call; reference of its result)."""
        done, result = self._actors[number].__ray_call__.options(num_returns=2).remote(_invoke, method, *args)
        return done, result
