"""The object store, on a real S3 server and on folders."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from infra.storage import (
    InvalidKey,
    LocalStore,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    S3Store,
    StorageError,
    StorageSettings,
    check_key,
    open_store,
    safe_name,
)


def _travel(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - the test's own


@pytest.fixture(params=["s3", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Both kinds of store, empty."""
    if request.param == "local":
        return open_store(str(tmp_path / "objects"))
    return request.getfixturevalue("s3").store()


def test_what_was_put_is_known_by_its_digest(store: ObjectStore) -> None:
    store.put("key", b"one")
    assert store.stat("key").sha256 == hashlib.sha256(b"one").hexdigest()
    store.put("key", b"two", if_match=store.get_tagged("key")[1])
    assert store.stat("key").sha256 == hashlib.sha256(b"two").hexdigest()


def test_a_folder_that_is_empty_is_none(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "objects"))
    for key in ("runs/a/unet/x", "runs/a/y", "runs/b"):
        store.put(key, b"")
    store.sub("runs/a").delete("unet/x")
    assert not (tmp_path / "objects/runs/a/unet").exists()
    store.delete("runs/a/y")
    assert [path.name for path in (tmp_path / "objects/runs").iterdir()] == ["b"]
    store.delete("runs/b")
    assert list((tmp_path / "objects").iterdir()) == []


def test_writes_and_deletions_in_one_local_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    def work(name: int) -> None:
        for _ in range(100):
            store.put(f"a/b/{name}", b"x")
            store.delete(f"a/b/{name}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize(
    "key", ["a", "runs/a/report.json", "é ü/日本 語", "q?x=1&y#%25+z.txt", "'quoted\" (1)", "a" * 255]
)
@pytest.mark.parametrize("data", [b"", b"\0\xff bytes"])
def test_round_trip(store: ObjectStore, key: str, data: bytes) -> None:
    assert not store.exists(key)
    store.put(key, b"before")
    store.put(key, data, content_type="application/octet-stream")
    assert store.get(key) == data
    assert store.exists(key)
    assert list(store.list()) == [key]
    store.delete(key)
    store.delete(key)
    assert not store.exists(key)
    with pytest.raises(ObjectMissing, match=r"no such object|No such file"):
        store.get(key)


def test_list_is_sorted_by_code_point_and_by_folder(store: ObjectStore) -> None:
    keys = ["a-b", "a.b", "a/b", "a/c/d", "ab/c", "B", "é"]
    for key in keys:
        store.put(key, b"")
    assert list(store.list()) == sorted(keys)
    assert list(store.list("a")) == list(store.list("a/")) == ["a/b", "a/c/d"]
    assert list(store.list("none")) == []
    assert list(store.sub("a").list()) == ["b", "c/d"]
    assert not store.exists("a")


def test_exactly_one_conditional_put_wins(store: ObjectStore) -> None:
    barrier = threading.Barrier(8)

    def contend(number: int) -> bool:
        barrier.wait()
        try:
            store.put("lease", str(number).encode(), if_absent=True)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(8)))
    assert sum(won) == 1
    assert store.get("lease") == str(won.index(True)).encode()
    assert store.supports_conditional_put()
    store.check_writable()
    assert list(store.list()) == ["lease"]


def test_exactly_one_replacement_wins(store: ObjectStore) -> None:
    store.put("lease", b"begin")
    data, tag = store.get_tagged("lease")
    assert data == b"begin"
    barrier = threading.Barrier(8)

    def contend(number: int) -> bool:
        barrier.wait()
        try:
            store.put("lease", str(number).encode(), if_match=tag)
        except ObjectChanged:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(8)))
    assert sum(won) == 1
    data, renewed = store.get_tagged("lease")
    assert data == str(won.index(True)).encode()
    assert renewed != tag
    store.put("lease", b"end", if_match=renewed)
    assert store.get("lease") == b"end"
    assert list(store.list()) == ["lease"]


def test_what_is_gone_is_not_replaced(store: ObjectStore) -> None:
    store.put("lease", b"begin")
    _, tag = store.get_tagged("lease")
    store.delete("lease")
    with pytest.raises(ObjectChanged, match="gone"):
        store.put("lease", b"end", if_match=tag)
    assert list(store.list()) == []
    with pytest.raises(ObjectMissing):
        store.get_tagged("lease")
    with pytest.raises(ValueError, match="exclude each other"):
        store.put("lease", b"end", if_match=tag, if_absent=True)


BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    ".",
    "a/./b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x85b",
    "a" * 256,
    "x/" * 600,
    "\ud800",
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused_by_every_method(store: ObjectStore, tmp_path: Path, key: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for call in (store.get, store.exists, store.delete, lambda bad: store.put(bad, b"")):
        with pytest.raises(InvalidKey):
            call(key)
    if key != "a/":  # as a prefix, that is "a"
        with pytest.raises(InvalidKey):
            store.sub(key)
    with pytest.raises(InvalidKey):
        store.download(key, tmp_path / "out")
    with pytest.raises(InvalidKey):
        store.upload(file, key)


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "new")
    (root / "inner").mkdir()
    (root / "inner" / "sibling").symlink_to(root)
    (root / "inside").write_bytes(b"inside")
    (root / "alias").symlink_to(root / "inside")
    store = LocalStore(root)
    for key in ("folder/secret", "folder/new", "file", "dangling"):
        for call in (store.get, store.exists, store.delete, lambda key: store.put(key, b"overwritten")):
            with pytest.raises(InvalidKey, match="symbolic link"):
                call(key)
    with pytest.raises(InvalidKey):
        store.sub("folder").put("new", b"")
    with pytest.raises(InvalidKey):
        store.sub("inner").get("sibling/inside")
    assert store.get("alias") == b"inside"
    assert list(store.list()) == ["alias", "inside"]
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


@given(st.text())
def test_safe_name_is_one_part_and_never_another_texts(text: str) -> None:
    name = safe_name(text)
    assert "/" not in check_key(name)
    assert name.isascii()
    assert name == name.lower()
    assert len(name) <= 80
    if name != text:
        assert safe_name(name) != name


def test_safe_name_examples() -> None:
    assert safe_name("ceo") == "ceo"
    assert safe_name("a CEO") == "a-ceo-" + hashlib.sha256(b"a CEO").hexdigest()[:10]
    assert len({safe_name(text) for text in ("CEO", "ceo", "Ceo", "c e o", "../ceo", "c/e/o", "", "日本", "..")}) == 9


def test_a_failed_local_write_leaves_the_old_object_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"write .*a/b: No space left.*Free some space"):
        store.put("a/b", b"new")
    monkeypatch.undo()
    assert store.get("a/b") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    (tmp_path / "a" / ".evenhand-partial-1").write_bytes(b"left by a killed writer")
    assert list(store.list()) == ["a/b"]


def test_readers_never_see_half_a_local_object(tmp_path: Path) -> None:
    store, stop = LocalStore(tmp_path), threading.Event()
    contents = [bytes([value]) * (1 << 20) for value in (1, 2)]
    store.put("key", contents[0])

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                store.put("key", content)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = [store.get("key") in contents for _ in range(100)]
        stop.set()
        writing.result()
    assert all(seen)


def test_large_files_move_in_parts_and_come_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    data = os.urandom(37 << 20)
    source.write_bytes(data)
    store.upload(source, "large")
    store.download("large", target)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_checksums_when_supported(s3: Any) -> None:
    checked = StorageSettings(endpoint_url=s3.settings.endpoint_url, checksum_mode="when_supported")
    store = open_store(s3.store().url("checked"), checked)
    store.put("key", b"data")
    assert store.get("key") == b"data"


