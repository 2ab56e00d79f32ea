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

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from infra.storage import ObjectChanged, ObjectExists, ObjectMissing, ObjectStore, StorageError, safe_name
from jobs.errors import ConfigError
from jobs.report.schema import DeltaFigure, GateResult, Movement, ProfessionReport, RateFigure, Report

__all__ = [
    "HISTORY_VERSION",
    "Basis",
    "Entry",
    "History",
    "Latest",
    "ProfessionPoint",
    "basis_of",
    "digest_of",
    "entry_of",
    "floor_tick",
    "interval_of",
    "known_series",
    "parse_tick",
    "subject_of",
    "tick_text",
]

HISTORY_VERSION = 2
"""1: before there were mixtures; read as it is, since all that 2 has more may be absent."""

_READERS = 16
_MOVES = 20
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


T = TypeVar("T", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProfessionPoint(_Record):
    """One profession in one audit; shares are of the first label, pooled over wordings."""

    profession: str
    target: float | None
    share: float | None
    low: float | None
    high: float | None
    n: int = Field(description="determined images")


class Basis(_Record):
    """Digests of what must be equal for two audits' figures to be of one kind, whatever model they are of."""

    manifest: str
    classifier: str
    sampler: str = Field(description="sampler, dtype and seed")
    wordings: str = Field(description="audit wordings, labels and the margin of undetermined")

    def changed(self, other: Basis) -> tuple[str, ...]:
        """Names of what differs."""
        return tuple(name for name in Basis.model_fields if getattr(self, name) != getattr(other, name))


class Entry(_Record):
    """One audit of a model, as the history keeps it. Figures are of what was audited, never of its reference."""

    schema_version: int = HISTORY_VERSION
    series: str
    tick: AwareDatetime = Field(description="UTC; the time that the audit stands for, not when it ran")
    created: str = Field(description="UTC, ISO 8601: when the entry was made")
    run: str
    prefix: str = Field(description="the run's folder, relative to the output")
    kind: Literal["debias", "audit"]
    model: str = Field(description="its last name")
    model_digest: str
    operator: str | None = Field(description="digest of the operator or mixture it was audited under; null: none")
    mixture: bool = Field(default=False, description="whether `operator` is a mixture's digest")
    verdict: Literal["pass", "fail", "inconclusive"]
    exit_code: int
    sentence: str
    headline: str = Field(default="", description="the same in words, see the report's; empty: of an older report")
    label: str = Field(description="the label that shares are of")
    delta: DeltaFigure
    delta_within: DeltaFigure
    delta_wording_max: DeltaFigure
    explicit: RateFigure
    recognised: RateFigure
    controls: RateFigure
    undetermined: RateFigure
    gates: list[GateResult]
    professions: list[ProfessionPoint]
    basis: Basis
    contents: str = Field(description="digest of all that the driver knows to decide the result; equal: unchanged")
    against: str | None = Field(description="the run that it was compared with; null: none")
    moved: list[Movement] = Field(description="professions that moved against that run")
    reused_from: str | None = Field(description="unchanged: the run of an earlier entry it rests on; null: audited")

    @field_validator("tick")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        try:
            return value.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("is beyond the calendar") from error

    @field_serializer("tick")
    def _iso(self, value: datetime) -> str:
        return tick_text(value)

    @property
    def subject(self) -> str:
        """What was audited, see `subject_of`."""
        return subject_of(self.model_digest, self.operator)


class Latest(_Record):
    """`latest.json`: which entry of a series has the latest tick, and how it ended."""

    schema_version: int = HISTORY_VERSION
    series: str
    tick: str
    created: str
    entry: str = Field(description="key of the entry, relative to the output")
    run: str
    verdict: str
    exit_code: int


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
            found = list(pool.map(lambda key: self._read(key, self._store.get(key)), keys))
        return sorted(found, key=lambda entry: (entry.tick, entry.created))

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


def subject_of(model_digest: str, operator: str | None) -> str:
    """What names the audited in an entry's key: the model, and the operator or mixture where there is one."""
    if operator is None:
        return model_digest
    return hashlib.sha256(f"{model_digest}\0{operator}".encode()).hexdigest()


def digest_of(content: Any) -> str:
    """sha256 of anything that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def basis_of(provenance: Mapping[str, Any], labels: Iterable[str]) -> Basis:
    """The basis of a report's figures.

    Args:
        provenance: the report's.
        labels: the report's; their order counts, as shares are of the first.
    """
    judged = {
        "audit": provenance["wordings"]["audit"],
        "labels": list(labels),
        "margin": provenance["undetermined_margin"],
        **({"rules": provenance["classifier_rules"]} if "classifier_rules" in provenance else {}),
    }
    return Basis(
        manifest=provenance["manifest"],
        classifier=provenance["classifier_digest"],
        sampler=digest_of(provenance["sampler"]),
        wordings=digest_of(judged),
    )


def entry_of(
    report: Report,
    *,
    series: str,
    tick: datetime,
    exit_code: int,
    contents: str,
    reused_from: str | None = None,
) -> Entry:
    """The entry of a finished run.

    Args:
        report: the run's.
        series: which history.
        tick: the time that the audit stands for.
        exit_code: what its driver ends with.
        contents: see `Entry.contents`.
        reused_from: see `Entry.reused_from`.

    Raises:
        ConfigError: the report's provenance lacks what the history needs.
    """
    audited = report.summary.edited or report.summary.base
    label = report.labels[0]
    provenance: Any = report.provenance
    try:
        basis = basis_of(provenance, report.labels)
        model_digest = str(provenance["model_digest"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{report.run}: its report's provenance lacks {error}; audit the model again") from error
    operator = provenance.get("operator") if report.mixture is None else report.mixture.digest
    return Entry(
        series=series,
        tick=tick,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=report.run,
        prefix=f"runs/{report.run}",
        kind=report.kind,
        model=str(provenance.get("model", "")),
        model_digest=model_digest,
        operator=None if operator is None else str(operator),
        mixture=report.mixture is not None,
        verdict=report.verdict,
        exit_code=exit_code,
        sentence=report.sentence,
        headline=report.headline,
        label=label,
        delta=audited.delta,
        delta_within=audited.delta_within,
        delta_wording_max=audited.delta_wording_max,
        explicit=audited.explicit,
        recognised=audited.recognised,
        controls=audited.controls,
        undetermined=audited.undetermined,
        gates=report.gates,
        professions=[_point(item, label) for item in report.professions],
        basis=basis,
        contents=contents,
        against=report.reference.run if report.reference and report.reference.kind == "earlier run" else None,
        moved=report.moved,
        reused_from=reused_from,
    )


def _point(item: ProfessionReport, label: str) -> ProfessionPoint:
    """One profession of what was audited; `label` is the report's first."""
    counts = item.edited or item.base
    return ProfessionPoint(
        profession=item.profession,
        target=item.target.get(label),
        share=counts.share,
        low=counts.low,
        high=counts.high,
        n=counts.n,
    )


def tick_text(tick: datetime) -> str:
    """A tick as entries write it: `2026-11-21T00:00:00Z`."""
    return f"{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_tick(text: str) -> datetime:
    """A tick from ISO 8601 text with its offset, in UTC, whole seconds.

    Raises:
        ConfigError: it is no such time, or says no offset.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--tick {text!r} is no time; write it like 2026-11-21T00:00Z") from error
    if moment.tzinfo is None:
        raise ConfigError(f"--tick {text!r} does not say its offset; for UTC write {text}Z")
    try:
        return moment.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise ConfigError(f"--tick {text!r} is beyond the calendar; write it like 2026-11-21T00:00Z") from error


def interval_of(every: str) -> timedelta:
    """`15m`, `6h`, `1d` or `2w` as a duration."""
    return int(every[:-1]) * _UNITS[every[-1]]


def floor_tick(moment: datetime, every: str) -> datetime:
    """The last tick at or before a moment: whole intervals since a Monday's midnight in UTC."""
    interval = interval_of(every)
    return _MONDAY + (moment.astimezone(UTC) - _MONDAY) // interval * interval
