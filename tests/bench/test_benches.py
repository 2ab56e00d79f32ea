"""The benchmarks run, in their smallest mode; their figures mean nothing here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def table_of(module: str, *arguments: object) -> dict[str, list[float]]:
    """The printed table: medians by row. Conditions must stand below it."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    table, _, below = done.stdout.partition("\n\n")
    assert "Conditions: " in below
    assert "repeats 1, alternating" in below
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: [float(re.split(r" \[", cell)[0]) for cell in cells] for name, *cells in rows}


def test_generation() -> None:
    sizes = ("--images", 4, "--published-images", 1, "--batch-size", 2, "--steps", 1)
    rows = table_of("bench_generation", *sizes, "--repeats", 1, "--processes", 1)
    assert list(rows) == ["bare", "engine", "published"]
    assert all(figure > 0 for figures in rows.values() for figure in figures)
    assert rows["bare"][1] == rows["bare"][3] == 1


def test_gpu_on_a_cpu() -> None:
    sizes = ("--tiny", "--size", 64, "--steps", 2, "--batch-size", 2, "--repeats", 1, "--no-compile")
    command = [sys.executable, "-m", "tests.bench.bench_gpu", "--device", "cpu", *map(str, sizes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    figures = {name: float(re.split(r" \[", cells[0])[0]) for name, *cells in rows if re.match(r"\d", cells[0])}
    assert list(figures) == [
        *("published", "plain", "worker, batch 2"),
        *("eager", "eager, channels-last", "eager, fused projections"),
        "eager, fused projections, linear layers in 8 bits",
    ]
    assert all(figure > 0 for figure in figures.values())
    assert "Conditions: " in done.stdout


def test_labels_on_a_cpu() -> None:
    command = [sys.executable, "-m", "tests.bench.gpu_labels", "--device", "cpu", "--images", "6", "--steps", "5"]
    done = subprocess.run(
        [*command, "--no-compile"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    names = ["float32", "bfloat16", "bfloat16, linear layers in 8 bits", "float32, dpm++ at 2 steps"]
    assert [name for name, *_ in rows[2:]] == names
    assert rows[2][1].startswith("100.0%")
    assert [float(row[-1]) == 0 for row in rows[2:]] == [True, False, False, False]
    assert "Conditions: " in done.stdout


def test_export() -> None:
    command = [sys.executable, "-m", "tests.bench.bench_export", "--narrow", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "under 1 GB beyond that before: yes" in done.stdout
    assert "Conditions: " in done.stdout
