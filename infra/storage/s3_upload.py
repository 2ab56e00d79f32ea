"""Uploads in parts, each checked by the server; one that broke off goes on where it stopped.

A file is read once for its digests, then sent. Once `send` returns it is proven that the server received every byte as
it was digested: each request carries a digest of its own that the server compares (Content-MD5, or CRC32 where
`checksum_mode` is "when_supported"), what is read for sending must still have the digest of the first reading, and the
object has the file's size. The file's SHA-256 is kept with the object, so that it can be told later without reading it.

What a broken-off upload has sent stays on the server, unseen, until the same key is uploaded again (its parts are then
taken over where their ETags are our parts' MD5, and aborted where not), `S3Store.discard_unfinished` is called, or the
bucket's AbortIncompleteMultipartUpload rule removes it. Where ETags are no MD5s (SSE-KMS, SSE-C), or the credentials
may not list uploads, an upload starts from nothing. One writer per key at a time: another's parts may be aborted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore import exceptions as aws

from infra.storage.errors import StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

__all__ = ["PART_BYTES", "SHA256", "FileDigests", "Upload", "abort_unfinished", "digest_file", "error_code"]

PART_BYTES = 16 << 20
"""Of a part; more only where a file would have more parts than S3 takes."""
SHA256 = "evenhand-sha256"
"""Metadata of an object: SHA-256 of its bytes, in hex."""

_MOST_PARTS = 10_000
_PARALLEL = 4
_READ_BYTES = 1 << 20
_NO_LISTING = ("AccessDenied", "AllAccessDisabled", "403", "NotImplemented", "501", "MethodNotAllowed", "405")
_GONE = ("NoSuchUpload", "404")


@dataclass(frozen=True)
class FileDigests:
    """What one reading of a file found.

    Attributes:
        size: bytes.
        sha256: of the whole, in hex.
        part_bytes: size of every part but the last.
        parts: MD5 of each part; one, of nothing, for an empty file.
    """

    size: int
    sha256: str
    part_bytes: int
    parts: tuple[bytes, ...]


def digest_file(path: Path) -> FileDigests:
    """Read a file through, a mebibyte at a time."""
    size = path.stat().st_size
    part_bytes = max(PART_BYTES, -(-size // (_MOST_PARTS << 20)) << 20)
    whole = hashlib.sha256()
    parts: list[bytes] = []
    with path.open("rb") as stream:
        while True:
            part, left = hashlib.md5(usedforsecurity=False), part_bytes
            while left and (data := stream.read(min(left, _READ_BYTES))):
                whole.update(data)
                part.update(data)
                left -= len(data)
            if left < part_bytes or not parts:
                parts.append(part.digest())
            if left:
                return FileDigests(stream.tell(), whole.hexdigest(), part_bytes, tuple(parts))


@dataclass(frozen=True)
class Upload:
    """One file on its way to one object.

    Attributes:
        client: of the server.
        bucket: the object's.
        name: its whole key.
        path: the file.
        digests: of the file.
        crc: requests carry CRC32 instead of Content-MD5.
        encrypted: what asks for encryption, see `StorageSettings.encrypted`.
    """

    client: S3Client
    bucket: str
    name: str
    path: Path
    digests: FileDigests
    crc: bool
    encrypted: Mapping[str, str]

    @property
    def _object(self) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.name}

    def send(self) -> None:
        """Send what the server does not have.

        Raises:
            StorageError: the file has changed since it was digested, or the object is not what was sent.
        """
        metadata = {SHA256: self.digests.sha256}
        if len(self.digests.parts) == 1:
            self.client.put_object(**self._object, Metadata=metadata, **self.encrypted, **self._part(1))  # type: ignore[arg-type]
            recorded = self._read_digest()
        else:
            self._send_parts(metadata, fresh=False)
            recorded = self._read_digest()
            if recorded not in (None, self.digests.sha256):
                # Parts taken over were begun for a file that differs in those it had not sent: so does the record.
                self._send_parts(metadata, fresh=True)
                recorded = self._read_digest()
        if recorded not in (None, self.digests.sha256):
            raise StorageError(f"upload {self._url}: another writer has written it meanwhile.", self._url)

    @property
    def _url(self) -> str:
        return f"s3://{self.bucket}/{self.name}"

    def _send_parts(self, metadata: dict[str, str], *, fresh: bool) -> None:
        upload_id, done = (None, {}) if fresh else self._find_unfinished()
        if upload_id is None:
            checked = {"ChecksumAlgorithm": "CRC32"} if self.crc else {}
            upload_id = self.client.create_multipart_upload(
                **self._object,
                Metadata=metadata,
                **self.encrypted,  # type: ignore[arg-type]
                **checked,  # type: ignore[arg-type]
            )["UploadId"]
        missing = [number for number in range(1, len(self.digests.parts) + 1) if number not in done]
        pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="evenhand-part")
        try:
            for part in [pool.submit(self._send_part, upload_id, number) for number in missing]:
                sent = part.result()
                done[sent["PartNumber"]] = sent
        finally:
            pool.shutdown(cancel_futures=True)
        self._complete(upload_id, [done[number] for number in sorted(done)])

    def _part(self, number: int) -> dict[str, Any]:
        """A part's bytes and what the server checks them by."""
        with self.path.open("rb") as stream:
            stream.seek((number - 1) * self.digests.part_bytes)
            data = stream.read(self.digests.part_bytes)
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        if md5 != self.digests.parts[number - 1]:
            raise StorageError(f"upload {self._url}: {self.path.name} changes while it is uploaded.", self._url)
        checked = {"ChecksumAlgorithm": "CRC32"} if self.crc else {"ContentMD5": base64.b64encode(md5).decode()}
        return {"Body": data, **checked}

    def _send_part(self, upload_id: str, number: int) -> dict[str, Any]:
        answer = self.client.upload_part(**self._object, UploadId=upload_id, PartNumber=number, **self._part(number))
        return _completed(number, answer)

    def _find_unfinished(self) -> tuple[str | None, dict[int, dict[str, Any]]]:
        """Find an upload of this key whose parts are all this file's; abort the others."""
        resumed, done = None, {}
        for upload_id in _uploads_of(self.client, self.bucket, self.name):
            parts = self._parts_of(upload_id) if resumed is None else None
            if parts:
                resumed, done = upload_id, parts
            else:
                _abort(self.client, self._object, upload_id)
        return resumed, done

    def _parts_of(self, upload_id: str) -> dict[int, dict[str, Any]] | None:
        """What an upload has of this file; None where it has anything else, nothing, or is gone."""
        pages = self.client.get_paginator("list_parts").paginate(**self._object, UploadId=upload_id)
        try:
            listed = [part for page in pages for part in page.get("Parts", ())]
        except aws.ClientError as error:
            if error_code(error) in (*_GONE, *_NO_LISTING):
                return None
            raise
        sizes = [min(self.digests.part_bytes, self.digests.size - begin) for begin in self._begins()]
        for part in listed:
            at = part["PartNumber"] - 1
            if not 0 <= at < len(sizes) or part["Size"] != sizes[at]:
                return None
            if part["ETag"].strip('"') != self.digests.parts[at].hex():
                return None
        # A completion has to name the CRC32 of every part; where the server does not list them, parts are sent again.
        known = [part for part in listed if not self.crc or "ChecksumCRC32" in part]
        return {part["PartNumber"]: _completed(part["PartNumber"], part) for part in known}

    def _begins(self) -> range:
        return range(0, self.digests.size, self.digests.part_bytes)

    def _complete(self, upload_id: str, parts: list[dict[str, Any]]) -> None:
        try:
            self.client.complete_multipart_upload(
                **self._object,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
            )
        except aws.ClientError as error:
            # A completion whose answer was lost is asked for again: the upload is gone, and the object there.
            if error_code(error) not in _GONE or self._read_digest() != self.digests.sha256:
                raise

    def _read_digest(self) -> str | None:
        """What the object says of itself; None where the server keeps no metadata.

        Raises:
            StorageError: it has another size.
        """
        head = self.client.head_object(**self._object)
        if head["ContentLength"] != self.digests.size:
            reason = f"the object has {head['ContentLength']:,} bytes, the file {self.digests.size:,}"
            raise StorageError(f"upload {self._url}: {reason}. Try again; then suspect the server.", self._url)
        return head["Metadata"].get(SHA256)


