"""From a URL to its store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.storage.base import ObjectStore
from infra.storage.errors import StorageError
from infra.storage.local import LocalStore
from infra.storage.s3 import S3Store
from infra.storage.settings import StorageSettings

__all__ = ["open_store"]


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
        try:
            return LocalStore(Path(url).expanduser())
        except RuntimeError as error:
            raise StorageError(f"open {url}: {error} Give s3://bucket/prefix or a folder.", url) from error
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket:
            raise StorageError(
                f"open s3://***@{bucket.rpartition('@')[2]}: a URL carries no credentials. Put them in the AWS "
                "credentials file or environment, and give s3://bucket/prefix."
            )
        if not re.fullmatch(r"[A-Za-z0-9._-]{3,63}", bucket):
            raise StorageError(f"open {url}: {bucket!r} is no bucket name. Give s3://bucket/prefix.", url)
        return S3Store(bucket, prefix.removesuffix("/"), settings)
    if scheme == "file":
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise StorageError(f"open {url}: {error}. Give file:///absolute/path.", url) from error
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise StorageError(f"open {url}: not a folder of this machine. Give file:///absolute/path.", url)
        return LocalStore(Path(unquote(parts.path)))
    raise StorageError(f"open {url}: {scheme}:// is not supported. Give s3://bucket/prefix or a local folder.", url)
