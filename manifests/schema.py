"""The manifest: its columns, and the values that a checked manifest is made of.

One row is one destination prompt of one profession; `Manifest.professions` groups the rows. A file is read and checked
by `manifests.read_manifest`; what is built here directly is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Annotated, TypeVar

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from manifests.cells import lam_cell, share_cell, text_cell

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "TEXT_COLUMNS",
    "TOLERANCE",
    "Destination",
    "Manifest",
    "ManifestRow",
    "Profession",
    "resolved_shares",
    "resolved_targets",
]

_Key = TypeVar("_Key", str, int)

SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("profession", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("destination", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("target", pa.float64()),
        pa.field("share", pa.float64()),
        pa.field("lam", pa.float64()),
    ]
)
"""The Parquet schema, in the order in which files are written."""

COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)
TEXT_COLUMNS: tuple[str, ...] = COLUMNS[:4]

TOLERANCE = 1e-6
"""By how much targets and shares may miss their sum: room for float32 columns and for thirds with seven digits."""

Text = Annotated[str, BeforeValidator(text_cell)]
Proportion = Annotated[float | None, BeforeValidator(share_cell)]
Strength = Annotated[float | None, BeforeValidator(lam_cell)]


class ManifestRow(BaseModel):
    """One row of a manifest: one destination prompt of one profession."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profession: Text = Field(description="the name that the report shows")
    source: Text = Field(description='source prompt, "a CEO"')
    destination: Text = Field(description='destination prompt, "a female CEO"')
    label: Text = Field(description='the attribute value that this destination stands for, "female"')
    target: Proportion = Field(
        None, description="wanted share of the label among the images; None: what is left, equally"
    )
    share: Proportion = Field(None, description="fixed blend of this destination in the edit; None: calibrated")
    lam: Strength = Field(None, description="fixed strength, equal in all rows of a profession; None: calibrated")


@dataclass(frozen=True, slots=True)
class Destination:
    """One of a profession's destination prompts."""

    prompt: str
    label: str
    target: float | None = None
    """Wanted share of `label` among the images; None: what the other labels leave, equally."""
    share: float | None = None
    """Fixed blend of this destination in the edit; None: calibrated (1 for a single destination)."""


@dataclass(frozen=True, slots=True)
class Profession:
    """A profession with its source prompt and its destinations, in the order of their rows."""

    name: str
    source: str
    destinations: tuple[Destination, ...]
    lam: float | None = None
    """Fixed strength; None: calibrated."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the destinations, each once, in the order of their rows."""
        return tuple(dict.fromkeys(destination.label for destination in self.destinations))


@dataclass(frozen=True)
class Manifest:
    """Checked rows, in file order. Equal when the rows are."""

    rows: tuple[ManifestRow, ...]
    name: str = field(default="manifest", compare=False)
    """Where it came from, for messages."""
    lines: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    """The file's line on which each row starts; None where lines mean nothing (Parquet)."""

    @cached_property
    def professions(self) -> tuple[Profession, ...]:
        """Professions in order of first appearance."""
        grouped: dict[str, list[ManifestRow]] = {}
        for row in self.rows:
            grouped.setdefault(row.profession, []).append(row)
        return tuple(_profession(name, rows) for name, rows in grouped.items())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical rows.

        It is the same for Parquet and CSV and for any order of the rows: the order of edits is of no account in one
        solve, so two files that differ only in it are the same input. Text counts byte for byte, numbers as float64.
        """
        rows = sorted(json.dumps(list(row.model_dump().values()), separators=(",", ":")) for row in self.rows)
        return hashlib.sha256("\n".join(["evenhand manifest 1", *rows]).encode()).hexdigest()

    def line_of(self, row: int) -> int | None:
        """The file's line of a data row (from 1), where there is one."""
        return self.lines[row - 1] if self.lines is not None and 0 < row <= len(self.lines) else None

    def prompts(self) -> Iterator[tuple[int, str, str]]:
        """(row, source, destination) of every row, rows counted from 1."""
        return zip(count(1), (row.source for row in self.rows), (row.destination for row in self.rows), strict=False)


def _profession(name: str, rows: Sequence[ManifestRow]) -> Profession:
    destinations = tuple(Destination(row.destination, row.label, row.target, row.share) for row in rows)
    return Profession(name, rows[0].source, destinations, rows[0].lam)


def resolved_targets(profession: Profession, labels: Collection[str]) -> dict[str, float]:
    """The wanted share of every one of the attribute's `labels`; labels without a target share equally what is left.

    A label that two destinations stand for counts once. The values add up to 1, unless the manifest fixes every label
    and leaves something over, which `read_manifest` refuses.
    """
    given = {item.label: item.target for item in profession.destinations if item.target is not None}
    return _filled(given, labels)


def resolved_shares(profession: Profession) -> tuple[float, ...]:
    """The blend of the destinations, in their order; what has no share gets an equal part of what is left."""
    shares = [item.share for item in profession.destinations]
    filled = _filled({i: share for i, share in enumerate(shares) if share is not None}, range(len(shares)))
    return tuple(filled.values())


def _filled(given: dict[_Key, float], keys: Iterable[_Key]) -> dict[_Key, float]:
    keys = list(keys)
    free = sum(key not in given for key in keys)
    left = max(0.0, 1.0 - sum(given.values()))
    return {key: given[key] if key in given else left / free for key in keys}
