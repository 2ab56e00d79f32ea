"""Audits on a schedule with the real audit job: a real Ray, a folder as the store, the demo model, few images."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file, save_file

from infra import local
from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import LocalStore, StorageSettings, open_store
from jobs.cli import main
from jobs.config import load_config
from jobs.errors import ConfigError
from jobs.report.figure_schema import ShareFigure
from jobs.report.schema import Movement, Report
from jobs.scheduling.entries import Entry
from jobs.scheduling.history import History
from jobs.scheduling.job import Ticked, scheduled_audit, trend
from jobs.scheduling.ticks import floor_tick
from manifests import write_manifest
from tests.jobs.helpers import manifest

pytestmark = pytest.mark.slow

IMAGES = 2 * 2 + 4 + 1


@dataclass
class Cron:
    """What starts ticks: a configuration, and what has been said."""

    store: LocalStore
    config: dict[str, Any]
    said: io.StringIO = field(default_factory=io.StringIO)
    connected: int = 0

    def tick(self, tick: str, schedule: str = "nightly", **keys: Any) -> Ticked:
        self.said, self.connected = io.StringIO(), 0
        console = Console(file=self.said, width=200)
        config = load_config(yaml.safe_dump(self.config), flags=keys)
        return scheduled_audit(config, console, schedule=schedule, tick=tick, connect=self._connect)

    def _connect(self) -> None:
        self.connected += 1

    def report(self, run: str) -> Report:
        return Report.model_validate_json(self.store.get(f"runs/{run}/report.json"))

    def shards(self) -> list[str]:
        return list(self.store.list("shards"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scheduled")


@pytest.fixture(scope="module")
def cron(folder: Path, shared_ray: None) -> Cron:
    write_manifest(manifest("nurse", "mechanic"), folder / "m.parquet")
    config = {
        "manifest": str(folder / "m.parquet"),
        "model": str(PIPELINE_PATH),
        "classifier": str(CLASSIFIER_PATH),
        "output": str(folder / "output"),
        "form": "single",
        "wordings": {"edit": ["{source}"], "calibration": ["{source}"], "audit": ["A painting of {source}"]},
        "controls": ["a photo of a tree"],
        "images_per_cell": 2,
        "explicit_images": 1,
        "control_images": 1,
        "shard_images": 2,
        "sampler": {"steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 4},
        "pictures": {"per_cell": 1, "format": "png"},
        "workers": {"count": 1},
    }
    return Cron(LocalStore(folder / "output"), config)


@pytest.fixture(scope="module")
def first(cron: Cron) -> Ticked:
    return cron.tick("2025-11-20T00:00Z")


@pytest.fixture(scope="module")
def retrained(folder: Path) -> Path:
    """The demo model with other weights in its UNet."""
    copy = folder / "retrained"
    shutil.copytree(PIPELINE_PATH, copy)
    (file,) = (copy / "unet").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensor * 1.05 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    return copy


def test_a_first_tick_audits_alone_and_notes_it(cron: Cron, first: Ticked) -> None:
    entry, report = first.entry, cron.report(first.entry.run)
    state = json.loads(cron.store.get(f"{entry.prefix}/run.json"))
    assert (first.state, first.code) == ("audited", state["exit_code"])
    assert (entry.against, entry.reused_from, entry.verdict) == (None, None, report.verdict)
    assert report.cost.images == IMAGES
    assert entry.delta == report.summary.base.delta
    assert entry.model_digest == report.provenance["model_digest"]
    assert History(cron.store, "nightly").latest() == entry
    page = cron.store.get("history/nightly/trend.html").decode()
    assert f"../../runs/{entry.run}/report.html" in page


def test_the_same_tick_again_is_found_without_a_cluster(cron: Cron, first: Ticked) -> None:
    again = cron.tick("2025-11-20T01:00+01:00")
    assert (again.state, again.entry, again.code, cron.connected) == ("found", first.entry, first.code, 0)
    assert f"nightly 2025-11-20T00:00:00Z: {first.entry.verdict}; audited before" in cron.said.getvalue()
    assert len(History(cron.store, "nightly").entries()) == 1


def test_nothing_changed_is_said_and_needs_no_cluster(cron: Cron, first: Ticked) -> None:
    shards = cron.shards()
    # Neither what the runs cost nor where the model lies decides their result.
    moved = cron.tick("2025-11-21T00:00Z", workers={"count": 3}, run="other", model=f"{PIPELINE_PATH}/")
    assert (moved.state, moved.entry.reused_from, cron.connected) == ("reused", first.entry.run, 0)
    assert f"unchanged, reused from {first.entry.run}" in cron.said.getvalue()
    assert cron.shards() == shards
    same = ("run", "verdict", "exit_code", "delta", "professions", "basis", "contents")
    assert [getattr(moved.entry, n) for n in same] == [getattr(first.entry, n) for n in same]
    third = cron.tick("2025-11-21T12:00Z")
    assert (third.state, third.entry.reused_from) == ("reused", first.entry.run)


@pytest.fixture(scope="module")
def changed(cron: Cron, first: Ticked, retrained: Path) -> tuple[Ticked, str]:
    cron.tick("2025-11-21T00:00Z")
    return cron.tick("2025-11-22T00:00Z", model=str(retrained)), cron.said.getvalue()


def test_another_model_is_compared_with_the_entry_before(
    cron: Cron, first: Ticked, changed: tuple[Ticked, str]
) -> None:
    ticked, said = changed
    report = cron.report(ticked.entry.run)
    assert (ticked.state, ticked.entry.against) == ("audited", first.entry.run)
    assert report.reference is not None
    assert (report.reference.kind, report.reference.run) == ("earlier run", first.entry.run)
    assert report.summary.edited is not None
    assert ticked.entry.delta == report.summary.edited.delta
    assert ticked.entry.model_digest != first.entry.model_digest
    assert report.cost.images == IMAGES
    assert "not compared" not in said


def test_a_late_tick_does_not_move_latest_back(cron: Cron, first: Ticked, changed: tuple[Ticked, str]) -> None:
    shards = cron.shards()
    late = cron.tick("2025-11-20T18:00Z")
    assert (late.state, late.entry.reused_from) == ("reused", first.entry.run)
    assert cron.shards() == shards
    history = History(cron.store, "nightly")
    assert history.latest() == changed[0].entry
    assert [e.tick for e in history.entries()] == sorted(e.tick for e in history.entries())


def test_what_cannot_be_compared_is_audited_alone_and_says_why(cron: Cron, changed: tuple[Ticked, str]) -> None:
    other = cron.tick("2025-11-23T00:00Z", undetermined_margin=0.2)
    assert (other.state, other.entry.against) == ("audited", None)
    said = cron.said.getvalue()
    assert "not compared with the audit of 2025-11-22T00:00:00Z" in said
    assert "undetermined_margin: here 0.2, there 0.1" in said
    assert other.entry.basis.changed(changed[0].entry.basis) == ("wordings",)


def test_a_run_that_is_gone_is_neither_reused_nor_compared_with(cron: Cron, first: Ticked) -> None:
    gone = first.entry.model_copy(update={"series": "lost", "run": "no-such-run", "prefix": "runs/no-such-run"})
    History(cron.store, "lost").add(gone)
    ticked = cron.tick("2025-11-22T00:00Z", schedule="lost")
    said = cron.said.getvalue()
    assert "its run can't be reused" in said
    assert "not compared with the audit of 2025-11-20T00:00:00Z" in said
    # The same contents were audited alone in another series: its finished run is this tick's too.
    assert (ticked.state, ticked.entry.run, ticked.entry.against) == ("audited", first.entry.run, None)


def test_a_run_whose_images_are_damaged_is_not_compared_with(
    cron: Cron, first: Ticked, changed: tuple[Ticked, str], retrained: Path
) -> None:
    """Its report and manifest are whole; a later tick must not end on it, or all that follow would."""
    there = f"runs/{changed[0].entry.run}"
    copy = "runs/damaged"
    for key in cron.store.list(there):
        cron.store.put(copy + key.removeprefix(there), cron.store.get(key))
    parts = sorted(key for key in cron.store.list(f"{copy}/images"))
    cron.store.delete(parts[-1])
    History(cron.store, "cut").add(changed[0].entry.model_copy(update={"series": "cut", "prefix": copy}))
    ticked = cron.tick("2025-11-25T00:00Z", schedule="cut")
    assert "not compared with the audit of 2025-11-22T00:00:00Z" in cron.said.getvalue()
    assert (ticked.state, ticked.entry.run, ticked.entry.against) == ("audited", first.entry.run, None)


def test_a_regression_names_what_moved(cron: Cron, first: Ticked) -> None:
    shown = ShareFigure(value=0.2, low=0.1, high=0.3)

    def move(name: str, after: float, *, worse: bool = True) -> Movement:
        return Movement(profession=name, before=0.5, after=after, change=shown, n=90, worse=worse)

    moved = [move("nurse", 0.7), move("clerk", 0.9), move("cook", 0.55, worse=False)]
    facts: dict[str, Any] = {"moved": moved, "against": "audit-1", "verdict": "fail", "exit_code": 5}
    regressed: Entry = first.entry.model_copy(update={**facts, "series": "worse"})
    History(cron.store, "worse").add(regressed)
    ticked = cron.tick("2025-11-20T00:00Z", schedule="worse")
    assert ticked.code == 5
    said = cron.said.getvalue().replace("\N{NO-BREAK SPACE}", " ")
    assert "farther from target than in audit-1: clerk (50.0 % to 90.0 %), nurse (50.0 % to 70.0 %)\n" in said
    History(cron.store, "on base").add(regressed.model_copy(update={"series": "on base", "against": None}))
    cron.tick("2025-11-20T00:00Z", schedule="on base")
    assert "farther from target than in the base model: clerk" in cron.said.getvalue()


def test_a_tick_to_come_is_refused(cron: Cron) -> None:
    with pytest.raises(ConfigError, match="ahead of this machine's clock"):
        cron.tick(f"{datetime.now(UTC).year + 100}-11-21T00:00Z")
    assert cron.connected == 0


def test_an_entry_that_cannot_be_read_costs_no_other_tick_its_code(cron: Cron, first: Ticked) -> None:
    history = History(cron.store, "mixed")
    history.add(first.entry.model_copy(update={"series": "mixed"}))
    broken = next(cron.store.list(f"{history.prefix}/entries")).replace("20251120", "20251119")
    cron.store.put(broken, b"{", content_type="application/json")
    again = cron.tick("2025-11-20T00:00Z", "mixed")
    assert (again.state, again.code) == ("found", first.code)
    assert "trend page was not drawn" in cron.said.getvalue()


def test_a_failing_tick_notes_nothing(cron: Cron, folder: Path) -> None:
    with pytest.raises(ConfigError, match="can't read"):
        cron.tick("2025-11-24T00:00Z", schedule="broken", manifest=str(folder / "none.parquet"))
    assert History(cron.store, "broken").entries() == []


def test_the_page_of_a_series_is_drawn_into_a_file(cron: Cron, first: Ticked, tmp_path: Path) -> None:
    output = str(cron.config["output"])
    out = tmp_path / "pages" / "trend.html"
    assert trend(output, "nightly", out) >= 1
    assert f'href="file://{output}/runs/{first.entry.run}/report.html"' in out.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no audit of a series 'weekly'; it has .*'nightly'"):
        trend(output, "weekly", out)
    with pytest.raises(ConfigError, match="begin one with"):
        trend(str(tmp_path / "empty"), "weekly", out)


def test_the_command_gives_the_entry_and_the_code_of_then(
    cron: Cron, first: Ticked, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(cron.config))
    History(cron.store, "failed").add(first.entry.model_copy(update={"series": "failed", "exit_code": 5}))
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(file), "--schedule", "failed", "--tick", "2025-11-20T00:00Z", "--json"])
    assert ended.value.code == 5
    out, err = capsys.readouterr()
    assert Entry.model_validate_json(out).exit_code == 5
    assert "audited before" in err
    with pytest.raises(SystemExit) as ended:
        main(["trend", str(cron.config["output"]), "--series", "failed", "--out", str(folder / "t.html")])
    assert not ended.value.code
    assert "1 audit: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(file), "--tick", "2025-11-20T00:00Z"])
    assert ended.value.code == 2
    assert "add --schedule NAME" in capsys.readouterr().err


def test_a_submitted_tick_ends_with_the_code_of_its_entry(
    cron: Cron, first: Ticked, cluster: local.LocalCluster, folder: Path
) -> None:
    """On a cluster, by way of the job's own flags: 5 stays 5, for a scheduler that does not try again."""
    output = f"{cluster.url}/{uuid.uuid4().hex}"
    there = open_store(output, StorageSettings.from_environment())
    History(there, "night ly").add(first.entry.model_copy(update={"series": "night ly", "exit_code": 5}))
    file = folder / "submitted.yaml"
    file.write_text(yaml.safe_dump(cron.config | {"output": output}))
    command = [sys.executable, "-m", "jobs.cli", "submit", str(file), "--job", "audit", "--python", sys.executable]
    command += ["--schedule", "night ly", "--tick", "2025-11-20T00:00Z"]
    environment = cluster.client_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "night ly 2025-11-20T00:00:00Z" in done.stdout


def test_a_tick_that_is_not_given_is_floored_to_the_schedule(cron: Cron, first: Ticked) -> None:
    now = floor_tick(datetime.now(UTC), "2w")
    there = History(cron.store, "fortnight").add(first.entry.model_copy(update={"series": "fortnight", "tick": now}))
    config = load_config(yaml.safe_dump(cron.config), flags={"schedule": {"every": "2w"}})
    ticked = scheduled_audit(config, Console(file=io.StringIO()), schedule="fortnight")
    assert (ticked.state, ticked.entry) == ("found", there)
