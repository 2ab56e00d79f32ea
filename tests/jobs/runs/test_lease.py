"""The lease on a run's folder, on a real S3 server and on folders, between threads and processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.storage import LocalStore, ObjectStore, StorageError, open_store
from jobs.errors import ExitCode, LeaseHeldError, exit_code_of
from jobs.runs.lease import Lease
from tests.faults import FaultyProxy

KEY = "runs/a/LEASE"


@pytest.fixture(params=["s3", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Both kinds of store, empty."""
    if request.param == "local":
        return open_store(str(tmp_path / "objects"))
    return request.getfixturevalue("s3").store()


def _leave_dead_lease(store: ObjectStore, *, ttl_s: float = 1.0, expires_in_s: float = 0.0) -> None:
    """Write what a holder leaves that was killed."""
    begun = datetime.now(UTC)
    record = {
        "holder": "dead",
        "host": "elsewhere",
        "acquired": begun.isoformat(),
        "expires": (begun + timedelta(seconds=expires_in_s)).isoformat(),
        "ttl_s": ttl_s,
        "beat": 3,
    }
    store.put(KEY, json.dumps(record).encode())


def _race(store: ObjectStore, stack: ExitStack, number: int, ttl_s: float) -> list[Lease | LeaseHeldError]:
    """Let several drivers acquire at once; those who hold the lease keep it until the stack closes."""
    barrier = threading.Barrier(number)

    def contend(_: int) -> Lease | LeaseHeldError:
        lease = Lease(store, KEY, ttl_s=ttl_s)
        barrier.wait()
        try:
            return stack.enter_context(lease)
        except LeaseHeldError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(contend, range(number)))


def _wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s
        time.sleep(0.02)


@pytest.mark.parametrize("dead_holder", [False, True])
def test_exactly_one_of_several_acquires(store: ObjectStore, dead_holder: bool) -> None:
    if dead_holder:
        _leave_dead_lease(store)
    with ExitStack() as stack:
        results = _race(store, stack, 4, ttl_s=6.0)
        winners = [result for result in results if isinstance(result, Lease)]
        errors = [result for result in results if isinstance(result, LeaseHeldError)]
        assert (len(winners), len(errors)) == (1, 3)
        holder = json.loads(store.get(KEY))["holder"]
        assert all(f"driver {holder} on " in str(error) and "since " in str(error) for error in errors)
        assert exit_code_of(errors[0]) is ExitCode.LEASE_HELD == 9
        winners[0].check()
    assert list(store.list()) == []  # released, and no probe left


def test_a_live_holder_keeps_its_lease_and_beats(store: ObjectStore) -> None:
    beats, said = [], []
    with Lease(store, KEY, ttl_s=2.0, on_beat=lambda: beats.append(1)) as lease:
        record = json.loads(store.get(KEY))
        begun = time.monotonic()
        with pytest.raises(LeaseHeldError, match=record["holder"]), Lease(store, KEY, say=said.append):
            pass
        assert time.monotonic() - begun < 2.0  # told by the next renewal, not by waiting the ttl out
        _wait_for(lambda: len(beats) >= 2)
        lease.check()
        assert not lease.lost
        renewed = json.loads(store.get(KEY))
        assert renewed["acquired"] == record["acquired"]
        assert datetime.fromisoformat(renewed["expires"]) > datetime.fromisoformat(record["expires"])
    assert len(said) == 1
    assert "another driver held this run until" in said[0]
    assert not store.exists(KEY)


def test_a_dead_holder_is_told_by_our_clock_not_by_its_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    _leave_dead_lease(store, expires_in_s=3600)
    begun = time.monotonic()
    with Lease(store, KEY, ttl_s=30.0, holder="heir", now=lambda: datetime.now(UTC) - timedelta(days=1)):
        assert 1.0 <= time.monotonic() - begun < 5.0  # the dead holder's ttl, not ours
        assert json.loads(store.get(KEY))["holder"] == "heir"
    assert not store.exists(KEY)


