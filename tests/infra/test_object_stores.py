"""What object stores are asked for: encryption, and the permissions and rules that infra/cloud has for them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import validate_parameters

from infra.storage import StorageError, StorageSettings, open_store
from infra.storage.s3_upload import PART_BYTES
from tests.conftest import S3Server
from tests.wire import Wire

ROOT = Path(__file__).parents[2]
CLOUD = ROOT / "infra" / "cloud"

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
ACTIONS = {
    "AbortMultipartUpload": {"s3:AbortMultipartUpload"},
    "CompleteMultipartUpload": {"s3:PutObject"},
    "CopyObject": {"s3:GetObject", "s3:PutObject"},
    "CreateMultipartUpload": {"s3:PutObject"},
    "DeleteObject": {"s3:DeleteObject"},
    "GetObject": {"s3:GetObject"},
    "HeadBucket": {"s3:ListBucket"},
    "HeadObject": {"s3:GetObject"},
    "ListMultipartUploads": {"s3:ListBucketMultipartUploads"},
    "ListObjectsV2": {"s3:ListBucket"},
    "ListParts": {"s3:ListMultipartUploadParts"},
    "PutObject": {"s3:PutObject"},
    "UploadPart": {"s3:PutObject"},
}
# Of boto3's own, which make requests of several kinds.
TRANSFERS = {"copy": {"CopyObject", "HeadObject"}, "download_file": {"GetObject", "HeadObject"}}


def policy(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CLOUD / "iam" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def actions(name: str) -> set[str]:
    return {action for statement in policy(name)["Statement"] for action in statement["Action"]}


def called() -> set[str]:
    """Operations that the code calls: methods of a client, and paginators by their names."""
    client = botocore.session.Session().create_client("s3", region_name="us-east-1")
    names = set()
    for file in sorted((ROOT / "infra" / "storage").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                if name == "get_paginator":
                    assert isinstance(node.args[0], ast.Constant)
                    name = str(node.args[0].value)
                on_client = "client" in ast.unparse(node.func.value).lower()
                if on_client and name in client.meta.method_to_api_mapping:
                    names.add(client.meta.method_to_api_mapping[name])
                elif on_client:
                    names |= TRANSFERS.get(name, set())
    return names


@pytest.fixture
def requested(s3: S3Server, tmp_path: Path) -> set[str]:
    """Operations that the server is asked for in all that a store does."""
    store = s3.store()
    wire = Wire(store, UploadPart=1)
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(2 * PART_BYTES + 1)
    with pytest.raises(StorageError):
        store.upload(file, "parts")
    wire.broken.clear()
    store.upload(file, "parts")  # goes on with what is there
    wire.broken["UploadPart"] = wire.count("UploadPart")
    with pytest.raises(StorageError):
        store.upload(file, "never")
    store.discard_unfinished()
    store.check_writable()
    assert store.supports_conditional_put()
    store.download("parts", tmp_path / "back")
    store.copy(store, "parts", "copied")
    assert list(store.list()) == ["copied", "parts"]
    for key in store.list():
        store.delete(key)
    missing = open_store("s3://no-such-bucket", s3.settings)
    other = Wire(missing)
    with pytest.raises(StorageError):
        missing.stat("key")
    return {*wire.requests, *other.requests}


def test_the_writer_may_do_what_the_code_does_and_no_more(requested: set[str]) -> None:
    assert called() <= requested, "the sequence above leaves something out"
    needed = set().union(*(ACTIONS[name] for name in requested))
    assert needed == actions("writer")
    assert actions("reader") == {"s3:ListBucket", "s3:GetObject"}


@pytest.mark.parametrize("name", [path.stem for path in sorted((CLOUD / "iam").glob("*.json"))])
def test_policies_name_each_action_and_one_place(name: str) -> None:
    content = policy(name)
    assert content["Version"] == "2012-10-17"
    for statement in content["Statement"]:
        assert statement["Effect"] == "Allow"
        assert all(re.fullmatch(r"(s3|kms):[A-Za-z]+", action) for action in statement["Action"])
        assert re.match(r"arn:aws:(s3:::BUCKET(/PREFIX/\*)?|kms:REGION:ACCOUNT:key/KEY)$", statement["Resource"])


def test_lifecycle_rules_are_such_as_s3_takes_and_keep_runs() -> None:
    rules = json.loads((CLOUD / "lifecycle.json").read_text(encoding="utf-8"))
    model = botocore.session.Session().get_service_model("s3").operation_model("PutBucketLifecycleConfiguration")
    assert model.input_shape is not None
    validate_parameters({"Bucket": "b", "LifecycleConfiguration": rules}, model.input_shape)
    with pytest.raises(Exception, match="Unknown parameter"):
        validate_parameters(
            {"Bucket": "b", "LifecycleConfiguration": {"Rules": [{"Status": "Enabled", "Days": 1}]}}, model.input_shape
        )
    by_id = {rule["ID"]: rule for rule in rules["Rules"]}
    assert by_id["broken-off-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 2
    expiring = [rule["Filter"]["Prefix"] for rule in rules["Rules"] if "Expiration" in rule]
    assert expiring == ["PREFIX/shards/"]


def test_every_object_is_encrypted_where_that_is_asked(s3: S3Server, tmp_path: Path) -> None:
    """By what the server says of objects that were put, put on a condition, uploaded whole, in parts, and copied."""
    plain = s3.store()
    store = open_store(plain.url(), s3.settings.model_copy(update={"encryption": "AES256"}))
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"small")
    large.write_bytes(bytes(PART_BYTES) + b"large")
    store.put("put", b"put")
    store.put("absent", b"absent", if_absent=True)
    store.upload(small, "small")
    store.upload(large, "large")
    store.copy(store, "put", "copied")
    assert store.get("put") == store.get("copied") == b"put"
    store.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    plain.put("plain", b"plain")
    client: Any = store._client.get()  # type: ignore[attr-defined]
    bucket, _, prefix = store.url().removeprefix("s3://").partition("/")
    said = {
        key: client.head_object(Bucket=bucket, Key=f"{prefix}/{key}").get("ServerSideEncryption")
        for key in store.list()
    }
    assert said == dict.fromkeys(("absent", "copied", "large", "put", "small"), "AES256") | {"plain": None}


def test_encryption_comes_from_variables_and_a_key_needs_kms(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert StorageSettings.from_environment().encrypted == {}
    monkeypatch.setenv("EVENHAND_S3_SSE", "aws:kms")
    monkeypatch.setenv("EVENHAND_S3_SSE_KMS_KEY_ID", "arn:aws:kms:eu-west-1:1:key/2")
    found = StorageSettings.from_environment()
    assert found.encrypted == {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "arn:aws:kms:eu-west-1:1:key/2",
    }
    monkeypatch.setenv("EVENHAND_S3_SSE", "AES256")
    with pytest.raises(StorageError, match="EVENHAND_S3_SSE_KMS_KEY_ID"):
        StorageSettings.from_environment()
