"""Several nodes, of which one goes, or is no good: the others do the work, and no shard is blamed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from infra.storage import StorageSettings
from jobs.cluster.pool import Pool, Spent
from tests.jobs.cluster.fake_worker import FakeWorker
from tests.jobs.helpers import config, spec
from tests.servers import raylet, workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without CPUs and a node of one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(folder: Path, prompts: list[str], said: list[str] | None = None) -> Spent:
    say = (said if said is not None else []).append
    with Pool(config(output=str(folder)), StorageSettings(), "t", FakeWorker, say) as pool:
        pool.probe()
        specs = [spec(prompt=p, first=4 * i) for i, p in enumerate(prompts)]
        return pool.run(specs, (), lambda *_, **__: None, len(specs))


def test_a_node_of_many_workers_goes_at_once(nodes: Cluster, tmp_path: Path) -> None:
    large, log = nodes.add_node(num_cpus=6), tmp_path / "log"

    def begun() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    def go() -> None:
        # Once its workers are there, and in the midst of their work.
        while len(workers({raylet(large)})) < 6:
            time.sleep(0.1)
        enough = begun() + 30
        while begun() < enough:
            time.sleep(0.1)
        nodes.remove_node(large, allow_graceful=False)

    going = threading.Thread(target=go, daemon=True)
    going.start()
    tallied = run(tmp_path, ["slow"] * 140)
    going.join(0)
    assert not going.is_alive(), "the run was over before the node went"
    assert (tallied.shards, tallied.failed) == (140, {})


@pytest.mark.parametrize("trouble", ["dies at start", "raises"])
def test_a_bad_node_beside_a_good_one(nodes: Cluster, tmp_path: Path, trouble: str) -> None:
    bad = nodes.add_node(num_cpus=1)
    # The probe is asked of the first worker to start: that one has to be good.
    (tmp_path / bad.node_id).write_text(trouble)
    said: list[str] = []
    tallied = run(tmp_path, ["slow"] * 60, said)
    assert (tallied.shards, tallied.failed) == (60, {})
    assert bool([text for text in said if "gets no more work" in text]) == (trouble == "raises")
    nodes.remove_node(bad)
