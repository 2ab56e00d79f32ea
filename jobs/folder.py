"""A run's folder: the product. What is in it, and the `run.json` that is true at any moment."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from typing import Any

from infra.storage import ObjectMissing, ObjectStore, StorageError
from jobs.errors import ConfigError
from jobs.progress import Stage

__all__ = ["RunFolder"]

_UPDATE_EVERY_S = 5.0


class RunFolder:
    """Writes below `runs/<run>/`, and remembers the digest of every file for COMPLETE."""

    def __init__(self, store: ObjectStore, run: str) -> None:
        self.run = run
        self.prefix = f"runs/{run}"
        self._store = store
        self._files: dict[str, str] = {}
        self._status: dict[str, Any] = {}
        self._written = 0.0

    def url(self, name: str = "") -> str:
        """Where a file of this run lies."""
        return self._store.url(f"{self.prefix}/{name}" if name else self.prefix)

    def open(self, identity: str, facts: dict[str, Any]) -> None:
        """Begin, or go on with, a run.

        Args:
            identity: digest of all that decides the run's result.
            facts: what run.json says of it.

        Raises:
            ConfigError: the folder belongs to a run under another configuration.
        """
        try:
            before = json.loads(self._store.get(f"{self.prefix}/run.json"))
        except ObjectMissing:
            before = {}
        if before and before.get("identity") != identity:
            raise ConfigError(
                f"{self.url()} holds a run under another configuration, manifest or model; "
                "give this one a name of its own (--set run=...), or leave the name to be derived"
            )
        # A run that goes on is not complete, whatever it was before.
        self._store.delete(f"{self.prefix}/COMPLETE")
        self._status = {"run": self.run, "identity": identity, "started": _now(), **facts}
        self.status("running")

    def status(self, status: str, **fields: Any) -> None:
        """Write run.json: `running`, `done` or `failed`, and what else is known."""
        self._status |= {"status": status, "updated": _now(), **fields}
        self._store.put(f"{self.prefix}/run.json", _json(self._status), content_type="application/json")
        self._written = time.monotonic()

    def progress(self, stage: Stage) -> None:
        """Keep run.json true, every few seconds."""
        if time.monotonic() - self._written >= _UPDATE_EVERY_S:
            fields = {"stage": stage.name, "done": stage.done, "total": stage.total, "per_s": round(stage.rate, 2)}
            try:
                self.status("running", progress=fields)
            except StorageError:
                # A poller sees a stale count for a while; what the run is for goes on.
                self._written = time.monotonic()

    def put(self, name: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write one file of the run."""
        self._store.put(f"{self.prefix}/{name}", data, content_type=content_type)
        self._files[name] = hashlib.sha256(data).hexdigest()

    def note(self, name: str, digest: str) -> None:
        """Remember a file that somebody else wrote."""
        self._files[name] = digest

    def get(self, name: str) -> bytes:
        """Read one file of the run."""
        return self._store.get(f"{self.prefix}/{name}")

    def complete(self, verdict: str, exit_code: int, shards: list[str]) -> None:
        """The last write: digests of all files and of the shards used."""
        self.status("done", verdict=verdict, exit_code=exit_code, progress=None, finished=_now())
        content = {"run": self.run, "verdict": verdict, "files": self._files, "shards": sorted(set(shards))}
        self._store.put(f"{self.prefix}/COMPLETE", _json(content), content_type="application/json")


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
