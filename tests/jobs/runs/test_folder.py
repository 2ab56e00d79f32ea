"""A run's folder as pollers see it: run.json true at any moment, and never that of another run or driver."""

import json
import shutil
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from infra.storage import ObjectStore, StorageError, open_store
from jobs.cluster.progress import Counts, Stage
from jobs.errors import ConfigError
from jobs.runs.folder import RunFolder
from tests.conftest import S3Server


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path))


def seen(store: ObjectStore, run: str = "r") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(store.get(f"runs/{run}/run.json"))
    return content


def age(store: ObjectStore, **fields: object) -> dict[str, Any]:
    """Change run.json as it would be after hours."""
    content = seen(store) | {"updated": "2020-01-01T00:00:00+00:00", **fields}
    store.put("runs/r/run.json", json.dumps(content).encode())
    return content


def test_a_whole_life(store: ObjectStore) -> None:
    folder = RunFolder(store, "r", beat_s=0.0)
    folder.queue("waiting for workers")
    assert (seen(store)["status"], seen(store)["reason"]) == ("queued", "waiting for workers")
    folder.queue("waiting for the lease")
    assert seen(store)["reason"] == "waiting for the lease"
    folder.open("i", {"configuration": {"seed": 0}})
    state = seen(store)
    assert (state["status"], state["attempt"], state["exit_code"]) == ("running", 1, None)
    assert "reason" not in state
    stage = Stage("base audit", 100)
    folder.progress(stage, stage.add(40, failed_images=2))
    folder.progress(stage, stage.add(20, reused=True))
    folder.progress(stage, stage.add(20, shard_failed=True))
    state = seen(store)
    assert (state["stage"]["done"], state["stage"]["total"], state["stage"]["state"]) == (60, 100, "running")
    assert state["stage"]["per_s"] > 0
    assert state["stage"]["left_s"] is not None
    wanted = {"images_made": 38, "images_reused": 20, "images_failed": 2, "shards_done": 2, "shards_failed": 1}
    assert state["counts"] == wanted
    second = Stage("edited audit", 10)
    folder.progress(second, second.add(10))
    assert seen(store)["counts"]["images_made"] == 48
    folder.put("report.json", b"{}")
    folder.complete("pass", 0, ["s"])
    state = seen(store)
    assert (state["status"], state["exit_code"], state["verdict"], state["stage"]) == ("done", 0, "pass", None)
    assert datetime.fromisoformat(state["started"]) <= datetime.fromisoformat(state["finished"])
    assert list(json.loads(store.get("runs/r/COMPLETE"))["files"]) == ["report.json"]


def test_an_early_write_between_stages_is_made_at_once(store: ObjectStore) -> None:
    folder = RunFolder(store, "r", beat_s=1000.0)
    folder.open("i", {})
    stage = Stage("base audit", 20)
    folder.progress(stage, Counts())
    assert seen(store)["stage"]["done"] == 0
    folder.progress(stage, stage.add(10))
    assert seen(store)["stage"]["done"] == 0
    stage.end(whole=False)
    folder.progress(stage, Counts())
    assert (seen(store)["stage"]["done"], seen(store)["stage"]["state"]) == (10, "stopped")


def test_a_resumed_run_keeps_its_start_and_loses_its_end(store: ObjectStore) -> None:
    first = RunFolder(store, "r")
    first.open("i", {})
    first.complete("pass", 0, [])
    age(store, started="2020-01-01T00:00:00+00:00")
    second = RunFolder(store, "r")
    second.queue("waiting")
    assert seen(store)["status"] == "done"
    second.open("i", {})
    state = seen(store)
    assert (state["status"], state["attempt"], state["verdict"]) == ("running", 2, None)
    assert state["started"] == "2020-01-01T00:00:00+00:00"
    assert not store.exists("runs/r/COMPLETE")
    second.fail(KeyboardInterrupt(), 130)
    assert (seen(store)["status"], seen(store)["exit_code"]) == ("failed", 130)


def test_a_failure_before_open_is_told(store: ObjectStore) -> None:
    folder = RunFolder(store, "r")
    folder.queue("waiting for workers")
    folder.fail(ValueError("no node"), 8)
    state = seen(store)
    assert (state["status"], state["error"], state["exit_code"]) == ("failed", "ValueError: no node", 8)
    # It stands in nobody's way.
    again = RunFolder(store, "r")
    again.queue("waiting for workers")
    assert seen(store)["status"] == "queued"
    again.open("i", {})
    assert seen(store)["attempt"] == 1


def test_what_another_driver_or_configuration_wrote_is_left_alone(store: ObjectStore) -> None:
    owner = RunFolder(store, "r")
    owner.open("i", {})
    before = age(store)
    other = RunFolder(store, "r")
    other.queue("waiting")
    other.beat()
    with pytest.raises(ConfigError, match="another configuration"):
        other.open("j", {})
    other.fail(ValueError("mine"), 2)
    assert seen(store) == before


def test_a_run_taken_over_from_the_queue_is_the_new_drivers(store: ObjectStore) -> None:
    waiting, other = RunFolder(store, "r"), RunFolder(store, "r")
    waiting.queue("waiting for the lease")
    other.queue("waiting")
    assert seen(store)["reason"] == "waiting for the lease"  # that driver lives
    other.open("i", {})
    before = age(store)
    waiting.beat()
    waiting.queue("still waiting")
    waiting.fail(ValueError("gave up"), 9)
    assert seen(store) == before
    other.beat()
    assert seen(store)["updated"] > before["updated"]


def test_a_dead_drivers_place_in_the_queue_is_taken(store: ObjectStore) -> None:
    RunFolder(store, "r").queue("waiting for workers")
    age(store)
    RunFolder(store, "r").queue("waiting again")
    assert seen(store)["reason"] == "waiting again"


def test_a_complete_run_never_fails_afterwards(store: ObjectStore) -> None:
    folder = RunFolder(store, "r")
    folder.open("i", {})
    folder.complete("fail", 5, [])
    before = age(store)
    folder.fail(BrokenPipeError(), 1)
    folder.beat()
    assert seen(store) == before


def test_a_store_that_fails_costs_a_beat_but_is_told_of_a_status(store: ObjectStore, tmp_path: Path) -> None:
    folder = RunFolder(store, "r", beat_s=0.0)
    folder.open("i", {})
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "runs").touch()
    stage = Stage("base audit", 10)
    folder.progress(stage, stage.add(5))
    folder.beat()
    with pytest.raises(StorageError):
        folder.status("running")
    (tmp_path / "runs").unlink()
    folder.beat()
    assert seen(store)["counts"]["images_made"] == 5


def test_beats_from_another_thread_never_bring_an_older_state_back(s3: S3Server) -> None:
    store = s3.store()
    folder = RunFolder(store, "r", beat_s=0.0)
    folder.open("i", {})
    over = threading.Event()

    def until_over(call: Callable[[], None]) -> None:
        while not over.is_set():
            call()

    threads = [threading.Thread(target=until_over, args=(folder.beat,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        stage = Stage("base audit", 10**6)
        for number in range(20):
            folder.progress(stage, stage.add(10))
            folder.status("running", number=number)
            assert (seen(store)["number"], seen(store)["counts"]["images_made"]) == (number, 10 * number + 10)
        folder.complete("pass", 0, [])
        assert seen(store)["status"] == "done"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert seen(store)["status"] == "done"
