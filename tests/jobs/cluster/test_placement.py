"""Where workers can run, on a real Ray with a real autoscaler, whose nodes are processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig

from infra.local.ports import is_free
from infra.storage import StorageSettings
from jobs.cluster import crew
from jobs.cluster.placement import Demand, NodeType, node_types, room_to_come
from jobs.cluster.pool import Pool
from jobs.errors import ClusterError
from tests.jobs.cluster.fake_worker import FakeWorker
from tests.jobs.helpers import config, spec

pytestmark = pytest.mark.slow


def autoscaler_config(port: int) -> dict[str, object]:
    """Of Ray's fake nodes: one of 2 CPUs and what it calls a GPU may be brought."""
    lists = ("head_setup_commands", "head_start_ray_commands", "initialization_commands", "setup_commands")
    lists += ("worker_setup_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    return {
        "cluster_name": "test",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "large": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **{name: {} for name in ("auth", "file_mounts", "head_node", "worker_nodes")},
        **{name: [] for name in (*lists, "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@contextmanager
def head(ports: Sequence[int]) -> Iterator[str | None]:
    """A head without CPUs, and its autoscaler; gives the head's last words where it does not come to listen."""
    port, dashboard, client, agent, metrics = ports
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, (Path(folder) / "log").open("w+") as log:
        (Path(folder) / "autoscaler.json").write_text(json.dumps(autoscaler_config(port)))
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0"]
        command += [f"--port={port}", "--include-dashboard=false", f"--dashboard-port={dashboard}"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--metrics-export-port={metrics}", f"--temp-dir={folder}/r"]
        command += [f"--autoscaling-config={folder}/autoscaler.json", "--object-store-memory=100000000"]
        environment = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            # Ray's own wait for a head outlasts the test, and says nothing of why there is none.
            deadline = time.monotonic() + 40
            while is_free(port) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
            yield Path(log.name).read_text() if is_free(port) else None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def autoscaling() -> Iterator[str]:
    """The address of a head with an autoscaler."""
    # Below those that Ray takes by default, which another Ray on this machine may have.
    free = [p for p in range(3000 + os.getpid() % 1000, 6000) if is_free(p)]
    said: list[str] = []
    # What is free when it is looked at may be taken a moment later.
    for ports in (free[:5], free[5:10], free[10:15]):
        with head(ports) as failed:
            if failed is None:
                ray.init(address=f"127.0.0.1:{ports[0]}", log_to_driver=False)
                try:
                    yield f"127.0.0.1:{ports[0]}"
                finally:
                    ray.shutdown()
                return
            said.append(failed)
    pytest.fail("no head came to listen:\n" + "\n".join(said))


def tell_node_types(address: str, most: int = 1) -> None:
    told = ClusterConfig()
    told.node_group_configs.add(name="large", resources={"CPU": 2, "GPU": 1}, min_count=0, max_count=most)
    # Where Ray's own libraries look for it. Nothing in the wheel tells it, so the test does.
    GcsClient(address).report_cluster_config(told.SerializeToString())


def test_what_no_node_has_is_refused_with_a_hint(autoscaling: str, tmp_path: Path) -> None:
    """The autoscaler keeps to itself what it may bring."""
    assert node_types() == []
    with pytest.raises(ClusterError, match=r"no node has that(.|\n)*set workers\.wait_s"):
        Pool(config(output=str(tmp_path)), StorageSettings(), "t", FakeWorker)


def test_what_no_node_type_has_is_refused_at_once(autoscaling: str, tmp_path: Path) -> None:
    tell_node_types(autoscaling)
    assert node_types() == [NodeType({"CPU": 2, "GPU": 1}, 1)]
    with pytest.raises(ClusterError, match="autoscaler's node types"):
        Pool(config(output=str(tmp_path), workers={"num_cpus": 3}), StorageSettings(), "t", FakeWorker)


def test_what_node_types_hold_is_counted_over_all_their_nodes(autoscaling: str) -> None:
    tell_node_types(autoscaling, most=3)
    assert [room_to_come(Demand(1, gpus)) for gpus in (0, 0.5, 1, 2)] == [6, 6, 3, 0]
    tell_node_types(autoscaling, most=-1)
    assert [room_to_come(Demand(1, gpus)) for gpus in (1, 2)] == [inf, 0]
    tell_node_types(autoscaling, most=0)
    assert room_to_come(Demand(1, 1)) == 0


def test_a_gpu_that_an_autoscaler_can_bring_is_waited_for(
    autoscaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_SAY_AFTER_S", 0.0)  # a quiet machine's comes within two seconds
    tell_node_types(autoscaling)
    said: list[str] = []
    with Pool(config(output=str(tmp_path)), StorageSettings(), "t", FakeWorker, said.append) as pool:
        assert pool.probe()
        tallied = pool.run([spec(prompt="fine")], (), lambda *_, **__: None, 1)
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
