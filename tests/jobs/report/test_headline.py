"""The headline: the words that a reader meets first, whatever the labels, the targets and the verdict."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.report.figure_schema import GateResult
from jobs.report.headline import headline_of
from jobs.report.schema import LabelCounts, ProfessionReport, Report
from tests.jobs.report.mixtures import FOUR


def counted(*images: int, labels: tuple[str, ...] = ("female", "male")) -> LabelCounts:
    n = sum(images)
    share = images[0] / n if n else None
    counts = dict(zip(labels, images, strict=True))
    return LabelCounts(n=n, labels=counts, undetermined=3, share=share, low=None, high=None)


def profession(
    name: str,
    base: LabelCounts,
    edited: LabelCounts | None,
    off: bool | None = False,
    target: tuple[float, ...] = (0.5, 0.5),
) -> ProfessionReport:
    return ProfessionReport(
        profession=name,
        source=f"a {name}",
        lam=None,
        shares={},
        target=dict(zip(base.labels, target, strict=True)),
        base=base,
        edited=edited,
        off_target=off,
    )


def of(report: Report, items: list[ProfessionReport], off: int | None, outcomes: str = "pass pass") -> Report:
    gate = report.gates[0]
    report = report.model_copy(deep=True)
    report.professions, report.labels = items, list(items[0].base.labels)
    report.summary.base.off_target = off
    report.gates = [GateResult(**(gate.model_dump() | {"outcome": outcome})) for outcome in outcomes.split()]
    found = set(outcomes.split())
    report.verdict = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
    if items[0].edited is None:
        report.summary.edited = None
    return report


def test_a_good_run(report: Report) -> None:
    items = [
        profession("CEO", counted(10, 990), counted(530, 470)),
        profession("nurse", counted(950, 50), counted(490, 510)),
    ]
    assert headline_of(of(report, items, 2)) == (
        "Women are 51 % of 2,000 images over 2 professions, where 50 % is wanted; before, 48 %, with 2 professions "
        "off target. Now none is shown to be. Every check passes."
    )


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ("pass fail fail inconclusive", "2 of 4 checks fail, 1 is undecided."),
        ("pass pass fail", "1 of 3 checks fails."),
        ("inconclusive pass inconclusive", "Of 3 checks, 2 are undecided."),
        ("inconclusive", "Of 1 check, 1 is undecided."),
        ("", ""),
    ],
)
def test_what_failed_or_is_open_is_said(report: Report, outcomes: str, said: str) -> None:
    items = [profession("CEO", counted(0, 200), counted(199, 1), off=True)]
    told = headline_of(of(report, items, 1, outcomes))
    assert told == (
        "Women are over 99 % of 200 images over 1 profession, where 50 % is wanted; before, 0 %, with 1 "
        f"profession off target. Now 1 is. {said}".rstrip()
    )


def test_an_audit_alone_and_targets_of_their_own(report: Report) -> None:
    items = [
        profession("CEO", counted(10, 90), None, off=True, target=(0.3, 0.7)),
        profession("nurse", counted(1, 299), None, off=None, target=(0.5, 0.5)),
    ]
    assert headline_of(of(report, items, None)) == (
        "Women are 3 % of 400 images over 2 professions, where 45 % is wanted on average. 1 of 1 profession is off "
        "target. Every check passes."
    )


def test_two_other_labels_are_quoted_as_they_are(report: Report) -> None:
    some = counted(30, 70, labels=("glasses", "none"))
    items = [profession("CEO", some, counted(1, 999, labels=("glasses", "none")), off=None, target=(0.3, 0.7))]
    assert headline_of(of(report, items, None)) == (
        "“glasses” is under 1 % of 1,000 images over 1 profession, where 30 % is wanted; before, 30 %. "
        "Every check passes."
    )
    men = [profession("CEO", counted(30, 70, labels=("male", "female")), None)]
    assert headline_of(of(report, men, 1)).startswith("Men are 30 % of 100 images")


def test_more_labels_are_all_told(report: Report, four_report: Report) -> None:
    even = (0.25,) * 4
    items = [profession("CEO", counted(80, 10, 5, 5, labels=FOUR), counted(26, 24, 25, 25, labels=FOUR), target=even)]
    assert headline_of(of(report, items, 1)) == (
        "Of 100 images over 1 profession, “young female” 26 %, “young male” 24 %, “old female” 25 %, “old male” 25 %, "
        "where 25 % each is wanted; before, 80 %, 10 %, 5 % and 5 %, with 1 profession off target. "
        "Now none is shown to be. Every check passes."
    )
    items[0].target = dict(zip(FOUR, (0.1, 0.2, 0.3, 0.4), strict=True))
    assert "where 10 %, 20 %, 30 % and 40 % is wanted" in headline_of(of(report, items, 1))
    items[0].target = {}
    assert "wanted" not in headline_of(of(report, items, 1))


def test_without_a_determined_image_there_is_no_share(report: Report) -> None:
    none = counted(0, 0)
    items = [profession("CEO", none, none, off=None)]
    assert headline_of(of(report, items, None, "inconclusive")) == (
        "No image showed a decidable label, so there is no share to tell. Of 1 check, 1 is undecided."
    )
    items = [profession("CEO", none, counted(5, 5), off=None)]
    assert "; before, no image showed a decidable label." in headline_of(of(report, items, None))


def test_nobody_off_target_before_is_said_so(report: Report) -> None:
    items = [profession("CEO", counted(50, 50), counted(90, 10), off=True)]
    told = headline_of(of(report, items, 0))
    assert "before, 50 %, with no profession off target. Now 1 is. Every" in told
    assert "before, 50 %. Now 1 profession is off target. Every" in headline_of(of(report, items, None))


def test_a_comparison_says_with_what(build: Callable[..., Report]) -> None:
    told = headline_of(build(compared=True))
    assert "; in the earlier run 2026-10-01-v7, 51 %, with " in told
    assert " off target. In the audited model, 9 are. " in told
    assert "before" not in told
