"""A `report.json` read and checked, of this schema or an older one."""

from __future__ import annotations

import contextlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from jobs.errors import ConfigError
from jobs.report.evaluation import schema as evaluation_schema
from jobs.report.evaluation.schema import EvaluationReport
from jobs.report.schema import SCHEMA_VERSION, Report
from time_ops.files import json_of

__all__ = ["is_evaluation", "read_evaluation", "read_report"]

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
        content = json_of(data)
        return isinstance(content, dict) and content.get("kind") == "evaluation"
    return False


def _read(data: bytes, name: str, model: type[M], newest: int) -> M:
    try:
        content = json_of(data)
    except ValueError as error:
        raise ConfigError(
            f"{name} is no JSON ({error}); it may be half written: give a run that has finished"
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > newest:
        raise ConfigError(
            f"{name} was written by a newer Evenhand; upgrade (its schema is {version}, this one reads up to {newest})"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{name} is no report of schema {newest} or older: {error.error_count()} faults, first: "
            f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
        ) from error
