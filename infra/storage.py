"""One small object store over S3 and local folders: whole objects, relative keys, errors that say what to mend.

    store = open_store("s3://bucket/prefix", StorageSettings.from_environment())
    store.put("runs/a/report.json", b"{}")

Settings carry no secret. Credentials come from boto3's own chain on the machine that makes the request, so settings and
stores pickle, and a driver hands them to its workers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
import time
import unicodedata
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import boto3.exceptions
import boto3.session
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator
from s3transfer.exceptions import RetriesExceededError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

__all__ = [
    "InvalidKey",
    "LocalStore",
    "ObjectExists",
    "ObjectMissing",
    "ObjectStore",
    "S3Store",
    "StorageError",
    "StorageSettings",
    "check_key",
    "open_store",
    "safe_name",
]

FOLDER_THREADS = 4
"""Files of a folder in flight at once; each large one moves in as many parts again."""

_PARTIAL = ".evenhand-partial-"
_BODY_ATTEMPTS = 3
_MAX_KEY_BYTES = 1024
_MAX_PART_BYTES = 255
_SLUG_LENGTH = 60
# 4 parts of 16 MiB: a transfer holds at most 64 MiB and its 25 MiB queue, whatever the size of the object.
_TRANSFER = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4, preferred_transfer_client="classic"
)


class StorageError(OSError):
    """The storage refused or failed; the message says what was tried, why it failed and what to do.

    Attributes:
        url: the object, bucket or folder concerned, or "".
        retriable: whether the same request may succeed later (network, throttling, a server's fault).

    """

    def __init__(self, message: str, url: str = "", *, retriable: bool = False) -> None:
        super().__init__(message)  # only the message in args, so that pickling rebuilds from it and __dict__
        self.url = url
        self.retriable = retriable


class ObjectMissing(StorageError):  # noqa: N818 - a state, not always a fault
    """No object has this key."""


class ObjectExists(StorageError):  # noqa: N818 - a state, not always a fault
    """A conditional put found that the object is there already."""


class InvalidKey(ValueError):  # noqa: N818 - named as its siblings
    """A key that is not a relative posix path of plain parts, or that leads out of its store."""


class StorageSettings(BaseModel):
    """How to reach an S3-compatible store, without any secret; every client is built from one such object."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint_url: str | None = None
    """The server, `https://host[:port]`; None is AWS."""
    region: str | None = None
    """The region that signs requests; None is boto3's default, `us-east-1` with an endpoint."""
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default_factory=lambda data: "path" if data.get("endpoint_url") else "auto"
    )
    """Where the bucket's name goes; by default in the path when an endpoint is set."""
    ca_bundle: str | None = None
    """A PEM file of certificate authorities, at the same path on every node."""
    checksum_mode: Literal["when_supported", "when_required"] = Field(
        default_factory=lambda data: "when_required" if data.get("endpoint_url") else "when_supported"
    )
    """Whether requests carry checksums that S3-compatible stores may refuse; by default only AWS gets them."""
    max_attempts: PositiveInt = 5
    """Tries of one request, the first included, with exponential back-off."""
    connect_timeout_s: PositiveFloat = 5.0
    """Seconds to wait for a connection."""
    read_timeout_s: PositiveFloat = 60.0
    """Seconds to wait for the next byte of an answer."""

    @field_validator("endpoint_url")
    @classmethod
    def _plain_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give the endpoint as http(s)://host[:port]")
        if "@" in parts.netloc:
            raise ValueError("an endpoint carries no credentials: put them in the AWS credentials file or environment")
        return value

    @classmethod
    def from_environment(cls) -> StorageSettings:
        """Read the usual AWS settings: environment variables first, then the profile in the AWS config file.

        Raises:
            StorageError: the profile named by AWS_PROFILE, or the config file, can't be read.

        """
        session = botocore.session.Session()
        try:
            scoped: dict[str, Any] = session.get_scoped_config()
            endpoint = ConfiguredEndpointProvider(session.full_config, scoped, "s3").provide()
        except aws.BotoCoreError as error:
            raise StorageError(
                f"read the AWS configuration: {error}. Correct AWS_PROFILE or AWS_CONFIG_FILE."
            ) from error
        if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
            endpoint = None
        s3 = scoped.get("s3")
        found = {
            "endpoint_url": endpoint,
            "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or scoped.get("region"),
            "addressing_style": s3.get("addressing_style") if isinstance(s3, dict) else None,
            "ca_bundle": os.environ.get("AWS_CA_BUNDLE") or scoped.get("ca_bundle"),
            "checksum_mode": (
                os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or scoped.get("request_checksum_calculation") or ""
            ).lower(),
        }
        try:
            return cls.model_validate({name: value for name, value in found.items() if value})
        except ValueError as error:
            raise StorageError(f"read the AWS configuration: {error}") from error


