"""The page in a real headless Chromium: what a reader sees, clicks and types."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from jobs.report.figure_schema import Parity, ShareFigure
from jobs.report.headline import headline_of
from jobs.report.page.figures_csv import wordings_csv
from jobs.report.page.render import MAX_BYTES, VISIBLE_ROWS, _tip, render
from jobs.report.schema import Report

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "=HYPERLINK(1)",
    "</pre><b>x",
)

SECTIONS = (
    *("delta", "gates", "professions", "wordings", "calibration"),
    *("pictures", "checks", "edit", "limits", "provenance"),
)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def html(report: Report, pictures: Mapping[str, bytes]) -> str:
    return render(report, pictures)


def names(page: Page) -> list[str]:
    return page.locator("#table tbody tr:visible th").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shows_the_verdict_and_every_section(show: Open, html: str, report: Report, scheme: str) -> None:
    page = show(html, scheme=scheme)
    expect(page.locator("h1")).to_have_text(headline_of(report).replace(" %", "\N{NO-BREAK SPACE}%"))
    expect(page.locator(".gist")).to_have_text(report.sentence.replace(" %", "\N{NO-BREAK SPACE}%"))
    expect(page.locator(".verdict .badge")).to_have_text("Fail")
    for section in SECTIONS:
        expect(page.locator(f"#{section} h2").first).to_be_visible()
    expect(page.locator("#dumbbell .row")).to_have_count(35)
    expect(page.get_by_role("img", name="Share perceived as female per profession, base to edited")).to_be_visible()
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length")
    assert broken == 0


def test_text_is_readable_in_both_themes(show: Open, html: str) -> None:
    """Every heat-map cell has a contrast of at least 4.5 between its figure and its colour over the page's."""
    for scheme in ("light", "dark"):
        page = show(html, scheme=scheme)
        worst = page.evaluate(
            """() => {
              const parse = (text) => text.match(/[\\d.]+/g).map(Number);
              const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
              const light = (c) => c.map((v) => linear(v / 255))
                .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
              const paper = parse(getComputedStyle(document.body).backgroundColor).slice(0, 3);
              let worst = 99;
              for (const cell of document.querySelectorAll(".heat tbody span, .q, .badge, .state, .cap")) {
                const style = getComputedStyle(cell);
                const [r, g, b, a = 1] = parse(style.backgroundColor);
                const back = light([r, g, b].map((v, i) => v * a + paper[i] * (1 - a)));
                const text = light(parse(style.color).slice(0, 3));
                worst = Math.min(worst, (Math.max(back, text) + .05) / (Math.min(back, text) + .05));
              }
              return worst;
            }"""
        )
        assert worst >= 4.5, scheme


def test_sorts_by_mouse_and_keyboard(show: Open, html: str, report: Report) -> None:
    page = show(html)
    heading = page.get_by_role("columnheader", name="Change")
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "descending")
    by_change = {
        item.profession: (item.edited.share or 0) - (item.base.share or 0) for item in report.professions if item.edited
    }
    assert names(page) == sorted(by_change, key=lambda name: -by_change[name])
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    assert names(page) == sorted(by_change, key=lambda name: by_change[name])
    page.get_by_role("columnheader", name="Profession").first.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "none")
    assert names(page) == sorted(by_change, key=str.lower)


def test_delta_stands_beside_its_rms_and_the_wider_interval(show: Open, html: str, report: Report) -> None:
    base, edited = report.summary.base, report.summary.edited
    assert edited is not None
    page = show(html)
    card = page.locator(".card").first
    expect(card.get_by_text(f"rms: base {base.rms:.3f}, edited {edited.rms:.3f}", exact=True)).to_be_visible()
    expect(page.locator("#delta")).to_contain_text("is never shown less its floor")
    interval = f"base {base.delta.resampled_low:.3f}\N{EN DASH}{base.delta.resampled_high:.3f}"
    expect(card.get_by_text(interval)).to_be_hidden()
    card.locator("summary").press("Enter")
    expect(card.get_by_text(interval)).to_be_visible()
    expect(card.locator("details")).to_contain_text("Gates don’t read it")
    expect(page.locator(".card").nth(2).locator("details")).to_have_count(0)
    expect(page.locator(".card").nth(2)).not_to_contain_text("rms")


def test_professions_called_off_target_are_marked_and_sort_first(show: Open, html: str, report: Report) -> None:
    off = [item.profession for item in report.professions if item.off_target]
    assert 0 < len(off) < 35
    page = show(html)
    page.get_by_role("columnheader", name="Off target").get_by_role("button").click()
    assert names(page)[: len(off)] == sorted(off, key=str.lower)
    marks = page.locator("#table tbody tr td:last-child").all_inner_texts()
    assert marks == ["off"] * len(off) + [""] * (35 - len(off))
    row = page.locator("#table tbody tr", has=page.get_by_role("rowheader", name="nurse", exact=True))
    nurse = next(item for item in report.professions if item.profession == "nurse")
    low, high = (100 * (end or 0) for end in (nurse.base.worst_low, nurse.base.worst_high))
    expect(row).to_contain_text(f"{low:.1f}\N{EN DASH}{high:.1f}")
    expect(page.locator("#professions")).not_to_contain_text("Corrected")


