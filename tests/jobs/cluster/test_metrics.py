"""The metrics as Prometheus gets them: over HTTP, from a real Ray."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

import pytest

from jobs.cluster.metrics import Metrics
from jobs.cluster.progress import Counts, Stage
from tests.jobs.test_redact import SECRETS

_DRIVER = """
import sys, time
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         object_store_memory=100_000_000, _metrics_export_port=int(sys.argv[1]))
from jobs.cluster.metrics import Metrics
from jobs.cluster.progress import Counts, Stage
metrics = Metrics("first-run")
ended = Stage("base audit", 10)
metrics.progress(ended, ended.add(10))
ended.end(whole=True)
metrics.progress(ended, Counts())
stage = Stage("edited audit", 1000)
for _ in range(2):
    metrics.progress(stage, stage.add(50, failed_images=2))
metrics.progress(stage, stage.add(40, reused=True))
metrics.progress(stage, stage.add(50, shard_failed=True))
print("reported", flush=True)
while True:
    time.sleep(0.3)
    metrics.beat()
"""


def _page(port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def _exported(port: int, run: str) -> dict[str, float]:
    """`name outcome|stage` of all lines of a run."""
    found = {}
    for line in _page(port).splitlines():
        if line.startswith("ray_evenhand_") and f'run="{run}"' in line:
            name, _, rest = line.partition("{")
            labels, _, value = rest.rpartition("} ")
            parts = dict(part.split("=", 1) for part in labels.split(",") if "=" in part)
            words = [parts[key].strip('"') for key in ("stage", "outcome") if key in parts]
            found[" ".join([name.removeprefix("ray_evenhand_"), *words])] = float(value)
    return found


def _poll(port: int, enough: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    deadline, found = time.monotonic() + 30, dict[str, float]()
    while time.monotonic() < deadline and not enough(found):
        time.sleep(0.3)
        try:
            found = _exported(port, "first-run")
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_prometheus_gets_what_the_run_reports_and_no_secret() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **{name: value for name, value in SECRETS.items() if not name.startswith("RAY_")},
    }
    command = [sys.executable, "-c", _DRIVER, str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "reported\n"
            # Gauges of the stage that ended are dropped after two report intervals; its counters stay.
            found = _poll(
                port, lambda seen: "seconds_left edited audit" in seen and "stage_images base audit" not in seen
            )
            assert "planted" not in _page(port)
        finally:
            driver.terminate()
    per_s, left = found.pop("images_per_second edited audit"), found.pop("seconds_left edited audit")
    assert left == pytest.approx((1000 - 140 - 50) / per_s)
    assert found == {
        "images_total base audit made": 10,
        "images_total edited audit made": 96,
        "images_total edited audit reused": 40,
        "images_total edited audit failed": 4,
        "shards_failed_total edited audit": 1,
        "stage_images edited audit": 1000,
    }


def test_metrics_that_fail_end_themselves_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(5)  # type: ignore[arg-type]
    stage = Stage("base audit", 10)
    for _ in range(3):
        metrics.progress(stage, stage.add(2))
        metrics.beat()
    metrics.progress(stage, Counts())
    assert caplog.text.count("no more metrics of this run") == 1
