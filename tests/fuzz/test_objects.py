"""Objects of a store that somebody else wrote: shards, calibration, reports, histories, leases and runs' states."""

from __future__ import annotations

import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra.storage import LocalStore, StorageSettings
from jobs.editing import mixture_evidence
from jobs.editing import single_evidence as evidence
from jobs.editing.mixture_evidence import Tried, tried_of
from jobs.errors import ConfigError
from jobs.images.shards import Shard, ShardError
from jobs.report.reading import read_report
from jobs.runs.finished import read_finished
from jobs.runs.folder import RunFolder
from jobs.runs.lease import Lease
from jobs.runs.rerender import rerender
from jobs.scheduling.history import History, known_series
from manifests import manifest_bytes
from tests.fuzz.judging import judged, untouched
from tests.fuzz.profiles import inputs
from tests.fuzz.strategies import broken_bytes, json_text
from tests.jobs.helpers import manifest, spec
from tests.jobs.report.reports import make_report
from tests.jobs.scheduling.test_history import TICK, entry
from time_ops.search.saturation import Seen, Trial

SPEC = spec()
SHARD = Shard(
    SPEC, np.full((4, 8), 0.5, np.float32), np.array([0, 0, 1, 0], np.uint8), [b"picture", b"other", None, None], {}
).to_bytes()
MANIFEST = manifest("nurse", "CEO")
COMPONENTS = ("female", "male")
REPORT = json.loads(make_report().model_dump_json())


def trials() -> bytes:
    row = {
        "phase": "search",
        "active": True,
        "lam": 0.1,
        "shares": [[0.5, 0.5]],
        "counts": [[3, 4, 1]],
        "label": "female",
    }
    pair = dict.fromkeys(("recognised", "explicit", "controls"), (3, 4))
    rows = [
        {**row, **pair, "round": number, "profession": p.name, "operator": "ab" * 32}
        for number in range(3)
        for p in MANIFEST.professions
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=evidence._SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def tried() -> bytes:
    ones = np.ones((2, 2))
    seen = Seen(np.ones((2, 2, 3), int), np.ones((2, 2, 2), int), np.ones((2, 2), int), np.ones((2, 2), int))
    rounds = [Tried(Trial(i, ones, ones, ones, np.array([True, True])), seen, ("a", "b")) for i in range(2)]
    return mixture_evidence.evidence_bytes(rounds, MANIFEST, COMPONENTS)


def rewritten(data: bytes, columns: dict[str, Any], **options: Any) -> bytes:
    """The same table with other columns under the same footer."""
    table = pq.read_table(pa.BufferReader(data))
    for name, array in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, array)
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def read_shard(data: bytes) -> None:
    read = partial(Shard.from_bytes, data, SPEC)
    judged("shards", read, says=f"shard {SPEC.digest}", size=len(data), also=(ShardError,))


@given(broken_bytes(SHARD))
@inputs(80)
def test_shards(data: bytes) -> None:
    read_shard(data)


ODD_ARRAYS = (
    pa.nulls(4), pa.array([None] * 4, pa.string()), pa.array(["ok", "x", "", None]), pa.array([1, 2, 3, 4]),
    pa.array([[1.0], [], None, [2.0] * 3]), pa.array([[0.5] * 8] * 4, pa.list_(pa.float32(), 8)),
    pa.array([["a"] * 8] * 4), pa.array([{"a": 1}] * 4), pa.array([float("nan")] * 4), pa.array([b"\xff"] * 4),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(("embedding", "status", "picture", "seed")), st.sampled_from(ODD_ARRAYS)))
@inputs(40)
def test_shards_of_other_types(columns: dict[str, Any]) -> None:
    read_shard(rewritten(SHARD, columns))


def test_a_shard_whose_pictures_are_texts_is_refused() -> None:
    with pytest.raises(ShardError, match="of another type"):
        Shard.from_bytes(rewritten(SHARD, {"picture": pa.array(["a", "b", None, None])}), SPEC)


