"""A store and Ray nodes that tests may kill, stop and start again."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from typing import Any

import psutil

from infra.local import seaweed
from infra.local.home import REGION, Home
from infra.local.ports import SEAWEED_PORTS, choose_ports
from infra.local.processes import stop

__all__ = ["BUCKET", "Server", "raylet", "workers"]

BUCKET = "tests"


class Server:
    """A SeaweedFS that can be stopped and started again over the same data."""

    def __init__(self, folder: str) -> None:
        self.home = Home.at(folder)
        self.home.create()
        self._ports = choose_ports("seaweed", {}, int(self.home.marker, 16))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.home.write_aws_config(self.endpoint)

    def start(self) -> None:
        self._server = seaweed.start_seaweed(self.home, BUCKET, {name: self._ports[name] for name in SEAWEED_PORTS})
        seaweed.wait_ready(self.home, self._server, self.endpoint, BUCKET)

    def kill(self) -> None:
        """As the kernel does: nothing is flushed or said."""
        os.kill(self._server.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(self._server.pid)], timeout=10)

    def stop(self) -> None:
        stop(self.home, self._server, everything=True)

    def environment(self, endpoint: str) -> dict[str, str]:
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(self.home.credentials_file),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def workers(raylets: Collection[int]) -> list[psutil.Process]:
    """Under these raylets, one a node: another test's Ray may run beside."""
    every = psutil.process_iter(["cmdline", "ppid"])
    ours = [process for process in every if process.info["ppid"] in raylets]
    return [process for process in ours if "ray::EvenhandWorker" in " ".join(process.info["cmdline"] or [])]