def test_corrected_shares_are_shown_where_a_table_was_given(show: Open, build: Callable[..., Report]) -> None:
    report = build(corrected=True, professions=5)
    page = show(render(report, {}))
    heading = page.get_by_role("columnheader", name="Corrected")
    expect(heading).to_have_count(2)
    heading.first.get_by_role("button").click()
    by_share = {item.profession: item.base.corrected.value or 0 for item in report.professions if item.base.corrected}
    assert names(page) == sorted(by_share, key=lambda name: (-by_share[name], name))
    cells = page.locator("#table tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].reduce((n, c) => n + c.colSpan, 0))"
    )
    assert len(set(cells)) == 1
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").first.click()
    line = next(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    first = report.professions[0]
    assert first.edited is not None
    assert first.edited.corrected is not None
    assert float(line["edited_corrected_high"]) == pytest.approx(first.edited.corrected.high, rel=1e-5)
    assert float(line["base_worst_low"]) == pytest.approx(first.base.worst_low, rel=1e-5)
    assert line["off_target"] == ("yes" if first.off_target else "no")


def test_filters_table_chart_heat_map_and_pictures_together(show: Open, html: str) -> None:
    page = show(html)
    page.get_by_label("Find a profession").fill("CLEan")
    assert names(page) == ["cleaner"]
    expect(page.locator("#found")).to_have_text("1 of 35")
    for rows in ("#dumbbell .row", "#heat tbody tr", ".panels > li", ".gallery .group"):
        expect(page.locator(rows).locator("visible=true")).to_have_count(1)
    page.get_by_label("Find a profession").fill("")
    assert len(names(page)) == 35


def test_chart_orders_and_heat_map_switches(show: Open, html: str) -> None:
    page = show(html)
    page.get_by_label("Order by").select_option("name")
    assert page.locator("#dumbbell .row .name").first.text_content() == "analyst"
    cell = page.locator("#heat tbody tr td").first
    edited = cell.inner_text()
    page.locator("#heat-edited").focus()
    page.keyboard.press("ArrowLeft")
    assert cell.inner_text() != edited


def test_picture_opens_and_closes_with_the_keyboard(show: Open, html: str) -> None:
    page = show(html)
    first = page.locator(".pair").first
    first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("seed 100003 · 1 of 70")
    expect(dialog.locator("img")).to_have_count(2)
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("2 of 70")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(first).to_be_focused()


def test_csv_downloads_hold_the_figures(show: Open, html: str, report: Report) -> None:
    page = show(html)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").first.click()
    assert download.value.suggested_filename == "2026-11-21-demo-professions.csv"
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert [line["profession"] for line in lines] == [item.profession for item in report.professions]
    assert int(lines[0]["base_n"]) == report.professions[0].base.n
    assert float(lines[0]["base_share"]) == pytest.approx(report.professions[0].base.share, rel=1e-5)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").nth(1).click()
    assert len(Path(download.value.path()).read_text("utf-8").splitlines()) == 1 + 35 * 5


def test_calibration_draws_each_profession_and_says_what_is_unreachable(show: Open, html: str, report: Report) -> None:
    search = report.calibration
    assert search is not None
    page = show(html)
    section = page.locator("#calibration")
    expect(section).to_contain_text(search.rule.replace(" %", "\N{NO-BREAK SPACE}%"))
    expect(section.locator("tfoot")).to_contain_text(f"{search.images:,}")
    assert section.locator("tbody tr").count() == len(search.rounds)
    states = section.locator(".panels .state").all_inner_texts()
    order = ["unreachable", "undecided", "on target", "balanced", "fixed"]
    assert states == sorted((each.state for each in search.professions), key=order.index)
    stuck = [each for each in search.professions if each.state == "unreachable"]
    told = section.locator("[data-list=unreachable] li")
    expect(told).to_have_count(len(stuck))
    for each in stuck:
        best = max(step.share or 0 for step in each.steps)
        text = told.filter(has_text=each.profession).inner_text().replace("\N{NO-BREAK SPACE}", " ")
        assert f"{100 * best:.1f} % female" in text
        assert each.reason in text


def test_a_panel_holds_its_points_within_its_frame(show: Open, html: str, report: Report) -> None:
    """The last point's centre is where its shares say, between the frame's lines; the frame is lines, not a block."""
    search = report.calibration
    assert search is not None
    page = show(html)
    for each in [each for each in search.professions if each.steps][:10]:
        panel = page.locator(f".panels > li:has(h4:text-is('{each.profession}'))")
        last = each.steps[-1]
        assert last.share is not None
        dot = panel.locator("circle.last")
        assert float(dot.get_attribute("cx") or 0) == pytest.approx(
            24 + 120 * next(iter(last.shares.values())), abs=0.1
        )
        assert float(dot.get_attribute("cy") or 0) == pytest.approx(106 - 100 * last.share, abs=0.1)
        expect(panel.get_by_role("img")).to_have_accessible_name(
            re.compile(f"^{each.profession}, {each.state}\\. round 1")
        )
    assert page.evaluate("getComputedStyle(document.querySelector('#steps-frame path')).fill") == "none"
    clip = page.locator(".panels svg").first.bounding_box()
    assert clip is not None
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True))).convert("L")
    dark = sum(shot.histogram()[:40])
    assert dark < 0.02 * shot.width * shot.height


