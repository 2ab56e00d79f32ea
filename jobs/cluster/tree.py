"""Results added up where they are: only what comes of the whole sum reaches the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ray

from jobs.cluster.remote import fetch

__all__ = ["Tree"]

# Results added by one task: few tasks, and at SDXL's width (67 MB each) little memory in each.
_FAN_IN = 4

R = TypeVar("R")
S = TypeVar("S")


class Tree(Generic[R]):
    """Sums references of results as they come, neighbours with neighbours, whatever order they come in.

    Args:
        leaves: how many results there will be; at least one.
        add: sums some of them, neighbours in their order. A module's function, as it travels by its name.
    """

    def __init__(self, leaves: int, add: Callable[[Sequence[R]], R]) -> None:
        self._added = add
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append(-(-self._widths[-1] // _FAN_IN))
        self._waiting: dict[tuple[int, int], Any] = {}

    def add(self, index: int, reference: Any, level: int = 0) -> None:
        """Take one node in, and add it up with its siblings once they are all there."""
        self._waiting[level, index] = reference
        parent = index // _FAN_IN
        siblings = range(parent * _FAN_IN, min((parent + 1) * _FAN_IN, self._widths[level]))
        if self._widths[level] > 1 and all((level, i) in self._waiting for i in siblings):
            parts = [self._waiting.pop((level, i)) for i in siblings]
            self.add(parent, _sum.remote(self._added, *parts) if len(parts) > 1 else parts[0], level + 1)

    def finish(self, function: Callable[[R], S]) -> S:
        """What a function, a module's, makes of the whole sum in a task of its own, once all leaves are in.

        Raises:
            Exception: what `function` or `add` raises; one of `jobs.cluster.dispatch.LOST` where a node is gone with a
                part of the sum.
        """
        result: S = fetch(_apply.remote(function, self._waiting[len(self._widths) - 1, 0]))
        return result


# No CPU of their own, as the workers may hold all there are.
@ray.remote(num_cpus=0)
def _sum(add: Callable[[Sequence[Any]], Any], *parts: Any) -> Any:
    return add(parts)


@ray.remote(num_cpus=0)
def _apply(function: Callable[[Any], Any], total: Any) -> Any:
    return function(total)
