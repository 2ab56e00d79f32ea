"""`junit.xml`: each gate as a test case, so that a CI system shows them beside a project's other tests.

A gate that fails is a *failure*. One that is inconclusive is an *error*, not a skip: the measurement could not decide,
and a pipeline that must stop a bad model has to stop at one it knows too little about. CI systems paint a skip green;
they paint an error red and list it apart from failures, which is also how the exit codes tell 6 from 5. The way out is
more images, not a missed warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from jobs.report.figure_schema import GateResult
from jobs.report.formatting import Kind, count, finite, gate_measure, in_kind, plain_text, span
from jobs.report.headline import headline_of
from jobs.report.schema import Report

__all__ = ["junit_xml"]


def junit_xml(report: Report) -> bytes:
    """Write the gates of `report` as JUnit XML, UTF-8; the same report gives the same bytes."""
    failed = sum(gate.outcome == "fail" for gate in report.gates)
    undecided = sum(gate.outcome == "inconclusive" for gate in report.gates)
    totals = {"tests": str(len(report.gates)), "failures": str(failed), "errors": str(undecided), "skipped": "0"}
    wall = finite(report.cost.wall_s) or 0.0
    root = ET.Element("testsuites", {"name": "evenhand", **totals, "time": f"{wall:.3f}"})
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": f"evenhand gates: {plain_text(report.run)}",
            **totals,
            "timestamp": plain_text(report.created),
            "time": f"{wall:.3f}",
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report):
        ET.SubElement(properties, "property", {"name": name, "value": plain_text(value)})
    for gate in report.gates:
        _case(suite, gate)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    """The run in words, and of a mixture what it is and what each component draws."""
    yield from (("run", report.run), ("verdict", report.verdict), ("sentence", report.sentence))
    yield "headline", report.headline or headline_of(report)
    if report.mixture is None:
        return
    yield "mixture", report.mixture.digest
    for each in report.mixture.components:
        yield f"component {each.label}: weight", _figure(each.weight, "rate")
        for name, rate in (("own label", each.own), ("explicit prompts", each.explicit)):
            interval = span(rate, "rate") or "none"
            yield f"component {each.label}: {name}", f"{_figure(rate.value, 'rate')} ({interval}, n {count(rate.n)})"


def _case(suite: ET.Element, gate: GateResult) -> None:
    name = plain_text(gate.name)
    case = ET.SubElement(suite, "testcase", {"classname": "evenhand.gates", "name": name, "time": "0.000"})
    measure = gate_measure(gate.name)
    interval = span(gate, measure.kind) or "none"
    text = (
        f"{measure.title}: {_figure(gate.value, measure.kind)}, 95 % interval {interval}; "
        f"limit: {gate.direction} {_figure(gate.limit, measure.kind)}"
    )
    message = plain_text(gate.reason or text)
    if gate.outcome == "fail":
        ET.SubElement(case, "failure", {"type": "gate failed", "message": message}).text = plain_text(text)
    elif gate.outcome == "inconclusive":
        ET.SubElement(case, "error", {"type": "gate inconclusive", "message": message}).text = plain_text(text)
    ET.SubElement(case, "system-out").text = plain_text(f"{text}. {gate.reason}".rstrip(" ."))


def _figure(value: float | None, kind: Kind) -> str:
    known = finite(value)
    return "no value" if known is None else in_kind(known, kind)
