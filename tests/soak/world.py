"""The world of the soak: a real S3 server, real Ray nodes, the proxy between them, and drivers that can be killed.

with World(folder) as world:
    job = world.noop_job(2000)
    driver = world.start(job)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

import yaml

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from infra.local.cluster import CONFLICTING
from infra.local.home import REGION
from infra.storage import ObjectStore, StorageError, StorageSettings, open_store
from manifests import write_manifest
from tests.jobs.helpers import manifest, small_job
from tests.servers import BUCKET, Server, raylet, workers
from tests.soak.faults import Kind
from tests.soak.wire import SoakProxy

__all__ = ["Driver", "Job", "World"]

NODES, NODE_CPUS, WORKERS = 2, 3, 2
"""Room for the workers of a driver, of one that is stopped, and of one that has just been killed."""
SHARD_IMAGES = 12
DISK_BYTES = 1 << 30
REALLY_FULL = 0.25
"""The share of `no_room` that fills the store's disk for real."""
_WRITES_AGAIN_S = 75.0
"""How long the real server may refuse writes after its disk was full."""
_FOLDERS = 64
"""So many that each table of names has some of them, by all odds: one has none in 1 of 600 tries."""
_WORDINGS = ["A painting of {source}", "{source} working", "{source} laughing", "{source} in the workplace"]


@dataclass(frozen=True)
class Job:
    """A command and its configuration; `prefix` is where the run's output is in the bucket."""

    command: str
    values: Mapping[str, Any]
    prefix: str = ""

    def elsewhere(self) -> Job:
        """The same with an output of its own."""
        prefix = uuid.uuid4().hex
        return replace(self, values={**self.values, "output": f"s3://{BUCKET}/{prefix}"}, prefix=prefix)


