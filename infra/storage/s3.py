"""A prefix of a bucket as an object store."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws
from s3transfer.exceptions import RetriesExceededError

from infra.storage.base import ObjectStore, existing_file
from infra.storage.errors import ObjectChanged, ObjectExists, ObjectMissing, StorageError
from infra.storage.keys import check_key, join
from infra.storage.s3_client import Client
from infra.storage.s3_errors import explain, no_bucket
from infra.storage.settings import StorageSettings

__all__ = ["S3Store"]

_BODY_ATTEMPTS = 3
_WRITER = "evenhand-writer"
# 4 parts of 16 MiB: a transfer holds at most 64 MiB and its 25 MiB queue, whatever the size of the object.
_TRANSFER = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4, preferred_transfer_client="classic"
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

    @contextmanager
    def _reporting(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except (aws.BotoCoreError, aws.ClientError, boto3.exceptions.Boto3Error, RetriesExceededError) as error:
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
        except aws.ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchBucket"):
                raise no_bucket(f"look up {url}", url, self.settings) from error
        self._client.bucket_seen = True  # a bucket that exists but may not be looked at counts as seen

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_tagged`; the tag is the ETag."""
        name = self._key(key)
        with self._reporting("read", key):
            for attempt in range(1, _BODY_ATTEMPTS + 1):  # botocore retries a request, not the reading of its answer
                try:
                    answer = self._client.get().get_object(Bucket=self._bucket, Key=name)
                    return answer["Body"].read(), answer["ETag"]
                except (aws.IncompleteReadError, aws.ResponseStreamingError, aws.ReadTimeoutError):
                    if attempt == _BODY_ATTEMPTS:
                        raise
        raise StorageError(f"read {self.url(key)}: no answer.", self.url(key), retriable=True)

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
        name = self._key(key)
        if if_absent and if_match is not None:
            raise ValueError("put: if_absent and if_match exclude each other")
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": name, "Body": data}
        if content_type:
            request["ContentType"] = content_type
        with self._reporting("write", key):
            if if_absent:
                self._put_conditionally(request | {"IfNoneMatch": "*"}, uuid.uuid4().hex)
            elif if_match is not None:
                self._put_conditionally(request | {"IfMatch": if_match}, uuid.uuid4().hex)
            else:
                self._client.get().put_object(**request)

    def _put_conditionally(self, request: dict[str, Any], writer: str) -> None:
        """Put once only. The object carries its writer's id, as a retried put may be refused for its own first try."""
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                self._client.get().put_object(**request, Metadata={_WRITER: writer})
            except aws.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in ("PreconditionFailed", "412") or (code in ("NoSuchKey", "404") and "IfMatch" in request):
                    if self._writer_of(request["Key"]) == writer:
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

    def _writer_of(self, name: str) -> str | None:
        """Return who wrote an object conditionally; None for another object, or none."""
        try:
            return self._client.get().head_object(Bucket=self._bucket, Key=name)["Metadata"].get(_WRITER)
        except aws.ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchKey"):
                return None
            raise

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
        source, name = existing_file(path, self.url(key)), self._key(key)
        with self._reporting("upload", key):
            self._client.get().upload_file(str(source), self._bucket, name, Config=_TRANSFER)

    def url(self, key: str = "") -> str:
        """See `ObjectStore.url`: `s3://bucket/prefix/key`."""
        path = self._key(key) if key else self._prefix
        return f"s3://{self._bucket}/{path}" if path else f"s3://{self._bucket}"

    def sub(self, prefix: str) -> S3Store:
        """See `ObjectStore.sub`."""
        return S3Store(self._bucket, join(self._prefix, check_key(prefix.removesuffix("/"))), _client=self._client)
