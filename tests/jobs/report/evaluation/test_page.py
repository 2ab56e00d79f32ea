"""The page of an evaluation: what it says, that nothing in it is markup of a user's, and its chart."""

from __future__ import annotations

import io
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations

import pytest
from playwright.sync_api import Page
from rich.console import Console

from jobs.errors import ConfigError
from jobs.report.evaluation.page import best_of, render_evaluation, trade_off
from jobs.report.evaluation.schema import (
    ControlDrift,
    Drift,
    EditFigures,
    EvaluationReport,
    LeftOut,
    MeanFigure,
    PictureRow,
    TestedEditReport,
    Variant,
    VariantFigures,
)
from jobs.report.evaluation.text import evaluation_table
from jobs.report.figure_schema import RateFigure
from jobs.report.reading import is_evaluation, read_evaluation
from jobs.report.schema import Cost

EVIL = '<script>alert("x")</script> & "roses"'
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + (8).to_bytes(4, "big") * 2


def rate(value: float | None, n: int = 240) -> RateFigure:
    ends = (None, None) if value is None else (max(0.0, value - 0.05), min(1.0, value + 0.05))
    return RateFigure(value=value, n=n, low=ends[0], high=ends[1])


def variant(
    kind: Variant, lam: float | None, efficacy: float, generality: float | None, specificity: float
) -> VariantFigures:
    drift = Drift(
        clip_base=27.5,
        clip_edited=26.25,
        clip_change=MeanFigure(value=-1.25, low=-2.0, high=-0.5, n=80),
        distance=MeanFigure(value=0.125, low=0.1, high=0.2, n=80),
        spread=0.375,
    )
    return VariantFigures(
        variant=kind,
        lam=lam,
        efficacy=rate(efficacy),
        generality=rate(generality),
        specificity=rate(specificity),
        harmonic=rate(None if generality is None else 3 / (1 / efficacy + 1 / generality + 1 / specificity)),
        f1=rate(None if generality is None else 2 / (1 / generality + 1 / specificity)),
        specificity_kept=rate(specificity) if kind == "edited" else None,
        lead=0.5,
        drift=drift if kind == "edited" else None,
    )


SWEEP = [
    variant("base", None, 0.02, 0.1, 0.97),
    variant("oracle", None, 0.99, 0.95, 0.97),
    variant("edited", 0.01, 0.95, 0.9, 0.6),
    variant("edited", 0.1, 0.9, 0.8, 0.85),
    variant("edited", 1.0, 0.5, 0.4, 0.96),
]


def report(summary: list[VariantFigures] = SWEEP, left_out: int = 1) -> EvaluationReport:
    lams = [each.lam for each in summary if each.lam is not None]
    figures = [
        EditFigures(
            variant=v.variant, lam=v.lam, efficacy=v.efficacy, generality=v.generality, specificity=v.specificity
        )
        for v in summary
    ]
    drifts = [each.drift for each in summary if each.drift is not None]
    return EvaluationReport(
        run="evaluation-1",
        created="2026-11-21T12:00:00+00:00",
        sentence="At lam 0.1, the best of 3: efficacy 90.0 %.",
        edit_set="edits.csv",
        rows=3,
        images=24,
        control_images=4,
        lams=lams,
        summary=summary,
        edits=[
            TestedEditReport(row=1, source=EVIL, destination="blue roses", positives=5, negatives=5, variants=figures)
        ],
        controls=[
            ControlDrift(prompt="a lake", lam=lam, **drift.model_dump())
            for lam, drift in zip(lams, drifts, strict=True)
        ],
        left_out=[LeftOut(place="row 2", reason=f"{EVIL} lacks a word")] * left_out,
        statuses={"black": 3},
        pictures=[
            PictureRow(
                row=1,
                source=EVIL,
                destination="blue roses",
                seed=7,
                base="pictures/a.png",
                oracle=None,
                edited=["pictures/b.png"] * len(lams),
            )
        ],
        cost=Cost(
            wall_s=60,
            worker_s=50,
            images=1000,
            images_reused=24,
            images_per_s=17,
            shards=40,
            shards_reused=1,
            shards_failed=0,
        ),
        provenance={"model": "a model", "sampler": {"steps": 50}},
    )


