"""What evaluations ask of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobs.evaluation.operators import SolvedEdit
from jobs.evaluation.tally import MeasureFrame, MeasureTask, PartMeasures, PromptTexts
from jobs.images.requests import EditRequest

__all__ = ["EditSetWorker"]


class EditSetWorker(Protocol):
    """A worker that solves single edits and decides on their images."""

    def solve_edits(self, requests: Sequence[EditRequest]) -> list[SolvedEdit]:
        """What these edits' operators are called, and what is wrong with those that can't be solved."""
        ...

    def prompt_texts(self, prompts: Sequence[str]) -> PromptTexts:
        """The recognising classifier's embeddings of prompts."""
        ...

    def measure(
        self, tasks: Sequence[MeasureTask], frame: MeasureFrame, texts: PromptTexts, key: str | None
    ) -> PartMeasures:
        """Decide on these prompts' images; see `jobs.evaluation.tally.measure_part`."""
        ...