def test_shards_that_become_large() -> None:
    key = pq.read_schema(pa.BufferReader(SHARD)).metadata
    one = pa.table({"embedding": pa.array([[0.5] * 8] * 4, pa.list_(pa.float32(), 8)), "status": ["ok"] * 4})
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(20_000_000, np.float32)), 5_000_000)
    large = {
        "rows": pa.table({name: pa.nulls(5_000_000) for name in ("embedding", "status", "picture")}),
        "a picture": one.append_column("picture", pa.array([b"x" * 70_000_000] * 4)),
        "embeddings": pa.table({"embedding": wide, "status": ["ok"] * 4, "picture": [b""] * 4}),
    }
    for name, table in large.items():
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(key), sink, compression="zstd")
        assert len(sink.getvalue()) < 1_000_000, name
        read_shard(sink.getvalue())


@given(broken_bytes(trials()))
@inputs(60)
def test_calibration_of_a_single_edit(data: bytes) -> None:
    judged("calibration", lambda: evidence.trials_of(data, MANIFEST), size=len(data), also=(ValueError,))


@given(broken_bytes(tried()))
@inputs(60)
def test_calibration_of_a_mixture(data: bytes) -> None:
    judged("calibration", lambda: tried_of(data, MANIFEST, COMPONENTS), size=len(data), also=(ValueError,))


NAMES = st.sampled_from(("round", "profession", "active", "lam", "operator", "counts", "explicit"))
CELLS = st.sampled_from((None, -1, 2**31 - 1, "x", [], [None], [[None]], [[1, 2, 3]], float("nan"), True))


@given(st.sampled_from((trials(), tried())), NAMES, CELLS)
@inputs(60)
def test_calibration_of_other_types(whole: bytes, name: str, cell: Any) -> None:
    table = pq.read_table(pa.BufferReader(whole))
    data = rewritten(whole, {name: pa.array([cell] * len(table))} if name in table.schema.names else {})
    read: Any = partial(evidence.trials_of, data, MANIFEST)
    if "component" in table.schema.names:
        read = partial(tried_of, data, MANIFEST, COMPONENTS)
    judged("calibration", read, size=len(data), also=(ValueError,))


def test_what_is_broken_here_is_whole_before() -> None:
    assert len(Shard.from_bytes(SHARD, SPEC).pictures) == 4
    assert len(evidence.trials_of(trials(), MANIFEST)) == 3
    assert len(tried_of(tried(), MANIFEST, COMPONENTS)) == 2


def test_calibration_that_becomes_large() -> None:
    whole = pq.read_table(pa.BufferReader(trials()))
    sink = io.BytesIO()
    pq.write_table(whole.take(pa.array(np.tile(np.arange(6), 5_000))), sink, compression="zstd")
    judged("calibration", lambda: evidence.trials_of(sink.getvalue(), MANIFEST), also=(ValueError,))
    long = rewritten(trials(), {"operator": pa.array(["x" * 5_000_000] * 6)}, compression="zstd")
    judged("calibration", lambda: evidence.trials_of(long, MANIFEST), size=len(long), also=(ValueError,))


@given(json_text(REPORT))
@inputs(60)
def test_reports(data: bytes) -> None:
    judged("reports", lambda: read_report(data, "report.json"), says="report.json", size=len(data))


@given(json_text(REPORT))
@inputs(25)
def test_reports_that_are_drawn_again(tmp_path_factory: Any, data: bytes) -> None:
    place = tmp_path_factory.mktemp("run")
    (place / "report.json").write_bytes(data)
    (place / "COMPLETE").write_text(json.dumps({"files": {"report.json": hashlib.sha256(data).hexdigest()}}))
    with untouched(place):
        out = tmp_path_factory.mktemp("out") / "report.html"
        judged("reports", lambda: rerender(str(place), out, Console(file=io.StringIO())), size=len(data))


def run_files() -> dict[str, bytes]:
    files = {
        "report.json": json.dumps(REPORT).encode(),
        "manifest.parquet": manifest_bytes(MANIFEST),
        "images/part-0.parquet": b"",
    }
    state = {"status": "done", "configuration": {"seed": 1}, "identity": "i", "driver": "d", "updated": "2026-11-21"}
    complete = {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, "verdict": "pass"}
    return {**files, "run.json": json.dumps(state).encode(), "COMPLETE": json.dumps(complete).encode()}


