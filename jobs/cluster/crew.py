"""The crew: a run's worker actors, started where there is room, replaced when lost, more of them as nodes come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from jobs.cluster import placement
from jobs.cluster.packages import PACKAGES, PackageDigests, check_packages, found_here, package_reader, refuse_others
from jobs.config import WorkersConfig
from jobs.errors import ClusterError

__all__ = ["CONCURRENCY", "Crew"]

# Two calls per worker: while one labels and stores its last images, the next one draws.
CONCURRENCY = 2
_GROW_EVERY_S = 5.0
_SAY_AFTER_S = 2.0
_SAY_EVERY_S = 15.0
_START_S = 600.0


def _introduction() -> Callable[[object], tuple[str, PackageDigests]]:
    """What a worker is asked first: its node, and its packages. It travels by value, see `jobs.cluster.packages`."""
    read, names = package_reader(), PACKAGES

    def answer(_: object) -> tuple[str, PackageDigests]:
        import ray

        return str(ray.get_runtime_context().get_node_id()), read(names)

    return answer


class EvenhandWorker:
    """The actor: a process, and in it the worker that `make` makes there.

    So a driver need not import what its workers do, nor the models' libraries that come with it.
    """

    def __init__(self, make: Callable[..., object], *args: Any) -> None:
        self.worker = make(*args)


def _invoke(actor: EvenhandWorker, method: str, *args: Any, **kwargs: Any) -> tuple[None, Any]:
    """The result behind a marker, so that whoever waits can see success without fetching the result."""
    return None, getattr(actor.worker, method)(*args, **kwargs)


class Crew:
    """Actors by number; a number is never used twice.

    Args:
        make: makes what does the work, in its own process: a class, or a function that imports one there.
        arguments: what the next one is made with.
        config: how many, of which size, how long to wait for an autoscaler.
        say: tells people what is waited for.

    Raises:
        ClusterError: no node can hold a worker, and no autoscaler can bring one that does.
    """

    def __init__(
        self,
        make: Callable[..., object],
        arguments: Callable[[], Sequence[Any]],
        config: WorkersConfig,
        say: Callable[[str], None],
    ) -> None:
        self._make, self._arguments, self._config, self._say = make, arguments, config, say
        self.demand = placement.demand_of(config)
        self._packages = found_here()
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._where: dict[int, str] = {}
        self._shunned: set[int] = set()
        self._next = 0
        self._grown = 0.0
        self.proved: set[int] = set()
        """Workers that have finished something."""
        self.largest = 1
        """The most workers there have been."""

    @property
    def size(self) -> int:
        """How many workers there can be now: as many as asked for, or as the nodes hold."""
        return max(1, self._config.count or placement.room(self.demand))

    def _wanted(self) -> int:
        """As `size`, and as many again as work already, as far as an autoscaler may bring room for them.

        Doubled, not all at once: what does not work at all is then found on few nodes.
        """
        if self._config.count:
            return self._config.count
        answered = sum(map(self.has_answered, self._actors))
        return self.size + int(min(max(1, answered), placement.room_to_come(self.demand)))

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
            for _ in range(self._wanted() - len(self._actors)):
                self.spawn()

    def settle(self) -> None:
        """Ask for no more nodes: workers that still wait for room are withdrawn."""
        too_many = len(self._actors) - self.size
        waiting = sorted(self._starting.values(), reverse=True)
        for number in waiting[: max(0, too_many)]:
            self._end(number)

    def spawn(self) -> None:
        """Start one worker. Where there is no room for it yet, its demand is what an autoscaler sees."""
        actor: Any = (
            ray.remote(EvenhandWorker)
            .options(
                num_cpus=self.demand.cpus,
                num_gpus=self.demand.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CONCURRENCY,
            )
            .remote(self._make, *self._arguments())
        )
        number, self._next = self._next, self._next + 1
        self._actors[number] = actor
        self._starting[actor.__ray_call__.remote(_introduction())] = number
        self.largest = max(self.largest, len(self._actors))

    def _end(self, number: int) -> bool:
        actor = self._actors.pop(number, None)
        if actor is None:
            return False
        self._starting = {ref: n for ref, n in self._starting.items() if n != number}
        self._shunned.discard(number)
        self.proved.discard(number)
        ray.kill(actor)
        return True

    def replace(self, number: int) -> None:
        """End a worker that is lost or broken, and start another: at once, or with `grow` if this one never started."""
        has_answered = self.has_answered(number)
        if self._end(number) and (has_answered or not self._actors):
            self.spawn()

    def shun(self, number: int) -> None:
        """Give a worker no more work. It keeps its place: another one there would fare no better."""
        self._shunned.add(number)
        node = self._where.get(number, "")
        self._say(f"a worker on node {node[:8]} fails at everything while others work; it gets no more work")

    def has_answered(self, number: int) -> bool:
        """Whether this worker has ever started."""
        return number in self._where

    def others_proved(self, number: int) -> bool:
        """Whether another worker, alive now, has finished something."""
        return bool(self.proved & self._actors.keys() - {number} - self._shunned)

    def ready(self) -> list[int]:
        """Workers that have answered once. One that Ray can't place yet gets no work, so none is stuck with it.

        Raises:
            ClusterError: one has, or could not start for having, other packages than this process.
        """
        if self._starting:
            answered, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0, fetch_local=False)
            for ref in answered:
                number = self._starting.pop(ref)
                # A failed start is seen, and counted, by the first call given to it.
                try:
                    node, packages = ray.get(ref)
                except ray.exceptions.RayError:
                    self._where.pop(number, None)
                    # Unless it is for the lack of our code there, which no other start would mend.
                    check_packages(placement.nodes())
                else:
                    refuse_others(self._packages, packages, node)
                    self._where[number] = node
        idle = set(self._starting.values()) | self._shunned
        return [number for number in self._actors if number not in idle]

    def wait(self) -> list[int]:
        """The ready workers, at least one.

        Raises:
            ClusterError: none was started in time.
        """
        start = said = time.monotonic()
        had_room = has_said = False
        while not (ready := self.ready()):
            self.grow()
            for number in list(self._shunned):  # they are all that is left
                self.replace(number)
            has_room = placement.room(self.demand) > 0
            if has_room and not had_room:
                start = time.monotonic()  # from now on it is only a process that is waited for
            had_room = has_room
            limit = _START_S if has_room else self._config.wait_s
            waited = time.monotonic() - start
            if waited > limit:
                raise ClusterError(
                    f"no worker could be started within {limit:.0f} s (one asks for {self.demand.needs}); "
                    "see `ray status`" + ("" if has_room else ", or raise workers.wait_s")
                )
            if time.monotonic() - said >= _SAY_EVERY_S or (waited > _SAY_AFTER_S and not has_said):
                said, has_said = time.monotonic(), True
                what = "a worker to start" if has_room else f"the autoscaler to bring {self.demand.needs}"
                self._say(f"waiting for {what}: {waited:.0f} s of at most {limit:.0f} s")
            time.sleep(0.1)
        return ready

    def is_node_lost(self, number: int) -> bool:
        """Whether the node that this worker ran on is gone: preempted, removed, crashed."""
        where = self._where.get(number)
        return where is not None and where not in placement.nodes()

    def send(self, number: int, method: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Call a method of a worker: (reference that is ready, or fails, with the call; reference of its result)."""
        call = self._actors[number].__ray_call__.options(num_returns=2)
        done, result = call.remote(_invoke, method, *args, **kwargs)
        return done, result
