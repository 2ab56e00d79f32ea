"""Hostile input. `make fuzz` runs the long profile and prints the figures of what was tried."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.fuzz.profiles  # noqa: F401 - registers them, before `--hypothesis-profile` is looked up
from tests.fuzz.judging import FIGURES


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that all temporary files of readers go to, empty before and after the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not FIGURES:
        return
    terminalreporter.section("hostile input")
    row = "{:<34}{:>8}{:>10}{:>10}{:>11}{:>11}  {}".format
    terminalreporter.line(row("kind", "inputs", "accepted", "refused", "longest s", "peak MiB", "refused how"))
    for kind, f in sorted(FIGURES.items()):
        how = ", ".join(f"{name}: {count}" for name, count in sorted(f.refused.items()))
        peak = f.peak_bytes / (1 << 20)
        terminalreporter.line(
            row(kind, f.inputs, f.accepted, sum(f.refused.values()), f"{f.longest_s:.2f}", f"{peak:.0f}", how)
        )
    total = sum(f.inputs for f in FIGURES.values())
    refused = sum(sum(f.refused.values()) for f in FIGURES.values())
    terminalreporter.line(f"{total:,} inputs, {total - refused:,} accepted, {refused:,} refused")
