"""Reports of schema 2, from before there were mixtures: still read, drawn and told. The stored one was written then."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from jobs.errors import ConfigError
from jobs.report.headline import headline_of
from jobs.report.junit import junit_xml
from jobs.report.page.figures_csv import components_csv, professions_csv, saturation_csv, summary_csv
from jobs.report.reading import read_report
from jobs.report.schema import SCHEMA_VERSION, Report
from jobs.runs.rerender import rerender
from jobs.scheduling.entries import entry_of
from jobs.scheduling.ticks import parse_tick
from jobs.sinks.mlflow import metrics_of, params_of

STORED = Path(__file__).parent / "data" / "report-schema-2.json"
SAID = "Women are 48 % of 380 images over 4 professions, where 50 % is wanted; before, "


@pytest.fixture(scope="module")
def old() -> Report:
    return read_report(STORED.read_bytes(), "report-schema-2.json")


def test_what_it_did_not_have_is_left_open(old: Report) -> None:
    assert json.loads(STORED.read_bytes())["schema_version"] == old.schema_version == 2 < SCHEMA_VERSION
    assert (old.mixture, old.saturation, old.headline, old.summary.base.off_target) == (None, None, "", None)
    assert {item.components for item in old.professions} == {None}
    assert {meta.component for meta in old.pictures} == {None}


def test_its_headline_is_made_of_what_it_has(old: Report) -> None:
    told = headline_of(old)
    assert told.startswith(SAID)
    assert "with" not in told
    assert f'headline" value="{SAID[:20]}' in junit_xml(old).decode()


def test_its_tables_and_metrics_know_no_component(old: Report) -> None:
    assert components_csv(old) == saturation_csv(old) == ""
    assert "weight_" not in professions_csv(old)
    assert "component" not in summary_csv(old)
    assert not [name for name in metrics_of(old) if name.startswith("component")]
    assert "form" not in params_of(old, {})
    known = {"model_digest": "m", "classifier_digest": "c", "manifest": "d", "sampler": {}, "undetermined_margin": 0.1}
    told = old.model_copy(update={"provenance": known | {"wordings": {"audit": []}, "operator": "9f" * 32}})
    entry = entry_of(told, series="nightly", tick=parse_tick("2026-11-21T00:00Z"), exit_code=5, contents="c")
    assert (entry.operator, entry.mixture) == ("9f" * 32, False)


def test_its_run_is_drawn_again(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "page.html"
    run.mkdir()
    data = STORED.read_bytes()
    (run / "report.json").write_bytes(data)
    files = {"report.json": hashlib.sha256(data).hexdigest()}
    (run / "COMPLETE").write_text(json.dumps({"files": files}), "utf-8")
    console = Console(file=io.StringIO(), width=120)
    rerender(str(run), out, console)
    page = out.read_text("utf-8")
    assert f"<h1>{SAID.replace(' %', chr(0xA0) + '%')}" in page
    assert 'id="calibration"' in page
    assert 'id="mixture"' not in page
    assert 'id="saturation"' not in page
    assert "Calibration: 3 rounds" in console.file.getvalue()  # type: ignore[attr-defined]


def test_one_of_a_newer_schema_is_refused() -> None:
    new = STORED.read_bytes().replace(b'"schema_version": 2', b'"schema_version": 4')
    with pytest.raises(ConfigError, match="written by a newer Evenhand"):
        read_report(new, "x")
