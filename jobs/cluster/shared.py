"""Values that many calls are given: laid into Ray's object store once, sent by reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import ray

__all__ = ["Shared"]

T = TypeVar("T")


class Shared:
    """Knows shared values by identity, so a call is typed by the value and still sends the reference."""

    def __init__(self) -> None:
        # The object is held beside its reference: nothing else can take its id.
        self._stored: dict[int, tuple[object, Any]] = {}

    def put(self, value: T) -> T:
        """Lay a value into the store. Calls that are given what comes back, that very object, send its reference."""
        reference = ray.put(value)
        stored: T = ray.get(reference)  # arrays of it lie in the store, and not a second time in this process
        self._stored[id(stored)] = stored, reference
        return stored

    def drop(self, value: object) -> None:
        """Forget a value that `put` gave back; the store frees it once no call needs it."""
        self._stored.pop(id(value), None)

    def sent(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of a call, with references in the place of shared values. Ray puts the values back."""
        return tuple(self._stored[id(each)][1] if id(each) in self._stored else each for each in arguments)
