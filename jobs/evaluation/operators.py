"""Operators of an edit set: solved in the worker that needs one, from a request of some hundred bytes.

A matrix is 4.7 MB at SD 1.4's width, and one in every call for 147 edits at several lams would be gigabytes. What it is
solved from is two prompts, a lam and the wordings, and solving takes a worker less time than drawing one image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from jobs.images.requests import EditRequest
from time_ops import EditError, EditOperator, ModelError, Problem, PromptEdit, encode_edits

__all__ = ["EditSolver", "SolvedEdit"]

# Each takes some 5 MB at SD 1.4's width. A prepared problem serves all lams of its edit.
_KEPT_OPERATORS = 32
_KEPT_PROBLEMS = 32

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class SolvedEdit:
    """What came of a request: `digest` and `condition` of the operator, or the `fault` that left none."""

    digest: str = ""
    condition: float | None = None
    fault: str | None = None


class EditSolver:
    """A worker's part. Calls may come from several threads; repeated solves give the same bits.

    Args:
        pipe: gives the pipeline; called under `models`.
        models: lock of whatever else runs the pipeline's text encoder.
    """

    def __init__(self, pipe: Callable[[], Any], models: AbstractContextManager[Any]) -> None:
        self._pipe, self._models = pipe, models
        self._problems: OrderedDict[EditRequest, Problem] = OrderedDict()
        self._operators: OrderedDict[EditRequest, EditOperator] = OrderedDict()

    def describe(self, request: EditRequest) -> SolvedEdit:
        """Solve a request; an edit that can't be solved is a fault, no error, as the others can."""
        try:
            operator = self._solve(request)
        except EditError as error:
            return SolvedEdit(fault=str(error))
        return SolvedEdit(operator.digest, operator.condition)

    def solved(self, digest: str, request: EditRequest) -> EditOperator:
        """The operator of a request.

        Raises:
            EditError: it can't be solved.
            ModelError: it is another one than the driver was told of; the workers' text encoders differ.
        """
        operator = self._solve(request)
        if operator.digest != digest:
            raise ModelError(
                f"the edit {request.source!r} to {request.destination!r} is {operator.digest[:16]} here and "
                f"{digest[:16]} on the worker that was asked first: their text encoders or versions differ"
            )
        return operator

    def _solve(self, request: EditRequest) -> EditOperator:
        with self._models:
            return _recall(self._operators, request, _KEPT_OPERATORS, lambda: self._solve_anew(request))

    def _solve_anew(self, request: EditRequest) -> EditOperator:
        # The same for every lam: prompts are encoded once.
        key = EditRequest(request.source, request.destination, 1.0, request.wordings)

        def prepare() -> Problem:
            edit = PromptEdit(request.source, {request.destination: 1.0})
            return Problem(encode_edits(self._pipe(), [edit], augmentations=request.wordings))

        return _recall(self._problems, key, _KEPT_PROBLEMS, prepare).solve(request.lam)


def _recall(known: OrderedDict[K, V], key: K, most: int, make: Callable[[], V]) -> V:
    """The value of a key, made where it is not known; the one longest unused makes room."""
    if key not in known:
        known[key] = make()
        if len(known) > most:
            known.popitem(last=False)
    known.move_to_end(key)
    return known[key]
