"""The history of audits: one small object per audit of a series, and `latest`, under `<output>/history/`.

    history = History(open_store(output, settings), "nightly")
    entry = history.add(entry_of(report, series="nightly", tick=tick, exit_code=0, contents=digest))

    history/<series>/entries/<tick>-<subject>.json     what was found; written once
    history/<series>/latest.json                       which entry has the latest tick; never moves back
    history/<series>/trend.html                        the page, see `jobs.scheduling.trend`

A series, a tick and what was audited name an entry: writing it twice finds the first one. A series' name is a user's
text and becomes one safe part of a key. Reading a series lists its entries and nothing else of the output.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from infra.storage import ObjectChanged, ObjectExists, ObjectMissing, ObjectStore, StorageError, safe_name
from jobs.errors import ConfigError
from jobs.scheduling.entries import HISTORY_VERSION, Entry, Latest
from jobs.scheduling.ticks import tick_text

__all__ = ["History", "known_series"]

_READERS = 16
_MOVES = 20


T = TypeVar("T", bound=BaseModel)


class History:
    """The entries of one series.

    Args:
        store: of a run's output.
        series: any text.

    Raises:
        ConfigError: the name is empty, or longer than 200 characters.
    """

    def __init__(self, store: ObjectStore, series: str) -> None:
        if not series.strip() or len(series) > 200:
            raise ConfigError("a series needs a name of at most 200 characters, for instance --schedule nightly")
        self.series = series
        self.prefix = f"history/{safe_name(series)}"
        self._store = store

    def url(self, name: str = "") -> str:
        """Where the series, or one of its files, lies."""
        return self._store.url(f"{self.prefix}/{name}" if name else self.prefix)

    def key(self, tick: datetime, subject: str) -> str:
        """Where the entry of this tick and subject lies, relative to the output."""
        return f"{self.prefix}/entries/{tick.astimezone(UTC):%Y%m%dT%H%M%SZ}-{subject}.json"

    def find(self, tick: datetime, subject: str) -> Entry | None:
        """The entry of this tick and subject, if there is one.

        Raises:
            ConfigError: it can't be read, see `entries`.
            StorageError: the store refuses or fails.
        """
        key = self.key(tick, subject)
        try:
            return self._read(key, self._store.get(key))
        except ObjectMissing:
            return None

    def add(self, entry: Entry) -> Entry:
        """Write an entry, unless there is one of its tick and subject: then that one is returned. Moves `latest`.

        Raises:
            StorageError: the store refuses or fails.
        """
        key = self.key(entry.tick, entry.subject)
        data = entry.model_dump_json(indent=1).encode()
        try:
            if not self._conditional and self._store.exists(key):
                raise ObjectExists(f"write {self._store.url(key)}: it exists already.", self._store.url(key))
            self._store.put(key, data, content_type="application/json", if_absent=self._conditional)
        except ObjectExists:
            # Another driver of the same tick was first: what it wrote stands.
            entry = self._read(key, self._store.get(key))
        # Also where the entry stood already: its driver may have ended between the two.
        self._advance(entry, key)
        return entry

    def count(self) -> int:
        """How many entries there are; reads none of them."""
        return len(self._keys())

    def entries(self, last: int | None = None) -> list[Entry]:
        """Entries by tick, those of one tick by when they were made.

        Args:
            last: read no more than so many, of the latest ticks; None: all.

        Raises:
            ConfigError: one is of a newer schema, or no entry.
            StorageError: the store refuses or fails.
        """
        keys = self._keys() if last is None else self._keys()[-last:]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="evenhand-history") as pool:
            entries = list(pool.map(lambda key: self._read(key, self._store.get(key)), keys))
        return sorted(entries, key=lambda entry: (entry.tick, entry.created))

    def _keys(self) -> list[str]:
        """Keys begin with their tick, so that they sort by it."""
        return sorted(key for key in self._store.list(f"{self.prefix}/entries") if key.endswith(".json"))

    def before(self, tick: datetime) -> Entry | None:
        """The last entry of an earlier tick; of a series that only moves forward it is `latest`.

        Raises:
            ConfigError, StorageError: see `entries`.
        """
        try:
            latest = self.latest()
        except ObjectMissing:
            # An entry may be deleted, so that its tick counts as missed.
            latest = None
        if latest is not None and latest.tick < tick:
            return latest
        return next((entry for entry in reversed(self.entries()) if entry.tick < tick), None)

    def latest(self) -> Entry | None:
        """The entry of the latest tick.

        Raises:
            ConfigError, StorageError: see `entries`.
        """
        pointer = self._pointer()[0]
        return None if pointer is None else self._read(pointer.entry, self._store.get(pointer.entry))

    def put_page(self, page: str) -> str:
        """Write `trend.html`; returns where."""
        key = f"{self.prefix}/trend.html"
        self._store.put(key, page.encode(), content_type="text/html; charset=utf-8")
        return self._store.url(key)

    def _advance(self, entry: Entry, key: str) -> None:
        """Point `latest` at an entry, unless it is at a later tick. Where others write too, read again and decide."""
        pointer = Latest(
            series=self.series,
            tick=tick_text(entry.tick),
            created=entry.created,
            entry=key,
            run=entry.run,
            verdict=entry.verdict,
            exit_code=entry.exit_code,
        )
        data = pointer.model_dump_json(indent=1).encode()
        where = f"{self.prefix}/latest.json"
        for _ in range(_MOVES):
            current, tag = self._pointer()
            # Text of one form sorts as its times do.
            if current is not None and (current.tick, current.created) >= (pointer.tick, pointer.created):
                return
            absent, match = (tag is None, tag) if self._conditional else (False, None)
            try:
                self._store.put(where, data, content_type="application/json", if_absent=absent, if_match=match)
            except (ObjectExists, ObjectChanged):
                continue
            return
        raise StorageError(f"{self.url('latest.json')} changes all the time; see what else writes to this series.")

    @cached_property
    def _conditional(self) -> bool:
        """Whether one of two drivers of a tick is told; where not, they may both write, and the later write stands."""
        return self._store.supports_conditional_put()

    def _pointer(self) -> tuple[Latest | None, str | None]:
        where = f"{self.prefix}/latest.json"
        try:
            data, tag = self._store.get_tagged(where)
        except ObjectMissing:
            return None, None
        return _parsed(Latest, data, self._store.url(where)), tag

    def _read(self, key: str, data: bytes) -> Entry:
        return _parsed(Entry, data, self._store.url(key))


def _parsed(kind: type[T], data: bytes, name: str) -> T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        version = re.search(rb'"schema_version":\s*(\d{1,9})\b', data)
        if version and int(version[1]) > HISTORY_VERSION:
            raise ConfigError(
                f"{name} is of schema {int(version[1])}, this Evenhand reads {HISTORY_VERSION}; update it"
            ) from error
        first = error.errors()[0]
        raise ConfigError(
            f"{name} is no entry of a history ({'.'.join(map(str, first['loc']))}: {first['msg']}); "
            "move it away, and run its tick again"
        ) from error


def known_series(store: ObjectStore) -> list[str]:
    """Names of the series that an output has.

    Raises:
        StorageError: the store can't be read.
    """
    pointers = [key for key in store.list("history") if key.endswith("/latest.json")]
    return sorted(_parsed(Latest, store.get(key), store.url(key)).series for key in pointers)
