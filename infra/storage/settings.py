"""How to reach an S3-compatible store, read from the usual AWS settings."""

from __future__ import annotations

import os
from typing import Any, Literal
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as aws
from botocore.configprovider import ConfiguredEndpointProvider
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from infra.storage.errors import StorageError

__all__ = ["StorageSettings"]


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
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """What objects are encrypted with at rest; None is the bucket's own default."""
    kms_key_id: str | None = None
    """The key of `aws:kms`; None is the account's default key."""
    max_attempts: PositiveInt = 5
    """Tries of one request, the first included, with exponential back-off."""
    connect_timeout_s: PositiveFloat = 5.0
    """Seconds to wait for a connection."""
    read_timeout_s: PositiveFloat = 60.0
    """Seconds to wait for the next byte of an answer."""
    patience_s: NonNegativeFloat = 0.0
    """Seconds to go on trying, beyond `max_attempts`, while the store is unreachable or overloaded; 0 is not at all."""

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

    @model_validator(mode="after")
    def _key_is_of_kms(self) -> StorageSettings:
        if self.kms_key_id is not None and self.encryption not in ("aws:kms", "aws:kms:dsse"):
            raise ValueError("EVENHAND_S3_SSE_KMS_KEY_ID is of EVENHAND_S3_SSE=aws:kms or aws:kms:dsse")
        return self

    @property
    def encrypted(self) -> dict[str, str]:
        """What asks for the encryption, for requests that make an object: put, the beginning of parts, copy."""
        asked = {"ServerSideEncryption": self.encryption, "SSEKMSKeyId": self.kms_key_id}
        return {name: value for name, value in asked.items() if value is not None}

    @classmethod
    def from_environment(cls) -> StorageSettings:
        """Read the usual AWS settings: environment variables first, then the profile in the AWS config file.

        Encryption is ours to name, as AWS has no variable for it: EVENHAND_S3_SSE and EVENHAND_S3_SSE_KMS_KEY_ID.

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
        values = {
            "endpoint_url": endpoint,
            "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or scoped.get("region"),
            "addressing_style": s3.get("addressing_style") if isinstance(s3, dict) else None,
            "ca_bundle": os.environ.get("AWS_CA_BUNDLE") or scoped.get("ca_bundle"),
            "checksum_mode": (
                os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or scoped.get("request_checksum_calculation") or ""
            ).lower(),
            "encryption": os.environ.get("EVENHAND_S3_SSE"),
            "kms_key_id": os.environ.get("EVENHAND_S3_SSE_KMS_KEY_ID"),
        }
        try:
            return cls.model_validate({name: value for name, value in values.items() if value})
        except ValueError as error:
            raise StorageError(f"read the AWS configuration: {error}") from error
