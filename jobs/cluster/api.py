"""What the pool itself asks of a worker. Features add theirs: the `api` module of `auditing`, `editing`, and so on.

Drivers name a call by the unbound method, `pool.call(ShardWorker.probe)`, so that mypy checks arguments and result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from jobs.images.recipe import Probe
from jobs.images.requests import EditRequest
from jobs.images.shards import ShardOutcome, ShardSpec
from time_ops import EditOperator

__all__ = ["ShardWorker"]


class ShardWorker(Protocol):
    """A worker that makes shards."""

    def probe(self) -> Probe:
        """Identity of the models, once they are found to be whole, and of this machine; keeps no weights in memory.

        Raises:
            ModelError: files are not what their configuration says; nothing of the run is written yet.
            ConfigError: a classifier lacks labels that the configuration names.
        """
        ...

    def run(
        self,
        specs: Sequence[ShardSpec],
        operators: Sequence[EditOperator] = (),
        edits: Mapping[str, EditRequest] | None = None,
    ) -> list[ShardOutcome]:
        """Make these shards, or find them done. Returns when all of them are committed.

        Args:
            specs: the shards.
            operators: those that they name, the base aside.
            edits: digest -> edit, of those that they name where they name several; solved in the worker.
        """
        ...