def test_a_lease_released_while_another_waits_is_free(store: ObjectStore) -> None:
    _leave_dead_lease(store, ttl_s=10.0)
    threading.Timer(0.2, store.delete, (KEY,)).start()
    begun = time.monotonic()
    with Lease(store, KEY, holder="next"):
        assert time.monotonic() - begun < 5.0
        assert json.loads(store.get(KEY))["holder"] == "next"


def test_a_restarted_holder_gets_its_own_lease_at_once_and_junk_lapses(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    _leave_dead_lease(store, ttl_s=600.0)
    with Lease(store, KEY, holder="dead"):
        pass
    store.put(KEY, b"not a lease")
    with Lease(store, KEY, ttl_s=0.5) as lease:
        lease.check()


def test_a_stolen_lease_is_noticed_and_left_alone(store: ObjectStore) -> None:
    with Lease(store, KEY, ttl_s=1.0) as lease:
        _leave_dead_lease(store)
        _wait_for(lambda: lease.lost)
        with pytest.raises(LeaseHeldError, match="driver dead on elsewhere"):
            lease.check()
    assert json.loads(store.get(KEY))["holder"] == "dead"


def test_an_outage_is_no_loss_and_faults_of_the_beat_are_told(s3: Any) -> None:
    said: list[str] = []
    with FaultyProxy(s3.settings.endpoint_url, every=0) as proxy:
        settings = s3.settings.model_copy(update={"endpoint_url": proxy.url, "max_attempts": 1})
        store = open_store(s3.store().url(), settings)
        beats: list[int] = []

        def beat() -> None:
            beats.append(1)
            if len(beats) == 4:
                raise StorageError("passing")
            if len(beats) == 5:
                raise KeyError("broken")

        with Lease(store, KEY, ttl_s=1.0, on_beat=beat, say=said.append) as lease:
            _wait_for(lambda: beats)
            proxy.down()
            time.sleep(1.5)
            proxy.up()
            _wait_for(lambda: len(beats) == 4)
            lease.check()
            _wait_for(lambda: len(beats) == 6)
            with pytest.raises(KeyError):
                lease.check()
        assert ["a renewal failed" in text for text in said] == [True, True]
        assert not store.exists(KEY)


def test_leaving_is_not_held_up_by_a_store_that_is_away(s3: Any) -> None:
    said: list[str] = []
    with FaultyProxy(s3.settings.endpoint_url, every=0) as proxy:
        settings = s3.settings.model_copy(update={"endpoint_url": proxy.url, "max_attempts": 1, "patience_s": 3.0})
        store = open_store(s3.store().url(), settings)
        with Lease(store, KEY, ttl_s=0.5, say=said.append):
            proxy.down()
            begun = time.monotonic()
        assert time.monotonic() - begun < 2.0
        assert "could not release" in said[-1]


class _Careless(LocalStore):
    """A store like those that ignore conditions."""

    def put(self, key: str, data: bytes, **conditions: Any) -> None:
        super().put(key, data)


def test_without_conditional_writes_there_is_no_lease(tmp_path: Path) -> None:
    store, said = _Careless(tmp_path), []
    with Lease(store, KEY, say=said.append) as first, Lease(store, KEY) as second:
        first.check()
        second.check()
    assert len(said) == 1
    assert "no conditional writes" in said[0]
    assert list(store.list()) == []


HOLDER = """
import sys, time
from infra.storage import open_store
from jobs.runs.lease import Lease
with Lease(open_store(sys.argv[1]), sys.argv[2], ttl_s=2.0, holder="victim"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_loses_its_lease_after_its_ttl(store: ObjectStore) -> None:
    command = [sys.executable, "-c", HOLDER, store.url(), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(LeaseHeldError, match="driver victim"), Lease(store, KEY):
                pass
        finally:
            process.kill()
    begun = time.monotonic()
    with Lease(store, KEY) as lease:
        assert 2.0 <= time.monotonic() - begun < 6.0
        lease.check()
    assert not store.exists(KEY)
