"""Draw a run's report again, reading nothing but its folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from jinja2 import TemplateError
from pydantic import BaseModel, ValidationError
from rich.console import Console, RenderableType

from infra.storage import ObjectMissing, ObjectStore, StorageSettings, open_store
from jobs.errors import ConfigError, exit_code_of
from jobs.report.evaluation import schema as evaluation_schema
from jobs.report.evaluation.page import render_evaluation
from jobs.report.evaluation.schema import EvaluationReport
from jobs.report.evaluation.text import evaluation_table
from jobs.report.page.render import render
from jobs.report.schema import SCHEMA_VERSION, Report
from jobs.report.terminal import summary_table
from time_ops.files import json_of

__all__ = ["is_evaluation", "read_evaluation", "read_report", "redraw"]

# What drawing raises where fields fit the schema and not each other, as a share of a label that there is none of.
_CONTRADICTED = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, TemplateError)

M = TypeVar("M", bound=BaseModel)


def read_report(data: bytes, name: str) -> Report:
    """A `report.json`, checked; one of an older schema is read too, with what it did not have left open.

    Raises:
        ConfigError: it is of a newer schema, half written, or no report.
    """
    return _read(data, name, Report, SCHEMA_VERSION)


def read_evaluation(data: bytes, name: str) -> EvaluationReport:
    """A `report.json` of `evenhand evaluate`, checked; raises as `read_report`."""
    return _read(data, name, EvaluationReport, evaluation_schema.SCHEMA_VERSION)


def is_evaluation(data: bytes) -> bool:
    """Whether a `report.json` is of `evenhand evaluate`, as far as it can be read at all."""
    with contextlib.suppress(ValueError):
        found = json_of(data)
        return isinstance(found, dict) and found.get("kind") == "evaluation"
    return False


def _read(data: bytes, name: str, model: type[M], newest: int) -> M:
    try:
        found = json_of(data)
    except ValueError as error:
        raise ConfigError(
            f"{name} is no JSON ({error}); it may be half written: give a run that has finished"
        ) from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > newest:
        raise ConfigError(
            f"{name} was written by a newer Evenhand; upgrade (its schema is {version}, this one reads up to {newest})"
        )
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{name} is no report of schema {newest} or older: {error.error_count()} faults, first: "
            f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
        ) from error


def redraw(run: str, out: Path, console: Console) -> None:
    """Write `report.html` anew, to a file of this machine, and print the summary.

    The run's own folder is not touched: COMPLETE names its files by their digests.

    Raises:
        ConfigError: there is no finished run, or its report can't be read.
    """
    store = open_store(run, StorageSettings.from_environment())
    try:
        data, complete = store.get("report.json"), store.get("COMPLETE")
    except ObjectMissing as error:
        raise ConfigError(f"{run} holds no finished run ({error}); give the folder of one") from error
    try:
        known = json_of(complete)["files"]["report.json"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{run}: COMPLETE names no report.json; run the same command again") from error
    if hashlib.sha256(data).hexdigest() != known:
        raise ConfigError(f"{run}: report.json is not the one that COMPLETE names; run the same command again")
    try:
        page, summary = _drawn(data, store)
        drawn = page.encode()
    except _CONTRADICTED as error:
        if exit_code_of(error) is not None:
            raise
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConfigError(f"{store.url('report.json')} contradicts itself and can't be drawn ({why})") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(drawn)
    console.print(summary)
    console.print(f"drawn: {out}", markup=False, soft_wrap=True)


def _drawn(data: bytes, store: ObjectStore) -> tuple[str, RenderableType]:
    """The page and the terminal's summary of a report of either kind."""
    name = store.url("report.json")
    if is_evaluation(data):
        evaluation = read_evaluation(data, name)
        named = [path for row in evaluation.pictures for path in (row.base, row.oracle, *row.edited)]
        return render_evaluation(evaluation, _pictures(store, named)), evaluation_table(evaluation)
    report = read_report(data, name)
    pictures = _pictures(store, [path for pair in report.pictures for path in (pair.base, pair.edited)])
    return render(report, pictures), summary_table(report)


def _pictures(store: ObjectStore, names: Iterable[str | None]) -> dict[str, bytes]:
    pictures = {}
    for name in sorted({name for name in names if name}):
        with contextlib.suppress(ObjectMissing):
            # The page shows a gap for it, as it does for any picture that it is not given.
            pictures[name] = store.get(name)
    return pictures
