"""The object store behind a network that fails: what patience rides out, and what it does not."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.storage import (
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StorageError,
    StorageSettings,
    open_store,
)
from tests.faults import KINDS, FaultyProxy


def _through(proxy: FaultyProxy, s3: Any, **changes: Any) -> ObjectStore:
    """Return a fresh store behind the proxy; botocore's own retries are off unless asked for."""
    settings = s3.settings.model_copy(update={"endpoint_url": proxy.url, "max_attempts": 1} | changes)
    return open_store(s3.store().url(), settings)


def test_hundreds_of_requests_through_faults_come_out_right(s3: Any) -> None:
    with FaultyProxy(s3.settings.endpoint_url, every=3, delay_s=0.1) as proxy:
        store = _through(proxy, s3, patience_s=30.0)

        def work(number: int) -> None:
            key, data = f"{number % 4}/{number:03}", hashlib.sha256(str(number).encode()).digest() * 40
            store.put(key, b"first")
            store.put(key, data)
            assert store.get(key) == data
            if number % 3 == 0:
                store.delete(key)
                assert not store.exists(key)
            if number % 10 == 0:
                listed = list(store.list(str(number % 4)))
                assert listed == sorted(set(listed))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(90)))
        expected = [f"{number % 4}/{number:03}" for number in range(90) if number % 3]
        assert list(store.list()) == sorted(expected)
        direct = open_store(store.url(), s3.settings)
        for key in expected:
            assert direct.get(key) == hashlib.sha256(str(int(key[2:])).encode()).digest() * 40
        assert set(proxy.counts) == set(KINDS)
        assert sum(proxy.counts.values()) > 120


def test_conditional_puts_are_not_refused_for_their_own_first_try(s3: Any) -> None:
    with FaultyProxy(s3.settings.endpoint_url, every=2, delay_s=0.0) as proxy:
        store = _through(proxy, s3, patience_s=30.0)
        for number in range(4):
            store.put(f"{number}", b"first", if_absent=True)
            _, tag = store.get_tagged(f"{number}")
            store.put(f"{number}", b"second", if_match=tag)
            assert store.get(f"{number}") == b"second"
            with pytest.raises(ObjectExists):
                store.put(f"{number}", b"third", if_absent=True)
            with pytest.raises(ObjectChanged):
                store.put(f"{number}", b"third", if_match=tag)
        assert min(proxy.counts[kind] for kind in KINDS) > 4


def test_files_move_whole_through_faults(s3: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with FaultyProxy(s3.settings.endpoint_url, every=3, delay_s=0.1) as proxy:
        store = _through(proxy, s3, patience_s=30.0, max_attempts=5)
        for size in (0, 1 << 20, 17 << 20):  # the last one goes in two parts
            data = os.urandom(size)
            source.write_bytes(data)
            store.upload(source, f"{size}")
            store.download(f"{size}", tmp_path / "target")
            assert (tmp_path / "target").read_bytes() == data
        assert sum(proxy.counts.values()) >= 4


def test_an_outage_is_ridden_out_with_patience(s3: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"file")
    with FaultyProxy(s3.settings.endpoint_url, every=0) as proxy:
        patient = pickle.loads(pickle.dumps(_through(proxy, s3, patience_s=30.0)))  # noqa: S301 - the test's own
        below, hasty = patient.sub("below"), _through(proxy, s3)
        patient.put("key", b"data")
        proxy.down()
        begun = time.monotonic()
        threading.Timer(3.0, proxy.up).start()
        with pytest.raises(StorageError, match="is unreachable or broke off") as caught:
            hasty.put("key", b"data")
        assert caught.value.retriable
        assert "Tried" not in str(caught.value)
        with ThreadPoolExecutor(4) as pool:
            waiting = [
                pool.submit(patient.get, "key"),
                pool.submit(below.put, "key", b"deep"),
                pool.submit(below.upload, file, "file"),
                pool.submit(list, patient.list()),
            ]
            results = [done.result() for done in waiting]
        assert 2.9 < time.monotonic() - begun < 15
        assert results[0] == b"data"
        assert results[3][-1] == "key"
        assert (below.get("key"), below.get("file")) == (b"deep", b"file")


def test_patience_ends(s3: Any) -> None:
    with FaultyProxy(s3.settings.endpoint_url, every=0) as proxy:
        store = _through(proxy, s3, patience_s=1.0)
        proxy.down()
        begun = time.monotonic()
        with pytest.raises(StorageError, match=r"broke off .*Tried \d+ times in \d\.\d s\.") as caught:
            store.get("key")
        assert caught.value.retriable
        assert 1.0 <= time.monotonic() - begun < 3.0


def test_what_no_waiting_mends_is_told_at_once(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(s3.store().url(), s3.settings.model_copy(update={"patience_s": 60.0}))
    store.put("key", b"data")
    elsewhere = open_store("s3://no-such-bucket", s3.settings.model_copy(update={"patience_s": 60.0}))
    begun = time.monotonic()
    with pytest.raises(ObjectMissing):
        store.get("none")
    with pytest.raises(ObjectExists):
        store.put("key", b"other", if_absent=True)
    with pytest.raises(StorageError, match="bucket does not exist"):
        elsewhere.put("key", b"data")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "UNKNOWN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "UNKNOWN")
    with pytest.raises(StorageError, match="wrong credentials"):
        open_store(store.url(), s3.settings.model_copy(update={"patience_s": 60.0})).get("key")
    assert time.monotonic() - begun < 5


def test_patience_is_checked() -> None:
    assert StorageSettings().patience_s == 0
    with pytest.raises(ValueError, match="patience_s"):
        StorageSettings(patience_s=-1)
