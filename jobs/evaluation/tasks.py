"""What is drawn and measured for each edit of a set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.config import RunConfig
from jobs.evaluation.operators import SolvedEdit
from jobs.evaluation.tally import MeasureTask, Role, cell_of
from jobs.images.cells import Cell, shards_of
from jobs.images.recipe import Recipe
from jobs.images.requests import EditRequest
from jobs.images.shards import ShardSpec
from jobs.images.variants import Variant as DrawnUnder
from manifests import EditSet, Fault, ManifestError, TestedEdit

__all__ = ["Solved", "base_cells", "requests_of", "solved_of", "specs_of", "tasks_of", "texts_of"]


@dataclass(frozen=True)
class Solved:
    """Edits that have an operator at every lam.

    Attributes:
        edits: those.
        operators: of each edit, what was solved at each lam.
        requests: digest -> from what it is solved.
        left_out: why others have none.
    """

    edits: tuple[TestedEdit, ...]
    operators: tuple[tuple[SolvedEdit, ...], ...]
    requests: dict[str, EditRequest]
    left_out: tuple[Fault, ...] = ()


def requests_of(edit: TestedEdit, config: RunConfig) -> list[EditRequest]:
    """One request for each lam."""
    wanted = config.evaluate
    return [EditRequest(edit.source, edit.destination, lam, wanted.wordings) for lam in wanted.lam]


def solved_of(edit_set: EditSet, config: RunConfig, answers: Sequence[Sequence[SolvedEdit]]) -> Solved:
    """What came of the requests, which were made for each edit in order.

    Raises:
        ManifestError: not one edit could be solved.
    """
    edits, operators, requests, faults = [], [], {}, []
    for edit, solved in zip(edit_set.edits, answers, strict=True):
        bad = next((each.fault for each in solved if each.fault is not None), None)
        if bad is not None:
            faults.append(Fault(edit.row, None, f"{bad}; the edit is left out"))
            continue
        edits.append(edit)
        operators.append(tuple(solved))
        requests.update({each.digest: request for each, request in zip(solved, requests_of(edit, config), strict=True)})
    if not edits:
        raise ManifestError(edit_set.name, faults)
    return Solved(tuple(edits), tuple(operators), requests, tuple(faults))


def texts_of(edits: Sequence[TestedEdit], controls: Sequence[str]) -> list[str]:
    """Every prompt that images are held against, each once."""
    pairs = [
        p
        for e in edits
        for p in (
            e.source,
            e.destination,
            *(q for pair in (*e.positives, *e.negatives) for q in (pair.source, pair.destination)),
        )
    ]
    return list(dict.fromkeys([*pairs, *controls]))


def tasks_of(solved: Solved, config: RunConfig) -> list[MeasureTask]:
    """All prompts of all edits, edit by edit: source, positives, negatives, and the controls that don't speak of it."""
    wanted = config.evaluate
    controls = config.controls if wanted.control_images else ()
    rows = {prompt: row for row, prompt in enumerate(texts_of(solved.edits, controls))}
    tasks = []
    for number, (edit, operators) in enumerate(zip(solved.edits, solved.operators, strict=True)):
        digests = tuple(each.digest for each in operators)
        pairs: list[tuple[Role, str, str]] = [("source", edit.source, edit.destination)]
        pairs += [("positive", pair.source, pair.destination) for pair in edit.positives]
        pairs += [("negative", pair.source, pair.destination) for pair in edit.negatives]
        for role, source, destination in pairs:
            # What should stay has nothing better to show than the base model's own image.
            oracle = None if role == "negative" else destination
            tasks.append(
                MeasureTask(number, role, source, wanted.images, rows[source], rows[destination], oracle, digests)
            )
        for prompt in (p for p in controls if not _speaks_of(p, edit.source)):
            tasks.append(
                MeasureTask(number, "control", prompt, wanted.control_images, rows[prompt], None, None, digests)
            )
    return tasks


def _speaks_of(control: str, source: str) -> bool:
    """Whether a control holds an edit's source, and so is not unrelated to it."""
    return re.search(rf"(?<!\w){re.escape(source)}(?!\w)", control, re.IGNORECASE) is not None


def base_cells(tasks: Sequence[MeasureTask]) -> list[Cell]:
    """What the unedited model draws: every prompt and every oracle, each once."""
    wanted = [(prompt, task.images) for task in tasks for prompt in (task.prompt, task.oracle) if prompt is not None]
    return [cell_of(prompt, images) for prompt, images in dict.fromkeys(wanted)]


def specs_of(tasks: Sequence[MeasureTask], recipe: Recipe, config: RunConfig, *, edited: bool) -> Iterator[ShardSpec]:
    """The shards: of the base model, or edit by edit under its operators. Each is there once."""
    if not edited:
        yield from shards_of(base_cells(tasks), recipe, DrawnUnder.plain(), config)
        return
    by_operator: dict[str, list[Cell]] = {}
    for task in tasks:
        for operator in task.operators:
            by_operator.setdefault(operator, []).append(cell_of(task.prompt, task.images))
    for operator, cells in by_operator.items():
        yield from shards_of(cells, recipe, DrawnUnder.plain(operator), config)
