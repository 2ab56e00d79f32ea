"""A lease on a run's folder: it keeps two drivers from working on one run, where the store can tell them apart.

    with Lease(store, f"runs/{run}/LEASE") as lease:
        for step in steps:
            lease.check()
            ...

It saves work and never guards correctness: every write of a run is idempotent, so a store without conditional puts
does without. Clocks of machines differ: whether a holder is alive is told by its renewals, timed by the clock of the
machine that waits. What the object says of times is for people.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from infra.storage import ObjectChanged, ObjectExists, ObjectMissing, ObjectStore, StorageError
from jobs.errors import LeaseHeldError

__all__ = ["Lease"]

_BEATS_PER_TTL = 4
_POLLS_PER_TTL = 20


class _Record(BaseModel):
    """What a lease's object holds."""

    holder: str
    host: str
    acquired: AwareDatetime
    expires: AwareDatetime
    # Whoever wrote it says how long others wait: no driver asks for more than a minute.
    ttl_s: float = Field(gt=0, le=3600, allow_inf_nan=False)
    beat: int
    """Renewals so far: no two have the same bytes, and so the same entity tag."""


class _StoredLease(NamedTuple):
    """A lease's object as read."""

    record: _Record | None
    """None where it is no lease's JSON."""
    tag: str


class Lease:
    """Holds a run while its `with` block lasts; a daemon thread renews it four times per `ttl_s`.

    Entering takes no time where the lease is free. Where another holds it, up to its `ttl_s` pass until it is renewed
    (`LeaseHeldError`) or, as its holder must be dead, taken over. Leaving the block deletes the object, if it is ours.

    Args:
        store: where the run's folder is.
        key: the lease's object.
        ttl_s: seconds without a renewal after which others take the lease over.
        holder: who holds it; by default a random id. A lease already held under the same name is taken at once.
        now: the time to write into the object.
        on_beat: called after each renewal, and as often where the store can't hold a lease, in the renewing thread. A
            `StorageError` of it is told and no more; any
            other exception of it is raised by `check`.
        say: told what goes on, in words for people; also from the renewing thread.
    """

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        ttl_s: float = 60.0,
        holder: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_beat: Callable[[], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._key, self._now = store, key, now
        self._on_beat, self._say = on_beat or (lambda: None), say or (lambda _: None)
        self._ttl_s, self._holder = ttl_s, holder or uuid.uuid4().hex
        self._acquired, self._beats = now(), 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: LeaseHeldError | None = None
        self._failure: Exception | None = None
        self._away = False
        self._is_real = True

    def __enter__(self) -> Self:
        """Acquire the lease.

        Raises:
            LeaseHeldError: another driver holds it, and lives.
            StorageError: the store failed.
        """
        if not self._store.supports_conditional_put():
            self._say(
                f"{self._store.url()} has no conditional writes, so nothing tells whether another driver works on "
                "this run: start one at a time."
            )
            self._is_real = False
        else:
            self._acquire()
        self._thread = threading.Thread(target=self._keep, name="evenhand-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lease, if it is still ours; a store that can't be reached is not waited for longer than a ttl."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(self._ttl_s)
        if self._thread.is_alive():
            self._say(f"could not release {self._url} yet; others wait {self._ttl_s:g} s before they take it.")

    @property
    def lost(self) -> bool:
        """Whether another driver has taken the lease over."""
        return self._lost is not None

    def check(self) -> None:
        """Do nothing while the lease is ours; to be called between steps.

        Raises:
            LeaseHeldError: another driver has taken it over.
            Exception: what `on_beat` raised.
        """
        if self._lost is not None:
            raise self._lost
        if self._failure is not None:
            raise self._failure

    @property
    def _url(self) -> str:
        return self._store.url(self._key)

    def _acquire(self) -> None:
        try:
            self._put(if_absent=True)
            return
        except ObjectExists:
            lease = self._read()
        if lease is not None and not self._is_ours(lease):
            lease = self._watch(lease)
        self._acquired = self._now()
        try:
            if lease is None:
                self._put(if_absent=True)
            else:
                self._put(if_match=lease.tag)
        except (ObjectExists, ObjectChanged) as error:
            raise self._held(self._read()) from error

    def _watch(self, first: _StoredLease) -> _StoredLease | None:
        """Wait a whole ttl, by our clock, for a sign of life.

        Returns:
            The lease, which nobody renewed; or None, as it was released.

        Raises:
            LeaseHeldError: it was renewed, or changed hands.
        """
        ttl_s = first.record.ttl_s if first.record else self._ttl_s
        until = f" until {_utc(first.record.expires)}" if first.record else ""
        self._say(f"another driver held this run{until}; waiting up to {ttl_s:g} s to see whether it is still alive")
        begun = time.monotonic()
        while time.monotonic() - begun < ttl_s:
            time.sleep(ttl_s / _POLLS_PER_TTL)
            asked = time.monotonic()
            lease = self._read()
            if lease is None:
                return None
            if lease.tag != first.tag:
                raise self._held(lease)
            if time.monotonic() - asked > ttl_s / 2:
                begun = time.monotonic()  # the store was away: the holder could not renew either
        return first

    def _keep(self) -> None:
        while not self._stop.wait(self._ttl_s / _BEATS_PER_TTL):
            self._beat()
            if self.lost:
                return
        if not self._is_real:
            return
        try:
            if self._renew():  # so that nobody takes it over between this look and the deletion
                self._store.delete(self._key)
        except StorageError as error:
            self._say(f"could not release {self._url}: {error}")

    def _beat(self) -> None:
        try:
            if not self._is_real or self._renew():
                self._away = False
                self._on_beat()
        except StorageError as error:
            if not self._away:
                self._say(f"{self._url}: a renewal failed, trying on: {error}")
            self._away = True
        except Exception as error:  # noqa: BLE001 - raised by `check`, in the driver's thread; the renewals go on
            self._failure = error

    def _renew(self) -> bool:
        """Renew the lease or note its loss; it is read each time, as a write whose answer got lost changed the tag."""
        lease = self._read()
        if lease is not None and self._is_ours(lease):
            try:
                self._put(if_match=lease.tag)
                return True
            except ObjectChanged:
                lease = self._read()
                if lease is not None and self._is_ours(lease):
                    return True  # a late write of our own
        self._lost = self._held(lease)
        self._say(str(self._lost))
        return False

    def _put(self, *, if_absent: bool = False, if_match: str | None = None) -> None:
        self._beats += 1
        record = _Record(
            holder=self._holder,
            host=socket.gethostname(),
            acquired=self._acquired,
            expires=self._now() + timedelta(seconds=self._ttl_s),
            ttl_s=self._ttl_s,
            beat=self._beats,
        )
        data = record.model_dump_json(indent=1).encode()
        self._store.put(self._key, data, content_type="application/json", if_absent=if_absent, if_match=if_match)

    def _read(self) -> _StoredLease | None:
        """Return the lease as it is; None if there is none."""
        try:
            data, tag = self._store.get_tagged(self._key)
        except ObjectMissing:
            return None
        try:
            return _StoredLease(_Record.model_validate_json(data), tag)
        except ValidationError:
            return _StoredLease(None, tag)

    def _is_ours(self, lease: _StoredLease) -> bool:
        return lease.record is not None and lease.record.holder == self._holder

    def _held(self, lease: _StoredLease | None) -> LeaseHeldError:
        record = lease.record if lease else None
        who = f"driver {record.holder} on {record.host}" if record else "another driver"
        since = f" since {_utc(record.acquired)}" if record else ""
        return LeaseHeldError(
            f"{self._url}: {who} works on this run{since}. Wait until it is done, or stop it, then start this again."
        )


def _utc(moment: datetime) -> str:
    try:
        return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except OverflowError:
        return f"{moment:%Y-%m-%d %H:%M:%S}"  # at an end of the calendar
