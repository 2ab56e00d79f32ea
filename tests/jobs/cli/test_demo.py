"""The demo a second time; the first one is the main job, which `test_debias` submits in the same way."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from infra import local
from infra.local import cluster as local_cluster
from infra.storage import StorageSettings, open_store
from jobs.cli import demo
from tests.jobs.report.mixtures import make_mixture_report

pytestmark = pytest.mark.slow


def test_a_finished_run_is_shown_again_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("Ray is not needed")

    for name in local_cluster.CONFLICTING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local_cluster, "_start_ray", never)
    monkeypatch.setenv("EVENHAND_HOME", str(tmp_path / "home"))
    home = local.up(with_ray=False)
    try:
        for name, value in home.environment().items():
            monkeypatch.setenv(name, value)
        store = open_store(home.url, StorageSettings.from_environment())
        config = demo._config(home.url, ())
        report = make_mixture_report(professions=3).model_copy(update={"run": config.run})
        data = report.model_dump_json().encode()
        store.put(f"demo/runs/{config.run}/report.json", data)
        complete = {"files": {"report.json": hashlib.sha256(data).hexdigest()}}
        store.put(f"demo/runs/{config.run}/COMPLETE", json.dumps(complete).encode())
        said = io.StringIO()
        out = tmp_path / "out"
        assert demo.run_demo(out, Console(file=said, width=100)) == 0
        assert "this run was finished before" in said.getvalue()
        assert "Delta, pooled" in said.getvalue()
        assert (out / "report.json").read_bytes() == data
        assert (out / "report.html").read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")
        assert local.status().store == "down"
        # What is not whole is no finished run, and other settings are another one.
        local.up(with_ray=False)
        store.put(f"demo/runs/{config.run}/report.json", b"{}")
        for assignments in ((), ("images_per_cell=13",)):
            with pytest.raises(AssertionError, match="Ray is not needed"):
                demo.run_demo(out, Console(file=said), assignments=assignments)
    finally:
        local.down()