def test_calibration_steps_download(show: Open, html: str, report: Report) -> None:
    search = report.calibration
    assert search is not None
    page = show(html)
    with page.expect_download() as download:
        page.locator("#calibration").get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "2026-11-21-demo-calibration.csv"
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert len(lines) == sum(max(1, len(each.steps)) for each in search.professions)
    first = next(line for line in lines if line["round"])
    step = next(each for each in search.professions if each.profession == first["profession"]).steps[0]
    assert (float(first["tried"]), int(first["n"])) == (next(iter(step.shares.values())), step.n)
    assert float(first["share_female"]) == pytest.approx(step.share, rel=1e-5)


@pytest.mark.parametrize("how", [{}, {"edited": False}, {"compared": True}])
def test_no_overflow_on_a_narrow_screen(show: Open, build: Callable[..., Report], how: dict[str, bool]) -> None:
    report = build(**how, wordings=12, names=("W" * 90, "x" * 40), corrected=True)
    report.summary.base.delta.n = 1_750_000
    page = show(render(report, {}), width=360)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cards = "[...document.querySelectorAll('.card')].every(card => card.scrollWidth <= card.clientWidth)"
    assert page.evaluate(cards)


def test_hostile_names_are_text(show: Open, build: Callable[..., Report]) -> None:
    report = build(names=HOSTILE)
    page = show(render(report, {}))
    assert page.title() == "Fail: Evenhand report of 2026-11-21-demo"
    assert names(page)[: len(HOSTILE)] == list(HOSTILE)
    assert page.locator("img, b, i").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").first.click()
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert [line["profession"] for line in lines[:4]] == [*HOSTILE[:2], f"'{HOSTILE[2]}", HOSTILE[3]]


def test_audit_without_an_edit(show: Open, build: Callable[..., Report]) -> None:
    page = show(render(build(edited=False), {}))
    expect(page.locator("#dumbbell circle.e")).to_have_count(0)
    expect(page.locator("#edit")).to_have_count(0)
    expect(page.locator("#calibration")).to_have_count(0)
    expect(page.locator(".switch")).to_have_count(0)
    assert "edited" not in page.locator("#professions").inner_text().lower()


@pytest.fixture(scope="module")
def long_report(build: Callable[..., Report]) -> Report:
    return build(professions=1000, wordings=12, per_cell=20)


@pytest.fixture(scope="module")
def long_html(long_report: Report) -> str:
    content = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (512).to_bytes(4, "big") * 2 + b"\0" * 4000
    return render(
        long_report, {path: content for meta in long_report.pictures for path in (meta.base, meta.edited) if path}
    )


def test_a_thousand_professions_are_small_and_quick(show: Open, long_html: str) -> None:
    assert len(long_html.encode()) < MAX_BYTES
    started = time.monotonic()
    page = show(long_html)
    page.get_by_label("Find a profession").fill("0999")
    expect(page.locator("#found")).to_have_text("1 of 1,000")
    assert time.monotonic() - started < 6
    page.get_by_label("Find a profession").fill("")
    assert len(names(page)) == VISIBLE_ROWS
    page.get_by_role("button", name="Show all 1,000").nth(1).click()
    assert page.evaluate("document.querySelectorAll('#table tbody tr:not(.late)').length") == 1000


