"""Large files on a real S3 server: sent in parts, gone on with, not sent twice; copies that the server makes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.storage import (
    LocalStore,
    ObjectChanged,
    ObjectMissing,
    ObjectStore,
    S3Store,
    StorageError,
    open_store,
    s3_upload,
)
from infra.storage import s3 as s3_module
from infra.storage.s3_upload import SHA256, digest_file
from tests.faults import FaultyProxy
from tests.wire import Wire

PART_BYTES = 5 << 20
SIZE = 3 * PART_BYTES + 1000


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 MiB, the least that S3 takes, one after the other, so that it is known which ones break off."""
    monkeypatch.setattr(s3_upload, "_PARALLEL", 1)
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(SIZE))
    return file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fresh(store: ObjectStore, s3: Any) -> ObjectStore:
    """The same store with a client of its own."""
    return open_store(store.url(), s3.settings)


def unfinished(s3: Any, store: ObjectStore) -> list[str]:
    prefix = store.url().removeprefix(f"s3://{s3.bucket}/")
    client = boto3.client("s3", endpoint_url=s3.settings.endpoint_url)
    answer = client.list_multipart_uploads(Bucket=s3.bucket, Prefix=prefix)
    return [item["UploadId"] for item in answer.get("Uploads", ())]


def test_an_upload_goes_on_where_it_broke_off(s3: Any, large: Path) -> None:
    store = s3.store()
    Wire(store, UploadPart=2)
    with pytest.raises(StorageError, match="broke off") as caught:
        store.upload(large, "key")
    assert caught.value.retriable
    assert not store.exists("key")
    assert list(store.list()) == []
    assert len(unfinished(s3, store)) == 1

    again = fresh(store, s3)
    wire = Wire(again)
    again.upload(large, "key")
    assert wire.count("CreateMultipartUpload") == 0
    assert wire.count("UploadPart") == 2
    assert hashlib.sha256(again.get("key")).hexdigest() == sha256(large) == again.stat("key").sha256
    assert again.stat("key").size == SIZE
    assert unfinished(s3, store) == []

    again.upload(large, "key")  # nothing is sent that is there already
    assert wire.count("UploadPart") == 2
    assert wire.count("PutObject") == 0


def test_parts_of_another_file_are_not_taken_over(s3: Any, large: Path) -> None:
    store = s3.store()
    Wire(store, UploadPart=2)
    with pytest.raises(StorageError, match="broke off"):
        store.upload(large, "key")
    data = bytearray(large.read_bytes())
    data[0] ^= 1
    large.write_bytes(data)
    again = fresh(store, s3)
    wire = Wire(again)
    again.upload(large, "key")
    assert (wire.count("AbortMultipartUpload"), wire.count("UploadPart")) == (1, 4)
    assert again.get("key") == data
    assert unfinished(s3, store) == []


def test_parts_of_a_file_that_ends_otherwise_do_not_record_its_digest(s3: Any, large: Path) -> None:
    store = s3.store()
    Wire(store, UploadPart=2)
    with pytest.raises(StorageError, match="broke off"):
        store.upload(large, "key")
    data = bytearray(large.read_bytes())
    data[-1] ^= 1
    large.write_bytes(data)
    again = fresh(store, s3)
    again.upload(large, "key")
    assert again.get("key") == data
    assert again.stat("key").sha256 == sha256(large)


def test_a_completion_whose_answer_was_lost_is_found_done(s3: Any, large: Path) -> None:
    with FaultyProxy(s3.settings.endpoint_url, every=0) as proxy:
        settings = s3.settings.model_copy(update={"endpoint_url": proxy.url, "max_attempts": 3})
        store = open_store(s3.store().url(), settings)
        # Requests: a look, a listing, the beginning, four parts, the completion, whose answer is cut off.
        proxy.every, proxy._kinds = 8, iter(["cut_answer"])
        store.upload(large, "key")
        assert proxy.counts["cut_answer"] == 1
        proxy.every = 0
        assert store.stat("key").sha256 == sha256(large)


def test_what_broke_off_can_be_discarded(s3: Any, large: Path) -> None:
    store = s3.store()
    Wire(store, UploadPart=1)
    with pytest.raises(StorageError, match="broke off"):
        store.upload(large, "folder/key")
    again = fresh(store, s3)
    again.discard_unfinished("fold")
    assert len(unfinished(s3, store)) == 1
    again.discard_unfinished("folder")
    assert unfinished(s3, store) == []


def test_a_file_that_changes_while_it_is_sent_is_told(s3: Any, large: Path) -> None:
    store = s3.store()

    def change(**_: Any) -> None:
        large.write_bytes(b"x" * SIZE)

    assert isinstance(store, S3Store)
    store._client.get().meta.events.register("before-call.s3.CreateMultipartUpload", change)
    with pytest.raises(StorageError, match="changes while it is uploaded"):
        store.upload(large, "key")
    assert not store.exists("key")


