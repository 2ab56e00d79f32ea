"""A prefix of a bucket as an object store."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws

from infra.storage.base import ObjectStat, ObjectStore, check_source, existing_file
from infra.storage.errors import ObjectChanged, ObjectExists, ObjectMissing, StorageError
from infra.storage.keys import check_key, join
from infra.storage.patience import patiently
from infra.storage.s3_client import Client
from infra.storage.s3_errors import FAILURES, explain, no_bucket
from infra.storage.s3_upload import SHA256, Upload, abort_unfinished, digest_file, error_code
from infra.storage.settings import StorageSettings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

__all__ = ["S3Store"]

_BODY_ATTEMPTS = 3
_MISSING = ("NoSuchKey", "404")
# What AWS answers about a missing object to those who may not list the bucket.
_UNSEEN = ("403", "AccessDenied")
_WRITER = "evenhand-writer"
_Result = TypeVar("_Result")
# 4 parts of 16 MiB: a download holds at most 64 MiB and its 25 MiB queue, whatever the size of the object.
_TRANSFER = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4, preferred_transfer_client="classic"
)
# Parts that a server copies well within the time that an answer is waited for; S3 itself wants them from 5 GiB on.
_COPY = TransferConfig(
    multipart_threshold=256 << 20, multipart_chunksize=256 << 20, max_concurrency=4, preferred_transfer_client="classic"
)


class S3Store(ObjectStore):
    """A prefix of a bucket on AWS or any S3-compatible server."""

    def __init__(
        self, bucket: str, prefix: str = "", settings: StorageSettings | None = None, *, _client: Client | None = None
    ) -> None:
        self._bucket = bucket
        self._prefix = check_key(prefix) if prefix else ""
        self._client = _client or Client(settings or StorageSettings.from_environment())

    @property
    def settings(self) -> StorageSettings:
        """How this store reaches its server."""
        return self._client.settings

    def _key(self, key: str) -> str:
        check_key(key)
        return check_key(join(self._prefix, key))

    def _request(self, operation: str, key: str, action: Callable[[S3Client], _Result]) -> _Result:
        """Return what `action` does with the client, its failures explained and, with patience, tried again.

        Every request goes through here. An action is harmless to repeat: what must stay the same is made outside it.
        """
        return patiently(lambda: self._try(operation, key, action), self.settings.patience_s)

    def _try(self, operation: str, key: str, action: Callable[[S3Client], _Result]) -> _Result:
        try:
            return action(self._client.get())
        except FAILURES as error:
            failure = explain(error, operation, self.url(key), self._client)
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
        except FAILURES as error:
            failure = explain(error, "look up", url, self._client)
            if isinstance(failure, ObjectMissing):
                raise no_bucket(f"look up {url}", url, self.settings) from error
            if failure.retriable:
                raise failure from error
        self._client.bucket_seen = True  # a bucket that exists but may not be looked at counts as seen

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_tagged`; the tag is the ETag."""
        name = self._key(key)

        def read(client: S3Client) -> tuple[bytes, str]:
            attempt = 0
            while True:  # botocore retries a request, not the reading of its answer
                attempt += 1
                try:
                    answer = client.get_object(Bucket=self._bucket, Key=name)
                    return answer["Body"].read(), answer["ETag"]
                except (aws.IncompleteReadError, aws.ResponseStreamingError, aws.ReadTimeoutError):
                    if attempt == _BODY_ATTEMPTS:
                        raise

        return self._request("read", key, read)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> None:
        """See `ObjectStore.put`."""
        if if_absent and if_match is not None:
            raise ValueError("put: if_absent and if_match exclude each other")
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(key), "Body": data}
        request["Metadata"] = {SHA256: hashlib.sha256(data).hexdigest()}
        request |= self.settings.encrypted
        if content_type:
            request["ContentType"] = content_type
        if if_absent:
            request["IfNoneMatch"] = "*"
        if if_match is not None:
            request["IfMatch"] = if_match
        if if_absent or if_match is not None:
            # A retried put may be refused for its own first try: the object says who wrote it.
            request["Metadata"] |= {_WRITER: uuid.uuid4().hex}
            self._request("write", key, lambda client: self._put_once(client, request))
        else:
            self._request("write", key, lambda client: client.put_object(**request))

    def _put_once(self, client: S3Client, request: dict[str, Any]) -> None:
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                client.put_object(**request)
            except aws.ClientError as error:
                code = error_code(error)
                if code in ("PreconditionFailed", "412") or (code in _MISSING and "IfMatch" in request):
                    if _writer_of(client, request) == request["Metadata"][_WRITER]:
                        return
                    url = f"s3://{self._bucket}/{request['Key']}"
                    if "IfMatch" in request:
                        raise ObjectChanged(f"write {url}: it has changed or is gone.", url) from error
                    raise ObjectExists(f"write {url}: it exists already.", url) from error
                if code not in ("ConditionalRequestConflict", "409") or attempt == self.settings.max_attempts:
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        name = self._key(key)
        try:
            self._request("look up", key, lambda client: client.head_object(Bucket=self._bucket, Key=name))
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `ObjectStore.list`; folder markers (keys that end in "/") are left out."""
        prefix = prefix.removesuffix("/")
        folder = self._key(prefix) if prefix else self._prefix
        start = f"{folder}/" if folder else ""
        skip = len(self._prefix) + 1 if self._prefix else 0

        def list_all(client: S3Client) -> set[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            return {item["Key"][skip:] for page in pages for item in page.get("Contents", ())}

        # Sorted here: servers that keep folders (SeaweedFS) list "a/b" before "a.b", AWS after.
        keys = self._request("list", prefix, list_all)
        yield from sorted(key for key in keys if key and not key.endswith("/"))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        name = self._key(key)
        self._request("delete", key, lambda client: client.delete_object(Bucket=self._bucket, Key=name))

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """See `ObjectStore.download`."""
        name, target = self._key(key), Path(path)

        def fetch(client: S3Client) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(self._bucket, name, str(target), Config=_TRANSFER)

        self._request("download", key, fetch)

    def stat(self, key: str) -> ObjectStat:
        """See `ObjectStore.stat`; the tag is the ETag."""
        name = self._key(key)
        head = self._request("look up", key, lambda client: client.head_object(Bucket=self._bucket, Key=name))
        return ObjectStat(head["ContentLength"], head["ETag"], head["Metadata"].get(SHA256))

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """See `ObjectStore.upload` and, for what is proven by it, `infra.storage.s3_upload`."""
        source, name = existing_file(path, self.url(key)), self._key(key)
        crc = self.settings.checksum_mode == "when_supported"
        digests = self._request("upload", key, lambda _: digest_file(source))

        def send(client: S3Client) -> None:
            if not self._holds(client, name, digests.size, digests.sha256):
                Upload(client, self._bucket, name, source, digests, crc, self.settings.encrypted).send()

        self._request("upload", key, send)

    def _holds(self, client: S3Client, name: str, size: int, sha256: str) -> bool:
        try:
            head = client.head_object(Bucket=self._bucket, Key=name)
        except aws.ClientError as error:
            if error_code(error) in (*_MISSING, *_UNSEEN):
                return False
            raise
        return (head["ContentLength"], head["Metadata"].get(SHA256)) == (size, sha256)

    def copies_from(self, source: ObjectStore) -> bool:
        """See `ObjectStore.copies_from`: of one server."""
        return isinstance(source, S3Store) and source.settings.endpoint_url == self.settings.endpoint_url

    def copy(
        self,
        source: ObjectStore,
        source_key: str,
        key: str,
        *,
        if_match: str | None = None,
        sha256: str | None = None,
    ) -> None:
        """See `ObjectStore.copy`; between stores of one server, the server copies, in parts where it is large."""
        if not (isinstance(source, S3Store) and self.copies_from(source)):
            super().copy(source, source_key, key, if_match=if_match, sha256=sha256)
            return
        stat = check_source(source, source_key, if_match, sha256)
        digest = sha256 or stat.sha256
        begin: Any = {"Bucket": source._bucket, "Key": source._key(source_key)}
        name = self._key(key)
        options = {
            "CopySourceIfMatch": stat.tag,
            "MetadataDirective": "REPLACE",
            "Metadata": {SHA256: digest} if digest else {},
            **self.settings.encrypted,
        }

        def copy(client: S3Client) -> None:
            try:
                client.copy(
                    begin, self._bucket, name, ExtraArgs=options, SourceClient=source._client.get(), Config=_COPY
                )
            except aws.ClientError as error:
                if error_code(error) in ("PreconditionFailed", "412"):
                    raise ObjectChanged(f"copy {source.url(source_key)}: it has changed.", self.url(key)) from error
                raise

        self._request("copy to", key, copy)
        size = self.stat(key).size
        if size != stat.size:
            raise StorageError(
                f"copy {source.url(source_key)} to {self.url(key)}: {stat.size:,} bytes became {size:,}. "
                "The server is broken.",
                self.url(key),
            )

    def clock_skew_s(self) -> float | None:
        """See `ObjectStore.clock_skew_s`; by the Date of any answer, a refusal included."""

        def ask(client: S3Client) -> float | None:
            try:
                answer: Any = client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            except aws.ClientError as error:
                answer = error.response
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            return time.time() - parsedate_to_datetime(date).timestamp() if date else None

        return self._request("ask for the time", "", ask)

    def discard_unfinished(self, prefix: str = "") -> None:
        """See `ObjectStore.discard_unfinished`; credentials that may not list uploads leave them."""
        folder = self._key(prefix.removesuffix("/")) if prefix else self._prefix
        start = f"{folder}/" if folder else ""
        self._request("tidy up", prefix, lambda client: abort_unfinished(client, self._bucket, start))

    def url(self, key: str = "") -> str:
        """See `ObjectStore.url`: `s3://bucket/prefix/key`."""
        path = self._key(key) if key else self._prefix
        return f"s3://{self._bucket}/{path}" if path else f"s3://{self._bucket}"

    def sub(self, prefix: str) -> S3Store:
        """See `ObjectStore.sub`."""
        return S3Store(self._bucket, join(self._prefix, check_key(prefix.removesuffix("/"))), _client=self._client)


def _writer_of(client: S3Client, request: dict[str, Any]) -> str | None:
    """Return who wrote the object of a conditional put; None for an unconditional writer, or no object."""
    try:
        return client.head_object(Bucket=request["Bucket"], Key=request["Key"])["Metadata"].get(_WRITER)
    except aws.ClientError as error:
        if error_code(error) in _MISSING:
            return None
        raise
