"""What a test sees and breaks of a store's requests to its S3 server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import EndpointConnectionError

from infra.storage import ObjectStore, S3Store

__all__ = ["Wire", "read_only"]


class Wire:
    """The requests of one store, by their names; those named in `broken` fail beyond the given number."""

    def __init__(self, store: ObjectStore, **broken: int) -> None:
        assert isinstance(store, S3Store)
        self.requests: list[str] = []
        self.written: list[str] = []
        self.broken = broken
        store._client.get().meta.events.register("before-call.s3", self._note)

    def _note(self, model: Any, params: Any, **_: Any) -> None:
        self.requests.append(model.name)
        if model.name in ("PutObject", "UploadPart"):
            self.written.append(params["url_path"])
        if self.requests.count(model.name) > self.broken.get(model.name, 10**6):
            raise EndpointConnectionError(endpoint_url="http://gone")

    def count(self, name: str) -> int:
        return self.requests.count(name)


@contextmanager
def read_only(store: ObjectStore) -> Iterator[None]:
    """Within the block nobody may write to the store or delete from it, by the bucket's policy."""
    assert isinstance(store, S3Store)
    bucket, _, prefix = store.url().removeprefix("s3://").partition("/")
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/{prefix}/*"],
    }
    client = store._client.get()
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    try:
        yield
    finally:
        client.delete_bucket_policy(Bucket=bucket)