def test_a_comparison_names_its_columns_and_tells_who_moved(
    show: Open, build: Callable[..., Report], pictures: Mapping[str, bytes]
) -> None:
    report = build(compared=True)
    page = show(render(report, pictures))
    expect(page.locator(".kicker")).to_contain_text("against the earlier run 2026-10-01-v7")
    expect(page.locator("#table .groups th")).to_have_text(["Earlier run 2026-10-01-v7", "Audited model"])
    for section in ("#edit", "#calibration"):
        expect(page.locator(section)).to_have_count(0)
    rows = page.locator("#moved tbody tr")
    assert rows.locator("th").all_inner_texts() == [each.profession for each in report.moved]
    expect(rows.first.locator("td").last).to_have_text("farther" if report.moved[0].worse else "not farther")
    page.get_by_label("Find a profession").fill(report.moved[0].profession)
    expect(rows.locator("visible=true")).to_have_count(1)
    said = page.locator("main").inner_text().replace("\N{NO-BREAK SPACE}", " ").lower()
    assert not re.search(r"\b(base|edited)\b", said)
    page.locator(".pair").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("earlier run male")
    still = show(render(report.model_copy(update={"moved": []}), {}))
    expect(still.locator("#moved")).to_contain_text("No profession is shown to have moved")
    for item in report.professions:
        item.lam, item.shares = 12.0, {f"a female {item.profession}": 1.0}
    operator = show(render(report, {}))
    expect(operator.locator("#lam-chart .row")).to_have_count(35)
    expect(operator.locator("#edit")).to_contain_text("leads from the earlier run 2026-10-01-v7’s share")


def test_directions_parity_and_lam_are_shown(show: Open, html: str, report: Report) -> None:
    page = show(html)
    parts = page.locator("#checks .part")
    expect(parts.locator("th")).to_have_text(["of these, female", "of these, male"])
    expect(parts.last).to_contain_text("95.1")
    expect(page.locator(".parity tbody tr")).to_have_count(2)
    expect(page.locator(".parity")).to_contain_text("0.873")
    dots = page.locator("#lam-chart .row")
    expect(dots).to_have_count(35)
    order = sorted(report.professions, key=lambda item: item.lam or 0)
    across = {
        tip.split(":")[0]: x
        for tip, x in dots.evaluate_all(
            """rows => rows.map(row => [row.querySelector('title').textContent,
                                       parseFloat(row.querySelector('circle').getAttribute('cx'))])"""
        )
    }
    assert [across[item.profession] for item in order] == sorted(across.values())
    empty = ShareFigure(value=None, low=None, high=None)
    parity = Parity(difference=empty, ratio=empty, reason="no image was determined")
    report = report.model_copy(deep=True)
    report.summary.base.parity = parity
    page = show(render(report, {}))
    expect(page.locator("#delta")).to_contain_text("Base model: no image was determined.")


def test_summary_csv_holds_gates_and_parity(show: Open, build: Callable[..., Report]) -> None:
    report = build(compared=True)
    page = show(render(report, {}))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download summary CSV").click()
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    found = {(line["part"], line["figure"], line["variant"]): line for line in lines}
    assert float(found["parity", "demographic_parity_ratio", "edited"]["high"]) == 0.19
    assert found["gate", "explicit:male", ""]["outcome"] == "pass"
    assert float(found["summary", "delta", "base"]["value"]) == pytest.approx(report.summary.base.delta.value, rel=1e-5)
    assert [line["figure"] for line in lines if line["part"] == "moved"] == [each.profession for each in report.moved]


def test_a_long_heat_map_is_drawn_as_it_is_read(show: Open, long_html: str, long_report: Report) -> None:
    """Past the first rows it is numbers that the script draws as the page itself would, n and interval as well."""
    page = show(long_html)
    cells = "document.querySelectorAll('#heat tbody td').length"
    assert page.evaluate(cells) == VISIBLE_ROWS * 12
    page.get_by_label("Find a profession").fill("0999")
    row = page.locator("#heat tbody tr:not(.out)")
    row.scroll_into_view_if_needed()
    expect(row.locator("td")).to_have_count(12)
    shown = row.locator("td").evaluate_all(
        "cells => cells.map(c => [c.title, c.lastChild.textContent, c.lastChild.getAttribute('style')])"
    )
    for (tip, text, style), counts in zip(shown, long_report.professions[999].wordings.values(), strict=True):
        assert tip == "; ".join(_tip(name, counts[name]) for name in ("base", "edited"))
        share = counts["edited"].share
        assert share is not None
        assert text == f"{100 * share + 1e-9:.0f}"
        assert float(style[4:]) == pytest.approx(2 * share - 1, abs=0.006)
    page.get_by_label("Find a profession").fill("")
    took_ms = page.evaluate(
        """() => new Promise((done) => {
          const started = performance.now();
          document.querySelector("[data-more=heat]").click();
          requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
        })"""
    )
    assert took_ms < 2000
    assert page.evaluate(cells) < 12_000
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(cells) == 12_000
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").nth(1).click()
    assert Path(download.value.path()).read_text("utf-8") == wordings_csv(long_report)


def test_prints_what_a_reader_needs(show: Open, html: str) -> None:
    page = show(html)
    page.emulate_media(media="print")
    expect(page.locator("nav").first).to_be_hidden()
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("#lam-chart")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
