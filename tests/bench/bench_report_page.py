"""A very large report: drawn, and opened in a headless Chromium.

    python -m tests.bench.bench_report_page --professions 1000 10000

Of a mixture of two components, the figures from a generator of test reports. Opened means: the page is parsed, its
script has run, and a search for one profession has found it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from playwright.sync_api import Browser, expect, sync_playwright

from jobs.report.mixture_schema import ProfessionWeights
from jobs.report.page.render import render
from tests.bench.common import conditions, table
from tests.jobs.report.mixtures import make_mixture_report

__all__ = ["main"]

_WAIT_MS = 300_000


def _measured(browser: Browser, professions: int, wordings: int) -> list[str]:
    report = make_mixture_report(professions=professions, wordings=wordings, per_cell=5)
    if report.mixture is None:
        raise SystemExit("no mixture's report")
    weights = dict.fromkeys(report.labels, 1 / len(report.labels))
    report.mixture.professions = [
        ProfessionWeights(profession=item.profession, source=item.source, weights=weights)
        for item in report.professions
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (512).to_bytes(4, "big") * 2 + b"\0" * 4000
    pictures = {path: content for pair in report.pictures for path in (pair.base, pair.edited) if path}
    started, cpu = time.monotonic(), time.process_time()
    html = render(report, pictures)
    drawn, drawn_cpu = time.monotonic() - started, time.process_time() - cpu
    json_bytes = len(report.model_dump_json(indent=1).encode())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        page = browser.new_page()
        page.set_default_timeout(_WAIT_MS)
        started, cpu = time.monotonic(), _browser_cpu_s()
        page.goto(file.as_uri())
        page.get_by_label("Find a profession").fill(f"{professions - 1:04d}")
        expect(page.locator("#found")).to_have_text(f"1 of {professions:,}", timeout=_WAIT_MS)
        opened, opened_cpu = time.monotonic() - started, _browser_cpu_s() - cpu
        heap = page.evaluate("performance.memory.usedJSHeapSize")
        page.close()
    size = f"{len(html.encode()) / 1e6:.1f} MB"
    return [
        *(size, f"{json_bytes / 1e6:.0f} MB", f"{drawn_cpu:.1f} ({drawn:.1f})"),
        *(f"{opened_cpu:.1f} ({opened:.1f})", f"{heap / 1e6:.0f} MB"),
    ]


def _browser_cpu_s() -> float:
    """Of all processes below this one that live."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--professions", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--wordings", type=int, default=12)
    options = parser.parse_args(arguments)
    found = shutil.which("chromium")
    if found is None:
        raise SystemExit("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        rows = {f"{n:,} professions": _measured(browser, n, options.wordings) for n in options.professions}
        version = browser.version
        browser.close()
    columns = ["report.html", "report.json", "drawn, CPU seconds (wall)", "opened, the same"]
    lines = [table([*columns, "script's memory"], rows), "", conditions(wordings=options.wordings, chromium=version)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