class Text(HTMLParser):
    """The words of a page, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.tags = "", list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def page(of: EvaluationReport) -> Text:
    return Text(render_evaluation(of, {"pictures/a.png": PNG, "pictures/b.png": PNG}))


def test_every_figure_stands_with_its_interval_and_n() -> None:
    words = page(report()).words
    for said in (
        "80.0\xa0%",
        "75.0–85.0",
        "240",
        "1,000 images were made",
        "3 black",
        "row 2",
        "−1.25",
        "0.125",
        "0.375",
    ):
        assert said in words, said
    assert "edits.csv" in words


def test_what_a_user_wrote_is_text() -> None:
    found = page(report())
    assert EVIL in found.words
    # One to mark the page as having script; none of the page's own, and none of a prompt's.
    assert found.tags.count("script") == 1


def test_the_best_lam_is_that_of_the_harmonic_mean() -> None:
    assert best_of(SWEEP).lam == 0.1
    alike = [variant("edited", lam, 0.5, None, 0.5) for lam in (0.1, 1.0)]
    assert best_of(alike).lam == 1.0


def test_the_chart_joins_the_lams_in_order() -> None:
    chart = trade_off(SWEEP)
    assert chart is not None
    by_name = {dot.text: dot for dot in chart.dots}
    assert list(by_name) == ["base", "oracle", "0.01", "0.1", "1"]
    # The lowest end across is 5 %, so the axis begins at 0; up it is 55 %, so at 50 %.
    assert by_name["0.1"].x == pytest.approx(80)
    assert by_name["0.1"].y == pytest.approx(100 * (1 - 0.35 / 0.5))
    assert by_name["0.01"].x_low == pytest.approx(85)
    assert chart.trail == "M900 800L800 300L400 80"
    assert chart.down[0] == ("100\xa0%", 0.0)
    assert chart.down[-1][1] == pytest.approx(100)


def test_one_lam_is_no_trade_off() -> None:
    assert trade_off(SWEEP[:3]) is None
    assert 'id="trade-off"' not in render_evaluation(report(SWEEP[:3]), {})


def test_a_set_without_positives_has_no_chart_and_says_so_in_dashes() -> None:
    bare = [variant("base", None, 0.1, None, 0.9), variant("oracle", None, 0.9, None, 0.9)]
    bare += [variant("edited", lam, 0.8, None, 0.9) for lam in (0.1, 1.0)]
    assert trade_off(bare) is None
    assert "no value" in page(report(bare, left_out=0)).words


def test_the_terminal_says_the_same_in_short() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(evaluation_table(report()))
    text = console.export_text()
    assert "edited, lam 0.1" in text
    assert "80.0\xa0% [75.0–85.0]" in text
    assert "row 2" in text


def test_a_report_is_known_by_its_kind_and_a_newer_one_is_refused() -> None:
    data = report().model_dump_json().encode()
    assert is_evaluation(data)
    assert not is_evaluation(b'{"kind": "audit"}')
    assert not is_evaluation(b"{")
    assert read_evaluation(data, "r") == report()
    with pytest.raises(ConfigError, match="newer Evenhand"):
        read_evaluation(data.replace(b'"schema_version":1', b'"schema_version":9'), "r")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_browser_shows_it_without_a_sideways_scroll(show: Callable[..., Page], width: int, scheme: str) -> None:
    shown = show(render_evaluation(report(), {"pictures/a.png": PNG}), width, scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [text.bounding_box() for text in shown.query_selector_all(".dot text")]
    known = [box for box in boxes if box is not None]
    assert len(known) == len(SWEEP)
    for one, other in combinations(known, 2):
        beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
        above = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
        assert beside or above, (one, other)
