"""What went wrong with S3, in words that say what to mend."""

from __future__ import annotations

import boto3.exceptions
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError

from infra.storage.errors import ObjectMissing, StorageError
from infra.storage.s3_client import Client
from infra.storage.settings import StorageSettings

__all__ = ["FAILURES", "explain", "no_bucket"]

FAILURES = (
    aws.BotoCoreError,
    aws.ClientError,
    boto3.exceptions.Boto3Error,
    RetriesExceededError,
    ResponseParserError,
)
"""What boto3 raises for a request that failed."""

_BROKEN_OFF = (
    aws.HTTPClientError,
    aws.ConnectionError,
    aws.IncompleteReadError,
    ResponseParserError,  # an answer cut off in its XML
    RetriesExceededError,
    boto3.exceptions.RetriesExceededError,
)
_PASSING = ("SlowDown", "RequestTimeout", "IncompleteBody", "ConditionalRequestConflict")
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


def no_bucket(tried: str, url: str, settings: StorageSettings) -> StorageError:
    """Return the error to raise where the bucket is missing."""
    return StorageError(
        f"{tried}: the bucket does not exist at {settings.endpoint_url or 'AWS'}. Create it or correct the name.", url
    )


def explain(error: Exception, operation: str, url: str, client: Client) -> StorageError:
    """Return the error to raise for one of boto3's: what was tried, why it failed, what to do, and no secret."""
    settings = client.settings
    server = settings.endpoint_url or "AWS"
    tried = f"{operation} {url}"
    if isinstance(error, aws.ClientError):
        return _explain_answer(error, tried, url, client)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.CredentialRetrievalError):
        # A service that hands them out may throttle, too.
        retriable = isinstance(error, aws.CredentialRetrievalError)
        return StorageError(
            f"{tried}: no usable credentials found ({type(error).__name__}). {_CREDENTIALS}", url, retriable=retriable
        )
    if isinstance(error, aws.SSLError) and any(word in str(error) for word in ("CERTIFICATE", "certificate", "WRONG_")):
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


def _explain_answer(error: aws.ClientError, tried: str, url: str, client: Client) -> StorageError:
    """Return the error to raise for a server's refusal."""
    answer = error.response.get("Error", {})
    code, status = str(answer.get("Code")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return no_bucket(tried, url, client.settings)
    if code in ("NoSuchKey", "404"):
        return ObjectMissing(f"{tried}: no such object.", url)
    server = client.settings.endpoint_url or "AWS"
    if code in _ANSWERS:
        reason, advice = _ANSWERS[code]
        return StorageError(f"{tried}: {reason} ({code} from {server}). {advice}", url, retriable="checksum" in reason)
    retriable = status >= 500 or status in (408, 429) or code in _PASSING
    said = client.redact(str(answer.get("Message") or ""))[:200]
    advice = "Try again later." if retriable else "Check the server's log."
    return StorageError(f"{tried}: {server} answered {code} ({status}): {said}. {advice}", url, retriable=retriable)
