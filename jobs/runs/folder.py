"""A run's folder: the product. What is in it, and the `run.json` that is true at any moment."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from infra.storage import ObjectMissing, ObjectStore, StorageError
from jobs.cluster.progress import Counts, Stage
from jobs.errors import ConfigError
from jobs.redact import redact
from time_ops.files import json_of

__all__ = ["BEAT_S", "RunFolder"]

BEAT_S = 5.0
"""Seconds between beats: within Ray's report interval (10 s), so that `Metrics.beat` can go along."""
_GONE_BEATS = 4
_LAST_WAIT_S = 5.0


class RunFolder:
    """Writes below `runs/<run>/`, and remembers the digest of every file for COMPLETE.

    `run.json` has, among what `open` is given: `run`, `status` (queued, running, done, failed), `reason` while queued,
    `started` and `updated` (UTC), `attempt`, `stage` (see `Stage.facts`), `counts` of this attempt (what earlier ones
    made is found again, so it is in `images_reused`), and at the end `finished`, `exit_code`, `verdict`, `error`.
    An interrupted run has failed, with exit code 130 or 143. `updated` moves every `beat_s` seconds while the driver
    lives; where it is older than four times that, the driver is gone, whatever `status` says.

    Args:
        store: the run's output.
        run: its name.
        beat_s: how often somebody will call `beat`, from any thread.
        last_words: the same store with less patience, to say by that the run has failed; default: `store`.
    """

    def __init__(
        self, store: ObjectStore, run: str, beat_s: float = BEAT_S, last_words: ObjectStore | None = None
    ) -> None:
        self.run = run
        self.prefix = f"runs/{run}"
        self._store = store
        self._last_words = last_words or store
        self._beat_s = beat_s
        self._driver = uuid.uuid4().hex
        self._files: dict[str, str] = {}
        self._status: dict[str, Any] = {}
        self._counts = Counts()
        self._complete = False
        self._written = 0.0
        # Two, so that progress is noted while a beat waits for the store; no write overtakes a later one.
        self._noting = threading.Lock()
        self._writing = threading.Lock()

    def url(self, name: str = "") -> str:
        """Where a file of this run lies."""
        return self._store.url(f"{self.prefix}/{name}" if name else self.prefix)

    def queue(self, reason: str) -> None:
        """Before `open`: say that the run waits, and for what, unless the folder is another run's or driver's.

        Raises:
            StorageError: run.json can't be read or written.
        """
        with self._writing:
            before = self._read()
            if before and before.get("driver") != self._driver and not _abandoned(before):
                return
            self._note({**self._head(), "queued": self._status.get("queued", _now()), "reason": reason})
            self._write(status="queued")

    def open(self, identity: str, facts: dict[str, Any]) -> None:
        """Begin, or go on with, a run.

        Args:
            identity: digest of all that decides the run's result.
            facts: what run.json says of it.

        Raises:
            ConfigError: the folder belongs to a run under another configuration.
            StorageError: run.json can't be read or written.
        """
        with self._writing:
            before = self._read()
            # A run that never got beyond the queue has none, and stands in nobody's way.
            known = "identity" in before
            if known and before["identity"] != identity:
                raise ConfigError(
                    f"{self.url()} holds a run under another configuration, manifest or model; "
                    "give this one a name of its own (--set run=...), or leave the name to be derived"
                )
            # A run that goes on is not complete, whatever it was before.
            self._store.delete(f"{self.prefix}/COMPLETE")
            self._complete = False
            self._counts = Counts()
            begun = {
                "identity": identity,
                "started": before.get("started", _now()) if known else _now(),
                "attempt": before.get("attempt", 1) + 1 if known else 1,
                "stage": None,
                "counts": asdict(self._counts),
                **dict.fromkeys(("finished", "exit_code", "verdict", "error")),
            }
            self._note(self._head() | begun | facts)
            self._write(status="running")

    def status(self, status: str, **fields: Any) -> None:
        """Write run.json: `running`, `done` or `failed`, and what else is known.

        Raises:
            StorageError: it can't be written.
        """
        with self._writing:
            self._write(status=status, **fields)

    def progress(self, stage: Stage, delta: Counts) -> None:
        """Keep run.json true: as a stage begins and ends, and every few seconds between. Listens to a `Reporter`."""
        with self._noting:
            self._counts += delta
            before = self._status.get("stage") or {}
            now = stage.facts()
            self._status |= {"stage": now, "counts": asdict(self._counts)}
        turned = (before.get("stage"), before.get("state")) != (now["stage"], now["state"])
        if turned or time.monotonic() - self._written >= self._beat_s:
            self._refresh()

    def beat(self) -> None:
        """Refresh `updated` while the run is queued or running; does nothing before and after. From any thread."""
        self._refresh()

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
        self.status("done", verdict=verdict, exit_code=exit_code, stage=None, finished=_now())
        content = {"run": self.run, "verdict": verdict, "files": self._files, "shards": sorted(set(shards))}
        self._store.put(f"{self.prefix}/COMPLETE", _json(content), content_type="application/json")
        self._complete = True

    def fail(self, error: BaseException, exit_code: int) -> None:
        """Say that the run has failed, if run.json is still this driver's and the run is not complete.

        So a driver that never came to write, or that another one has taken over from, changes nothing.

        Raises:
            StorageError: run.json can't be read or written.
        """
        text = redact(f"{type(error).__name__}: {error}")[:2000]
        # A write that waits for a store that is away is not waited for in turn.
        if not self._writing.acquire(timeout=_LAST_WAIT_S):
            return
        try:
            self._store = self._last_words
            if self._status and not self._complete and self._is_ours():
                self._write(status="failed", error=text, exit_code=exit_code, finished=_now())
        finally:
            self._writing.release()

    def _head(self) -> dict[str, Any]:
        return {"run": self.run, "driver": self._driver, "beat_s": self._beat_s}

    def _read(self) -> dict[str, Any]:
        try:
            content = json_of(self.get("run.json"))
        except ObjectMissing:
            return {}
        except ValueError as error:
            raise StorageError(f"{self.url('run.json')}: {error}; {_DELETE_IT}", self.url("run.json")) from error
        wrong = [key for key, kind in _KINDS.items() if not isinstance(content, dict) or not _is(content, key, kind)]
        if wrong:
            said = f"is no state of a run ({', '.join(wrong)})"
            raise StorageError(f"{self.url('run.json')} {said}; {_DELETE_IT}", self.url("run.json"))
        state: dict[str, Any] = content
        return state

    def _is_ours(self) -> bool:
        return self._read().get("driver") == self._driver

    def _note(self, status: dict[str, Any]) -> None:
        with self._noting:
            self._status = status

    def _write(self, **fields: Any) -> None:
        """Write run.json; the caller holds `_writing`."""
        with self._noting:
            self._status |= {**fields, "updated": _now()}
            data = _json(self._status)
        # Also after a failure: not at once again.
        self._written = time.monotonic()
        self._store.put(f"{self.prefix}/run.json", data, content_type="application/json")

    def _refresh(self) -> None:
        # Whoever writes just now moves `updated` too.
        if not self._writing.acquire(blocking=False):
            return
        try:
            # A poller sees a stale count for a while; what the run is for goes on.
            with suppress(StorageError):
                status = self._status.get("status")
                # A queued run is nobody's yet: another driver may have opened it.
                if status == "running" or (status == "queued" and self._is_ours()):
                    self._write()
        finally:
            self._writing.release()


_DELETE_IT = "start the run under another name, or delete that object"
_KINDS: dict[str, tuple[type, ...]] = {
    "identity": (str,),
    "driver": (str,),
    "started": (str,),
    "updated": (str,),
    "status": (str,),
    "beat_s": (int, float),
    "attempt": (int,),
}
"""What is read of another driver's run.json; any of it may be absent."""


def _is(content: Mapping[str, Any], key: str, kind: tuple[type, ...]) -> bool:
    return key not in content or (isinstance(content[key], kind) and not isinstance(content[key], bool))


def _abandoned(before: dict[str, Any]) -> bool:
    """Whether a run never got beyond the queue and its driver has ended or is gone."""
    if "identity" in before:
        return False
    try:
        age_s = (datetime.now(UTC) - datetime.fromisoformat(before["updated"])).total_seconds()
        return bool(before["status"] != "queued" or age_s > _GONE_BEATS * before["beat_s"])
    except (KeyError, ValueError, TypeError, OverflowError):
        # Nobody's, as no driver writes such a thing.
        return True


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
