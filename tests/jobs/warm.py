"""Worker processes that outlive a pool: what a worker imports takes longer than most tests' images.

The processes are Ray's and the workers in them are made anew for each pool, from what the pool sends. Only the process,
with the modules it has imported, is the one of the pool before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from jobs.cluster.crew import Crew, EvenhandWorker, _introduction
from jobs.cluster.pool import Pool

__all__ = ["warm_workers"]

_idle: list[Any] = []
"""Actors that no pool has, of the Ray that `_node` is a node of."""
_node = ""


def _make_again(actor: EvenhandWorker, make: Callable[..., object], *arguments: Any) -> None:
    actor.worker = None
    actor.worker = make(*arguments)


def _taken() -> Any:
    """An idle actor, or None; those of a Ray that is gone are forgotten."""
    global _node
    if (node := ray.get_runtime_context().get_node_id()) != _node:
        _idle.clear()
        _node = node
    return _idle.pop() if _idle else None


@contextmanager
def warm_workers() -> Iterator[None]:
    """Let crews take up the processes of pools that have ended well; those of others are ended, as ever."""
    start, end = Crew.spawn, Pool.__exit__

    def spawn(crew: Crew) -> None:
        actor = _taken()
        if actor is None:
            return start(crew)
        # Two calls run at a time: the worker has to be there before the first one.
        ray.get(actor.__ray_call__.remote(_make_again, crew._make, *crew._arguments()))
        number, crew._next = crew._next, crew._next + 1
        crew._actors[number] = actor
        crew._starting[actor.__ray_call__.remote(_introduction())] = number
        return None

    def leave(pool: Pool, *error: object) -> None:
        crew = pool._crew
        if error[0] is None:
            _idle.extend(crew._actors.pop(number) for number in crew.ready())
        end(pool, *error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crew, "spawn", spawn)
        patch.setattr(Pool, "__exit__", leave)
        yield
