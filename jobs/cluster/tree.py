"""Results added up where they are: of large ones only what comes of the whole sum reaches the driver.

Small ones are added up by the driver itself. A task of its own would first have to import what the sum is made of,
which takes longer than the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.experimental import get_object_locations

from jobs.cluster.remote import fetch

__all__ = ["Tree"]

# Results added by one task: few tasks, and at SDXL's width (67 MB each) little memory in each.
_FAN_IN = 4
# Results of this many bytes together are fetched: a pass over SD 1.x for two components (19 MB), not over SDXL.
_SMALL_BYTES = 64 * 2**20

R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True)
class _Fetched:
    """A result that the driver holds."""

    value: Any
    nbytes: int


class Tree(Generic[R]):
    """Sums references of results as they come, neighbours with neighbours, whatever order they come in.

    Args:
        leaves: how many results there will be; at least one.
        add: sums some of them, neighbours in their order. A module's function, as it travels by its name.
    """

    def __init__(self, leaves: int, add: Callable[[Sequence[R]], R]) -> None:
        self._sum = add
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
            self.add(parent, self._add_up(parts) if len(parts) > 1 else parts[0], level + 1)

    def _add_up(self, parts: Sequence[Any]) -> Any:
        """The sum of some results, or a reference of it."""
        if (nbytes := _nbytes(parts)) <= _SMALL_BYTES:
            return _Fetched(self._sum([_value(part) for part in parts]), nbytes // len(parts))
        return _add_up.remote(self._sum, *map(_sent, parts))

    def finish(self, function: Callable[[R], S]) -> S:
        """What a function, a module's, makes of the whole sum once all leaves are in; of a large one in a task.

        Raises:
            Exception: what `function` or `add` raises; one of `jobs.cluster.dispatch.LOST` where a node is gone with a
                part of the sum.
        """
        total = self._waiting[len(self._widths) - 1, 0]
        if _nbytes([total]) <= _SMALL_BYTES:
            return function(_value(total))
        result: S = fetch(_apply.remote(function, _sent(total)))
        return result


def _nbytes(parts: Sequence[Any]) -> int:
    """Bytes of results, those that are fetched and those that are not."""
    references = [part for part in parts if not isinstance(part, _Fetched)]
    # Of a reference whose result is not known to be there yet, as of a task's, the size is None.
    sizes: list[int | None] = (
        [place["object_size"] for place in get_object_locations(references).values()] if references else []
    )
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return _SMALL_BYTES + 1
    return sum(known) + sum(part.nbytes for part in parts if isinstance(part, _Fetched))


def _value(part: Any) -> Any:
    return part.value if isinstance(part, _Fetched) else fetch(part)


def _sent(part: Any) -> Any:
    """A part as a task takes it: Ray hands over what a reference stands for."""
    return part.value if isinstance(part, _Fetched) else part


# No CPU of their own, as the workers may hold all there are.
@ray.remote(num_cpus=0)
def _add_up(add: Callable[[Sequence[Any]], Any], *parts: Any) -> Any:
    return add(parts)


@ray.remote(num_cpus=0)
def _apply(function: Callable[[Any], Any], total: Any) -> Any:
    return function(total)
