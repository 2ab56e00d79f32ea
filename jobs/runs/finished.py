"""An earlier run, read back from its folder: only one that is finished, and only bytes that its COMPLETE names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import ObjectMissing, ObjectStore, StorageSettings, open_store
from jobs.errors import ConfigError
from jobs.report.reading import read_report
from jobs.report.schema import Reference, Report, VariantSummary
from manifests import Manifest, read_manifest
from time_ops.files import json_of

__all__ = ["EarlierRunError", "FinishedRun", "read_finished"]

_ROWS = "images/part-"


class EarlierRunError(ConfigError):
    """The earlier run is at fault, not this run's input: it was altered, or is no match."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        store: of its folder.
        run: its name.
        files: digest of each file, as COMPLETE has them.
        report: its report.
        configuration: as run.json has it.
        manifest: the rows it ran with.
    """

    store: ObjectStore
    run: str
    files: Mapping[str, str]
    report: Report
    configuration: Mapping[str, Any]
    manifest: Manifest

    @property
    def variant(self) -> Literal["base", "edited"]:
        """What it was about: the edited model where there is one, or what was compared; else the model itself."""
        return "base" if self.report.summary.edited is None else "edited"

    @property
    def summary(self) -> VariantSummary:
        """Figures of that variant."""
        return self.report.summary.edited or self.report.summary.base

    @property
    def evidence(self) -> str:
        """Digest of its images' rows: the same images labelled in the same way, wherever the run lies."""
        rows = sorted((name, digest) for name, digest in self.files.items() if name.startswith(_ROWS))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def makers(self) -> dict[str, object]:
        """Where and with what its images were made, as far as it says so."""
        facts = self.report.provenance
        return {key: facts[key] for key in ("versions", "device", "made_on") if key in facts}

    def reference(self, kind: Literal["base model", "earlier run"], name: str | None = None) -> Reference:
        """What a report says of it.

        Args:
            kind: what it stands for.
            name: how people call it; None: as the run.
        """
        facts = self.report.provenance
        operator = facts.get("operator")
        return Reference(
            kind=kind,
            name=name or self.run,
            run=self.run,
            model_digest=str(facts["model_digest"]),
            operator=None if operator is None else str(operator),
        )

    def read(self, name: str) -> bytes:
        """A file of the run, as its COMPLETE names it.

        Raises:
            EarlierRunError: it is missing or altered.
        """
        return _read_verified(self.store, self.files, name)

    def parts(self) -> Iterator[pa.Table]:
        """The rows of that variant's images, part by part.

        Raises:
            EarlierRunError: a part is missing, altered or no table.
        """
        for name in sorted(name for name in self.files if name.startswith(_ROWS)):
            data = self.read(name)
            try:
                table = pq.read_table(pa.BufferReader(data))
                yield table.filter(pc.equal(table.column("variant"), self.variant))
            except (pa.ArrowException, KeyError, OSError) as error:
                raise EarlierRunError(f"{self.store.url(name)} is no table of images: {error}") from error


def read_finished(url: str, settings: StorageSettings) -> FinishedRun:
    """Open a finished run's folder.

    Args:
        url: `<output>/runs/<run>`.
        settings: how to reach it.

    Raises:
        ConfigError: there is no run, it is not finished, it was altered, or a newer Evenhand has written it.
        StorageError: the store can't be read.
    """
    store = open_store(url.rstrip("/"), settings)
    state = _json(store, "run.json")
    complete = _json(store, "COMPLETE")
    if complete is None or state is None:
        if state is None:
            raise ConfigError(
                f"{url}: there is no finished run; give the folder of one, <output>/runs/NAME, as `evenhand` prints it"
            )
        raise ConfigError(
            f"{url}: the run is not finished (it has no COMPLETE, and its status is {state.get('status')}); wait for "
            "it, start its command again, or compare with a run that is finished"
        )
    files: dict[str, str] = complete["files"]
    lacking = [name for name in ("report.json", "manifest.parquet") if name not in files]
    if not any(name.startswith(_ROWS) for name in files):
        lacking.append(f"{_ROWS}*.parquet")
    if lacking:
        raise ConfigError(f"{url}: its COMPLETE names no {', '.join(lacking)}; it is no run to compare with")
    report = read_report(_read_verified(store, files, "report.json"), store.url("report.json"))
    manifest = read_manifest(_read_verified(store, files, "manifest.parquet"), name=store.url("manifest.parquet"))
    configuration = state.get("configuration")
    if not isinstance(configuration, dict):
        raise ConfigError(f"{store.url('run.json')} says no configuration; run that job again")
    return FinishedRun(store, report.run, files, report, configuration, manifest)


def _json(store: ObjectStore, name: str) -> dict[str, Any] | None:
    try:
        content = json_of(store.get(name))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise ConfigError(f"{store.url(name)} is not JSON: {error}; start that run's command again") from error
    if not isinstance(content, dict) or (name == "COMPLETE" and not _names_files(content)):
        raise ConfigError(f"{store.url(name)} is not what a run writes; give the folder of a finished run")
    return content


def _names_files(complete: Mapping[str, Any]) -> bool:
    files = complete.get("files")
    return isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())


def _read_verified(store: ObjectStore, files: Mapping[str, str], name: str) -> bytes:
    try:
        data = store.get(name)
    except ObjectMissing as error:
        raise EarlierRunError(
            f"{store.url(name)} is gone, though COMPLETE names it; start that run's command again"
        ) from error
    if hashlib.sha256(data).hexdigest() != files[name]:
        raise EarlierRunError(
            f"{store.url(name)} is not the file that COMPLETE names: it was altered, or the run is being written "
            "again. Wait for it, or start that run's command again"
        )
    return data
