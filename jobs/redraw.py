"""Draw a run's report again, reading nothing but its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from infra.storage import ObjectMissing, StorageSettings, open_store
from jobs.errors import ConfigError
from jobs.report.page import render
from jobs.report.schema import SCHEMA_VERSION, Report
from jobs.report.terminal import summary_table

__all__ = ["read_report", "redraw"]


def read_report(data: bytes, name: str) -> Report:
    """A `report.json`, checked; one of an older schema is read too, with what it did not have left open.

    Raises:
        ConfigError: it is of a newer schema, half written, or no report.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ConfigError(
            f"{name} is no JSON ({error}); it may be half written: give a run that has finished"
        ) from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"{name} was written by a newer Evenhand; upgrade (its schema is {version}, this one reads up to "
            f"{SCHEMA_VERSION})"
        )
    try:
        return Report.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{name} is no report of schema {SCHEMA_VERSION} or older: {error.error_count()} faults, first: "
            f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
        ) from error


def redraw(run: str, out: Path, console: Console) -> None:
    """Write `report.html` anew, to a file of this machine, and print the summary.

    The run's own folder is not touched: COMPLETE names its files by their digests.

    Raises:
        ConfigError: there is no finished run, or its report can't be read.
    """
    store = open_store(run, StorageSettings.from_environment())
    try:
        data, complete = store.get("report.json"), json.loads(store.get("COMPLETE"))
    except ObjectMissing as error:
        raise ConfigError(f"{run} holds no finished run ({error}); give the folder of one") from error
    if hashlib.sha256(data).hexdigest() != complete["files"].get("report.json"):
        raise ConfigError(f"{run}: report.json is not the one that COMPLETE names; run the same command again")
    report = read_report(data, store.url("report.json"))
    names = {name for pair in report.pictures for name in (pair.base, pair.edited) if name}
    pictures = {}
    for name in sorted(names):
        with contextlib.suppress(ObjectMissing):
            # The page shows a gap for it, as it does for any picture that it is not given.
            pictures[name] = store.get(name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(render(report, pictures).encode())
    console.print(summary_table(report))
    console.print(f"drawn: {out}", markup=False, soft_wrap=True)