def test_folders_go_up_with_the_index_last_and_come_back(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["model_index.json", "unet/weights", "unet/config.json", "vae/model_index.json", "a"]
    for name in names:
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    order: list[str] = []
    real = type(store).upload

    def upload(self: ObjectStore, path: Path, key: str) -> None:
        real(self, path, key)
        order.append(key)

    monkeypatch.setattr(type(store), "upload", upload)
    written = store.upload_folder(tmp_path / "model", "checkpoint")
    assert written == tuple(f"checkpoint/{name}" for name in sorted(names))
    assert order[-1] == "model_index.json"
    assert sorted(order) == sorted(names)
    files = store.download_folder("checkpoint", tmp_path / "back")
    assert [(file.relative_to(tmp_path / "back").as_posix(), file.read_text()) for file in files] == [
        (name, name) for name in sorted(names)
    ]
    with pytest.raises(StorageError, match="no such folder"):
        store.upload_folder(tmp_path / "none", "x")
    with pytest.raises(ObjectMissing, match="no object is below it"):
        store.download_folder("none", tmp_path / "x")


def test_a_failed_file_keeps_the_index_off(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model_index.json", "weights"):
        (tmp_path / name).write_text(name)
    real = type(store).upload

    def upload(self: ObjectStore, path: Path, key: str) -> None:
        if key == "weights":
            raise StorageError("broken")
        real(self, path, key)

    monkeypatch.setattr(type(store), "upload", upload)
    with pytest.raises(StorageError, match="broken"):
        store.upload_folder(tmp_path, "model")
    assert list(store.list("model")) == []


def test_stores_settings_and_errors_pickle(store: ObjectStore) -> None:
    store.put("key", b"data")  # makes the client, which must not travel
    again = _travel(store.sub("x")).url("y"), _travel(store)
    assert again[0] == store.url("x/y")
    assert again[1].get("key") == b"data"
    assert open_store(store.url()).get("key") == b"data"
    for error in (StorageError("text", "s3://b/k", retriable=True), ObjectExists("t", "u"), InvalidKey("k")):
        copy = _travel(error)
        assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


def _failure(call: Any) -> StorageError:
    with pytest.raises(StorageError) as caught:
        call()
    return caught.value


def test_wrong_credentials_are_refused_without_telling_them(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "WRONGsecret0123456789"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = s3.store()
    for call in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: store.exists("a"), store.check_writable):
        error = _failure(call)
        text = "".join(traceback.format_exception(error))
        assert "wrong credentials" in str(error)
        assert store.url() in str(error)
        assert secret not in text
        assert s3.credentials.secret_key not in text
        assert not error.retriable
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "UNKNOWN")
    assert "does not know this access key" in str(_failure(lambda: s3.store().get("a")))


def test_without_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3.settings.endpoint_url, config=Config(signature_version=UNSIGNED))
    with pytest.raises(ClientError, match="AccessDenied"):
        client.list_objects_v2(Bucket=s3.bucket)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "no usable credentials found" in str(_failure(lambda: s3.store().get("a")))


def test_missing_bucket(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = open_store("s3://no-such-bucket/x")
    for call in (
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: list(store.list()),
        lambda: store.download("a", tmp_path / "out"),
        lambda: store.upload(tmp_path / "file", "a"),
        store.check_writable,
    ):
        error = _failure(call)
        assert "bucket does not exist" in str(error)
        assert "Create it or correct the name" in str(error)
        assert not isinstance(error, ObjectMissing)


def test_unreachable_endpoint_is_told_quickly(s3: Any) -> None:
    settings = StorageSettings(endpoint_url="http://127.0.0.1:1", max_attempts=2, connect_timeout_s=1)
    begun = time.monotonic()
    error = _failure(lambda: open_store("s3://bucket", settings).get("a"))
    assert time.monotonic() - begun < 5
    assert "http://127.0.0.1:1 is unreachable" in str(error)
    assert error.retriable


@pytest.mark.parametrize(
    "url", ["", "s3://", "s3://a", "s3:///key", "gs://bucket/x", "file://host/path", "s3://b_d!/x"]
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(StorageError, match="Give "):
        open_store(url, StorageSettings())


def test_urls(tmp_path: Path) -> None:
    assert isinstance(open_store("s3://bucket", StorageSettings()), S3Store)
    assert open_store("s3://bucket/a/b/", StorageSettings()).url("c") == "s3://bucket/a/b/c"
    assert open_store(f"file://{tmp_path}/a%20b").url() == f"{tmp_path}/a b"
    with pytest.raises(InvalidKey):
        open_store("s3://bucket/a/../b", StorageSettings())


def test_settings_from_the_environment_and_from_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text(
        "[profile p]\nregion = eu-west-1\nendpoint_url = https://profile.example\nca_bundle = /ca.pem\n"
        "request_checksum_calculation = when_supported\ns3 =\n    addressing_style = virtual\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert StorageSettings.from_environment() == StorageSettings()
    assert StorageSettings().addressing_style == "auto"
    assert StorageSettings().checksum_mode == "when_supported"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://one.example")
    plain = StorageSettings.from_environment()
    assert (plain.endpoint_url, plain.addressing_style, plain.checksum_mode) == (
        "https://one.example",
        "path",
        "when_required",
    )
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "p")
    assert StorageSettings.from_environment() == StorageSettings(
        endpoint_url="https://profile.example",
        region="eu-west-1",
        addressing_style="virtual",
        ca_bundle="/ca.pem",
        checksum_mode="when_supported",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://two.example")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    found = StorageSettings.from_environment()
    assert (found.endpoint_url, found.region) == ("https://two.example", "us-west-2")
    assert _travel(found) == found
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(StorageError, match="AWS_PROFILE"):
        StorageSettings.from_environment()
    monkeypatch.setenv("AWS_PROFILE", "p")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://user:hunter2@host")
    with pytest.raises(StorageError, match="carries no credentials") as caught:
        StorageSettings.from_environment()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
