"""The page as text: what stands in for missing values, what pictures it takes, what it allows itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest

from jobs.report.figure_schema import DeltaFigure, RateFigure
from jobs.report.formatting import clock, gate_measure, percent, plain_text, points, when
from jobs.report.page.figures_csv import professions_csv, safe_cell
from jobs.report.page.picture_data import choose_pictures, data_uri
from jobs.report.page.render import MAX_BYTES, render
from jobs.report.page.search_panels import MAX_PANELS, MAX_STEPS, best_step, panels
from jobs.report.schema import LabelCounts, Report
from jobs.report.search_schema import CalibrationStep

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (32).to_bytes(4, "big") * 2


def test_policy_and_no_address(report: Report, pictures: Mapping[str, bytes]) -> None:
    html = render(report, pictures)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert not re.search(r"https?://", html)
    assert html == render(report, pictures)


def test_missing_values_are_dashes_with_reasons(build: Callable[..., Report]) -> None:
    report = build()
    nothing = LabelCounts(
        n=0, labels={"female": 0, "male": 0}, undetermined=9, failed=1, share=None, low=None, high=None
    )
    first = report.professions[0].model_copy(update={"base": nothing, "lam": None, "target": {}})
    unmeasured = RateFigure(value=None, n=0, low=None, high=None)
    no_delta = DeltaFigure(value=None, low=None, high=float("nan"), floor=None, n=0)
    summary = report.summary.model_copy(
        update={"base": report.summary.base.model_copy(update={"delta": no_delta, "explicit": unmeasured})}
    )
    html = render(report.model_copy(update={"professions": [first], "summary": summary, "wordings": []}), {})
    for reason in ("no image was determined", "this profession was not edited", "not measured in this run"):
        assert f'title="{reason}' in html
    assert not re.search(r">\s*(nan|None|null)\b", html, re.IGNORECASE)
    assert "base no determined image of 10" in html


def test_what_one_variant_lacks_is_a_dash_with_its_reason(build: Callable[..., Report]) -> None:
    report = build(professions=3)
    first = report.professions[0]
    first.edited = first.off_target = None
    assert report.summary.edited is not None
    del report.summary.edited.explicit_by_label["male"]
    report.wordings[0].edited = report.controls[0].edited = None
    html = render(report, {})
    for reason in ("the edited model was not measured here", "no image was determined", "not measured in this run"):
        assert f'title="{reason}"' in html


def test_nothing_at_all_still_renders(report: Report) -> None:
    empty = {"professions": [], "wordings": [], "controls": [], "pictures": [], "gates": [], "margin_sweep": []}
    assert "This run set no gates." in render(report.model_copy(update=empty), {})


def test_pictures_are_shared_out_within_the_budget(report: Report) -> None:
    pictures = {path: PNG + b"\0" * 3000 for meta in report.pictures for path in (meta.base, meta.edited) if path}
    gallery = choose_pictures(report.pictures, pictures, budget_bytes=40 * 9_200)
    assert len(gallery.groups) == 35
    assert gallery.shown + gallery.left_out == 70
    assert 35 < gallery.shown < 45


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"<svg onload='x()'/>", None),
        (b"", None),
    ],
)
def test_only_raster_pictures_become_data(content: bytes, kind: str | None) -> None:
    uri = data_uri(content)
    assert uri is None if kind is None else (uri or "").startswith(f"data:{kind};base64,")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "  =1", "＝1"])
def test_formulas_are_defused(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


def test_numbers_stay_numbers(report: Report) -> None:
    assert [safe_cell(value) for value in (-0.25, 3, None, float("nan"), "a-b")] == ["-0.25", "3", "", "", "a-b"]
    header = professions_csv(report).splitlines()[0]
    assert header.startswith("profession,source,target_female,lam,base_n,base_female,base_male,base_undetermined")


def test_what_was_not_measured_leaves_no_trace(build: Callable[..., Report]) -> None:
    """A report of before these figures existed has none of them."""
    old = build(professions=3)
    for item in old.professions:
        item.off_target = item.base.worst_low = item.base.worst_high = None
    for variant in (old.summary.base, old.summary.edited):
        assert variant is not None
        variant.rms = variant.rms_within = variant.parity = None
        variant.explicit_by_label = {}
        for figure in (variant.delta, variant.delta_within):
            figure.resampled_low = figure.resampled_high = None
    html = render(old, {})
    for words in ("rms", "Worst case", "Off target", "Corrected", "drawn at random", "Fairlearn", "of these"):
        assert words not in html
    assert ",,,," not in professions_csv(build(professions=3))
    assert "corrected" not in professions_csv(build(professions=3))


def test_gates_are_called_what_they_are() -> None:
    titles = {
        "explicit:non-binary": ("Explicit prompts keep “non-binary”", "rate"),
        "profession": ("Farthest profession from its target", "rate"),
        "regression": ("Rise of Delta, pooled over wordings", "delta"),
        "regression_within": ("Rise of Delta, mean within wordings", "delta"),
        "delta_of_tomorrow": ("delta of tomorrow", "delta"),
    }
    for name, (title, kind) in titles.items():
        assert (gate_measure(name).title, gate_measure(name).kind) == (title, kind)


def test_what_a_comparison_was_made_with_is_in_its_provenance(build: Callable[..., Report]) -> None:
    report = build(compared=True, professions=2)
    report.provenance["reference"] = {"device": "cpu"}
    html = render(report, {})
    assert "<dt>compared_with.model_digest</dt><dd>abab" in html
    assert "<dt>compared_with.kind</dt><dd>earlier run</dd>" in html
    assert "<dt>reference.device</dt><dd>cpu</dd>" in html


def test_writing_of_figures() -> None:
    assert percent(0.5123) == "51.2\N{NO-BREAK SPACE}%"
    assert [points(value) for value in (0.031, -0.031, -0.0001)] == [
        "+3.1\N{NO-BREAK SPACE}pts",
        "\N{MINUS SIGN}3.1\N{NO-BREAK SPACE}pts",
        "\N{PLUS-MINUS SIGN}0.0\N{NO-BREAK SPACE}pts",
    ]
    assert [clock(value).replace("\N{NO-BREAK SPACE}", " ") for value in (3.21, 59, 271.3, 11_520)] == [
        "3.2 s",
        "59 s",
        "4 min 31 s",
        "3 h 12 min",
    ]
    assert [when(text) for text in ("2026-11-21T05:50:00Z", "yesterday")] == ["2026-11-21 05:50 UTC", "yesterday"]
    assert plain_text("a\x1b[31mb\nc\x00") == "a[31mb c"


def test_long_searches_are_drawn_in_part_and_say_so(build: Callable[..., Report]) -> None:
    report = build(professions=1000, wordings=2, rounds=30)
    search = report.calibration
    assert search is not None
    drawn = panels(search, report.professions)
    assert {panel.drawn for panel in drawn if len(panel.item.steps) == 30} == {MAX_STEPS}
    html = render(report, {})
    assert len(html.encode()) < MAX_BYTES
    assert f"{1000 - MAX_PANELS} more professions" in html
    assert "12 of 30 rounds drawn" in html
    assert html.count('role="img"><title>') == MAX_PANELS


def test_steps_without_a_figure_are_neither_drawn_nor_best(build: Callable[..., Report]) -> None:
    report = build(professions=6)
    search = report.calibration
    assert search is not None
    stuck = next(each for each in search.professions if each.state == "unreachable")
    nothing = CalibrationStep(
        round=8, lam=7.5, shares={}, share=float("nan"), low=None, high=None, n=0, undetermined=40
    )
    odd = stuck.model_copy(update={"profession": "not in the report", "steps": [*stuck.steps, nothing]})
    report = report.model_copy(update={"calibration": search.model_copy(update={"professions": [odd]})})
    assert report.calibration is not None
    (panel,) = panels(report.calibration, report.professions)
    assert (panel.index, panel.goal, panel.drawn) == (None, None, len(stuck.steps))
    assert panel.tip.endswith("round 8: lam 7.5, no determined image of 40")
    best = best_step(odd, 0.5)
    assert best is not None
    assert best.share == max(step.share or 0 for step in stuck.steps)
    html = render(report, {})
    assert 'data-name="not in the report"' in html
    assert "No round measured how close it came." in html
    assert not re.search(r">\s*(nan|None|null)\b", html, re.IGNORECASE)
