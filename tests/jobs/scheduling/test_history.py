"""The history of audits on a local folder: keys, idempotence, `latest`, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.storage import LocalStore
from jobs.errors import ConfigError
from jobs.report.figure_schema import DeltaFigure, RateFigure
from jobs.report.schema import Reference
from jobs.scheduling.entries import Basis, Entry, ProfessionPoint, basis_of, entry_of, subject_of
from jobs.scheduling.history import History
from jobs.scheduling.ticks import floor_tick, parse_tick, tick_text
from tests.jobs.report.mixtures import make_mixture_report
from tests.jobs.report.reports import make_report

MODEL = "ab" * 32
TICK = datetime(2026, 11, 21, tzinfo=UTC)
BASIS = Basis(manifest="m" * 64, classifier="c" * 64, sampler="s" * 64, wordings="w" * 64)
PROVENANCE = {
    "model": "sd",
    "model_digest": MODEL,
    "classifier_digest": "c" * 64,
    "manifest": "m" * 64,
    "sampler": {"scheduler": "ddim", "steps": 20, "dtype": "float32"},
    "wordings": {"audit": ["{source} working"], "edit": ["{source}"]},
    "undetermined_margin": 0.1,
}


def entry(tick: datetime = TICK, **changes: Any) -> Entry:
    delta = DeltaFigure(value=0.15, low=0.12, high=0.18, floor=0.05, n=900)
    rate = RateFigure(value=0.95, n=900, low=0.93, high=0.97)
    facts: dict[str, Any] = {
        "series": "nightly",
        "tick": tick,
        "created": "2026-11-21T00:10:00+00:00",
        "run": f"audit-{tick:%m%d}",
        "prefix": f"runs/audit-{tick:%m%d}",
        "kind": "audit",
        "model": "sd",
        "model_digest": MODEL,
        "operator": None,
        "verdict": "pass",
        "exit_code": 0,
        "sentence": "All gates pass.",
        "label": "female",
        "delta": delta,
        "delta_within": delta,
        "delta_wording_max": delta,
        "explicit": rate,
        "recognised": rate,
        "controls": rate,
        "undetermined": rate,
        "gates": [],
        "professions": [ProfessionPoint(profession="CEO", target=0.5, share=0.4, low=0.35, high=0.45, n=300)],
        "basis": BASIS,
        "contents": "f" * 64,
        "against": None,
        "moved": [],
        "reused_from": None,
    }
    return Entry.model_validate(facts | changes)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture
def history(store: LocalStore) -> History:
    return History(store, "nightly")


def test_an_entry_comes_back_as_it_was_written(history: History, store: LocalStore) -> None:
    written = history.add(entry())
    assert history.find(TICK, MODEL) == written == history.latest() == history.entries()[0]
    assert sorted(store.list()) == [
        f"history/nightly/entries/20261121T000000Z-{MODEL}.json",
        "history/nightly/latest.json",
    ]
    raw = json.loads(store.get(history.key(TICK, MODEL)))
    assert (raw["schema_version"], raw["tick"], raw["prefix"]) == (2, "2026-11-21T00:00:00Z", "runs/audit-1121")


def test_the_first_entry_of_a_tick_and_model_stands(history: History) -> None:
    first = history.add(entry())
    again = history.add(entry(verdict="fail", exit_code=5, run="other"))
    assert again == first
    assert history.entries() == [first]


def test_other_models_and_operators_of_one_tick_have_entries_of_their_own(history: History) -> None:
    subjects = {(MODEL, None), ("cd" * 32, None), (MODEL, "9f" * 32)}
    for model, operator in subjects:
        history.add(entry(model_digest=model, operator=operator))
    found = history.entries()
    assert {(e.model_digest, e.operator) for e in found} == subjects
    assert all(history.find(TICK, subject_of(m, o)) is not None for m, o in subjects)


def test_latest_moves_forward_only(history: History) -> None:
    days = [TICK + timedelta(days=d) for d in (0, 2, 1)]
    for day in days:
        history.add(entry(day))
    latest = history.latest()
    assert latest is not None
    assert latest.tick == days[1]
    assert [e.tick for e in history.entries()] == sorted(days)
    assert [e.tick for e in history.entries(1)] == sorted(days)[-1:]
    assert history.count() == len(days)
    before = [history.before(day) for day in sorted(days)]
    assert [b and b.tick for b in before] == [None, days[0], days[2]]
    after = history.before(TICK + timedelta(days=9))
    assert after is not None
    assert after.tick == days[1]


def test_a_deleted_entry_is_a_tick_that_was_missed(history: History, store: LocalStore) -> None:
    days = [TICK + timedelta(days=d) for d in range(3)]
    kept, gone = (history.add(entry(day)) for day in days[:2])
    store.delete(history.key(gone.tick, gone.subject))
    assert history.before(days[2]) == kept
    assert history.before(days[0]) is None
    history.add(entry(days[2]))
    assert history.latest() == entry(days[2])


def test_of_one_tick_the_later_made_is_latest_whichever_is_written_again(history: History) -> None:
    older = entry()
    newer = entry(model_digest="cd" * 32, created="2026-11-21T05:00:00+00:00")
    for each in (newer, older, newer, older):
        history.add(each)
    assert history.latest() == newer


def test_a_driver_that_ended_before_it_moved_latest_is_made_good(history: History, store: LocalStore) -> None:
    history.add(entry())
    store.delete("history/nightly/latest.json")
    assert history.latest() is None
    history.add(entry())
    assert history.latest() == entry()


def test_many_drivers_of_many_ticks_agree(store: LocalStore) -> None:
    """Eight write the same tick, each with another outcome: one stands, all are handed it, `latest` is the last."""
    ticks = [TICK + timedelta(days=d) for d in range(3)]

    def drive(number: int) -> list[Entry]:
        mine = History(store, "nightly")
        return [mine.add(entry(tick, run=f"run-{number}")) for tick in (ticks if number % 2 else ticks[::-1])]

    with ThreadPoolExecutor(8) as pool:
        found = [each for several in pool.map(drive, range(8)) for each in several]
    kept = History(store, "nightly").entries()
    assert len(kept) == 3
    assert {(e.tick, e.run) for e in found} == {(e.tick, e.run) for e in kept}
    latest = History(store, "nightly").latest()
    assert latest == kept[-1]


class WithoutConditions(LocalStore):
    """A store that ignores conditions, as some servers do."""

    def put(self, key: str, data: bytes, **options: Any) -> None:
        super().put(key, data, content_type=options.get("content_type"))


def test_a_store_without_conditional_writes_keeps_the_first_too(tmp_path: Path) -> None:
    history = History(WithoutConditions(tmp_path), "nightly")
    first = history.add(entry())
    assert history.add(entry(run="other")) == first
    history.add(entry(TICK - timedelta(days=1)))
    assert history.latest() == first


@pytest.mark.parametrize(
    "series", ["../../runs", "/etc", "a/b", "..", "nightly\n", "\N{SNOWMAN}", "A" * 200, "latest.json"]
)
def test_no_name_of_a_series_leaves_the_history(tmp_path: Path, series: str) -> None:
    store = LocalStore(tmp_path)
    history = History(store, series)
    history.add(entry(series=series))
    history.put_page("<p>")
    keys = list(store.list())
    assert len(keys) == 3
    assert all(len(key.split("/")) in (3, 4) and key.startswith("history/") for key in keys)
    assert [e.series for e in history.entries()] == [series]


def test_series_that_look_alike_are_apart(store: LocalStore) -> None:
    names = ["nightly", "Nightly", "nightly ", "night ly", "night/ly"]
    for name in names:
        History(store, name).add(entry(series=name))
    assert [[e.series for e in History(store, name).entries()] for name in names] == [[name] for name in names]


@pytest.mark.parametrize("series", ["", "  ", "x" * 201])
def test_a_series_needs_a_name(store: LocalStore, series: str) -> None:
    with pytest.raises(ConfigError, match="a series needs a name"):
        History(store, series)


class Watched(LocalStore):
    """Remembers what was listed."""

    listed: list[str] = []  # noqa: RUF012 - one list for the one test

    def list(self, prefix: str = "") -> Iterator[str]:
        self.listed.append(prefix)
        return super().list(prefix)


def test_a_bucket_of_shards_is_not_listed(tmp_path: Path) -> None:
    store = Watched(tmp_path)
    history = History(store, "nightly")
    history.add(entry())
    history.before(TICK)
    history.entries()
    assert set(store.listed) == {"history/nightly/entries"}


def test_a_newer_schema_and_a_broken_entry_are_told_apart(history: History, store: LocalStore) -> None:
    key = history.key(TICK, MODEL)
    store.put(key, entry().model_dump_json().replace('"schema_version":2', '"schema_version":3,"new":0').encode())
    with pytest.raises(ConfigError, match="is of schema 3, this Evenhand reads 2; update it"):
        history.entries()
    store.put(key, b'{"schema_version": 1, "series"')
    with pytest.raises(ConfigError, match="is no entry of a history"):
        history.entries()


def test_an_entry_holds_the_audited_models_figures() -> None:
    report = make_report(professions=3).model_copy(update={"provenance": PROVENANCE | {"operator": "9f" * 32}})
    found = entry_of(report, series="nightly", tick=TICK, exit_code=5, contents="f" * 64)
    assert report.summary.edited is not None
    assert (found.delta, found.controls) == (report.summary.edited.delta, report.summary.edited.controls)
    assert [p.share for p in found.professions] == [p.edited.share for p in report.professions if p.edited]
    assert (found.operator, found.against, found.label) == ("9f" * 32, None, "female")
    alone = make_report(professions=3, edited=False).model_copy(update={"provenance": PROVENANCE})
    found = entry_of(alone, series="nightly", tick=TICK, exit_code=6, contents="f" * 64, reused_from="audit-0")
    assert found.delta == alone.summary.base.delta
    assert [p.n for p in found.professions] == [p.base.n for p in alone.professions]
    assert (found.operator, found.reused_from) == (None, "audit-0")


def test_an_entry_of_a_mixture_holds_its_digest_and_says_so() -> None:
    report = make_mixture_report(professions=3)
    report = report.model_copy(update={"provenance": PROVENANCE, "headline": "In words."})
    found = entry_of(report, series="nightly", tick=TICK, exit_code=0, contents="c")
    assert (found.operator, found.mixture, found.headline) == ("5e" * 32, True, "In words.")
    assert found.subject == subject_of(found.model_digest, "5e" * 32)


def test_entries_of_the_first_schema_are_still_read(history: History, store: LocalStore) -> None:
    old = json.loads(entry(operator="9f" * 32).model_dump_json()) | {"schema_version": 1}
    del old["mixture"], old["headline"]
    store.put(history.key(TICK, "old"), json.dumps(old).encode())
    (found,) = history.entries()
    assert (found.schema_version, found.mixture, found.operator) == (1, False, "9f" * 32)


def test_a_comparison_with_an_earlier_run_is_named_and_one_with_a_base_is_not() -> None:
    def against(kind: Any) -> str | None:
        reference = Reference(kind=kind, name="x", run="audit-1120", model_digest=MODEL)
        report = make_report(professions=2).model_copy(update={"provenance": PROVENANCE, "reference": reference})
        return entry_of(report, series="s", tick=TICK, exit_code=0, contents="").against

    assert (against("earlier run"), against("base model")) == ("audit-1120", None)


def test_a_report_without_digests_is_refused() -> None:
    with pytest.raises(ConfigError, match="provenance lacks 'wordings'"):
        entry_of(make_report(professions=1), series="s", tick=TICK, exit_code=0, contents="")


def test_the_basis_names_what_changed() -> None:
    before = basis_of(PROVENANCE, ["female", "male"])
    assert before.changed(basis_of(PROVENANCE | {"model_digest": "other", "device": "cuda"}, ["female", "male"])) == ()
    sampler = PROVENANCE | {"sampler": {"scheduler": "ddim", "steps": 20, "dtype": "bfloat16"}}
    assert before.changed(basis_of(sampler, ["female", "male"])) == ("sampler",)
    assert before.changed(basis_of(PROVENANCE | {"undetermined_margin": 0.2}, ["female", "male"])) == ("wordings",)
    other = PROVENANCE | {"manifest": "x", "classifier_digest": "y"}
    assert before.changed(basis_of(other, ["male", "female"])) == ("manifest", "classifier", "wordings")


@pytest.mark.parametrize(
    ("text", "tick"),
    [
        ("2026-11-21T00:00Z", "2026-11-21T00:00:00Z"),
        ("2026-11-21T02:00+02:00", "2026-11-21T00:00:00Z"),
        ("2026-11-21 06:30:15.5+00:00", "2026-11-21T06:30:15Z"),
    ],
)
def test_ticks_are_utc(text: str, tick: str) -> None:
    assert tick_text(parse_tick(text)) == tick


@pytest.mark.parametrize("text", ["2026-11-21", "2026-11-21T00:00", "yesterday", "", "0001-01-01T00:00+14:00"])
def test_ticks_without_an_offset_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--tick"):
        parse_tick(text)


@pytest.mark.parametrize(
    ("every", "tick"),
    [
        ("15m", "2026-11-21T18:15:00Z"),
        ("6h", "2026-11-21T18:00:00Z"),
        ("1d", "2026-11-21T00:00:00Z"),
        # A week begins on Monday.
        ("7d", "2026-11-16T00:00:00Z"),
        ("1w", "2026-11-16T00:00:00Z"),
    ],
)
def test_a_moment_is_floored_to_its_tick(every: str, tick: str) -> None:
    moment = datetime(2026, 11, 21, 18, 24, 4, 7, tzinfo=UTC)
    assert tick_text(floor_tick(moment, every)) == tick
    assert floor_tick(parse_tick(tick), every) == parse_tick(tick)
