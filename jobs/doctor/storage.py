"""Trying the store: everything that a run will do there, under a prefix of its own that is gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from infra.storage import ObjectStore, StorageError, StorageSettings, credentials_source, open_store
from jobs.doctor.schema import Finding, run_check

__all__ = ["check_storage", "clock", "reaching"]

_PARTS_BYTES = (16 << 20) + 1  # one byte more than a part: two parts
_SKEW_WARNING_S = 60.0
_SKEW_FAULT_S = 900.0  # from here on S3 refuses requests: RequestTimeTooSkewed
_NO_CONDITIONS = (
    "Runs work without, but two drivers of one run are not told apart (no lease), and two writers of one history "
    "entry may both believe that theirs stands. Never start the same run twice at once."
)


def check_storage(output: str, settings: StorageSettings) -> Iterator[Finding]:
    """Try the store below a URL; whatever is written is deleted again, also when the caller stops listening.

    Args:
        output: where runs are to be written.
        settings: how to reach it.

    Yields:
        One finding a check; after one that all others need, no more.
    """
    if output.startswith("s3://"):
        yield reaching(settings)
        credentials = run_check("storage", "credentials", _credentials)
        yield credentials
        if credentials.outcome == "fault":
            return

    def look() -> str:
        store = open_store(output, settings)
        # Of a prefix where nothing is: a store that is in use has millions of keys.
        list(store.sub(_name()).list())
        return f"{store.url()} can be listed"

    yield (reached := run_check("storage", "reach and list", look))
    if reached.outcome != "fault":
        store = open_store(output, settings)
        with _trial(store) as trial:
            yield from _try_all(store, trial)


def _name() -> str:
    return f"evenhand-doctor-{uuid.uuid4().hex}"


def reaching(settings: StorageSettings) -> Finding:
    """How the store is reached, by the settings alone."""
    endpoint = settings.endpoint_url
    found = (
        f"{endpoint or 'AWS'}, region {settings.region or 'by default'}, bucket in the "
        f"{'path' if settings.addressing_style == 'path' else 'host name or path'}, "
        f"checksums {settings.checksum_mode.replace('_', ' ')}"
        + (f", authorities from {settings.ca_bundle}" if settings.ca_bundle else "")
    )
    outcome, mend = "ok", ""
    parts = urlsplit(endpoint or "")
    if settings.ca_bundle and not Path(settings.ca_bundle).is_file():
        outcome = "fault"
        found, mend = f"no such file: {settings.ca_bundle}", "Correct AWS_CA_BUNDLE; the file must be on every node."
    elif parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        outcome, mend = "warning", "Over http everybody on the way can read and alter what is sent. Use https."
    elif endpoint is None and settings.region is None:
        outcome, mend = "warning", "Set AWS_REGION to the bucket's, here and on every node."
    elif endpoint is not None and settings.checksum_mode == "when_supported":
        outcome = "warning"
        mend = "Many S3-compatible stores refuse these: leave AWS_REQUEST_CHECKSUM_CALCULATION out if writing fails."
    return Finding.model_validate(
        {"area": "storage", "check": "settings", "outcome": outcome, "found": found, "mend": mend}
    )


def _credentials() -> str:
    source = credentials_source()
    if source is None:
        raise StorageError(
            "none found on this machine. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role, here "
            "and on every node."
        )
    return f"from {source}, on this machine; workers use their own node's"


def clock(skew_s: float) -> Finding:
    """This machine's clock against the server's, which tells whole seconds."""
    ahead = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the server's"
    found = "as the server's, to a second or two" if abs(skew_s) < 2 else ahead
    size = abs(skew_s)
    outcome = "fault" if size >= _SKEW_FAULT_S else "warning" if size >= _SKEW_WARNING_S else "ok"
    mend = "" if outcome == "ok" else "Set the clock (NTP); S3 refuses requests that are off by 15 minutes."
    return Finding.model_validate(
        {"area": "storage", "check": "clock", "outcome": outcome, "found": found, "mend": mend}
    )


@contextmanager
def _trial(store: ObjectStore) -> Iterator[ObjectStore]:
    """A store below this one that is gone afterwards, with the folders that it made on a disk."""
    trial = store.sub(_name())
    folder = None if "://" in trial.url() else Path(trial.url())
    made = [] if folder is None else [each for each in folder.parents if not each.exists()]
    try:
        yield trial
    finally:
        with suppress(StorageError):
            _clear(trial)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            for each in made:
                with suppress(OSError):
                    each.rmdir()


def _clear(trial: ObjectStore) -> None:
    for key in list(trial.list()):
        trial.delete(key)
    trial.discard_unfinished()


def _try_all(store: ObjectStore, trial: ObjectStore) -> Iterator[Finding]:
    data = uuid.uuid4().bytes * 4

    def write() -> str:
        trial.put("object", data, content_type="application/octet-stream")
        return "an object was written"

    def read() -> str:
        if trial.get("object") != data or list(trial.list()) != ["object"]:
            raise StorageError(
                f"{trial.url('object')}: not what was just written, or not listed. The store is no S3 store with "
                "read-after-write consistency; use another."
            )
        return "the same bytes came back, and are listed"

    def delete() -> str:
        _clear(trial)
        if left := list(trial.list()):
            raise StorageError(f"deleted, but still there: {left}. Delete them; then suspect the server.")
        return "all that was written here is gone again"

    yield (written := run_check("storage", "write", write))
    if written.outcome == "fault":
        return
    yield run_check("storage", "read back", read)
    if (skew_s := store.clock_skew_s()) is not None:
        yield clock(skew_s)
    for check, action in _further(trial):
        yield run_check("storage", check, action)
    yield run_check("storage", "delete", delete)


def _further(trial: ObjectStore) -> list[tuple[str, Callable[[], str | Finding]]]:
    def parts() -> str:
        with tempfile.TemporaryDirectory(prefix="evenhand-") as name:
            file = Path(name) / "parts"
            with file.open("wb") as stream:
                stream.truncate(_PARTS_BYTES)
            begun = time.monotonic()
            trial.upload(file, "parts")
        return f"{_PARTS_BYTES / 1e6:.1f} MB in two parts, {time.monotonic() - begun:.1f} s"

    def conditional() -> str | Finding:
        if trial.supports_conditional_put():
            return "refused where it should be: one driver per run, one entry per tick"
        found = "the store ignores or refuses the conditions"
        return Finding(area="storage", check="conditional write", outcome="warning", found=found, mend=_NO_CONDITIONS)

    def copy() -> str:
        trial.copy(trial, "object", "copied")
        return "the server copies: unchanged weights of a checkpoint are not sent"

    if "://" not in trial.url():
        return [("conditional write", conditional)]
    return [("multipart upload", parts), ("conditional write", conditional), ("server-side copy", copy)]