RUN = run_files()


@given(st.sampled_from(("run.json", "COMPLETE")).flatmap(lambda n: json_text(json.loads(RUN[n])).map(lambda d: (n, d))))
@inputs(60)
def test_earlier_runs(tmp_path_factory: Any, broken: tuple[str, bytes]) -> None:
    place = tmp_path_factory.mktemp("run")
    store = LocalStore(place)
    for name, data in {**RUN, broken[0]: broken[1]}.items():
        store.put(name, data)
    with untouched(place):
        judged("earlier runs", lambda: read_finished(str(place), StorageSettings()), says=str(place))


@given(json_text({**json.loads(RUN["run.json"]), "beat_s": 5.0, "started": "2026-11-21", "attempt": 2}))
@inputs(50)
def test_states_of_runs(tmp_path_factory: Any, data: bytes) -> None:
    store = LocalStore(tmp_path_factory.mktemp("out"))
    store.put("runs/r/run.json", data)
    folder = RunFolder(store, "r")
    judged("states of runs", lambda: folder.queue("waiting"), says="runs/r/run.json")
    store.put("runs/r/run.json", data)
    judged("states of runs", lambda: RunFolder(store, "r").open("i", {}), says="runs/r")


LATEST = {
    "schema_version": 2, "series": "nightly", "tick": "2026-11-21T00:00:00Z", "created": "2026-11-21T00:10:00+00:00",
    "entry": "history/nightly/entries/20261121T000000Z-x.json", "run": "r", "verdict": "pass", "exit_code": 0,
}  # fmt: skip
ENTRY = json.loads(entry().model_dump_json())


@given(json_text(ENTRY), json_text(LATEST))
@inputs(60)
def test_histories(tmp_path_factory: Any, one: bytes, pointer: bytes) -> None:
    place = tmp_path_factory.mktemp("history")
    store = LocalStore(place)
    store.put("history/nightly/entries/20261121T000000Z-x.json", one)
    store.put("history/nightly/latest.json", pointer)
    series = History(store, "nightly")
    with untouched(place):
        judged("histories", series.entries, size=len(one))
        judged("histories", lambda: series.before(TICK), size=len(one))
        judged("histories", lambda: known_series(store), size=len(pointer))


LEASE = {
    "holder": "h", "host": "n", "acquired": "2026-11-21T00:00:00Z", "expires": "2026-11-21T00:01:00Z", "ttl_s": 0.02,
    "beat": 3,
}  # fmt: skip


@given(json_text(LEASE))
@inputs(30)
def test_leases(tmp_path_factory: Any, data: bytes) -> None:
    store = LocalStore(tmp_path_factory.mktemp("out"))
    store.put("runs/r/LEASE", data)
    lease = Lease(store, "runs/r/LEASE", ttl_s=0.02)

    def take() -> None:
        # What it waits is what the lease says, an hour at most: too long for a test.
        found = lease._read()
        if found is None or found.record is None or found.record.ttl_s <= 0.05:
            lease._acquire()
        lease._held(found)

    judged("leases", take, size=len(data))


@pytest.mark.parametrize("ttl_s", [1e9, 1e300, 3601.0])
def test_a_lease_does_not_say_how_long_others_wait(tmp_path: Path, ttl_s: float) -> None:
    store = LocalStore(tmp_path)
    store.put("LEASE", json.dumps({**LEASE, "ttl_s": ttl_s}).encode())
    with Lease(store, "LEASE", ttl_s=0.05) as lease:
        lease.check()


def test_an_entry_at_the_end_of_the_calendar_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    data = json.dumps({**ENTRY, "tick": "9999-12-31T23:59:59-14:00"}).encode()
    store.put("history/nightly/entries/99991231T235959Z-x.json", data)
    with pytest.raises(ConfigError, match="beyond the calendar"):
        History(store, "nightly").entries()
