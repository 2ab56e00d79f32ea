"""The gates as JUnit XML, and the end of a run in the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from xml.etree import ElementTree as ET

from rich.console import Console

from jobs.report.junit import junit_xml
from jobs.report.schema import Report
from jobs.report.terminal import summary_table


def printed(report: Report, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(summary_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_gate_is_a_case(report: Report) -> None:
    root = ET.fromstring(junit_xml(report))  # noqa: S314
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "8",
        "1",
        "2",
        "0",
    )
    children = {case.get("name"): case[0].tag for case in suite.iter("testcase")}
    assert children["recognised"] == "failure"
    assert children["controls"] == children["delta_wording_max"] == "error"
    assert children["delta"] == "system-out"
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "limit: at least 90.0" in (failure.text or "")


def test_junit_is_deterministic_and_well_formed_whatever_the_text(report: Report) -> None:
    gate = report.gates[0].model_copy(update={"name": '<&"\x00\x1b>', "reason": "]]>\x08\ud800", "outcome": "fail"})
    odd = report.model_copy(update={"gates": [gate]})
    assert junit_xml(odd) == junit_xml(odd.model_copy(deep=True))
    case = ET.fromstring(junit_xml(odd)).find(".//testcase")  # noqa: S314
    assert case is not None
    assert case.get("name") == '<&">'


def test_terminal_says_what_matters(report: Report) -> None:
    text = printed(report)
    for words in (
        "FAIL",
        "Delta, pooled",
        "worst wording",
        "floor",
        "explicit",
        "recognised",
        "controls",
        "undetermined",
    ):
        assert words in text
    assert "Farthest from their target" in text
    assert max(map(len, text.splitlines())) <= 110


def test_terminal_counts_who_is_called_off_target(report: Report) -> None:
    off = sum(bool(item.off_target) for item in report.professions)
    assert f"Called off target: {off} of 35 professions" in printed(report)
    unknown = [item.model_copy(update={"off_target": None}) for item in report.professions]
    assert "off target" not in printed(report.model_copy(update={"professions": unknown, "calibration": None}))


def test_terminal_says_how_calibration_ended(report: Report) -> None:
    (line,) = [line for line in printed(report).splitlines() if line.startswith("Calibration")]
    assert line.rstrip() == (
        "Calibration: 7 rounds, 7,840 images; 15 on target, 5 undecided, 5 unreachable, 5 balanced, 5 fixed"
    )
    assert "Calibration" not in printed(report.model_copy(update={"calibration": None}))


def test_terminal_takes_audits_and_hostile_names(build: Callable[..., Report]) -> None:
    text = printed(build(edited=False, professions=1, names=("[red]\x1b[31mboss[/nope]",)))
    assert "[red][31mboss[/nope]" in text
    assert "edited" not in text.replace("nothing was edited", "")


def test_terminal_of_a_comparison_says_with_what_and_who_moved(build: Callable[..., Report]) -> None:
    report = build(compared=True)
    text = printed(report)
    assert "Audited against the earlier run 2026-10-01-v7:" in text
    assert f"Moved: {report.moved[0].profession} " in text
    assert not {"base", "edited"} & set(text.replace(report.sentence, "").split())
    assert "no profession is shown to have" in printed(report.model_copy(update={"moved": []}))
    assert max(map(len, text.splitlines())) <= 110


def test_each_direction_of_explicit_prompts_is_told(report: Report) -> None:
    text = printed(report)
    assert "of these, female" in text
    assert "of these, male" in text
    names = [case.get("name") for case in ET.fromstring(junit_xml(report)).iter("testcase")]  # noqa: S314
    assert {"explicit:female", "explicit:male"} <= set(names)
    assert b"Explicit prompts keep \xe2\x80\x9cmale\xe2\x80\x9d: 95.1" in junit_xml(report)
