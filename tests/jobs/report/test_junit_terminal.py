"""The gates as JUnit XML, and the end of a run in the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from jobs.report.headline import headline_of
from jobs.report.junit import junit_xml
from jobs.report.schema import Report
from jobs.report.terminal import summary_table
from tests.jobs.report.mixtures import FOUR, make_mixture_report


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


def test_properties_hold_the_headline_and_each_component(report: Report, mixture_report: Report) -> None:
    def properties(of: Report) -> dict[str | None, str | None]:
        return {each.get("name"): each.get("value") for each in ET.fromstring(junit_xml(of)).iter("property")}  # noqa: S314

    assert properties(report)["headline"] == headline_of(report)
    assert "mixture" not in properties(report)
    told = properties(mixture_report.model_copy(update={"headline": "In words."}))
    assert (told["headline"], told["mixture"]) == ("In words.", "5e" * 32)
    assert (told["component male: own label"] or "").startswith("93.1")
    assert "n 875)" in (told["component female: explicit prompts"] or "")


def test_terminal_says_what_matters(report: Report) -> None:
    text = printed(report)
    for words in (
        "FAIL",
        "Delta, pooled",
        "Delta, worst",
        "floor",
        "explicit",
        "recognised",
        "controls",
        "undetermined",
    ):
        assert words in text
    assert "Farthest from their target" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("how", [{}, {"edited": False}, {"compared": True}])
def test_the_last_screen_is_short_and_narrow(build: Callable[..., Report], how: dict[str, bool]) -> None:
    """Verdict in a sentence and a table of at most ten lines, in the 80 columns of a log; nothing is cut."""
    report = build(**how)
    report.summary.base.delta.n = 17_500_000
    text = printed(report, width=80)
    assert text.startswith(f" {report.verdict.upper()} ")
    assert headline_of(report) in " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())
    lines = text.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if "floor" in line) :]
    table = table[: next(i for i, line in enumerate(table) if not line.strip())]
    assert len(table) <= 10
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "17.5 M" in text


def test_terminal_counts_who_is_called_off_target(report: Report) -> None:
    off = sum(bool(item.off_target) for item in report.professions)
    base = report.summary.base.off_target
    (line,) = [line.split() for line in printed(report).splitlines() if line.strip().startswith("off target")]
    assert line == ["off", "target", f"{base}/35", f"{off}/35"]
    old = report.model_copy(deep=True)
    assert old.summary.edited is not None
    old.calibration = old.summary.base.off_target = old.summary.edited.off_target = None
    for item in old.professions:
        item.off_target = None
    assert "off target" not in printed(old)


@pytest.mark.parametrize("labels", [("female", "male"), FOUR])
def test_terminal_has_a_line_for_each_component(labels: tuple[str, ...]) -> None:
    report = make_mixture_report(labels=labels)
    assert report.mixture is not None
    text = printed(report, width=80).replace("\N{NO-BREAK SPACE}", " ")
    for each in report.mixture.components:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{each.label} ")]
        for figure in (each.weight, each.own.value, each.explicit.value):
            assert f"{100 * (figure or 0):.1f} %" in line
        assert f"{each.own.n:,}" in line
    assert "images; each profession in each component: " in " ".join(text.split())
    assert "Calibration" not in text


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
    assert not {"base", "edited"} & set(text.split())
    assert "no profession is shown to have" in printed(report.model_copy(update={"moved": []}))
    assert max(map(len, text.splitlines())) <= 110


def test_each_direction_of_explicit_prompts_is_told(report: Report) -> None:
    names = [case.get("name") for case in ET.fromstring(junit_xml(report)).iter("testcase")]  # noqa: S314
    assert {"explicit:female", "explicit:male"} <= set(names)
    assert b"Explicit prompts keep \xe2\x80\x9cmale\xe2\x80\x9d: 95.1" in junit_xml(report)
