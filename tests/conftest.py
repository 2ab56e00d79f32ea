"""Real servers shared by the whole test session: a store alone (`s3`), and store and Ray (`cluster`).

Also in which order files are run, and which of them by the same worker of pytest-xdist.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Before torch and NumPy are loaded, and for every process that a test starts: models this small gain nothing from
# threads, and threads that wait for a core which another test has cost tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Ray is imported by whichever module is collected first, and for all that it starts: on loopback alone, for the
# last of these decides what address a node takes for its own.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# A worker has the rank of its test: behind the other tests' processes it would only be waited for.
os.environ.setdefault("RAY_worker_niceness", "0")
# Nor is a process started before anything needs it: most of our Rays have a worker or two.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from infra import local
from infra.local import seaweed
from infra.local.home import REGION, Credentials, Home
from infra.local.ports import SEAWEED_PORTS, choose_ports
from infra.local.processes import stop
from infra.storage import ObjectStore, StorageSettings, open_store

# Some ten thousand modules and two thousand tests are made before the first one runs, and none of it is garbage.
gc.disable()

# Seconds to minutes each, the longest first: begun last, one of them would keep one worker busy while the others idle.
_FIRST = (
    "tests/jobs/test_exactly_once.py",
    "tests/jobs/test_debias.py",
    "tests/infra/test_local.py",
    "tests/jobs/scheduling/test_job.py",
    "tests/jobs/test_joint_job.py",
    "tests/jobs/test_mixture_job.py",
    "tests/jobs/test_evaluate.py",
    "tests/jobs/test_export_mixture.py",
    "tests/jobs/test_classifier_job.py",
    "tests/jobs/cluster/test_nodes.py",
    "tests/soak/test_soak.py",
    "tests/jobs/test_audit.py",
    "tests/jobs/editing/test_solver.py",
    "tests/jobs/cluster/test_pool.py",
    "tests/time_ops/test_sd14.py",
    "tests/jobs/test_xl.py",
    "tests/jobs/doctor/test_doctor.py",
    "tests/infra/demo/test_train.py",
)
# What they share costs as much to start as a test: one worker of pytest-xdist has them all, one after another.
_TOGETHER = {
    "cluster_server": ("tests/jobs/test_debias.py", "tests/infra/test_local.py", "tests/jobs/scheduling/test_job.py"),
    "shared_ray": (
        "tests/jobs/test_joint_job.py",
        "tests/jobs/test_mixture_job.py",
        "tests/jobs/test_evaluate.py",
        "tests/jobs/test_export_mixture.py",
        "tests/jobs/test_classifier_job.py",
    ),
}
_GROUP = {file: group for group, files in _TOGETHER.items() for file in files}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    place = {name: i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(_file_of(item.nodeid), len(place)))


def pytest_collection_finish() -> None:
    """Look for garbage again, in what comes from here on."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Hand out whole files, those that share a cluster together."""
    return _Scheduling(config, log)


class _Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = _file_of(nodeid)
        return _GROUP.get(file, file)


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.fixture(scope="module", autouse=True)
def no_foreign_ray(request: pytest.FixtureRequest) -> None:
    """End the Ray that modules share before one begins that starts its own, or none."""
    ours = (item for item in request.session.items if item.nodeid.startswith(f"{request.node.nodeid}::"))
    shares = any("shared_ray" in item.fixturenames for item in ours if isinstance(item, pytest.Function))
    if not shares and "ray" in sys.modules and (ray := sys.modules["ray"]).is_initialized():
        ray.shutdown()


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS of this test session."""

    settings: StorageSettings
    bucket: str
    credentials: Credentials
    environment: dict[str, str]
    home: Path

    def store(self) -> ObjectStore:
        """Return a store under a prefix that no other test uses."""
        return open_store(f"s3://{self.bucket}/{uuid.uuid4().hex}", self.settings)

    def apply(self, patch: pytest.MonkeyPatch, **changes: str | None) -> None:
        """Set this process's AWS variables to reach the server; None unsets one."""
        for name in local.cluster.CONFLICTING:
            patch.delenv(name, raising=False)
        for name, value in (self.environment | changes).items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Start a store alone, in a second or two."""
    with tempfile.TemporaryDirectory(prefix="evenhand-s3-") as folder:
        home, bucket = Home.at(folder), "tests"
        home.create()
        ports = choose_ports("seaweed", {}, int(home.marker, 16))
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        home.write_aws_config(endpoint)
        server = seaweed.start_seaweed(home, bucket, {name: ports[name] for name in SEAWEED_PORTS})
        try:
            seaweed.wait_ready(home, server, endpoint, bucket)
            environment = {
                "AWS_SHARED_CREDENTIALS_FILE": str(home.credentials_file),
                "AWS_CONFIG_FILE": str(home.aws_config),
                "AWS_PROFILE": "default",
                "AWS_ENDPOINT_URL_S3": endpoint,
                "AWS_REGION": REGION,
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            settings = StorageSettings(endpoint_url=endpoint, region=REGION)
            yield S3Server(settings, bucket, home.credentials(), environment, home.root)
        finally:
            stop(home, server, everything=True)
            seaweed.remove_sockets(ports)
            home.remove_temp()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Point this test's process at the session's store: `open_store("s3://...")` and boto3 reach it."""
    s3_server.apply(monkeypatch)
    return s3_server


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[local.LocalCluster]:
    """Start store and Ray with two CPUs; a test that stops it must bring it up again."""
    with tempfile.TemporaryDirectory(prefix="evenhand-home-") as folder:
        try:
            yield local.up(folder, num_cpus=2, bucket="tests")
        finally:
            local.down(folder)


@pytest.fixture
def cluster(cluster_server: local.LocalCluster, monkeypatch: pytest.MonkeyPatch) -> local.LocalCluster:
    """Point this test's process at the cluster: `open_store` and children reach it; Ray here needs `job_headers`."""
    for name in set(os.environ) - set(cluster_server.client_environment()):
        monkeypatch.delenv(name)
    for name, value in cluster_server.environment().items():
        monkeypatch.setenv(name, value)
    return cluster_server