class Driver:
    """One process of a job's command, forked by `tests.soak.driver`."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log

    @property
    def code(self) -> int | None:
        """What it ended with, negative for a signal; None: it runs."""
        file = Path(f"{self.log}.code")
        return int(file.read_text("utf-8")) if file.exists() else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float = 1800) -> int:
        """Its code, once it has ended.

        Raises:
            TimeoutError: it has not, in so many seconds.
        """
        deadline = time.monotonic() + seconds
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the driver does not end:\n{self.said()}")
            time.sleep(0.05)
        return code

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.send(signal.SIGKILL)
        self.wait()

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_text("utf-8", errors="replace")[-3000:] if self.log.exists() else ""


class World:
    """Store, proxy and nodes, running inside its `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = ExitStack()
        self.clock = folder / "clock"
        self.clock.write_text("0", "utf-8")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _start(self) -> None:
        self.server = Server(str(self.folder / "s3"))
        self._disk = self._mount(self.server.home.store)
        self.server.start()
        self._held.callback(self.server.stop)
        self.proxy = self._held.enter_context(SoakProxy(self.server.endpoint, self.damage))
        # Ray's own folder, so that nobody else's cluster is taken for this one; sockets need it to be short.
        ray_folder = self._held.enter_context(tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True))
        for name in CONFLICTING:
            os.environ.pop(name, None)
        os.environ |= {
            **self.server.environment(self.proxy.url),
            "RAY_TMPDIR": ray_folder,
            "SOAK_CLOCK": str(self.clock),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
        }
        from ray.cluster_utils import Cluster

        self.nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._held.callback(self.nodes.shutdown)
        for _ in range(NODES):
            self.nodes.add_node(num_cpus=NODE_CPUS)
        environment = {**os.environ, "RAY_ADDRESS": self.nodes.address}
        command, pipe = [sys.executable, "-m", "tests.soak.driver"], subprocess.PIPE
        self._forks = self._held.enter_context(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe))

    def _mount(self, folder: Path) -> Path | None:
        """A small disk of the store's own, to be filled; None where this user may not mount one."""
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            return None
        self._held.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
        return folder

    def store(self, prefix: str = "") -> ObjectStore:
        """The bucket, or a prefix of it, not through the proxy."""
        settings = StorageSettings(endpoint_url=self.server.endpoint, region=REGION, patience_s=60.0)
        return open_store(f"s3://{BUCKET}/{prefix}".rstrip("/"), settings)

    def noop_job(self, shards: int) -> Job:
        """An audit of about so many shards that cost nothing to draw."""
        file = self.folder / "many.parquet"
        words = ("nurse", "baker", "cook", "guard", "clerk", "farmer", "lawyer", "teacher", "writer", "tailor")
        names = [" ".join(two) for two in product(words, words)]
        write_manifest(manifest(*names[: max(2, shards // (10 * len(_WORDINGS)))]), file)
        values = small_job(file, "") | {
            "wordings": {"edit": ["{source}"], "calibration": ["A photo of {source}"], "audit": _WORDINGS},
            "images_per_cell": 10 * SHARD_IMAGES,
            "explicit_images": 1,
            "control_images": 1,
            "shard_images": SHARD_IMAGES,
            "pictures": {"per_cell": 1, "format": "png"},
            "sampler": {"height": 32, "width": 32, "batch_size": SHARD_IMAGES},
        }
        return Job("audit", values | _patience())

    def demo_job(self) -> Job:
        """The main job with the demo model: 62 shards, an edit, a checkpoint."""
        file = self.folder / "few.parquet"
        write_manifest(manifest("nurse", "CEO", "mechanic", lam=500.0), file)
        return Job("debias", small_job(file, "") | _patience())

    def start(self, job: Job) -> Driver:
        """Start the job's command."""
        log, file = self.folder / f"{uuid.uuid4().hex}.log", self.folder / f"{job.prefix}.yaml"
        file.write_text(yaml.safe_dump(dict(job.values)), "utf-8")
        order = {"arguments": [job.command, str(file)], "log": str(log)}
        if self._forks.stdin is None or self._forks.stdout is None:
            raise ValueError("without pipes")
        self._forks.stdin.write(json.dumps(order).encode() + b"\n")
        self._forks.stdin.flush()
        return Driver(int(self._forks.stdout.readline()), log)

    def damage(self, key: str, kind: Kind, draw: float) -> None:
        """Cut a stored object short, or flip one of its bits; `draw` says where."""
        store = self.store()
        data = store.get(key)
        at = int(draw * len(data))
        torn = data[:at]
        flipped = data[:at] + bytes([data[at] ^ 1 << (at % 8)]) + data[at + 1 :]
        store.put(key, torn if kind == "torn" else flipped)

    def no_room(self, draw: float) -> None:
        """The store's disk is full for a while; mostly it is the proxy that says so, as the real server needs a minute
        to take writes again."""
        if self._disk is None or draw > REALLY_FULL:
            self.proxy.fill(0.5 + 2 * draw)
            return
        free, ballast = os.statvfs(self._disk), self._disk / "ballast"
        with ballast.open("wb") as file, suppress(OSError):  # the store may have taken the last of it
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        time.sleep(1 + 2 * draw / REALLY_FULL)
        ballast.unlink()
        deadline = time.monotonic() + _WRITES_AGAIN_S
        while not self._takes_writes():
            if time.monotonic() > deadline:
                # Its table of names may refuse writes for good, room or no room: what an operator does then.
                self.restart_store(0)
                return
            time.sleep(1)

    def _takes_writes(self) -> bool:
        """In each of the store's eight tables of names, of which one alone may refuse: a folder's name says which."""
        store = self.store()
        try:
            for folder in range(_FOLDERS):
                store.put(f"room-{folder}/room", b"")
        except StorageError:
            return False
        return True

    def kill_worker(self, draw: float) -> bool:
        """SIGKILL one of the workers; False where there is none just now."""
        found = sorted(workers({raylet(node) for node in self.nodes.worker_nodes}), key=lambda process: process.pid)
        if not found:
            return False
        found[int(draw * len(found))].kill()
        return True

    def kill_raylet(self, draw: float) -> None:
        """SIGKILL a node's raylet; another node comes for it."""
        nodes = sorted(self.nodes.worker_nodes, key=lambda node: str(node.node_id))
        node = nodes[int(draw * len(nodes))]
        os.kill(raylet(node), signal.SIGKILL)
        self.nodes.remove_node(node, allow_graceful=False)
        self.nodes.add_node(num_cpus=NODE_CPUS)

    def restart_store(self, draw: float) -> None:
        """SIGKILL the store, and start it again after a while."""
        self.server.kill()
        time.sleep(3 * draw)
        self.server.start()

    def holder(self, prefix: str) -> str | None:
        """Who holds the run's lease; None: nobody."""
        try:
            return self.store(prefix).get("runs/r/LEASE").decode()
        except StorageError:
            return None


def _patience() -> dict[str, Any]:
    return {"workers": {"count": WORKERS}, "storage": {"patience_s": 60.0}}
