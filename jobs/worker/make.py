"""What drivers hand to the pool: it makes a worker, in the worker's process."""

from __future__ import annotations

from typing import Any

from jobs.worker.api import WorkerApi

__all__ = ["make_worker"]


def make_worker(*args: Any) -> WorkerApi:
    """A `Worker`, in whose process the models' libraries are imported; drivers do without them."""
    from jobs.worker.worker import Worker

    return Worker(*args)
