"""What drivers hand to the pool: it makes a worker, in the worker's process."""

from __future__ import annotations

import gc
from typing import Any

from jobs.worker.api import WorkerApi

__all__ = ["make_worker"]


def make_worker(*args: Any) -> WorkerApi:
    """A `Worker`, in whose process the models' libraries are imported; drivers do without them."""
    # Four thousand modules are made, and none of them is garbage: looking through them takes a fifth of the time.
    gc.disable()
    try:
        from jobs.worker.worker import Worker
    finally:
        gc.freeze()
        gc.enable()
    return Worker(*args)
