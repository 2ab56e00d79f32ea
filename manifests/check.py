"""Check a manifest's rows: each cell by itself, each row against those before it, each profession at the end."""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from manifests.cells import lam_cell, share_cell, text_cell
from manifests.errors import Fault
from manifests.schema import COLUMNS, TOLERANCE, ManifestRow

__all__ = ["RowChecker"]

_CELLS: dict[str, Callable[[object], str | float | None]] = {
    "profession": text_cell,
    "source": text_cell,
    "destination": text_cell,
    "label": text_cell,
    "target": share_cell,
    "share": share_cell,
    "lam": lam_cell,
}


def _key(prompt: str) -> str:
    """A prompt as most tokenizers read it: composed, in lower case, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", prompt).lower().split())


@dataclass(slots=True)
class _Label:
    """What a profession's rows say of one label."""

    row: int
    target: float | None
    sound: bool
    """False once its target is in doubt, so that sums of it are not reported as well."""


@dataclass(slots=True)
class _Group:
    """A profession as its rows build it up."""

    row: int
    line: int | None
    source: str | None = None
    source_row: int = 0
    lam: float | None = None
    lam_row: int | None = None
    destinations: dict[str, int] = field(default_factory=dict)
    labels: dict[str, _Label] = field(default_factory=dict)
    shares: list[float | None] = field(default_factory=list)
    shares_sound: bool = True


class RowChecker:
    """Takes rows one after another and collects their faults; keeps what the checks between rows need."""

    def __init__(self, labels: Collection[str] | None = None) -> None:
        self.rows: list[ManifestRow] = []
        """The sound rows; whole only if there are no faults."""
        self.lines: list[int | None] = []
        """The file's line of each row in `prompts`."""
        self.prompts: list[tuple[int, str, str]] = []
        """(row, source, destination) of each row whose prompts are sound."""
        self.count = 0
        """Rows taken, sound or not."""
        self._labels = None if labels is None else list(labels)
        self._groups: dict[str, _Group] = {}
        self._sources: dict[str, tuple[str, int]] = {}
        self._faults: list[Fault] = []

    @property
    def faults(self) -> int:
        """How many faults have been found so far."""
        return len(self._faults)

    def add(self, number: int, line: int | None, raw: Mapping[str, object]) -> None:
        """Check one row; `raw` may lack columns, which are then not checked."""
        self.count += 1
        cells: dict[str, str | float | None] = {}
        for column, value in raw.items():
            try:
                cells[column] = _CELLS[column](value)
            except ValueError as error:
                self._faults.append(Fault(number, column, str(error), line))
        source, destination = cells.get("source"), cells.get("destination")
        if isinstance(source, str) and isinstance(destination, str):
            self.prompts.append((number, source, destination))
            self.lines.append(line)
        self._label(number, line, cells)
        self._among_rows(number, line, raw, cells)
        if len(cells) == len(COLUMNS):
            self.rows.append(ManifestRow.model_construct(None, **cast(dict[str, Any], cells)))

    def finish(self) -> list[Fault]:
        """Check each profession as a whole; all faults of all rows."""
        for name, group in self._groups.items():
            for column, message in self._whole(name, group):
                self._faults.append(Fault(group.row, column, message, group.line))
        return self._faults

    def _label(self, number: int, line: int | None, cells: Mapping[str, object]) -> None:
        label = cells.get("label")
        if self._labels is None or not isinstance(label, str) or label in self._labels:
            return
        near = difflib.get_close_matches(label.lower()[:80], self._labels, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"its labels are {', '.join(self._labels)}"
        self._faults.append(Fault(number, "label", f"{label!r} is no label of the run's attribute; {hint}", line))

    def _among_rows(
        self, number: int, line: int | None, raw: Mapping[str, object], cells: Mapping[str, object]
    ) -> None:
        name = cells.get("profession")
        if not isinstance(name, str):
            return
        group = self._groups.setdefault(name, _Group(number, line))

        def fault(column: str, message: str) -> None:
            self._faults.append(Fault(number, column, message, line))

        source = cells.get("source")
        if isinstance(source, str):
            if group.source is None:
                group.source, group.source_row = source, number
                other, row = self._sources.setdefault(_key(source), (name, number))
                if other != name:
                    fault(
                        "source",
                        f"{source!r} is the source of {other!r} too (row {row}); a source belongs to one profession",
                    )
            elif source != group.source:
                fault(
                    "source",
                    f"{source!r} differs from {group.source!r} in row {group.source_row}; {name!r} has one source",
                )
        destination = cells.get("destination")
        if isinstance(destination, str):
            row = group.destinations.setdefault(_key(destination), number)
            if row != number:
                fault("destination", f"{destination!r} repeats row {row}; keep one of the two rows")
        if "lam" in cells:
            self._lam(group, cells["lam"], number, fault)
        label = cells.get("label")
        if isinstance(label, str):
            self._target(group, label, cells, number, fault)
        if "share" in raw:
            share = cells.get("share")
            group.shares_sound &= "share" in cells
            group.shares.append(share if isinstance(share, float) else None)

    def _lam(self, group: _Group, lam: object, number: int, fault: Callable[[str, str], None]) -> None:
        lam = lam if isinstance(lam, float) else None
        if group.lam_row is None:
            group.lam, group.lam_row = lam, number
        elif lam != group.lam:
            fault(
                "lam",
                f"is {_said(lam)}, in row {group.lam_row} {_said(group.lam)}; a profession has one lam, repeat it",
            )

    def _target(
        self, group: _Group, label: str, cells: Mapping[str, object], number: int, fault: Callable[[str, str], None]
    ) -> None:
        target = cells.get("target")
        target = target if isinstance(target, float) else None
        known = group.labels.setdefault(label, _Label(number, target, sound=True))
        known.sound &= "target" in cells
        if known.sound and target != known.target:
            known.sound = False
            message = f"is {_said(target)}, in row {known.row} {_said(known.target)}"
            fault("target", f"{message}; both rows stand for {label!r}, whose target counts once: make them equal")

    def _whole(self, name: str, group: _Group) -> Iterator[tuple[str, str]]:
        given = [label.target for label in group.labels.values() if label.target is not None]
        total = math.fsum(given)
        if all(label.sound for label in group.labels.values()):
            every = (
                self._labels is not None and len(given) == len(self._labels) and set(group.labels) == set(self._labels)
            )
            if total > 1 + TOLERANCE:
                yield (
                    "target",
                    f"the targets of {name!r} add up to {total:.7g}; they are shares of its images, at most 1 together",
                )
            elif every and total < 1 - TOLERANCE:
                yield (
                    "target",
                    f"the targets of {name!r} add up to {total:.7g}; every label has one, so they make 1 together",
                )
        shares = [share for share in group.shares if share is not None]
        total = math.fsum(shares)
        if shares and group.shares_sound:
            if total > 1 + TOLERANCE:
                yield (
                    "share",
                    f"the shares of {name!r} add up to {total:.7g}; they blend its destinations, at most 1 together",
                )
            elif len(shares) == len(group.shares) and total < 1 - TOLERANCE:
                rest = "its one destination has 1" if len(shares) == 1 else "all are given, so they make 1 together"
                yield "share", f"the shares of {name!r} add up to {total:.7g}; {rest}"


def _said(value: float | None) -> str:
    return "empty" if value is None else f"{value:.12g}"
