"""Edit sets: edits with prompts that should change and prompts that should not. TIMED's published layouts, as they are.

    edits = read_edit_set(Path("TIMED_test_set.csv"))

`old,new,positive1,gt1,...,negative1,gn1,...`: the test and the validation set of "Editing Implicit Assumptions in
Text-to-Image Diffusion Models" (arXiv 2303.08084). `old,new,validation,ex1,...`: its gender set, in which what an
example should become is the example with `new` in place of `old`. CSV or Parquet, with any number of positives and
negatives.

A row or a pair that can't be used is left out and reported; the others go on. Only where nothing can go on is it an
error, which names everything at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.cells import text_cell
from manifests.errors import Fault, ManifestError, in_order
from manifests.read import Layout, RawRow, is_nameless, iter_rows

__all__ = ["EditChecker", "EditSet", "PromptPair", "TestedEdit", "read_edit_set"]

EditChecker = Callable[[Sequence[tuple[int, str, str]]], Iterable[Fault]]
"""Checks (row, source, destination) of all edits; an edit that it finds a fault in is left out."""

_NUMBERED = re.compile(r"(positive|gt|negative|gn|ex)([1-9][0-9]?)")
_PARTNERS = {"positive": "gt", "gt": "positive", "negative": "gn", "gn": "negative"}
_LAYOUT = "the columns are old, new, positive1, gt1, ..., negative1, gn1, ..., or old, new, validation, ex1, ..."


@dataclass(frozen=True, slots=True)
class PromptPair:
    """A prompt, and what it would say were the edit carried over to it."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class TestedEdit:
    """One edit, and the prompts that it is tested with.

    Attributes:
        row: of the file, from 1, the header not counted.
        source: the prompt to be read anew, "a pack of roses".
        destination: as what, "a pack of blue roses".
        positives: pairs whose source should now look like its destination.
        negatives: pairs whose source should still look like itself.
    """

    # Not a class of tests, whatever its name makes pytest think.
    __test__ = False

    row: int
    source: str
    destination: str
    positives: tuple[PromptPair, ...]
    negatives: tuple[PromptPair, ...]