def check_key(key: str) -> str:
    """Return `key` when it is a relative posix path that every kind of store can hold.

    Raises:
        InvalidKey: it is empty, absolute, too long, or has an empty part, ".", "..", a backslash or control character.

    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(f"key {key!r}: not valid Unicode") from error
    if size > _MAX_KEY_BYTES:
        raise InvalidKey(f"key {key[:60]!r}...: {size} bytes, more than the {_MAX_KEY_BYTES} that S3 takes")
    if "\\" in key or any(unicodedata.category(character) == "Cc" for character in key):
        raise InvalidKey(f"key {key!r}: a backslash or control character; safe_name() makes any text a part of a key")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise InvalidKey(f"key {key!r}: keys are relative paths without empty parts, '.' or '..'")
        if len(part.encode()) > _MAX_PART_BYTES or part.startswith(_PARTIAL):
            raise InvalidKey(f"key {key!r}: a part is longer than {_MAX_PART_BYTES} bytes, or reserved")
    return key


def safe_name(text: str) -> str:
    """Turn any text into one part of a key, different texts into different parts.

    Text of lower-case ASCII letters, digits, "-", "_" and "." stays as it is; any other becomes a slug with the first
    ten digits of its SHA-256. Text that already ends like such a digest gets one too: it can't pose as another's.
    """
    plain = re.fullmatch(r"[a-z0-9][a-z0-9._-]*", text) and len(text) <= _SLUG_LENGTH
    if plain and not re.search(r"-[0-9a-f]{10}$", text):
        return text
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:_SLUG_LENGTH].rstrip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{slug or 'x'}-{digest}"


def open_store(url: str, settings: StorageSettings | None = None) -> ObjectStore:
    """Open `s3://bucket[/prefix]`, a `file://` URL or a local folder; nothing is created or contacted yet.

    Args:
        url: where the store's keys begin.
        settings: how to reach S3; None reads the environment. A local folder needs none.

    Raises:
        StorageError: the URL names no bucket or folder, or is of another scheme.
        InvalidKey: its prefix is no valid key.

    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise StorageError("open a store: the URL is empty. Give s3://bucket/prefix or a folder.")
        return LocalStore(Path(url).expanduser())
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]{3,63}", bucket):
            raise StorageError(f"open {url}: {bucket!r} is no bucket name. Give s3://bucket/prefix.", url)
        return S3Store(bucket, prefix.removesuffix("/"), settings)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise StorageError(f"open {url}: not a folder of this machine. Give file:///absolute/path.", url)
        return LocalStore(Path(unquote(parts.path)))
    raise StorageError(f"open {url}: {scheme}:// is not supported. Give s3://bucket/prefix or a local folder.", url)


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
    def put(self, key: str, data: bytes, *, content_type: str | None = None, if_absent: bool = False) -> None:
        """Write an object; with `if_absent`, only if there is none, with exactly one winner among many writers.

        Raises:
            ObjectExists: `if_absent`, and there is one.

        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an object with exactly this key."""

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
        """Copy a local file to an object, in parts and in bounded memory."""

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
        """Return whether `put(if_absent=True)` really refuses to replace an object here; some servers ignore it."""
        key = f"evenhand-probe-{uuid.uuid4().hex}"
        self.put(key, b"first")
        try:
            self.put(key, b"second", if_absent=True)
        except ObjectExists:
            return True
        except StorageError as error:
            if error.retriable:
                raise
        finally:
            self.delete(key)
        return False


