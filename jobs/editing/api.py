"""What solves ask of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobs.editing.chunk_encoding import ChunkStrengths, EditChunk
from time_ops import Statistics

__all__ = ["ChunkWorker"]


class ChunkWorker(Protocol):
    """A worker that encodes chunks of the manifest."""

    def chunk_statistics(
        self, chunk: EditChunk, operators: Sequence[ChunkStrengths], wordings: Sequence[bool] | None
    ) -> tuple[Statistics, ...]:
        """Weighted statistics of a chunk, one for each operator; see `ChunkEncoder.statistics`."""
        ...

    def chunk_norms(self, chunk: EditChunk) -> tuple[list[float], list[float]]:
        """Norms of each edit of a chunk: of its token states, and of its pooled embeddings where there are any."""
        ...
