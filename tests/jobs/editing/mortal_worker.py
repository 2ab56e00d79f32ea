"""The real worker, made to die by SIGKILL where the run's output folder says so."""

import os
import signal
from pathlib import Path
from typing import Any

from jobs.editing.chunk_encoding import EditChunk
from jobs.worker.worker import Worker
from time_ops import Statistics


class MortalWorker(Worker):
    """Dies in `chunk_statistics` of the row group that a file `kill-at-N` names; the file goes with it."""

    def chunk_statistics(self, chunk: EditChunk, *arguments: Any) -> tuple[Statistics, ...]:
        order = Path(self.resident.config.output) / f"kill-at-{chunk.row_group}"
        if order.exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().chunk_statistics(chunk, *arguments)
