"""A mixture's report in a real headless Chromium: weights, components, strengths, pictures, downloads, widths."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from jobs.report.mixture_schema import ProfessionWeights
from jobs.report.page.render import MAX_BYTES, render
from jobs.report.schema import Report
from tests.jobs.report.mixtures import FOUR, make_mixture_report
from tests.jobs.report.reports import make_pictures

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def html(mixture_report: Report) -> str:
    return render(mixture_report, make_pictures(mixture_report))


def plain(place: Locator) -> str:
    return place.inner_text().replace("\N{NO-BREAK SPACE}", " ")


def rows_of(page: Page, place: str, button: str) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.locator(place).get_by_role("button", name=button).click()
    return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_says_what_a_mixture_is_and_shows_its_parts(show: Open, html: str, mixture_report: Report, scheme: str) -> None:
    page = show(html, scheme=scheme)
    section = page.locator("#mixture")
    expect(section).to_contain_text("A component by itself is not a debiased model")
    expect(section.get_by_role("img", name="Weights: female 52.0 %, male 48.0 %")).to_be_visible()
    mixture = mixture_report.mixture
    assert mixture is not None
    expect(section.locator(".component h4")).to_have_text(["female", "male"])
    for place, each in enumerate(mixture.components):
        lines = section.locator(".component").nth(place).locator("tbody tr")
        expect(lines).to_have_count(len(mixture_report.wordings))
        for at, line in enumerate(each.wordings):
            assert f"{100 * (line.share or 0):.1f} %" in plain(lines.nth(at))
            assert f"n {line.n}" in plain(lines.nth(at))
    expect(section.locator(".own-weights tbody tr")).to_have_count(1)
    expect(section.locator(".own-weights tbody tr")).to_contain_text("70.0")
    expect(section).to_contain_text("The component “male” leaves 1 profession alone")
    expect(page.locator("#calibration")).to_have_count(0)
    expect(page.locator("nav").get_by_role("link", name="The mixture")).to_be_visible()
    expect(section.locator(".groups th")).to_have_text(["female", "male"])
    expect(section.locator(".component-rates .part th")).to_have_text(["of these, female", "of these, male"])


def test_a_component_s_share_lies_along_its_scale(show: Open, html: str, mixture_report: Report) -> None:
    mixture = mixture_report.mixture
    assert mixture is not None
    page = show(html)
    found = page.locator(".component").nth(1).locator("svg.scale").nth(2)
    line = mixture.components[1].wordings[2]
    box, dot = found.bounding_box(), found.locator("circle").bounding_box()
    assert box is not None
    assert dot is not None
    at = (dot["x"] + dot["width"] / 2 - box["x"]) / box["width"]
    assert at == pytest.approx(line.share, abs=0.01)


def test_strengths_name_who_is_short_first(show: Open, html: str, mixture_report: Report) -> None:
    search = mixture_report.saturation
    assert search is not None
    page = show(html)
    section = page.locator("#saturation")
    expect(section.locator(".strengths tbody tr")).to_have_count(len(search.rounds))
    short = [each.profession for each in search.professions if each.state == "short"]
    first = section.locator(".panels > li h4").all_inner_texts()[: len(short)]
    assert sorted(first) == sorted(short)
    assert f"{len(short)} professions are short" in plain(section)
    expect(section.locator(".panels > li").first.locator(".state.off")).to_have_text("male: short")
    page.get_by_label("Find a profession").fill("cashier")
    panel = section.locator(".panels > li").locator("visible=true")
    expect(panel).to_have_count(1)
    expect(panel).to_contain_text("male: left alone")


def test_the_edit_tells_each_component_s_strength(show: Open, html: str) -> None:
    page = show(html)
    page.locator("#edit summary").click()
    row = page.locator("#edit tbody tr", has=page.get_by_role("rowheader", name="cashier", exact=True))
    expect(row.locator("td")).to_have_text(["a cashier", "lam 0.02, overshoot 1.2", "left alone"])
    expect(page.locator("#edit .lede")).to_contain_text("2 closed-form edits")
    expect(page.locator("#edit .lede")).to_contain_text("from 0.01 to 0.04")


def test_pairs_name_the_component_that_drew_them(show: Open, html: str) -> None:
    page = show(html)
    expect(page.locator(".pair .meta").first).to_contain_text("edited by “female”")
    page.locator(".pair").nth(1).click()
    expect(page.get_by_role("dialog")).to_contain_text("edited by the component “male”")


def test_an_audit_of_a_mixture_alone_has_no_second_half(show: Open, mixture_report: Report) -> None:
    report = mixture_report.model_copy(deep=True)
    report.kind, report.saturation, report.summary.edited = "audit", None, None
    for meta in report.pictures:
        meta.edited = meta.edited_label = None
    page = show(render(report, {}))
    expect(page.locator(".pair .meta").first).to_contain_text("seed 100003, drawn by “female”")
    expect(page.locator("#mixture .component")).to_have_count(2)
    for section in ("#saturation", "#edit"):
        expect(page.locator(section)).to_have_count(0)


def test_downloads_hold_components_and_strengths(show: Open, html: str, mixture_report: Report) -> None:
    mixture, search = mixture_report.mixture, mixture_report.saturation
    assert mixture is not None
    assert search is not None
    page = show(html)
    lines = rows_of(page, "#mixture", "Download CSV")
    own = [line for line in lines if line["figure"] == "own" and line["wording"]]
    assert len(own) == 2 * len(mixture_report.wordings)
    male = next(line for line in lines if line["component"] == "male" and line["figure"] == "explicit:male")
    assert float(male["value"]) == pytest.approx(mixture.components[1].explicit_by_label["male"].value, rel=1e-5)
    ended = rows_of(page, "#saturation", "Download CSV")
    assert [line["state"] for line in ended] == [each.state for each in search.professions]
    first = rows_of(page, "#professions", "Download CSV")[0]
    assert (first["lam_male"], first["overshoot_male"], first["left_alone_male"]) == ("0.01", "1.3", "no")
    assert (first["weight_female"], first["weight_male"]) == ("0.3", "0.7")


@pytest.mark.parametrize("labels", [("female", "male"), FOUR, ("W" * 40, "x" * 30, "other")])
def test_no_overflow_on_a_narrow_screen(show: Open, labels: tuple[str, ...]) -> None:
    report = make_mixture_report(labels=labels, wordings=12, names=("W" * 90, "x" * 40))
    page = show(render(report, {}), width=360)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("[...document.querySelectorAll('.spread')].every(t => t.scrollWidth <= t.clientWidth + 1)")


def test_four_components_have_a_panel_each(show: Open, four_report: Report) -> None:
    page = show(render(four_report, {}))
    expect(page.locator(".component h4")).to_have_text(list(FOUR))
    expect(page.locator(".every-label tbody th")).to_have_text(list(FOUR))
    expect(page.locator(".every-label thead th")).to_have_text(["Label", "Wanted", "Base", "95 %", "Edited", "95 %"])
    widths = page.locator("svg.weights rect").evaluate_all("parts => parts.map(p => p.getAttribute('width'))")
    assert widths[:4] == ["25%"] * 4
    cells = page.locator(".component-rates tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].reduce((n, c) => n + c.colSpan, 0))"
    )
    assert set(cells) == {13}


def test_the_model_itself_may_be_a_component(show: Open, mixture_report: Report) -> None:
    report = mixture_report.model_copy(deep=True)
    assert report.mixture is not None
    other = report.mixture.components[1]
    other.label, other.operator, other.explicit_by_label = "unedited", None, {}
    other.own.value = other.own.low = other.own.high = None
    for line in other.wordings:
        line.share = line.low = line.high = None
    page = show(render(report, {}))
    expect(page.locator(".component h4").last).to_have_text("unedited (the model itself)")
    expect(page.locator("#edit .lede")).to_contain_text("one closed-form edit")
    expect(page.locator("#mixture")).not_to_contain_text("None")


def test_hostile_labels_are_text(show: Open) -> None:
    report = make_mixture_report(labels=("<b>x</b>", '"><img src=x onerror="document.title=1">'), professions=3)
    page = show(render(report, {}))
    assert page.title() == "Fail: Evenhand report of 2026-11-21-demo"
    assert page.locator("img, b, i").count() == 0
    expect(page.locator(".component h4").first).to_have_text("<b>x</b>")


def test_a_thousand_professions_of_four_components_stay_small(show: Open) -> None:
    report = make_mixture_report(labels=FOUR, professions=1000, wordings=12, per_cell=20)
    assert report.mixture is not None
    weights = dict.fromkeys(FOUR, 0.25)
    report.mixture.professions = [
        ProfessionWeights(profession=item.profession, source=item.source, weights=weights)
        for item in report.professions
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (512).to_bytes(4, "big") * 2 + b"\0" * 4000
    html = render(report, {path: content for meta in report.pictures for path in (meta.base, meta.edited) if path})
    assert len(html.encode()) < MAX_BYTES
    assert "more professions: in the CSV" in html
    page = show(html)
    page.get_by_label("Find a profession").fill("0999")
    expect(page.locator("#found")).to_have_text("1 of 1,000")


def test_prints_weights_and_components(show: Open, html: str) -> None:
    page = show(html)
    page.emulate_media(media="print")
    for place in ("svg.weights", ".component", ".component-rates", "#saturation .panels"):
        expect(page.locator(place).first).to_be_visible()
    assert page.pdf().startswith(b"%PDF")
