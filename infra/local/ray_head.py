"""The embedded Ray: one head node on loopback that asks for a token.

Jobs reach the store through files named in the head's environment, so nothing secret is in it or in Ray's answers.
"""

from __future__ import annotations

import json
import sys
import urllib.request

import psutil

from infra.local.home import Home, Server
from infra.local.ports import WORKER_PORTS
from infra.local.processes import base_environment, start, wait_until

__all__ = ["client_environment", "not_ready", "start_ray", "wait_ready"]

_START_S = 180.0
_OBJECT_STORE_BYTES = 1_000_000_000
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


def client_environment(home: Home) -> dict[str, str]:
    """Return what every Ray process of this cluster, and every client, must agree on."""
    return {
        # Undocumented: on Linux, what keeps a head on loopback; --node-ip-address alone is rewritten.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.ray_token),
    }


def start_ray(home: Home, ports: dict[str, int], num_cpus: int | None) -> Server:
    """Start the head; `wait_ready` tells when it takes jobs."""
    memory = min(_OBJECT_STORE_BYTES, psutil.virtual_memory().total // 5)
    options: dict[str, object] = {
        "port": ports["gcs"],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports["dashboard"],
        "dashboard-agent-listen-port": ports["agent"],
        "dashboard-agent-grpc-port": ports["agent_grpc"],
        "metrics-export-port": ports["metrics"],
        "node-manager-port": ports["node_manager"],
        "object-manager-port": ports["object_manager"],
        "runtime-env-agent-port": ports["runtime_env"],
        "ray-client-server-port": ports["client"],
        "min-worker-port": ports["workers"],
        "max-worker-port": ports["workers"] + WORKER_PORTS - 1,
        "object-store-memory": memory,
        "temp-dir": home.temp / "ray",
    }
    if num_cpus is not None:
        options["num-cpus"] = num_cpus
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = base_environment(home) | client_environment(home)
    environment |= {
        "AWS_SHARED_CREDENTIALS_FILE": str(home.credentials_file),
        "AWS_CONFIG_FILE": str(home.aws_config),  # holds the endpoint, so a store that moved is found again
        "AWS_EC2_METADATA_DISABLED": "true",
        "AUTOSCALER_METRIC_PORT": str(ports["autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(ports["dashboard_metrics"]),
        # Ray's own 15 lets all else on the machine go first: beside busy programs, workers took minutes to start.
        "RAY_worker_niceness": "0",
    }
    return start(command, environment, home.logs / "ray.log", home.root)


def wait_ready(home: Home, server: Server, ports: dict[str, int]) -> None:
    """Wait for a listing of jobs and for the node's agent, without which every submit fails.

    Raises:
        LocalError: the head does not come up.
    """
    wait_until(lambda: not_ready(home, ports), server, "Ray", home.logs / "ray.log", _START_S)


def not_ready(home: Home, ports: dict[str, int]) -> str | None:
    """Return why jobs can't be submitted yet, or None if they can."""
    # What JobSubmissionClient.list_jobs() asks, without its obedience to whatever RAY_ADDRESS is set here.
    try:
        jobs = json.loads(_get(ports["dashboard"], "/api/jobs/", home))
        agent = _get(ports["agent"], "/api/local_raylet_healthz", home)
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        return str(error)
    if not isinstance(jobs, list):
        return "the dashboard lists no jobs"
    return None if agent.strip() == b"success" else "the node is not healthy"


def _get(port: int, path: str, home: Home) -> bytes:
    token = home.ray_token.read_text("utf-8").strip()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {token}"})
    with _OPENER.open(request, timeout=10) as answer:
        content: bytes = answer.read()
    return content
