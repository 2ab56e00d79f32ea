"""Imports point one way: jobs -> {infra, manifests, time_ops}, and `time_ops` knows neither Ray nor storage."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "time_ops": {"jobs", "infra", "manifests", "ray", "boto3", "pyarrow"},
    "manifests": {"jobs", "infra", "time_ops", "ray", "torch", "boto3"},
    "infra": {"jobs", "manifests", "time_ops"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_what_lies_above_or_beside_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): sorted(imported(f) & FORBIDDEN[package]) for f in files}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("jobs.cli", "torch transformers diffusers ray scipy pandas inflect"),
        (
            "jobs.debias, jobs.audit, jobs.evaluate, jobs.scheduling.job, jobs.export",
            "transformers diffusers pandas inflect",
        ),
        ("jobs.worker.worker", "pandas inflect"),
    ],
    ids=["a command", "a driver", "a worker"],
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(modules: str, without: str) -> None:
    code = f"import sys, {modules}; print(*sorted(set({without.split()}) & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.split() == []


def test_no_pickled_weights_and_no_remote_code() -> None:
    assert not [p for p in ROOT.rglob("*.bin") if ".venv" not in p.parts and ".evenhand" not in p.parts]
    sources = [p for name in ("infra", "jobs", "manifests", "time_ops") for p in (ROOT / name).rglob("*.py")]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text, source
        assert "torch.load(" not in text, source
        assert "import pickle" not in text, source
