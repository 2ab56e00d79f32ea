"""Exactly once, whatever breaks: each disturbed run must leave the same rows and the same report as a calm one.

Real Ray nodes, a real S3 server, the demo model, `debias` itself. What was stored before a fault is never made again.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from rich.console import Console

from infra.local.home import REGION
from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.config import RunConfig, load_config
from jobs.debias import Outcome, debias
from jobs.errors import ExitCode, LeaseHeldError, exit_code_of
from manifests import write_manifest
from tests.faults import FaultyProxy
from tests.jobs.helpers import but_for_times, manifest, small_job
from tests.servers import BUCKET, Server, raylet, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# 3 professions x 2 wordings x 12 images, 6 explicit prompts and a control, in shards of 3; twice. A calibration round
# draws 3 images of each profession in its one wording, and the same explicit prompts and control.
AUDIT_SHARDS, ROUND_SHARDS = 31, 10
SHARDS = 2 * AUDIT_SHARDS
PATIENCE_S = 300
"""How long shards may take to come: workers start slowly where other tests have the cores."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="evenhand-s3-") as folder, pytest.MonkeyPatch.context() as patch:
        made = Server(folder)
        made.start()
        for name, value in made.environment(made.endpoint).items():
            patch.setenv(name, value)
        yield made
        made.stop()


@pytest.fixture(scope="module")
def nodes(server: Server) -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one CPU; workers inherit the credentials' file."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@dataclass
class Run:
    """One run's place, and what is in it."""

    config: RunConfig
    store: ObjectStore

    @classmethod
    def at(cls, server: Server, folder: Path, lam: float | None = 500.0, **keys: Any) -> Run:
        write_manifest(manifest("nurse", "CEO", "mechanic", lam=lam), folder / "m.parquet")
        values = small_job(folder / "m.parquet", f"s3://{BUCKET}/{uuid.uuid4().hex}")
        config = load_config(flags=values | keys)
        settings = StorageSettings(endpoint_url=server.endpoint, region=REGION)
        return cls(config, open_store(config.output, settings.model_copy(update={"patience_s": 60.0})))

    def go(self) -> Outcome:
        return debias(self.config, Console(file=io.StringIO()))

    def shards(self) -> dict[str, str]:
        """Key of each stored shard -> digest of its bytes, provenance included: made again, it would differ."""
        return {key: self.store.get_tagged(key)[1] for key in self.store.list("shards")}

    def rows(self) -> bytes:
        return self.store.get("runs/r/images/part-00000.parquet")

    def report(self) -> dict[str, Any]:
        """The report but for times and what a run found done."""
        return but_for_times(self.store.get("runs/r/report.json"))

    def cost(self) -> dict[str, Any]:
        cost: dict[str, Any] = json.loads(self.store.get("runs/r/report.json"))["cost"]
        return cost

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.store.get("runs/r/run.json"))
        return state

    def calibration(self) -> list[dict[str, Any]]:
        return list(pq.read_table(io.BytesIO(self.store.get("runs/r/calibration.parquet"))).to_pylist())

    def wait_for_shards(self, count: int) -> dict[str, str]:
        deadline = time.monotonic() + PATIENCE_S
        while len(list(self.store.list("shards"))) < count:
            assert time.monotonic() < deadline, "no shards come"
            time.sleep(0.02)
        return self.shards()

    def disturbed(self, *faults: tuple[int, Callable[[], None]]) -> dict[str, str]:
        """Run, with each fault once so many shards are stored; returns those that were stored at the last one."""
        before: dict[str, str] = {}
        # Ray starts nodes in the main thread only, so the faults are here and the run is beside.
        with ThreadPoolExecutor(1) as beside:
            going = beside.submit(self.go)
            for after, fault in faults:
                before.update(self.wait_for_shards(after))
                fault()
            going.result()
        assert faults[-1][0] <= len(before) < SHARDS
        return before

    def assert_same_as(self, calm: Run, before: dict[str, str]) -> None:
        """Same rows, same report; what was stored before the fault is what is stored now."""
        assert self.rows() == calm.rows()
        assert self.report() == calm.report()
        after = self.shards()
        assert after.keys() == calm.shards().keys()
        assert len(after) == SHARDS
        assert {key: after[key] for key in before} == before


