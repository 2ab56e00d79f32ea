"""A local folder as an object store."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from infra.storage.base import ObjectStat, ObjectStore, check_source, existing_file
from infra.storage.errors import InvalidKey, ObjectChanged, ObjectExists, ObjectMissing, StorageError
from infra.storage.keys import PARTIAL, check_key, join

__all__ = ["LocalStore"]

_LOCK_TIMEOUT_S = 60.0
_FOLDER_ATTEMPTS = 100
_LOCK = f"{PARTIAL}lock"
_FILE_IN_THE_WAY = "A file stands where the key needs a folder: choose another key or folder."


class LocalStore(ObjectStore):
    """A folder as an object store. Writes go beside, to disk, then into place; links that lead out are refused."""

    def __init__(self, root: str | os.PathLike[str], prefix: str = "") -> None:
        self._root = Path(root).absolute()
        self._prefix = check_key(prefix) if prefix else ""

    def _base(self) -> Path:
        return Path(os.path.realpath(self._root)) / self._prefix

    def _path(self, key: str) -> Path:
        base = self._base()
        path = base / check_key(key)
        if not Path(os.path.realpath(path)).is_relative_to(base):
            raise InvalidKey(f"key {key!r}: a symbolic link on its way leads out of {base}")
        return path

    @contextmanager
    def _reporting(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ObjectMissing(
                f"{operation} {self.url(key)}: {error.strerror} ({error.filename}).", self.url(key)
            ) from error
        except OSError as error:
            advice = {
                errno.EACCES: "Give this user access to the folder.",
                errno.EPERM: "Give this user access to the folder.",
                errno.ENOSPC: "Free some space.",
                errno.EROFS: "Choose a folder that can be written.",
                errno.ENOTDIR: _FILE_IN_THE_WAY,
                errno.EEXIST: _FILE_IN_THE_WAY,
            }.get(error.errno or 0, "Check the folder and its disk.")
            raise StorageError(
                f"{operation} {self.url(key)}: {error.strerror or error}. {advice}", self.url(key)
            ) from error

    def _write(self, key: str, fill: Callable[[Path], object], *, if_absent: bool) -> None:
        path = self._path(key)
        with self._reporting("write", key):
            if path.is_dir():
                raise StorageError(f"write {path}: a folder has this name. Choose another key.", self.url(key))
            _write_beside(path, fill, if_absent=if_absent)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        path = self._path(key)
        with self._reporting("read", key):
            return path.read_bytes()

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_tagged`; the tag is a digest of the bytes."""
        data = self.get(key)
        return data, _tag(data)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> None:
        """See `ObjectStore.put`; a folder keeps no `content_type`."""
        del content_type
        if if_match is None:
            self._write(key, lambda beside: beside.write_bytes(data), if_absent=if_absent)
        elif if_absent:
            raise ValueError("put: if_absent and if_match exclude each other")
        else:
            self._replace(key, data, if_match)

    def _replace(self, key: str, data: bytes, tag: str) -> None:
        path, url = self._path(key), self.url(key)
        with self._reporting("write", key):
            if not path.is_file():
                raise ObjectChanged(f"write {url}: it is gone.", url)
            with FileLock(path.with_name(_LOCK), timeout=_LOCK_TIMEOUT_S):
                try:
                    stored_tag = _tag(path.read_bytes())
                except FileNotFoundError as error:
                    raise ObjectChanged(f"write {url}: it is gone.", url) from error
                if stored_tag != tag:
                    raise ObjectChanged(f"write {url}: it has changed.", url)
                _write_beside(path, lambda beside: beside.write_bytes(data), if_absent=False)

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        path = self._path(key)
        with self._reporting("look up", key):
            return path.is_file()

    def stat(self, key: str) -> ObjectStat:
        """See `ObjectStore.stat`; the tag is a digest of the bytes."""
        path = self._path(key)
        with self._reporting("look up", key), path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return ObjectStat(stream.tell(), digest, digest)

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `ObjectStore.list`; links that lead out are left out."""
        base = self._base()
        start = self._path(prefix.removesuffix("/")) if prefix else base
        keys = []
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                if name.startswith(PARTIAL) or not path.is_file():
                    continue
                if not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(base):
                    keys.append(path.relative_to(base).as_posix())
        yield from sorted(keys)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`; folders that are empty after it go too, as they are none in an object store."""
        path, root = self._path(key), Path(os.path.realpath(self._root))
        with self._reporting("delete", key):
            if not path.is_file():
                return
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or not ours to delete
            for folder in path.parents:
                if not folder.is_relative_to(root) or folder == root:
                    break
                folder.rmdir()

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """See `ObjectStore.download`."""
        source, target = self._path(key), Path(path)
        with self._reporting("download", key):
            if not source.is_file():
                raise ObjectMissing(f"download {source}: no such object.", self.url(key))
            _write_beside(target, lambda beside: shutil.copyfile(source, beside), if_absent=False)

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """See `ObjectStore.upload`."""
        source = existing_file(path, self.url(key))
        self._write(key, lambda beside: shutil.copyfile(source, beside), if_absent=False)

    def copies_from(self, source: ObjectStore) -> bool:
        """See `ObjectStore.copies_from`: from file to file."""
        return isinstance(source, LocalStore)

    def copy(
        self,
        source: ObjectStore,
        source_key: str,
        key: str,
        *,
        if_match: str | None = None,
        sha256: str | None = None,
    ) -> None:
        """See `ObjectStore.copy`; from file to file, without a third."""
        if not isinstance(source, LocalStore):
            super().copy(source, source_key, key, if_match=if_match, sha256=sha256)
            return
        if if_match is not None or sha256 is not None:
            check_source(source, source_key, if_match, sha256)
        path = source._path(source_key)
        if not source.exists(source_key):
            raise ObjectMissing(f"copy {path}: no such object.", source.url(source_key))
        self._write(key, lambda beside: shutil.copyfile(path, beside), if_absent=False)

    def discard_unfinished(self, prefix: str = "") -> None:
        """See `ObjectStore.discard_unfinished`."""
        start = self._path(prefix.removesuffix("/")) if prefix else self._base()
        with self._reporting("tidy up", prefix):
            for path in start.rglob(f"{PARTIAL}*"):
                if path.name != _LOCK:
                    path.unlink(missing_ok=True)

    def url(self, key: str = "") -> str:
        """See `ObjectStore.url`: an absolute path."""
        return (self._root / self._prefix / check_key(key) if key else self._root / self._prefix).as_posix()

    def sub(self, prefix: str) -> LocalStore:
        """See `ObjectStore.sub`."""
        return LocalStore(self._root, join(self._prefix, check_key(prefix.removesuffix("/"))))


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_beside(path: Path, fill: Callable[[Path], object], *, if_absent: bool) -> None:
    """Fill a file beside `path`, sync it, then rename it (or link it, which refuses to replace) and sync the folder."""
    beside = _file_beside(path)
    try:
        fill(beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        if if_absent:
            try:
                os.link(beside, path)
            except FileExistsError as error:
                raise ObjectExists(f"write {path}: it exists already.", path.as_posix()) from error
        else:
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # `path` was deleted since, and its folder with it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _file_beside(path: Path) -> Path:
    """An empty file in the folder of `path`; while it is there, no deletion beside takes the folder away."""
    beside = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    for _ in range(_FOLDER_ATTEMPTS):
        # A deletion may take the empty folder away before the file is in it, or while mkdir looks what stands there.
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.touch(exist_ok=False)
            return beside
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.touch()
    return beside
