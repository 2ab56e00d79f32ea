"""Audits on a schedule: one entry per tick and model, whatever starts them and however often.

evenhand audit run.yaml --schedule nightly --tick 2026-11-21T00:00Z

A tick that has its entry is told again and nothing is done. Where nothing that decides the result has changed since
the entry before, no worker is started: the entry says "unchanged, reused" and names the run that it rests on. Else the
model is audited, compared on common seeds with the entry before, where the two can be compared.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.console import Console

from infra.storage import ObjectStore, StorageError, StorageSettings, open_store
from jobs.audit import audit, read_edit
from jobs.auditing.reporting import Outcome
from jobs.config import AuditConfig, RunConfig
from jobs.errors import ConfigError
from jobs.images.judging import check_labels, classifier_digest, fetch_classifiers
from jobs.images.recipe import KEYED_LIBRARIES, Probe, recipe_of
from jobs.models.digests import content_digest
from jobs.models.staging import cache_folder, fetch_model
from jobs.redact import redact
from jobs.report.formatting import percent, plain_text
from jobs.report.schema import Report
from jobs.runs.finished import EarlierRunError, read_finished
from jobs.runs.identity import identity_of, last_name
from jobs.runs.inputs import read_bytes
from jobs.scheduling.entries import Entry, entry_of, subject_of
from jobs.scheduling.history import History, known_series
from jobs.scheduling.ticks import floor_tick, interval_of, parse_tick, tick_text
from jobs.scheduling.trend import MAX_ENTRIES, render_trend
from manifests import read_manifest

__all__ = ["Ticked", "scheduled_audit", "trend"]

_NAMED = 5


@dataclass(frozen=True)
class Ticked:
    """What became of a tick.

    Attributes:
        entry: in the history.
        state: whether the entry was there; rests on an earlier run, as nothing has changed; or the model was audited.
        outcome: of the audit, where there was one.
    """

    entry: Entry
    state: Literal["found", "reused", "audited"]
    outcome: Outcome | None = None

    @property
    def code(self) -> int:
        """What the driver exits with: as when the model was audited."""
        return self.entry.exit_code


@dataclass(frozen=True)
class _Contents:
    """What is to be audited, by digests: the model, the operator, and all that decides the result."""

    model: str
    operator: str | None
    digest: str


def scheduled_audit(
    config: RunConfig,
    console: Console,
    *,
    schedule: str,
    tick: str | None = None,
    connect: Callable[[], None] = lambda: None,
) -> Ticked:
    """Do what a tick of a series asks for.

    Args:
        config: the run; its name is derived. `audit.against` or `audit.base` take the place of the entry before.
        console: for people.
        schedule: the series' name, any text.
        tick: ISO 8601 with its offset; None: now, floored to `schedule.every`.
        connect: joins the Ray cluster; called where images may have to be made.

    Raises:
        ManifestError, ConfigError, EditError: as `jobs.audit.audit`. Nothing is noted then: the same tick again
            tries again.
        ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: likewise.
    """
    settings = StorageSettings.from_environment()
    store = open_store(config.output, settings)
    history = History(store, schedule)
    if config.run is not None:
        _say(console, f"a scheduled audit names its runs itself: the name {config.run!r} is not used")
    when = _when(config, tick)
    contents = _contents_of(config, settings)
    subject = subject_of(contents.model, contents.operator)
    found = history.find(when, subject)
    if found is not None:
        return _record_tick(Ticked(found, "found"), history, console)
    before = history.before(when)
    if before is not None and (before.subject, before.contents) == (subject, contents.digest):
        report = _read_report(store, before, settings, console)
        if report is not None:
            entry = entry_of(
                report,
                series=schedule,
                tick=when,
                exit_code=before.exit_code,
                contents=contents.digest,
                reused_from=before.run,
            )
            return _record_tick(Ticked(entry, "reused"), history, console)
    connect()
    outcome = _audit_tick(config, store, before, settings, console)
    entry = entry_of(outcome.report, series=schedule, tick=when, exit_code=int(outcome.code), contents=contents.digest)
    return _record_tick(Ticked(entry, "audited", outcome), history, console)


def trend(output: str, series: str, out: Path) -> int:
    """Draw a series' trend page into a file of this machine.

    Args:
        output: of the runs, `s3://bucket/prefix` or a folder.
        series: its name.
        out: the file.

    Returns:
        How many audits it shows.

    Raises:
        ConfigError: there is no such series.
        StorageError: the store can't be read.
    """
    store = open_store(output, StorageSettings.from_environment())
    history = History(store, series)
    entries = history.entries(MAX_ENTRIES)
    if not entries:
        known = known_series(store)
        raise ConfigError(
            f"{output} has no audit of a series {series!r}; "
            + (f"it has {', '.join(map(repr, known))}" if known else "begin one with evenhand audit --schedule NAME")
        )

    def link(entry: Entry) -> str | None:
        url = store.url(f"{entry.prefix}/report.html")
        return None if "://" in url else Path(url).as_uri()

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_trend(entries, series, total=history.count(), link=link), encoding="utf-8")
    return len(entries)


def _when(config: RunConfig, tick: str | None) -> datetime:
    """The tick: now, floored; or as it is told, unless that is still to come.

    Raises:
        ConfigError: `latest` would stay with such a tick until its time has come.
    """
    now = datetime.now(UTC)
    if tick is None:
        return floor_tick(now, config.schedule.every)
    when = parse_tick(tick)
    if when > now + interval_of(config.schedule.every):
        raise ConfigError(
            f"--tick {tick}: that is more than one interval ({config.schedule.every}) ahead of this machine's clock "
            f"({tick_text(now)}); correct it"
        )
    return when


def _contents_of(config: RunConfig, settings: StorageSettings) -> _Contents:
    """Of all that decides the result what this machine can know: all but what `dtype: auto` comes to on a worker.

    Raises:
        ManifestError, ConfigError: the input must be mended.
        ModelError, StorageError: a model can't be had.
    """
    cache = cache_folder() / uuid.uuid4().hex[:12]

    def model_digest(reference: str) -> str:
        return content_digest(fetch_model(reference, settings, cache, pipeline=True, layout=config.model_layout))

    try:
        name = last_name(config.manifest)
        manifest = read_manifest(read_bytes(config.manifest, settings), name=name, labels=tuple(config.attribute))
        wanted = config.audit
        operator = None if wanted.operator is None else read_edit(wanted.operator, settings).digest
        compared = {
            "base": None if wanted.base is None else model_digest(wanted.base),
            "against": None if wanted.against is None else last_name(wanted.against),
        }
        model, classifiers = model_digest(config.model), fetch_classifiers(config, settings, cache)
        check_labels(config, classifiers)
        classifier = classifier_digest(config, classifiers)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    versions = {library: version(library) for library in KEYED_LIBRARIES}
    recipe = recipe_of(config, Probe(model, classifier, config.sampler.dtype, "", 0, "", versions))
    content = {"kind": "scheduled audit", "operator": operator, **compared}
    return _Contents(model, operator, identity_of(config, manifest, recipe, content))


def _read_report(store: ObjectStore, entry: Entry, settings: StorageSettings, console: Console) -> Report | None:
    """The report of an entry's run, where the run is still whole."""
    try:
        return read_finished(store.url(entry.prefix), settings).report
    except ConfigError as error:
        _say(console, f"nothing has changed since {tick_text(entry.tick)}, but its run can't be reused: {error}")
        return None