@pytest.fixture(scope="module")
def calm(server: Server, nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.at(server, tmp_path_factory.mktemp("calm"))
    outcome = run.go()
    assert (outcome.report.cost.shards, outcome.report.cost.shards_reused) == (SHARDS, 0)
    return run


@contextmanager
def watched(raylets: Collection[int]) -> Iterator[set[int]]:
    """Those under which workers are seen while the block runs."""
    seen: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            seen.update(worker.info["ppid"] for worker in workers(list(raylets)))

    with ThreadPoolExecutor(1) as beside:
        watching = beside.submit(watch)
        try:
            yield seen
        finally:
            ended.set()
    watching.result()


def test_a_worker_the_store_requests_and_then_the_nodes_fail_in_one_run(
    calm: Run, server: Server, nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed in mid-shard, one request in twenty fails, the store is away for thirty seconds, and then one
    node joins for two that go."""
    run = Run.at(server, tmp_path)
    first = list(nodes.worker_nodes)
    raylets = {raylet(node) for node in first}

    def outage() -> None:
        server.stop()
        time.sleep(30)
        server.start()

    def exchange() -> None:
        # All that is left to do is the new node's. It outlives this test, and the proxy doesn't.
        with monkeypatch.context() as direct:
            direct.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
            raylets.add(raylet(nodes.add_node(num_cpus=1)))
        for node in first:
            nodes.remove_node(node, allow_graceful=False)

    with FaultyProxy(server.endpoint) as proxy, watched(raylets) as seen:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        kill = (6, lambda: os.kill(workers(raylets)[0].pid, signal.SIGKILL))
        before = run.disturbed(kill, (12, outage), (20, exchange))
        assert all(proxy.counts[kind] for kind in ("slow_down", "delay", "cut_answer", "cut_request")), proxy.counts
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    assert seen == raylets
    assert len(raylets) == 3
    nodes.add_node(num_cpus=1)
    run.assert_same_as(calm, before)


def driver(run: Run, nodes: Cluster, folder: Path) -> subprocess.Popen[bytes]:
    values = run.config.model_dump(mode="json", exclude_defaults=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-m", "jobs.debias", str(folder / "run.yaml")]
    return subprocess.Popen(command, env=environment, stdout=(folder / "out").open("wb"), stderr=subprocess.STDOUT)


def test_the_driver_killed_in_its_calibration_and_the_same_command_again(
    server: Server, nodes: Cluster, tmp_path: Path
) -> None:
    # One worker: it is the driver that is lost here.
    run = Run.at(server, tmp_path, lam=None, workers={"count": 1})
    killed = driver(run, nodes, tmp_path)
    # In the last round of the calibration: two stand in calibration.parquet.
    before = run.wait_for_shards(AUDIT_SHARDS + 2 * ROUND_SHARDS + 2)
    killed.kill()
    killed.wait()
    assert run.state()["status"] == "running"
    rounds = run.calibration()
    assert {r["round"] for r in rounds} == {1, 2}
    run.go()
    assert run.calibration()[: len(rounds)] == rounds
    after = run.shards()
    assert {key: after[key] for key in before} == before
    assert len(after) == SHARDS + 3 * ROUND_SHARDS == run.cost()["shards"]
    assert run.cost()["shards_reused"] >= len(before)
    assert (run.state()["status"], run.state()["attempt"]) == ("done", 2)


def test_the_same_job_twice_at_once_over_damaged_shards(
    calm: Run, server: Server, nodes: Cluster, tmp_path: Path
) -> None:
    before, rows, report = calm.shards(), calm.rows(), calm.report()
    damaged = damage_two(calm)
    first = driver(calm, nodes, tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while calm.state()["status"] != "running":
        assert first.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Its workers are held: it would end before it next renews its lease, and the second would rightly go on.
    with paused(workers({raylet(node) for node in nodes.worker_nodes})), pytest.raises(LeaseHeldError) as refused:
        calm.go()
    assert exit_code_of(refused.value) == ExitCode.LEASE_HELD == 9
    assert first.wait() in (0, 5, 6), (tmp_path / "out").read_text()
    assert (calm.cost()["shards"], calm.cost()["shards_reused"]) == (SHARDS, SHARDS - 2)
    assert (calm.rows(), calm.report()) == (rows, report)
    after = calm.shards()
    others = before.keys() - damaged
    assert {key: after[key] for key in others} == {key: before[key] for key in others}


@contextmanager
def paused(processes: Collection[psutil.Process]) -> Iterator[None]:
    """While the block lasts; without any to pause the test would tell nothing."""
    assert processes
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def damage_two(run: Run) -> set[str]:
    """Cut a stored shard short, and flip a bit in another one's picture; returns their keys."""
    first = json.loads(run.store.get("runs/r/report.json"))["pictures"][0]
    images = pq.read_table(io.BytesIO(run.rows())).to_pylist()
    held = [image for image in images if (image["prompt"], image["index"]) == (first["prompt"], 0)]
    truncated, flipped = (f"shards/{s['shard'][:2]}/{s['shard']}.parquet" for s in held)
    data = run.store.get(truncated)
    run.store.put(truncated, data[: len(data) // 2])
    whole = run.store.get(flipped)
    picture = pq.read_table(io.BytesIO(whole)).column("picture").to_pylist()[0]
    at = whole.index(picture[-40:-20])  # PNGs don't compress: they lie there as they are
    run.store.put(flipped, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    return {truncated, flipped}
