"""The boto3 client of a store: built from its settings, at first use, in each process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3.session
from botocore import exceptions as aws
from botocore.config import Config

from infra.storage.errors import StorageError
from infra.storage.settings import StorageSettings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

__all__ = ["Client", "credentials_source"]


def credentials_source() -> str | None:
    """Where boto3 finds credentials on this machine, by its own name for the place; None where it finds none.

    Raises:
        StorageError: a profile or a service that should give them fails.
    """
    try:
        credentials = boto3.session.Session().get_credentials()
        if credentials is None or not credentials.get_frozen_credentials().secret_key:
            return None
    except aws.BotoCoreError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StorageError(f"look for credentials: {reason}. Correct AWS_PROFILE, the role or its service.") from error
    return credentials.method


def _is_loopback(endpoint_url: str | None) -> bool:
    host = urlsplit(endpoint_url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


class Client:
    """A boto3 client made at first use, once per process, and never pickled."""

    def __init__(self, settings: StorageSettings) -> None:
        self.settings = settings
        self.bucket_seen = False
        self._lock = threading.Lock()
        self._made: tuple[int, boto3.session.Session, S3Client] | None = None

    def __reduce__(self) -> tuple[type[Client], tuple[StorageSettings]]:
        return Client, (self.settings,)

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
        """Return this process's client."""
        return self._make()[2]

    def redact(self, text: str) -> str:
        """Return `text` without the credentials in use, should a server have echoed them."""
        credentials = self._make()[1].get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            for secret in (frozen.secret_key, frozen.token, frozen.access_key):
                text = text.replace(secret, "***") if secret else text
        return text
