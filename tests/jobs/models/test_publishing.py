"""A folder appears whole or not at all, on a real S3 server that refuses, fails and forgets."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from infra.storage import LocalStore, ObjectStore, StorageError, open_store
from jobs.debias import settle
from jobs.models.checksums import CHECKSUMS, verify_folder
from jobs.models.publishing import Stored, promote, publish, remove
from tests.faults import FaultyProxy
from tests.wire import Wire, read_only

NAMES = ("model_index.json", "README.md", "unet/config.json", "unet/weights.safetensors", "vae/weights.safetensors")


@pytest.fixture(params=["s3", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Both kinds of store, empty."""
    if request.param == "local":
        return LocalStore(tmp_path / "objects")
    empty: ObjectStore = request.getfixturevalue("s3").store()
    return empty


def made(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    """Files of these names, their contents from `text`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text} {name}")
    return {name: folder / name for name in names}


def whole(store: ObjectStore, prefix: str, files: dict[str, Path], folder: Path) -> bool:
    """Whether exactly these files are there, checked as a reader checks them."""
    if set(store.list(prefix)) != {f"{prefix}/{name}" for name in (*files, CHECKSUMS)}:
        return False
    store.download_folder(prefix, folder)
    verify_folder(folder, "x")
    return all((folder / name).read_bytes() == path.read_bytes() for name, path in files.items())


def test_what_is_published_is_whole_and_replaces_what_was_there(store: ObjectStore, tmp_path: Path) -> None:
    old = made(tmp_path / "old", "old", (*NAMES, "unet/shard-2.safetensors"))
    publish(old, store, "run/checkpoint")
    assert whole(store, "run/checkpoint", old, tmp_path / "a")
    new = made(tmp_path / "new", "new")
    digest = publish(new, store, "run/checkpoint")
    assert whole(store, "run/checkpoint", new, tmp_path / "b")
    assert digest == hashlib.sha256(store.get(f"run/checkpoint/{CHECKSUMS}")).hexdigest()
    with pytest.raises(ValueError, match="not among"):
        publish(new, store, "run/checkpoint", main="none")


def test_the_main_file_goes_first_and_comes_last(s3: Any, tmp_path: Path) -> None:
    store = s3.store()
    publish(made(tmp_path / "old", "old"), store, "c")
    begun: list[tuple[str, str]] = []
    client = store._client.get()
    keys = ("PutObject", "DeleteObject")

    def note(model: Any, params: Any, **_: Any) -> None:
        if model.name in keys:
            begun.append((model.name, params["url_path"].partition("/c/")[2]))

    client.meta.events.register("before-call.s3", note)
    publish(made(tmp_path / "new", "new"), store, "c")
    assert begun[:2] == [("DeleteObject", "model_index.json"), ("DeleteObject", CHECKSUMS)]
    assert begun[-2:] == [("PutObject", CHECKSUMS), ("PutObject", "model_index.json")]


def test_the_same_files_again_cost_nothing(s3: Any, tmp_path: Path) -> None:
    store = s3.store()
    files = made(tmp_path, "same")
    digest = publish(files, store, "c")
    wire = Wire(store)
    assert publish(files, store, "c") == digest
    assert wire.written == []
    assert wire.count("DeleteObject") == 0


def test_the_same_promotion_again_leaves_what_is_there_alone(s3: Any, tmp_path: Path) -> None:
    """Nobody may find the folder without its main file meanwhile."""
    store = s3.store()
    files = made(tmp_path, "same")
    for again in (False, True):
        publish(files, store, "candidate", beside=("checkpoint",))
        wire = Wire(store)
        promote(store, "candidate", "checkpoint", {"README.md": b"passed", "export.json": b"{}"})
        assert [url for url in wire.written if "/checkpoint/" in url] == [] or not again
    assert wire.count("DeleteObject") == len(NAMES) + 1  # of the candidate only
    assert store.exists("checkpoint/model_index.json")


def test_a_store_that_fails_halfway_holds_no_folder_and_is_gone_on_with(s3: Any, tmp_path: Path) -> None:
    store = s3.store()
    old, new = made(tmp_path / "old", "old"), made(tmp_path / "new", "new")
    publish(old, store, "c")
    broken = open_store(store.url(), s3.settings)
    Wire(broken, PutObject=2)
    with pytest.raises(StorageError, match="broke off"):
        publish(new, broken, "c")
    assert not store.exists("c/model_index.json")
    assert not store.exists(f"c/{CHECKSUMS}")
    there = [name for name in new if store.exists(f"c/{name}") and store.get(f"c/{name}").startswith(b"new")]
    assert len(there) == 2
    wire = Wire(store)
    publish(new, store, "c")
    assert wire.count("PutObject") == len(NAMES) - 2 + 1
    assert whole(store, "c", new, tmp_path / "back")


def test_a_network_that_fails_all_the_time_is_ridden_out(s3: Any, tmp_path: Path) -> None:
    files = made(tmp_path / "new", "new")
    with FaultyProxy(s3.settings.endpoint_url, every=4, delay_s=0.05) as proxy:
        settings = s3.settings.model_copy(update={"endpoint_url": proxy.url, "max_attempts": 1, "patience_s": 30.0})
        store = open_store(s3.store().url(), settings)
        publish(files, store, "c")
        assert sum(proxy.counts.values()) >= 4
    assert whole(open_store(store.url(), s3.settings), "c", files, tmp_path / "back")


def test_a_read_only_bucket_is_told_and_left_as_it_was(s3: Any, tmp_path: Path) -> None:
    store = s3.store()
    old = made(tmp_path / "old", "old")
    publish(old, store, "c")
    with read_only(store):
        for prefix in ("c", "d"):
            with pytest.raises(StorageError, match=r"access denied.*Let these credentials") as caught:
                publish(made(tmp_path / "new", "new"), store, prefix)
            assert not caught.value.retriable
    assert list(store.list("d")) == []
    assert whole(store, "c", old, tmp_path / "back")


def test_the_server_copies_what_it_has(s3: Any, tmp_path: Path) -> None:
    store, model = s3.store(), s3.store()
    files = made(tmp_path, "same")
    for name in ("vae/weights.safetensors", "unet/weights.safetensors"):
        model.put(name, files[name].read_bytes())
    stored = {name: Stored(model, name, model.stat(name).tag) for name in model.list()}
    model.put("vae/weights.safetensors", b"changed since it was staged")
    wire = Wire(store)
    publish(files, store, "candidate", stored=stored)
    assert wire.count("CopyObject") == 1
    assert {Path(url).name for url in wire.written} == {Path(n).name for n in (*NAMES, CHECKSUMS)}
    assert len(wire.written) == len(NAMES)  # SHA256SUMS, and all but one
    assert whole(store, "candidate", files, tmp_path / "one")

    # A card of its own, all else from the folder beside.
    files["README.md"].write_text("another card")
    wire = Wire(again := open_store(store.url(), s3.settings))
    publish(files, again, "checkpoint", beside=("candidate", "checkpoint", "none"))
    assert wire.count("CopyObject") == len(NAMES) - 1
    assert wire.count("GetObject") == 2  # both folders' SHA256SUMS
    assert len(wire.written) == 2
    assert whole(again, "checkpoint", files, tmp_path / "two")


def test_a_folder_beside_that_was_tampered_with_is_not_copied(s3: Any, tmp_path: Path) -> None:
    store = s3.store()
    files = made(tmp_path, "same")
    publish(files, store, "candidate")
    store.put("candidate/unet/weights.safetensors", os.urandom(8))
    publish(files, store, "checkpoint", beside=("candidate",))
    assert whole(store, "checkpoint", files, tmp_path / "back")


def test_only_a_unet_has_another_main_file(store: ObjectStore, tmp_path: Path) -> None:
    publish(made(tmp_path / "old", "old"), store, "c")
    files = made(tmp_path / "new", "new", ("unet/config.json", "unet/weights.safetensors"))
    publish(files, store, "c", main="unet/config.json")
    assert whole(store, "c", files, tmp_path / "back")


def test_a_folder_is_promoted_with_its_card_changed_and_the_old_one_ends(store: ObjectStore, tmp_path: Path) -> None:
    files = made(tmp_path / "new", "new")
    publish(made(tmp_path / "old", "old", (*NAMES, "unet/shard-2.safetensors")), store, "run/checkpoint")
    publish(files, store, "run/candidate")
    digest = promote(store, "run/candidate", "run/checkpoint", {"README.md": b"passed", "export.json": b"{}"})
    assert not list(store.list("run/candidate"))
    (tmp_path / "new" / "README.md").write_bytes(b"passed")
    (tmp_path / "new" / "export.json").write_bytes(b"{}")
    wanted = files | {"export.json": tmp_path / "new" / "export.json"}
    assert whole(store, "run/checkpoint", wanted, tmp_path / "a")
    assert digest == hashlib.sha256(store.get(f"run/checkpoint/{CHECKSUMS}")).hexdigest()
    # In place: only the card is another one.
    assert promote(store, "run/checkpoint", "run/checkpoint", {"README.md": b"ungated"}) != digest
    (tmp_path / "new" / "README.md").write_bytes(b"ungated")
    assert whole(store, "run/checkpoint", wanted, tmp_path / "b")
    with pytest.raises(StorageError):
        promote(store, "run/candidate", "run/checkpoint", {})
    assert whole(store, "run/checkpoint", wanted, tmp_path / "c")


def test_a_run_that_no_longer_passes_keeps_no_checkpoint(store: ObjectStore, tmp_path: Path) -> None:
    files = made(tmp_path / "new", "new")
    for verdict, name in (("fail", "candidate"), ("pass", "checkpoint"), ("inconclusive", "candidate")):
        publish(files, store, "run/candidate")
        assert settle(store, "run", verdict, verdict)[0] == name
        (tmp_path / "new" / "README.md").write_text(verdict)
        assert {key.split("/")[1] for key in store.list("run")} == {name}
        assert whole(store, f"run/{name}", files, tmp_path / verdict)


def test_a_promotion_that_broke_off_is_gone_on_with(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.store()
    files = made(tmp_path / "new", "new")
    publish(files, store, "run/candidate")
    put = type(store).put

    def refuse(self: ObjectStore, key: str, data: bytes, **options: Any) -> None:
        if key == CHECKSUMS:
            raise StorageError("the store is gone")
        put(self, key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put", refuse)
        with pytest.raises(StorageError, match="gone"):
            promote(store, "run/candidate", "run/checkpoint", {"README.md": b"passed"})
    assert not store.exists("run/checkpoint/model_index.json")
    assert whole(store, "run/candidate", files, tmp_path / "a")
    promote(store, "run/candidate", "run/checkpoint", {"README.md": b"passed"})
    (tmp_path / "new" / "README.md").write_bytes(b"passed")
    assert whole(store, "run/checkpoint", files, tmp_path / "b")
    assert not list(store.list("run/candidate"))
    remove(store, "run/checkpoint")
    assert not list(store.list("run"))