def _audit_tick(
    config: RunConfig, store: ObjectStore, before: Entry | None, settings: StorageSettings, console: Console
) -> Outcome:
    """Audit, compared with the entry before unless the configuration says with what, or there is nothing to compare."""
    alone = config.model_copy(update={"run": None})
    if before is None or config.audit.base is not None or config.audit.against is not None:
        return audit(alone, console, again=False)
    url = store.url(before.prefix)
    against = AuditConfig(operator=config.audit.operator, against=url)
    try:
        # Told apart from faults of this run's own input: those end the command.
        read_finished(url, settings)
    except ConfigError as error:
        _say(console, f"not compared with the audit of {tick_text(before.tick)}: {error}")
        return audit(alone, console, again=False)
    try:
        return audit(alone.model_copy(update={"audit": against}), console, again=False)
    except EarlierRunError as error:
        _say(console, f"not compared with the audit of {tick_text(before.tick)}: {error}")
        return audit(alone, console, again=False)


def _record_tick(ticked: Ticked, history: History, console: Console) -> Ticked:
    """Write the entry (of two drivers' the first one stands) and the trend page, and tell people."""
    entry = history.add(ticked.entry)
    page = _draw_trend(history, console)
    how = {
        "found": f"audited before, at {entry.created}",
        "reused": f"unchanged, reused from {entry.reused_from}",
        "audited": f"run {entry.run}",
    }[ticked.state]
    _say(console, f"{history.series} {tick_text(entry.tick)}: {entry.verdict}; {how}")
    _say(console, entry.sentence)
    worse = sorted((m for m in entry.moved if m.worse), key=lambda m: -abs(m.after - m.before))
    if worse:
        named = [f"{m.profession} ({percent(m.before)} to {percent(m.after)})" for m in worse[:_NAMED]]
        rest = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
        _say(console, f"farther from target than in {entry.against or 'the base model'}: {', '.join(named)}{rest}")
    if page is not None:
        _say(console, f"trend: {page}")
    return Ticked(entry, ticked.state, ticked.outcome)


def _draw_trend(history: History, console: Console) -> str | None:
    """The trend page anew. The entry stands by now: a series that can't be drawn changes no tick's exit code."""
    try:
        entries = history.entries(MAX_ENTRIES)
        page = render_trend(
            entries, history.series, total=history.count(), link=lambda each: f"../../{each.prefix}/report.html"
        )
        return history.put_page(page)
    except (ConfigError, StorageError) as error:
        _say(console, f"the trend page was not drawn: {error}")
        return None


def _say(console: Console, text: str) -> None:
    lines = "\n".join(plain_text(line) for line in redact(text).splitlines())
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
