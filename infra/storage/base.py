"""What every object store does, and moving folders to and from one."""

from __future__ import annotations

import os
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.storage.errors import ObjectChanged, ObjectExists, ObjectMissing, StorageError
from infra.storage.keys import check_key

__all__ = ["FOLDER_THREADS", "ObjectStat", "ObjectStore", "check_source", "existing_file", "in_parallel"]

FOLDER_THREADS = 4
"""Files of a folder in flight at once; each large one moves in as many parts again."""


@dataclass(frozen=True)
class ObjectStat:
    """What a store says of an object without handing it out.

    Attributes:
        size: bytes.
        tag: its entity tag, as of `get_tagged`: other bytes, another tag.
        sha256: of its bytes in hex, where an `ObjectStore` wrote it or the store is a folder; else None.
    """

    size: int
    tag: str
    sha256: str | None


class ObjectStore(ABC):
    """Objects under one prefix; keys are relative posix paths (`check_key`), and a write is seen whole or not at all.

    Every method raises `InvalidKey` for a bad key and `StorageError` when the storage refuses or fails. Stores pickle,
    and may be used by several threads.
    """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ObjectMissing: there is none.
        """

    @abstractmethod
    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and its entity tag, which `put(if_match=...)` takes; other bytes, another tag.

        Raises:
            ObjectMissing: there is none.
        """

    @abstractmethod
    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> None:
        """Write an object, whole.

        A conditional write has exactly one winner among many conditional writers.

        Args:
            key: the object's name.
            data: its bytes.
            content_type: its media type, where the store keeps one.
            if_absent: write only if there is none.
            if_match: replace only the object that has this entity tag (`get_tagged`).

        Raises:
            ObjectExists: `if_absent`, and there is one.
            ObjectChanged: `if_match`, and the object has another tag, or there is none.
            ValueError: both conditions at once.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an object with exactly this key."""

    @abstractmethod
    def stat(self, key: str) -> ObjectStat:
        """Return an object's size and digests; a folder reads the file for it.

        Raises:
            ObjectMissing: there is none.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys below the folder `prefix` ("" for all), whole and sorted by code point."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error."""

    @abstractmethod
    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """Copy an object to a local file, making its folder; the file appears whole, in bounded memory.

        Raises:
            ObjectMissing: there is none.
        """

    @abstractmethod
    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """Copy a local file to an object, in parts and in bounded memory.

        An object that is known to hold the file's bytes is not sent again, and an upload that broke off goes on where
        it stopped if the store allows it; nobody else may upload to the same key meanwhile.
        """

    @abstractmethod
    def discard_unfinished(self, prefix: str = "") -> None:
        """Remove what broken-off uploads below `prefix` ("" for all) have left; no upload may be under way there."""

    def copies_from(self, source: ObjectStore) -> bool:
        """Return whether `copy` from there needs no download: the server copies, or both are folders."""
        del source
        return False

    def copy(
        self,
        source: ObjectStore,
        source_key: str,
        key: str,
        *,
        if_match: str | None = None,
        sha256: str | None = None,
    ) -> None:
        """Copy an object of any store to this one: within a server where it can, else by way of a local file.

        Args:
            source: the store to copy from, which may be this one.
            source_key: the object there.
            key: the object here.
            if_match: copy only the object that has this entity tag (`stat`).
            sha256: of its bytes, in hex, where the caller knows it: recorded, and a source known to differ is refused.

        Raises:
            ObjectMissing: there is none.
            ObjectChanged: it has another tag or digest.
        """
        tag = check_source(source, source_key, if_match, sha256).tag
        with tempfile.TemporaryDirectory(prefix="evenhand-") as folder:
            file = Path(folder) / "object"
            source.download(source_key, file)
            check_source(source, source_key, tag, sha256)  # what was downloaded is what was looked at
            self.upload(file, key)

    @abstractmethod
    def url(self, key: str = "") -> str:
        """Return what `open_store` and people call the object, or the store itself for ""."""

    @abstractmethod
    def sub(self, prefix: str) -> ObjectStore:
        """Return the store of the keys below `prefix`; its keys can't leave it."""

    def upload_folder(
        self, path: str | os.PathLike[str], prefix: str = "", last: Sequence[str] = ("model_index.json",)
    ) -> tuple[str, ...]:
        """Upload all files below a folder in parallel; those named in `last` follow in that order, one by one.

        Returns:
            The keys written, sorted.

        Raises:
            StorageError: the folder is missing or has no file.
        """
        folder = Path(path)
        store = self.sub(prefix) if prefix else self
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        if not names:
            raise StorageError(f"upload {folder} to {store.url()}: no such folder, or no file in it.", store.url())
        for name in names:
            check_key(name)
        _in_order(names, last, lambda name: store.upload(folder / name, name))
        return tuple(f"{prefix}/{name}" if prefix else name for name in names)

    def download_folder(
        self, prefix: str, path: str | os.PathLike[str], last: Sequence[str] = ("model_index.json",)
    ) -> tuple[Path, ...]:
        """Download all objects below `prefix` ("" for all) into a folder in parallel; those in `last` at the end.

        Returns:
            The files written, sorted.

        Raises:
            ObjectMissing: nothing is below the prefix.
        """
        folder = Path(path)
        store = self.sub(prefix) if prefix else self
        names = tuple(check_key(name) for name in store.list())
        if not names:
            raise ObjectMissing(f"download {store.url()}: no object is below it. Correct the URL.", store.url())
        _in_order(names, last, lambda name: store.download(name, folder / name))
        return tuple(folder / name for name in names)

    def check_writable(self) -> None:
        """Write, read and delete a small object.

        Raises:
            StorageError: one of the three failed, or gave back other bytes.
        """
        key, data = f"evenhand-probe-{uuid.uuid4().hex}", os.urandom(64)
        self.put(key, data)
        try:
            if self.get(key) != data:
                raise StorageError(
                    f"read {self.url(key)}: not the bytes just written. The store is broken.", self.url(key)
                )
        finally:
            self.delete(key)

    def supports_conditional_put(self) -> bool:
        """Return whether conditional puts really refuse and replace as they should here; some servers ignore them."""
        key = f"evenhand-probe-{uuid.uuid4().hex}"
        self.put(key, b"first")
        try:
            tag = self.get_tagged(key)[1]
            if self._refuses(ObjectExists, key, b"second", if_absent=True):
                self.put(key, b"third", if_match=tag)
                return self._refuses(ObjectChanged, key, b"fourth", if_match=tag)
        except StorageError as error:
            if error.retriable:
                raise
        finally:
            self.delete(key)
        return False

    def clock_skew_s(self) -> float | None:
        """Return how far this machine's clock is ahead of the server's, to a second; None where there is no server."""
        return None

    def _refuses(
        self, kind: type[StorageError], key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> bool:
        try:
            self.put(key, data, if_absent=if_absent, if_match=if_match)
        except kind:
            return True
        return False


def _in_order(names: Collection[str], last: Sequence[str], move: Callable[[str], None]) -> None:
    """Move all names but `last` in parallel, stopping at the first failure, then the last ones in their order."""
    in_parallel(move, [name for name in names if name not in last])
    for name in last:
        if name in names:
            move(name)


def in_parallel(move: Callable[[str], None], names: Collection[str]) -> None:
    """Call `move` for all names, `FOLDER_THREADS` at once, beginning none after the first failure, which is raised."""
    pool = ThreadPoolExecutor(FOLDER_THREADS, thread_name_prefix="evenhand-folder")
    try:
        for done in [pool.submit(move, name) for name in names]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_source(source: ObjectStore, key: str, if_match: str | None, sha256: str | None) -> ObjectStat:
    """Return what is to be copied.

    Raises:
        ObjectMissing: there is none.
        ObjectChanged: it has another tag or digest.
    """
    stat = source.stat(key)
    if if_match is not None and stat.tag != if_match:
        raise ObjectChanged(f"copy {source.url(key)}: it has changed.", source.url(key))
    if sha256 is not None and stat.sha256 not in (None, sha256):
        raise ObjectChanged(f"copy {source.url(key)}: it holds other bytes, by its digest.", source.url(key))
    return stat


def existing_file(path: str | os.PathLike[str], url: str) -> Path:
    """Return the file to upload.

    Raises:
        StorageError: there is none.
    """
    source = Path(path)
    if not source.is_file():
        raise StorageError(f"upload {source} to {url}: there is no such file.", url)
    return source
