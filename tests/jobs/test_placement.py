"""Where workers can run, on a real Ray with a real autoscaler, whose nodes are processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray.cluster_utils import AutoscalingCluster

from infra.local.ports import is_free
from infra.storage import StorageSettings
from jobs.errors import ClusterError
from jobs.placement import Demand
from jobs.pool import Pool
from tests.jobs.fake_worker import FakeWorker
from tests.jobs.helpers import config, spec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def autoscaling() -> Iterator[str]:
    """A head without CPUs, and an autoscaler that may bring one node of 2 CPUs and what it calls a GPU."""
    types = {"large": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1}}
    cluster = AutoscalingCluster(head_resources={"CPU": 0}, worker_node_types=types, idle_timeout_minutes=5)
    # Its own `start` would end every Ray of this machine first.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        (Path(folder) / "autoscaler.json").write_text(json.dumps(cluster._config))
        port = next(p for p in range(7400, 7500) if is_free(p))
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0"]
        command += [f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}/r"]
        command += [f"--autoscaling-config={folder}/autoscaler.json", "--object-store-memory=100000000"]
        environment = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        log = (Path(folder) / "log").open("w+")
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    ray.init(address=f"127.0.0.1:{port}", log_to_driver=False)
                    break
                except ConnectionError:
                    assert time.monotonic() < deadline, log.seek(0) or log.read()
                    time.sleep(1)
            yield folder
        finally:
            ray.shutdown()
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
            log.close()


def test_what_no_node_type_has_is_refused_at_once(autoscaling: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="autoscaler's node types"):
        Pool(config(output=str(tmp_path), workers={"num_cpus": 3}), StorageSettings(), "t", FakeWorker)  # type: ignore[arg-type]


def test_a_node_that_does_not_come_in_time_ends_the_run(autoscaling: str, tmp_path: Path) -> None:
    settings = config(output=str(tmp_path), workers={"num_cpus": 2, "wait_s": 0.5})
    with (
        pytest.raises(ClusterError, match=r"workers\.wait_s"),
        Pool(settings, StorageSettings(), "t", FakeWorker) as pool,  # type: ignore[arg-type]
    ):
        pool.probe()


def test_a_gpu_that_an_autoscaler_can_bring_is_waited_for(autoscaling: str, tmp_path: Path) -> None:
    said: list[str] = []
    with Pool(config(output=str(tmp_path)), StorageSettings(), "t", FakeWorker, said.append) as pool:  # type: ignore[arg-type]
        assert pool.probe()
        tallied = pool.run([spec(prompt="fine")], None, lambda *_, **__: None, 1)
    assert tallied.shards == 1
    assert [text for text in said if "autoscaler to bring {'CPU': 1.0, 'GPU': 1.0}" in text]
    assert ray.cluster_resources()["GPU"] == 1


@pytest.mark.parametrize(
    ("demand", "node", "workers"),
    [
        (Demand(1, 0), {"CPU": 4}, 4),
        (Demand(1, 0.25), {"CPU": 8, "GPU": 1}, 4),
        (Demand(0.1, 0.1), {"CPU": 1, "GPU": 1}, 10),
        (Demand(2, 1), {"CPU": 3, "GPU": 8}, 1),
        (Demand(1, 1), {"CPU": 64}, 0),
    ],
)
def test_workers_per_node(demand: Demand, node: dict[str, float], workers: int) -> None:
    assert demand.fits(node) == workers
