"""The trend page in a real headless Chromium: what joins, what is told apart, search, downloads, narrow screens."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from jobs.report.figure_schema import DeltaFigure, GateResult, RateFigure, ShareFigure
from jobs.report.schema import Movement
from jobs.scheduling.entries import Basis, Entry, ProfessionPoint
from jobs.scheduling.trend import MAX_ENTRIES, MAX_PAGE_BYTES, render_trend
from jobs.scheduling.trend_csv import audits_csv
from tests.jobs.report.reports import NAMES, rate, wilson

HOSTILE = "<script>document.title='owned'</script>"
ENDS = "e => { const b = e.getBoundingClientRect(); return [b.y, b.bottom]; }"
START = datetime(2026, 9, 1, tzinfo=UTC)

Open = Callable[..., Page]


def link(entry: Entry) -> str:
    return f"../../{entry.prefix}/report.html"


def delta(value: float, half: float) -> DeltaFigure:
    return DeltaFigure(value=value, low=max(0, value - half), high=min(1, value + half), floor=0.05, n=8_600)


def series(count: int = 30, professions: tuple[str, ...] = tuple(NAMES), name: str = "nightly") -> list[Entry]:
    """A series with a regression, two reused ticks after it, and another manifest from the twentieth tick on."""
    draw = Random(5)
    shares = {p: draw.uniform(0.3, 0.7) for p in professions}
    entries: list[Entry] = []
    for i in range(count):
        reused = i % 10 in (8, 9) and bool(entries)
        if reused:
            before = entries[-1]
            entries.append(
                before.model_copy(
                    update={"tick": START + timedelta(days=i), "reused_from": before.run, "run": before.run}
                )
            )
            continue
        worse = i in (12, 13)
        pooled = 0.14 + 0.03 * draw.random() + (0.12 if worse else 0) + (0.05 if i >= 20 else 0)
        verdict = "fail" if worse else "inconclusive" if i in (5, 21) else "pass"
        points = []
        for p in professions:
            shares[p] = min(0.98, max(0.02, shares[p] + draw.gauss(0, 0.02)))
            hits = round(250 * shares[p])
            low, high = wilson(hits, 250)
            points.append(ProfessionPoint(profession=p, target=0.5, share=hits / 250, low=low, high=high, n=250))
        gates = [
            GateResult(name=g, limit=limit, direction="at most", value=pooled, low=0, high=1, outcome="pass")
            for g, limit in (("delta", 0.2 if i < 20 else 0.25), ("delta_within", 0.3))
        ]
        moved = [
            Movement(
                profession=p,
                before=0.5,
                after=0.7,
                change=ShareFigure(value=0.2, low=0.1, high=0.3),
                n=240,
                worse=True,
            )
            for p in professions[:7]
        ]
        entries.append(
            Entry(
                series=name,
                tick=START + timedelta(days=i),
                created=(START + timedelta(days=i, minutes=9)).isoformat(),
                run=f"audit-{i:016x}",
                prefix=f"runs/audit-{i:016x}",
                kind="audit",
                model="stable-diffusion-v1-4-even",
                model_digest=f"{i // 4:064x}",
                operator=None,
                verdict=verdict,
                exit_code={"pass": 0, "fail": 5, "inconclusive": 6}[verdict],
                sentence="The edit fails the gate on the rise of Delta, pooled: 12.1 % more than before."
                if worse
                else "All gates pass: Delta is 0.151 (0.122 to 0.180) where at most 0.2 was asked for.",
                label="female",
                delta=delta(pooled, 0.03),
                delta_within=delta(pooled + 0.07, 0.04),
                delta_wording_max=delta(pooled + 0.12, 0.05),
                explicit=rate(1702, 1750),
                recognised=rate(1571, 1750),
                controls=rate(295, 300),
                undetermined=RateFigure(value=0.06, n=8750, low=0.055, high=0.065),
                gates=gates,
                professions=points,
                basis=Basis(manifest="a" if i < 20 else "b", classifier="c", sampler="s", wordings="w"),
                contents=f"{i}",
                against=f"audit-{i - 1:016x}" if i else None,
                moved=moved if worse else [],
                reused_from=None,
            )
        )
    return entries


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return series()


@pytest.fixture(scope="module")
def html(entries: list[Entry]) -> str:
    return render_trend(entries, "nightly", link=link)


def chart(page: Page, name: str) -> Any:
    return page.locator(f"[data-chart={name}] .plot")


def test_shows_the_latest_verdict_and_every_audit(show: Open, html: str, entries: list[Entry]) -> None:
    page = show(html)
    expect(page.locator("h1")).to_have_text(entries[-1].sentence.replace(" %", "\N{NO-BREAK SPACE}%"))
    expect(page.locator(".verdict .badge")).to_have_text("Pass")
    expect(page.locator("header")).to_contain_text(f"these are the figures of {entries[-1].run}")
    rows = page.locator("#audits tbody tr")
    expect(rows).to_have_count(len(entries))
    expect(rows.first).to_contain_text("2026-09-30 00:00 UTC")
    for name in ("delta", "delta_within"):
        expect(chart(page, name).locator(".mark")).to_have_count(len(entries))
        expect(chart(page, name)).to_have_attribute("aria-label", re.compile("30 audits, from 0\\.\\d+ on 2026-09-01"))


def test_a_mark_stands_where_its_figure_says(show: Open, html: str, entries: list[Entry]) -> None:
    """Read from the screen: a mark's centre against the scale's own lines, its whisker against the interval."""
    page = show(html)
    plot = chart(page, "delta")
    lines = plot.locator(".grid")
    texts = plot.locator("text.y").all_text_contents()
    heights = [lines.nth(i).evaluate("e => e.getBoundingClientRect().y") for i in (0, lines.count() - 1)]
    zero, top = heights
    scale = float(texts[-1]) - float(texts[0])
    for i in (0, 12, 29):
        mark = plot.locator(".mark").nth(i)
        box = mark.locator(".shape").evaluate(
            "e => { const b = e.getBoundingClientRect(); return b.y + b.height / 2; }"
        )
        shown = float(texts[0]) + (zero - box) / (zero - top) * scale
        tolerance = 0.004 if entries[i].verdict != "inconclusive" else 0.01
        assert shown == pytest.approx(entries[i].delta.value, abs=tolerance)
        whisker = mark.locator(".whisker").evaluate(
            "e => { const b = e.getBoundingClientRect(); return [b.y, b.bottom]; }"
        )
        ends = [(zero - y) / (zero - top) * scale for y in whisker]
        assert ends == pytest.approx([entries[i].delta.high, entries[i].delta.low], abs=0.003)


def test_verdicts_and_reused_points_differ_in_shape(show: Open, html: str, entries: list[Entry]) -> None:
    page = show(html)
    plot = chart(page, "delta")
    counts = {v: sum(e.verdict == v for e in entries) for v in ("pass", "fail", "inconclusive")}
    for verdict, tag in (("pass", "circle"), ("fail", "rect"), ("inconclusive", "path")):
        expect(plot.locator(f".mark.{verdict} {tag}.shape")).to_have_count(counts[verdict])
    reused = plot.locator(".mark.reused")
    expect(reused).to_have_count(sum(e.reused_from is not None for e in entries))
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert reused.first.locator(".shape").evaluate("e => getComputedStyle(e).fill") == paper
    expect(page.locator("#audits .tag")).to_have_count(reused.count())
    assert "unchanged, reused from audit-" in (reused.first.locator("title").text_content() or "")


def test_a_mixture_is_called_one(show: Open, entries: list[Entry]) -> None:
    under = [(None, False), ("9f" * 32, False), ("5e" * 32, True), ("6e" * 32, True), (None, False)]
    some = [
        entry.model_copy(
            update={
                "model_digest": "ab" * 32,
                "operator": digest,
                "mixture": mixture,
                "headline": "Women are 51 % of all.",
            }
        )
        for entry, (digest, mixture) in zip(entries, under, strict=False)
    ]
    page = show(render_trend(some, "nightly", link=link))
    expect(page.locator("h1")).to_have_text("Women are 51\N{NO-BREAK SPACE}% of all.")
    expect(page.locator(".gist")).to_have_text(some[-1].sentence.replace(" %", "\N{NO-BREAK SPACE}%"))
    models = page.locator("#audits tbody tr td:last-child").all_inner_texts()[::-1]
    assert "under" not in models[0]
    assert [text.split("under the ")[1] for text in models[1:4]] == [
        "operator 9f9f9f9f",
        "mixture 5e5e5e5e",
        "mixture 6e6e6e6e",
    ]
    news = page.locator("#audits tbody tr .why").all_inner_texts()[::-1]
    for text, said in zip(
        news[1:],
        ("Now under an operator.", "Now under a mixture.", "Another mixture.", "Without the mixture of before."),
        strict=True,
    ):
        assert text.startswith(said)
    lines = list(csv.DictReader(io.StringIO(audits_csv(some))))
    assert [line["form"] for line in lines] == ["", "operator", "mixture", "mixture", ""]


def test_what_is_not_comparable_is_not_joined(show: Open, html: str) -> None:
    page = show(html)
    trail = chart(page, "delta").locator(".trail").get_attribute("d") or ""
    assert trail.count("M") == 2
    assert [part.count("L") for part in trail.split("M")[1:]] == [19, 9]
    cuts = chart(page, "delta").locator(".cut")
    expect(cuts).to_have_count(1)
    assert cuts.locator("title").text_content() == "not joined: manifest changed"
    expect(page.locator(".cuts li")).to_have_text(["Not joined before 2026-09-21 00:00 UTC: manifest changed."])
    row = page.locator("#audits tbody tr").nth(9)
    expect(row).to_contain_text("Not comparable with the audit before: manifest changed.")
    panel = page.locator("#panels .trail").first.get_attribute("d") or ""
    assert panel.count("M") == 2
    # The limit moved from 0.2 to 0.25 half-way between the two kinds.
    limit = chart(page, "delta").locator(".limit").get_attribute("d") or ""
    assert len(set(re.findall(r"[MV](?:\S+ )?([\d.]+)", limit))) == 2


def test_a_regression_names_what_moved(show: Open, html: str) -> None:
    page = show(html)
    row = page.locator("#audits tbody tr").nth(30 - 1 - 12)
    expect(row.locator(".badge")).to_have_text("Fail")
    expect(row.locator(".why")).to_contain_text(f"Farther from target: {', '.join(NAMES[:5])} and 2 more.")


def test_another_model_or_operator_is_said(show: Open, entries: list[Entry]) -> None:
    one, two, *_ = entries
    operator = two.model_copy(update={"operator": "9f" * 32})
    other = two.model_copy(update={"model_digest": "ff" * 32, "operator": "9f" * 32})
    page = show(render_trend([one, two, operator, other], "nightly", link=link))
    told = page.locator("#audits .why").all_inner_texts()
    assert [text.strip() for text in told] == ["Another model.", "Now under an operator.", "", ""]


def test_runs_are_linked_and_a_store_that_no_browser_opens_is_not(show: Open, entries: list[Entry]) -> None:
    page = show(render_trend(entries[:3], "nightly", link=link))
    first = page.locator("#audits tbody a").first
    assert first.get_attribute("href") == f"../../runs/{entries[2].run}/report.html"
    page = show(render_trend(entries[:3], "nightly", link=lambda _: None))
    expect(page.locator("#audits tbody a")).to_have_count(0)
    expect(page.locator("#audits tbody tr").first).to_contain_text(entries[2].run)


def test_finds_a_profession_with_the_keyboard(show: Open, html: str) -> None:
    page = show(html)
    find = page.get_by_label("Find a profession")
    find.focus()
    page.keyboard.type("NURse")
    expect(page.locator("#panels > li:visible h4")).to_have_text(["nurse"])
    expect(page.locator("#found")).to_have_text("1 of 35")
    find.fill("")
    expect(page.locator("#panels > li:visible")).to_have_count(35)
    order = page.locator("#panels .cap").all_inner_texts()
    off = [abs(float(text.split("\N{NO-BREAK SPACE}")[0]) - 50) for text in order]
    assert off == sorted(off, reverse=True)


def test_csv_downloads_hold_the_figures(show: Open, html: str, entries: list[Entry]) -> None:
    page = show(html)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert [row["run"] for row in rows] == [e.run for e in entries]
    assert float(rows[12]["delta_high"]) == pytest.approx(entries[12].delta.high, rel=1e-5)
    assert (rows[8]["reused_from"], rows[7]["reused_from"]) == (entries[7].run, "")
    with page.expect_download() as download:
        page.get_by_role("button", name="Professions CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert len(rows) == 30 * 35
    assert float(rows[-1]["share"]) == pytest.approx(entries[-1].professions[-1].share, rel=1e-5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_overflow_on_a_narrow_screen(show: Open, scheme: str) -> None:
    page = show(render_trend(series(12, ("W" * 90, "x" * 40), "s" * 90), "s" * 90, link=link), width=360, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = chart(page, "delta").bounding_box()
    assert box is not None
    assert box["width"] > 250


def test_hostile_names_are_text(show: Open) -> None:
    found = [e.model_copy(update={"model": HOSTILE, "run": HOSTILE}) for e in series(3, (HOSTILE, "=1+1"), HOSTILE)]
    page = show(render_trend(found, HOSTILE, link=lambda _: None))
    assert page.title() == f"{HOSTILE}: Evenhand trend"
    assert sorted(page.locator("#panels h4").all_inner_texts()) == [HOSTILE, "=1+1"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Professions CSV").click()
    text = Path(download.value.path()).read_text("utf-8")
    assert "'=1+1" in text


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_audit(show: Open, count: int) -> None:
    page = show(render_trend(series(count), "nightly", link=link, gone="No audit of nightly yet."))
    if count == 0:
        expect(page.locator("h1")).to_have_text("No audit of nightly yet.")
        expect(page.locator("main section")).to_have_count(0)
    else:
        expect(chart(page, "delta").locator(".mark")).to_have_count(1)
        assert (chart(page, "delta").locator(".trail").get_attribute("d") or "").endswith("h0")


def test_figures_without_a_value_leave_a_gap(show: Open) -> None:
    found = series(5, ("nurse",))
    nothing = DeltaFigure(value=None, low=None, high=None, floor=None, n=0)
    gone = ProfessionPoint(profession="nurse", target=0.5, share=None, low=None, high=None, n=0)
    found[2] = found[2].model_copy(update={"delta": nothing, "professions": [gone]})
    page = show(render_trend(found, "nightly", link=link))
    expect(chart(page, "delta").locator(".mark")).to_have_count(4)
    expect(page.locator("#audits tbody tr").nth(2).locator("td").nth(1)).to_have_text("\N{EN DASH}")


@pytest.mark.parametrize("professions", [35, 1000])
def test_a_long_series_stays_small(professions: int) -> None:
    found = series(60, tuple(f"profession of a long name {i:04d}" for i in range(professions)))
    many = [
        e.model_copy(update={"tick": START + timedelta(hours=i), "run": f"run-{i}"}) for i, e in enumerate(found * 20)
    ]
    html = render_trend(many, "hourly", link=link)
    assert len(html.encode()) < MAX_PAGE_BYTES
    assert f"the last {MAX_ENTRIES:,} are shown" in html
    assert html.count("<h4>") == professions
    assert html.count("run-") >= 2 * MAX_ENTRIES