def _completed(number: int, answer: Any) -> dict[str, Any]:
    checked = {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}
    return {"PartNumber": number, "ETag": answer["ETag"], **checked}


def _uploads_of(client: S3Client, bucket: str, name: str) -> list[str]:
    """Unfinished uploads of exactly this key, the newest first; none where they can't be listed."""
    uploads = [item for item in _unfinished_below(client, bucket, name) if item["Key"] == name]
    return [item["UploadId"] for item in sorted(uploads, key=lambda item: item["Initiated"], reverse=True)]


def _unfinished_below(client: S3Client, bucket: str, prefix: str) -> Iterator[Any]:
    try:
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Uploads", ())
    except aws.ClientError as error:
        if error_code(error) not in _NO_LISTING:
            raise


def abort_unfinished(client: S3Client, bucket: str, prefix: str) -> None:
    """Remove what broken-off uploads have left below `prefix`; nothing where they can't be listed."""
    for item in list(_unfinished_below(client, bucket, prefix)):
        _abort(client, {"Bucket": bucket, "Key": item["Key"]}, item["UploadId"])


def _abort(client: S3Client, where: dict[str, Any], upload_id: str) -> None:
    try:
        client.abort_multipart_upload(**where, UploadId=upload_id)
    except aws.ClientError as error:
        if error_code(error) not in (*_GONE, *_NO_LISTING):
            raise


def error_code(error: aws.ClientError) -> str:
    """Return what the server calls the error."""
    return str(error.response.get("Error", {}).get("Code"))
