"""Write a manifest: the same rows give the same bytes, with the same version of pyarrow."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.schema import COLUMNS, SCHEMA, Manifest, ManifestRow

__all__ = ["manifest_bytes", "manifest_groups", "manifest_table", "write_manifest"]

_ROW_GROUP_ROWS = 8192


def manifest_table(manifest: Manifest) -> pa.Table:
    """The rows as a table of `SCHEMA`, in file order."""
    return pa.Table.from_pydict(
        {name: [getattr(row, name) for row in manifest.rows] for name in COLUMNS}, schema=SCHEMA
    )


def manifest_groups(manifest: Manifest, professions: int) -> list[Manifest]:
    """So many professions at a time, in their order, each with all its rows wherever they stood."""
    rows: dict[str, list[ManifestRow]] = {}
    for row in manifest.rows:
        rows.setdefault(row.profession, []).append(row)
    whole = list(rows.values())
    parts = (whole[start : start + professions] for start in range(0, len(whole), professions))
    return [Manifest(tuple(row for profession in part for row in profession), manifest.name) for part in parts]


def manifest_bytes(manifest: Manifest, suffix: str = ".parquet", *, group_professions: int | None = None) -> bytes:
    """The file's content: CSV (UTF-8, shortest exact numbers) for the suffix ".csv", else Parquet.

    Args:
        manifest: the rows.
        suffix: which of the two.
        group_professions: one Parquet row group for each of `manifest_groups`, so that a reader of one has whole
            professions; None: rows as they stand.
    """
    if suffix.lower() == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in manifest.rows:
            values = (getattr(row, name) for name in COLUMNS)
            writer.writerow(
                "" if value is None else repr(value) if isinstance(value, float) else value for value in values
            )
        return text.getvalue().encode()
    sink = io.BytesIO()
    if group_professions is None:
        pq.write_table(manifest_table(manifest), sink, row_group_size=_ROW_GROUP_ROWS, compression="zstd")
    else:
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as file:
            for group in manifest_groups(manifest, group_professions):
                file.write_table(manifest_table(group), row_group_size=len(group.rows))
    return sink.getvalue()


def write_manifest(manifest: Manifest, path: Path | str) -> None:
    """Write CSV if the path ends in .csv, else Parquet; beside first, then renamed."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.partial")
    beside.write_bytes(manifest_bytes(manifest, path.suffix))
    beside.replace(path)
