"""The published schema of `report.json`: current, valid, and kept by every report; older reports are still read."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from jobs.cli import app
from jobs.errors import ConfigError
from jobs.report.json_schema import made_schema, published_schema
from jobs.report.reading import read_report
from jobs.report.schema import SCHEMA_VERSION, Report


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(published_schema())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_published_schema_is_the_models() -> None:
    assert published_schema() == made_schema(), "python -m jobs.report.json_schema > jobs/report/report.schema.json"
    schema = json.loads(published_schema())
    assert schema["$id"] == f"urn:evenhand:report:{SCHEMA_VERSION}"
    assert (schema["$schema"], schema["version"]) == ("https://json-schema.org/draft/2020-12/schema", SCHEMA_VERSION)


@pytest.mark.parametrize("how", [{}, {"edited": False}, {"compared": True}, {"corrected": True, "professions": 3}])
def test_reports_keep_it(validator: Draft202012Validator, build: Callable[..., Report], how: dict[str, object]) -> None:
    report = build(**how)
    report.summary.base.rms = float("nan")
    validator.validate(json.loads(report.model_dump_json()))


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "maybe"},
        {"schema_version": SCHEMA_VERSION + 1},
        {"surprise": 1},
        {"gates": [{"name": "delta"}]},
        {"labels": None},
    ],
)
def test_what_is_no_report_does_not(validator: Draft202012Validator, report: Report, change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        validator.validate(json.loads(report.model_dump_json()) | change)


def test_reports_are_read_back(report: Report) -> None:
    assert read_report(report.model_dump_json().encode(), "x") == report


def test_reports_of_the_first_schema_are_still_read(report: Report) -> None:
    old = json.loads(report.model_dump_json()) | {"schema_version": 1}
    for new in ("moved", "reference", "calibration", "margin_sweep"):
        del old[new]
    for variant in old["summary"].values():
        for new in ("explicit_by_label", "parity", "rms", "rms_within"):
            del variant[new]
    found = read_report(json.dumps(old).encode(), "x")
    assert (found.schema_version, found.moved, found.summary.base.parity) == (1, [], None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"schema_version": 99, "runs": []}', "x was written by a newer Evenhand; upgrade"),
        (b'{"schema_version": 2, "run": "a', "may be half written"),
        (b"[]", "is no report of schema"),
        (b"{}", "first: run: Field required"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_report(data, "x")


def test_the_command_prints_it() -> None:
    found = CliRunner().invoke(app, ["report", "--schema"])
    assert (found.exit_code, found.stdout) == (0, published_schema())
    assert CliRunner().invoke(app, ["report"]).exit_code == 2
