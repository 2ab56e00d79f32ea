"""All that a worker answers to, put together from what each feature asks of one."""

from __future__ import annotations

from typing import Protocol

from jobs.auditing.api import TallyWorker
from jobs.cluster.api import ShardWorker
from jobs.editing.api import ChunkWorker
from jobs.evaluation.api import EditSetWorker
from jobs.exports.api import ExportWorker

__all__ = ["WorkerApi"]


class WorkerApi(ShardWorker, TallyWorker, ChunkWorker, EditSetWorker, ExportWorker, Protocol):
    """What `jobs.worker.make.make_worker` makes."""