def _in_order(names: Collection[str], last: Sequence[str], move: Callable[[str], None]) -> None:
    """Move all names but `last` in parallel, stopping at the first failure, then the last ones in their order."""
    pool = ThreadPoolExecutor(FOLDER_THREADS, thread_name_prefix="evenhand-folder")
    try:
        for done in [pool.submit(move, name) for name in names if name not in last]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
    for name in last:
        if name in names:
            move(name)


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
                errno.ENOTDIR: "A file stands where the key needs a folder: choose another key or folder.",
            }.get(error.errno or 0, "Check the folder and its disk.")
            raise StorageError(
                f"{operation} {self.url(key)}: {error.strerror or error}. {advice}", self.url(key)
            ) from error

    def _write(self, key: str, fill: Callable[[Path], object], *, if_absent: bool) -> None:
        path = self._path(key)
        with self._reporting("write", key):
            if path.is_dir():
                raise StorageError(f"write {path}: a folder has this name. Choose another key.", self.url(key))
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_beside(path, fill, if_absent=if_absent)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        path = self._path(key)
        with self._reporting("read", key):
            return path.read_bytes()

    def put(self, key: str, data: bytes, *, content_type: str | None = None, if_absent: bool = False) -> None:
        """See `ObjectStore.put`; a folder keeps no `content_type`."""
        del content_type
        self._write(key, lambda beside: beside.write_bytes(data), if_absent=if_absent)

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        path = self._path(key)
        with self._reporting("look up", key):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `ObjectStore.list`; links that lead out are left out."""
        base = self._base()
        start = self._path(prefix.removesuffix("/")) if prefix else base
        found = []
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                if name.startswith(_PARTIAL) or not path.is_file():
                    continue
                if not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(base):
                    found.append(path.relative_to(base).as_posix())
        yield from sorted(found)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        path = self._path(key)
        with self._reporting("delete", key):
            if path.is_file():
                path.unlink(missing_ok=True)

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """See `ObjectStore.download`."""
        source, target = self._path(key), Path(path)
        with self._reporting("download", key):
            if not source.is_file():
                raise ObjectMissing(f"download {source}: no such object.", self.url(key))
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_beside(target, lambda beside: shutil.copyfile(source, beside), if_absent=False)

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """See `ObjectStore.upload`."""
        source = _existing_file(path, self.url(key))
        self._write(key, lambda beside: shutil.copyfile(source, beside), if_absent=False)

    def url(self, key: str = "") -> str:
        """See `ObjectStore.url`: an absolute path."""
        return (self._root / self._prefix / check_key(key) if key else self._root / self._prefix).as_posix()

    def sub(self, prefix: str) -> LocalStore:
        """See `ObjectStore.sub`."""
        return LocalStore(self._root, _join(self._prefix, check_key(prefix.removesuffix("/"))))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}/{key}" if prefix else key


def _existing_file(path: str | os.PathLike[str], url: str) -> Path:
    source = Path(path)
    if not source.is_file():
        raise StorageError(f"upload {source} to {url}: there is no such file.", url)
    return source


def _write_beside(path: Path, fill: Callable[[Path], object], *, if_absent: bool) -> None:
    """Fill a file beside `path`, sync it, then rename it (or link it, which refuses to replace) and sync the folder."""
    beside = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_loopback(endpoint_url: str | None) -> bool:
    host = urlsplit(endpoint_url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


class _Client:
    """A boto3 client made at first use, once per process, and never pickled."""

    def __init__(self, settings: StorageSettings) -> None:
        self.settings = settings
        self.bucket_seen = False
        self._lock = threading.Lock()
        self._made: tuple[int, boto3.session.Session, S3Client] | None = None

    def __reduce__(self) -> tuple[type[_Client], tuple[StorageSettings]]:
        return _Client, (self.settings,)

    def _make(self) -> tuple[int, boto3.session.Session, S3Client]:
        settings = self.settings
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                session = boto3.session.Session()  # a session of its own: the default one is not thread-safe
                config = Config(
                    region_name=settings.region or ("us-east-1" if settings.endpoint_url else None),
                    s3={"addressing_style": settings.addressing_style},
                    request_checksum_calculation=settings.checksum_mode,
                    response_checksum_validation=settings.checksum_mode,
                    retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
                    connect_timeout=settings.connect_timeout_s,
                    read_timeout=settings.read_timeout_s,
                    max_pool_connections=32,
                    proxies={} if _is_loopback(settings.endpoint_url) else None,
                    ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # missing from the stubs
                )
                client = session.client(
                    "s3", endpoint_url=settings.endpoint_url, verify=settings.ca_bundle, config=config
                )
                self._made = (os.getpid(), session, client)
            return self._made

    def get(self) -> S3Client:
        return self._make()[2]

    def redact(self, text: str) -> str:
        """Return `text` without the credentials in use, should a server have echoed them."""
        credentials = self._make()[1].get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            for secret in (frozen.secret_key, frozen.token, frozen.access_key):
                text = text.replace(secret, "***") if secret else text
        return text


class S3Store(ObjectStore):
    """A prefix of a bucket on AWS or any S3-compatible server."""

    def __init__(
        self, bucket: str, prefix: str = "", settings: StorageSettings | None = None, *, _client: _Client | None = None
    ) -> None:
        self._bucket = bucket
        self._prefix = check_key(prefix) if prefix else ""
        self._client = _client or _Client(settings or StorageSettings.from_environment())

    @property
    def settings(self) -> StorageSettings:
        """How this store reaches its server."""
        return self._client.settings

    def _key(self, key: str) -> str:
        check_key(key)
        return check_key(_join(self._prefix, key))

    @contextmanager
    def _reporting(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except (aws.BotoCoreError, aws.ClientError, boto3.exceptions.Boto3Error, RetriesExceededError) as error:
            failure = _explain(error, operation, self.url(key), self._client)
            if isinstance(failure, ObjectMissing) and not self._client.bucket_seen:
                self._see_bucket()  # a HEAD's 404 does not tell a missing object from a missing bucket
            raise failure from error
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{operation} {self.url(key)}: {error.strerror or error} ({error.filename}). Check file and disk.",
                self.url(key),
            ) from error

    def _see_bucket(self) -> None:
        url = f"s3://{self._bucket}"
        try:
            self._client.get().head_bucket(Bucket=self._bucket)
        except aws.ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchBucket"):
                raise _no_bucket(f"look up {url}", url, self.settings) from error
        self._client.bucket_seen = True  # a bucket that exists but may not be looked at counts as seen

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        name = self._key(key)
        with self._reporting("read", key):
            for attempt in range(1, _BODY_ATTEMPTS + 1):  # botocore retries a request, not the reading of its answer
                try:
                    return self._client.get().get_object(Bucket=self._bucket, Key=name)["Body"].read()
                except (aws.IncompleteReadError, aws.ResponseStreamingError, aws.ReadTimeoutError):
                    if attempt == _BODY_ATTEMPTS:
                        raise
        raise StorageError(f"read {self.url(key)}: no answer.", self.url(key), retriable=True)

    def put(self, key: str, data: bytes, *, content_type: str | None = None, if_absent: bool = False) -> None:
        """See `ObjectStore.put`."""
        name = self._key(key)
        extra: dict[str, Any] = {"ContentType": content_type} if content_type else {}
        with self._reporting("write", key):
            if if_absent:
                self._put_absent(key, name, data, extra)
            else:
                self._client.get().put_object(Bucket=self._bucket, Key=name, Body=data, **extra)

    def _put_absent(self, key: str, name: str, data: bytes, extra: dict[str, Any]) -> None:
        """Put once only. The object carries its writer's id, as a retried put may be refused for its own first try."""
        client, writer = self._client.get(), uuid.uuid4().hex
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                client.put_object(
                    Bucket=self._bucket,
                    Key=name,
                    Body=data,
                    IfNoneMatch="*",
                    Metadata={"evenhand-writer": writer},
                    **extra,
                )
            except aws.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in ("PreconditionFailed", "412"):
                    if error.response["ResponseMetadata"].get("RetryAttempts", 0) or attempt > 1:
                        found = client.head_object(Bucket=self._bucket, Key=name)["Metadata"].get("evenhand-writer")
                        if found == writer:
                            return
                    raise ObjectExists(f"write {self.url(key)}: it exists already.", self.url(key)) from error
                if code not in ("ConditionalRequestConflict", "409") or attempt == self.settings.max_attempts:
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        name = self._key(key)
        try:
            with self._reporting("look up", key):
                self._client.get().head_object(Bucket=self._bucket, Key=name)
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `ObjectStore.list`; folder markers (keys that end in "/") are left out."""
        folder = self._key(prefix.removesuffix("/")) if prefix else self._prefix
        start = f"{folder}/" if folder else ""
        skip = len(self._prefix) + 1 if self._prefix else 0
        found: set[str] = set()
        with self._reporting("list", prefix.removesuffix("/")):
            pages = self._client.get().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            for page in pages:
                found.update(item["Key"][skip:] for item in page.get("Contents", ()))
        # Sorted here: servers that keep folders (SeaweedFS) list "a/b" before "a.b", AWS after.
        yield from sorted(key for key in found if key and not key.endswith("/"))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        name = self._key(key)
        with self._reporting("delete", key):
            self._client.get().delete_object(Bucket=self._bucket, Key=name)

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """See `ObjectStore.download`."""
        name, target = self._key(key), Path(path)
        with self._reporting("download", key):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._client.get().download_file(self._bucket, name, str(target), Config=_TRANSFER)

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """See `ObjectStore.upload`."""
        source, name = _existing_file(path, self.url(key)), self._key(key)
        with self._reporting("upload", key):
            self._client.get().upload_file(str(source), self._bucket, name, Config=_TRANSFER)

    def url(self, key: str = "") -> str:
        """See `ObjectStore.url`: `s3://bucket/prefix/key`."""
        path = self._key(key) if key else self._prefix
        return f"s3://{self._bucket}/{path}" if path else f"s3://{self._bucket}"

    def sub(self, prefix: str) -> S3Store:
        """See `ObjectStore.sub`."""
        return S3Store(self._bucket, _join(self._prefix, check_key(prefix.removesuffix("/"))), _client=self._client)


_BROKEN_OFF = (
    aws.HTTPClientError,
    aws.ConnectionError,
    aws.IncompleteReadError,
    RetriesExceededError,
    boto3.exceptions.RetriesExceededError,
)
_DENIED = "Let these credentials read, write, list and delete there, or use others."
_CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role, on this machine and every node."
_ANSWERS: dict[str, tuple[str, str]] = {
    "AccessDenied": ("access denied", _DENIED),
    "AllAccessDisabled": ("access denied", _DENIED),
    "403": ("access denied, or wrong credentials", _DENIED),
    "401": ("access denied, or wrong credentials", _DENIED),
    "InvalidAccessKeyId": ("wrong credentials: the server does not know this access key", _CREDENTIALS),
    "SignatureDoesNotMatch": ("wrong credentials: the secret does not match the access key", _CREDENTIALS),
    "ExpiredToken": ("the credentials have expired", "Renew them."),
    "RequestTimeTooSkewed": ("this machine's clock differs from the server's", "Set the clock."),
    "PermanentRedirect": ("the bucket is in another region", "Set AWS_REGION to the bucket's."),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "Set AWS_REGION to the bucket's."),
    "BadDigest": ("checksum mismatch: the bytes changed on their way", "Try again; then suspect network or disk."),
    "XAmzContentChecksumMismatch": ("checksum mismatch on the way", "Try again; then suspect network or disk."),
    "XAmzContentSHA256Mismatch": ("checksum mismatch on the way", "Try again; then suspect network or disk."),
    "InvalidBucketName": ("no valid bucket name", "Correct the name."),
    "NotImplemented": (
        "the server lacks a feature that this request uses",
        "If it refuses checksums, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required.",
    ),
}


def _no_bucket(tried: str, url: str, settings: StorageSettings) -> StorageError:
    return StorageError(
        f"{tried}: the bucket does not exist at {settings.endpoint_url or 'AWS'}. Create it or correct the name.", url
    )


def _explain(error: Exception, operation: str, url: str, client: _Client) -> StorageError:
    """Return the error to raise for one of boto3's: what was tried, why it failed, what to do, and no secret."""
    settings = client.settings
    server = settings.endpoint_url or "AWS"
    tried = f"{operation} {url}"
    if isinstance(error, boto3.exceptions.S3UploadFailedError) and isinstance(error.__context__, aws.ClientError):
        error = error.__context__
    if isinstance(error, aws.ClientError):
        return _explain_answer(error, tried, url, client)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.CredentialRetrievalError):
        return StorageError(f"{tried}: no usable credentials found ({type(error).__name__}). {_CREDENTIALS}", url)
    if isinstance(error, aws.SSLError):
        advice = "Set AWS_CA_BUNDLE to the server's certificate authority, and check http or https in the endpoint."
        return StorageError(f"{tried}: {server} has no certificate that this machine trusts. {advice}", url)
    if isinstance(error, aws.FlexibleChecksumError):
        return StorageError(
            f"{tried}: checksum mismatch: the bytes changed on their way. Try again.", url, retriable=True
        )
    if isinstance(error, aws.ProfileNotFound | aws.ConfigParseError | aws.ParamValidationError | aws.NoRegionError):
        return StorageError(f"{tried}: {_first_line(error)}. Correct the name or the AWS configuration.", url)
    if isinstance(error, _BROKEN_OFF):
        advice = "Check AWS_ENDPOINT_URL_S3, and that the server runs and is reachable from this machine."
        reason = "is unreachable or broke off"
        return StorageError(f"{tried}: {server} {reason} ({type(error).__name__}). {advice}", url, retriable=True)
    return StorageError(f"{tried}: {client.redact(str(error))[:300]} ({server}).", url)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _explain_answer(error: aws.ClientError, tried: str, url: str, client: _Client) -> StorageError:
    """Return the error to raise for a server's refusal."""
    answer = error.response.get("Error", {})
    code, status = str(answer.get("Code")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return _no_bucket(tried, url, client.settings)
    if code in ("NoSuchKey", "404"):
        return ObjectMissing(f"{tried}: no such object.", url)
    server = client.settings.endpoint_url or "AWS"
    if code in _ANSWERS:
        reason, advice = _ANSWERS[code]
        return StorageError(f"{tried}: {reason} ({code} from {server}). {advice}", url, retriable="checksum" in reason)
    retriable = status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "ConditionalRequestConflict")
    said = client.redact(str(answer.get("Message") or ""))[:200]
    advice = "Try again later." if retriable else "Check the server's log."
    return StorageError(f"{tried}: {server} answered {code} ({status}): {said}. {advice}", url, retriable=retriable)
