"""What drivers hand to the pool: it makes a worker, in the worker's process."""

from __future__ import annotations

from typing import Any

from jobs.worker.api import WorkerApi

__all__ = ["audit_worker"]


def audit_worker(*args: Any) -> WorkerApi:
    """An `AuditWorker`, in whose process the models' libraries are imported; drivers do without them."""
    from jobs.worker.worker import AuditWorker

    return AuditWorker(*args)
