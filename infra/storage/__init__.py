"""One small object store over S3 and local folders: whole objects, relative keys, errors that say what to mend.

    store = open_store("s3://bucket/prefix", StorageSettings.from_environment())
    store.put("runs/a/report.json", b"{}")

Settings carry no secret. Credentials come from boto3's own chain on the machine that makes the request, so settings and
stores pickle, and a driver hands them to its workers.
"""

from infra.storage.base import FOLDER_THREADS, ObjectStat, ObjectStore, in_parallel
from infra.storage.errors import InvalidKey, ObjectChanged, ObjectExists, ObjectMissing, StorageError
from infra.storage.keys import check_key, safe_name
from infra.storage.local import LocalStore
from infra.storage.opening import open_store
from infra.storage.s3 import S3Store
from infra.storage.s3_client import credentials_source
from infra.storage.settings import StorageSettings

__all__ = [
    "FOLDER_THREADS",
    "InvalidKey",
    "LocalStore",
    "ObjectChanged",
    "ObjectExists",
    "ObjectMissing",
    "ObjectStat",
    "ObjectStore",
    "S3Store",
    "StorageError",
    "StorageSettings",
    "check_key",
    "credentials_source",
    "in_parallel",
    "open_store",
    "safe_name",
]
