"""What audits ask of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobs.auditing.tally import PartTally, TallyFrame, TallyTask
from jobs.images.labels import TextEmbeddings
from time_ops import EditOperator, Mixture

__all__ = ["TallyWorker"]


class TallyWorker(Protocol):
    """A worker that labels and counts."""

    def texts(self, professions: Sequence[tuple[str, str]], controls: Sequence[str]) -> TextEmbeddings:
        """Embeddings of the zero-shot prompts of professions, (name, source), and of controls."""
        ...

    def tally(self, tasks: Sequence[TallyTask], frame: TallyFrame, texts: TextEmbeddings, key: str | None) -> PartTally:
        """Label and count these cells; see `jobs.auditing.tally_part.tally_part`."""
        ...

    def check_operator(self, operator: EditOperator | Mixture) -> None:
        """Refuse an operator that was solved for another text encoder.

        Raises:
            ModelError: it was.
        """
        ...