@dataclass(frozen=True)
class EditSet:
    """The edits of a file.

    Attributes:
        edits: those that can be used.
        left_out: why others, or single pairs of them, can't; a pair's fault names its column.
        rows: data rows of the file.
        name: what messages call it.
    """

    edits: tuple[TestedEdit, ...]
    left_out: tuple[Fault, ...] = ()
    rows: int = 0
    name: str = "edit set"

    def without(self, unusable: Mapping[str, str]) -> EditSet:
        """The same without the pairs, and the edits, that hold a prompt which can't be used.

        Args:
            unusable: prompt -> why, and what to do.

        Raises:
            ManifestError: no edit is left.
        """
        edits, faults = [], list(self.left_out)
        for edit in self.edits:
            kinds = []
            for kind in (edit.positives, edit.negatives):
                bad = {pair: next((p for p in (pair.source, pair.destination) if p in unusable), None) for pair in kind}
                faults += [Fault(edit.row, None, f"{unusable[p]}; the pair is left out") for p in bad.values() if p]
                kinds.append(tuple(pair for pair, prompt in bad.items() if prompt is None))
            own = next((p for p in (edit.source, edit.destination) if p in unusable), None)
            if own is None:
                edits.append(replace(edit, positives=kinds[0], negatives=kinds[1]))
            else:
                faults.append(Fault(edit.row, None, f"{unusable[own]}; the edit is left out"))
        if not edits:
            raise ManifestError(self.name, faults)
        return replace(self, edits=tuple(edits), left_out=in_order(faults))

    def to_bytes(self) -> bytes:
        """Parquet in the layout of the test set, with what can be used."""
        widths = [max(len(getattr(edit, kind)) for edit in self.edits) for kind in ("positives", "negatives")]
        columns: dict[str, list[str | None]] = {
            "old": [edit.source for edit in self.edits],
            "new": [edit.destination for edit in self.edits],
        }
        for kind, width, names in zip(
            ("positives", "negatives"), widths, (("positive", "gt"), ("negative", "gn")), strict=True
        ):
            for i in range(width):
                pairs = [getattr(edit, kind)[i : i + 1] for edit in self.edits]
                columns[f"{names[0]}{i + 1}"] = [pair[0].source if pair else None for pair in pairs]
                columns[f"{names[1]}{i + 1}"] = [pair[0].destination if pair else None for pair in pairs]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()}), sink)
        return bytes(sink.getvalue())

    @cached_property
    def digest(self) -> str:
        """sha256 in hex of the edits and their prompts, in their order; the file's format does not matter."""
        content = [
            [
                e.source,
                e.destination,
                *([[p.source, p.destination] for p in kind] for kind in (e.positives, e.negatives)),
            ]
            for e in self.edits
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def read_edit_set(
    source: Path | str | bytes, *, name: str | None = None, checker: EditChecker | None = None
) -> EditSet:
    """Read a file of edits.

    Args:
        source: a local file, or a file's content.
        name: what messages call it; default: the file's path.
        checker: a further check of the edits, against a tokenizer say.

    Raises:
        ManifestError: the file is no edit set, or not one of its edits can be used; with every fault found.
        OSError: the file itself can't be read.
    """
    if name is None:
        name = "edit set" if isinstance(source, bytes) else str(source)
    faults: list[Fault] = []
    edits: list[TestedEdit] = []
    lines: dict[int, int | None] = {}
    seen: dict[tuple[str, str], int] = {}
    rows = 0
    for raw in iter_rows(source, faults=faults, layout=Layout("edit set", _columns, sparse=True)):
        rows = max(rows, raw.number)
        lines[raw.number] = raw.line
        parsed = _Row(raw, faults).edit()
        if parsed is None:
            continue
        first = seen.setdefault((parsed.source, parsed.destination), parsed.row)
        if first != parsed.row:
            faults.append(Fault(parsed.row, None, f"repeats the edit of row {first}; left out", raw.line))
        else:
            edits.append(parsed)
    rows = max([rows, *(fault.row or 0 for fault in faults)])
    if checker is not None:
        broken = [
            replace(f, line=lines.get(f.row or 0)) for f in checker([(e.row, e.source, e.destination) for e in edits])
        ]
        faults += broken
        bad = {fault.row for fault in broken}
        edits = [edit for edit in edits if edit.row not in bad]
    if not edits and not faults:
        faults.append(Fault(None, None, "has no rows; give at least one edit"))
    if not edits or any(fault.row is None for fault in faults):
        raise ManifestError(name, faults)
    return EditSet(tuple(edits), in_order(faults), rows, name)


def _columns(columns: Sequence[str], faults: list[Fault], line: int | None) -> list[str]:
    """The usable columns; each that is missing, unknown, repeated or without its partner is a fault."""
    named = [column for column in columns if not is_nameless(column)]
    known = [c for c in dict.fromkeys(named) if _is_column(c)]
    for column in dict.fromkeys(named):
        if column not in known:
            lower = column.strip().lower()
            hint = f"did you mean {lower!r}?" if _is_column(lower) else _LAYOUT
            faults.append(Fault(None, column, f"is not a column of an edit set; {hint}", line))
    for column in ("old", "new"):
        if column not in known:
            faults.append(Fault(None, column, "is missing; add it", line))
    for column in known:
        if named.count(column) > 1:
            faults.append(Fault(None, column, f"is there {named.count(column)} times; keep one", line))
        match = _NUMBERED.fullmatch(column)
        kind = match[1] if match else ""
        if match and kind in _PARTNERS and (partner := _PARTNERS[kind] + match[2]) not in known:
            faults.append(Fault(None, column, f"has no partner {partner!r}; add it", line))
    if {"old", "new"} <= set(known) and not any(c.startswith(("positive", "negative", "ex")) for c in known):
        faults.append(Fault(None, None, f"has no prompts to test the edits with; {_LAYOUT}", line))
    return [column for column in known if named.count(column) == 1]


def _is_column(name: str) -> bool:
    return name in ("old", "new", "validation") or _NUMBERED.fullmatch(name) is not None


class _Row:
    """One row: its edit, and what is wrong with it."""

    def __init__(self, raw: RawRow, faults: list[Fault]) -> None:
        self._raw, self._faults = raw, faults

    def edit(self) -> TestedEdit | None:
        """None where the edit itself can't be used."""
        source, destination = self._text("old"), self._text("new")
        if source is None or destination is None:
            return None
        if _same(source, destination):
            self._leave_out(None, f"old and new are the same prompt ({source!r}); left out")
            return None
        positives = [*self._pairs("positive", "gt"), *self._examples(source, destination)]
        negatives = list(self._pairs("negative", "gn"))
        return TestedEdit(self._raw.number, source, destination, tuple(positives), tuple(negatives))

    def _pairs(self, one: str, other: str) -> Iterator[PromptPair]:
        for column in self._numbered(one):
            partner = other + column.removeprefix(one)
            if self._is_empty(column) and self._is_empty(partner):
                continue
            source, destination = self._text(column), self._text(partner)
            if source is None or destination is None:
                continue
            # To CLIP, which reads lower case, they are one text: nothing could decide between them.
            if _same(source, destination):
                self._leave_out(column, f"is the same prompt as {partner} ({source!r}); the pair is left out")
            else:
                yield PromptPair(source, destination)

    def _examples(self, old: str, new: str) -> Iterator[PromptPair]:
        for column in self._numbered("ex"):
            example = None if self._is_empty(column) else self._text(column)
            if example is None:
                continue
            changed = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, example, count=1, flags=re.IGNORECASE)
            if changed == example:
                self._leave_out(column, f"({example!r}) does not hold {old!r}; the example is left out")
            else:
                yield PromptPair(example, changed)

    def _numbered(self, kind: str) -> list[str]:
        columns = [c for c in self._raw.cells if (match := _NUMBERED.fullmatch(c)) and match[1] == kind]
        return sorted(columns, key=lambda column: int(column.removeprefix(kind)))

    def _is_empty(self, column: str) -> bool:
        value = self._raw.cells.get(column)
        return value is None or (isinstance(value, str) and not value.strip())

    def _text(self, column: str) -> str | None:
        """The cell without white space at its ends; a fault, and None, where it holds nothing that can be drawn."""
        if column not in self._raw.cells:
            return None  # it could not be decoded, which is reported already
        value = self._raw.cells[column]
        try:
            return text_cell(value.strip() if isinstance(value, str) else value)
        except ValueError as error:
            self._leave_out(column, f"{error}; left out")
            return None

    def _leave_out(self, column: str | None, message: str) -> None:
        self._faults.append(Fault(self._raw.number, column, message, self._raw.line))


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