def test_checksums_when_supported_in_parts(s3: Any, large: Path) -> None:
    checked = s3.settings.model_copy(update={"checksum_mode": "when_supported"})
    store = open_store(s3.store().url(), checked)
    Wire(store, UploadPart=2)
    with pytest.raises(StorageError, match="broke off"):
        store.upload(large, "key")
    again = open_store(store.url(), checked)
    again.upload(large, "key")
    assert hashlib.sha256(again.get("key")).hexdigest() == sha256(large)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES])
def test_digests_of_parts(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    data = os.urandom(size)
    file.write_bytes(data)
    found = digest_file(file)
    parts = [data[i : i + PART_BYTES] for i in range(0, max(size, 1), PART_BYTES)]
    assert found.parts == tuple(hashlib.md5(part).digest() for part in parts)  # noqa: S324 - as S3 has it
    assert (found.size, found.sha256) == (size, hashlib.sha256(data).hexdigest())


def test_the_server_copies_bytes_and_digest(s3: Any, large: Path) -> None:
    store = s3.store()
    store.upload(large, "a/from")
    wire = Wire(store)
    store.copy(store, "a/from", "b/é to")
    other = open_store(f"s3://{s3.bucket}/elsewhere", s3.settings)
    other.copy(store.sub("b"), "é to", "key")
    assert (wire.count("GetObject"), wire.count("PutObject"), wire.count("CopyObject")) == (0, 0, 1)
    store.delete("a/from")  # a copy is no link
    for found in (store.stat("b/é to"), other.stat("key")):
        assert (found.size, found.sha256) == (SIZE, sha256(large))
    assert hashlib.sha256(other.get("key")).hexdigest() == sha256(large)


def test_large_objects_are_copied_in_parts(s3: Any, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module._COPY, "multipart_threshold", PART_BYTES)
    monkeypatch.setattr(s3_module._COPY, "multipart_chunksize", 2 * PART_BYTES)
    store = s3.store()
    store.upload(large, "from")
    wire = Wire(store)
    store.copy(store, "from", "to")
    assert (wire.count("UploadPartCopy"), wire.count("CopyObject")) == (2, 0)
    assert hashlib.sha256(store.get("to")).hexdigest() == sha256(large) == store.stat("to").sha256


@pytest.mark.parametrize("begin", ["s3", "local"])
@pytest.mark.parametrize("end", ["s3", "local"])
def test_copies_between_all_stores(s3: Any, tmp_path: Path, begin: str, end: str) -> None:
    stores: dict[str, ObjectStore] = {"s3": s3.store(), "local": LocalStore(tmp_path / "objects")}
    source, target = stores[begin], stores[end]
    source.put("from", b"data")
    tag, digest = source.stat("from").tag, hashlib.sha256(b"data").hexdigest()
    target.copy(source, "from", "to", if_match=tag, sha256=digest)
    assert target.get("to") == b"data"
    assert target.stat("to").sha256 == digest
    source.put("from", b"other")
    with pytest.raises(ObjectChanged, match="has changed"):
        target.copy(source, "from", "to", if_match=tag)
    with pytest.raises(ObjectMissing):
        target.copy(source, "none", "to")
    assert target.get("to") == b"data"


def test_a_source_that_records_another_digest_is_refused(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    store = s3.store()
    store.upload(tmp_path / "file", "from")
    with pytest.raises(ObjectChanged, match="other bytes"):
        store.copy(store, "from", "to", sha256="0" * 64)
    assert not store.exists("to")


def test_an_object_that_says_nothing_of_itself_is_sent_again(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    store = s3.store()
    bucket, _, prefix = store.url("key").removeprefix("s3://").partition("/")
    boto3.client("s3", endpoint_url=s3.settings.endpoint_url).put_object(Bucket=bucket, Key=prefix, Body=b"data")
    assert store.stat("key").sha256 is None
    store.upload(tmp_path / "file", "key")
    assert store.stat("key").sha256 == hashlib.sha256(b"data").hexdigest()


def test_the_digest_is_plain_metadata(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    store = s3.store()
    store.upload(tmp_path / "file", "key")
    bucket, _, name = store.url("key").removeprefix("s3://").partition("/")
    head = boto3.client("s3", endpoint_url=s3.settings.endpoint_url).head_object(Bucket=bucket, Key=name)
    assert head["Metadata"] == {SHA256: hashlib.sha256(b"data").hexdigest()}


def test_a_folders_unfinished_files_are_discarded(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"data")
    (tmp_path / "a" / ".evenhand-partial-1").write_bytes(b"left by a killed writer")
    store.discard_unfinished("a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
