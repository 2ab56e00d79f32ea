"""Reports to draw, and a headless Chromium to look at them with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from jobs.report.schema import Report
from tests.conftest import S3Server
from tests.jobs.report.mixtures import FOUR, make_mixture_report
from tests.jobs.report.reports import MakeReport, make_pictures, make_report
from tests.jobs.warm import warm_workers


@pytest.fixture(scope="module")
def shared_ray(s3_server: S3Server) -> Iterator[None]:
    """A Ray of one CPU, which the next module that asks for one finds; its workers reach the session's store."""
    import ray

    if not ray.is_initialized():
        with pytest.MonkeyPatch.context() as patch:
            s3_server.apply(patch)
            ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    with warm_workers():
        yield


@pytest.fixture(scope="session")
def build() -> MakeReport:
    """The factory, `make_report`."""
    return make_report


@pytest.fixture(scope="session")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="session")
def mixture_report() -> Report:
    """Of a mixture of two components."""
    return make_mixture_report()


@pytest.fixture(scope="session")
def four_report() -> Report:
    """Of a mixture of the four components that two crossed attributes make."""
    return make_mixture_report(labels=FOUR)


@pytest.fixture(scope="session")
def pictures(report: Report) -> dict[str, bytes]:
    return make_pictures(report)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("chromium is not installed: `make test` installs it (apt-get install chromium)")
    with sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Open a page; at the end, nothing may have been logged, thrown or fetched."""
    troubles: list[str] = []
    context = browser.new_context(accept_downloads=True)

    def opened(html: str, width: int = 1280, scheme: str = "light") -> Page:
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda request: troubles.append(request.url) if not local(request.url) else None)
        page.goto(path.as_uri())
        return page

    def local(url: str) -> bool:
        return url.startswith(("data:", "blob:")) or url.endswith("/page.html")

    yield opened
    context.close()
    assert troubles == []
