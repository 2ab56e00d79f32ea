"""What a run's folder knows before the run goes on: rounds of its search, and the edit that it chose."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from infra.storage import ObjectMissing, ObjectStore
from jobs.images.shards import BASE
from jobs.images.tables import bounded_rows
from jobs.images.variants import Part, Variant
from jobs.models.files import safetensors_header
from jobs.planning.stages import KnownBefore, Round
from time_ops.files import json_of
from time_ops.route import WeightTable

__all__ = ["EarlierRun"]

_MOST_EVIDENCE = 1_000_000


class EarlierRun:
    """A run's folder in its store, where there is one.

    Args:
        store: of the run's output.
        run: its name.
        identity: that the run would have now.
        is_single: whether it is for a single edit, else for a mixture.
    """

    def __init__(self, store: ObjectStore, run: str, identity: str, *, is_single: bool) -> None:
        self._store, self._run, self._identity, self._is_single = store, run, identity, is_single

    def read(self) -> KnownBefore:
        """What it knows; a note where `debias` will refuse it, nothing where it holds no run."""
        try:
            before = json_of(self._store.get(f"runs/{self._run}/run.json"))
        except ObjectMissing:
            return KnownBefore()
        except ValueError:
            before = None
        if not isinstance(before, dict):
            return KnownBefore(note=f"runs/{self._run}/run.json can't be read; debias will refuse this name")
        # A run that never got beyond the queue has no identity, and stands in nobody's way.
        if before.get("identity", self._identity) != self._identity:
            return KnownBefore(
                note=f"runs/{self._run} holds a run under another configuration, manifest, model, dtype or library "
                "version; debias will refuse this name unless its workers' dtype and versions are that run's"
            )
        return KnownBefore(self._read_rounds(), self._read_variant())

    def _read_rounds(self) -> tuple[Round, ...]:
        kind = "phase" if self._is_single else "component"
        try:
            data = self._store.get(f"runs/{self._run}/calibration.parquet")
            rows = [*bounded_rows(data, ["round", kind, "operator", "active"], _MOST_EVIDENCE)]
            rounds: dict[int, list[dict[str, Any]]] = {}
            for row in rows:
                rounds.setdefault(int(row["round"]), []).append(row)
        except (ObjectMissing, ValueError, TypeError):
            return ()
        return tuple(self._round(number, of_round) for number, of_round in sorted(rounds.items()))

    def _round(self, number: int, rows: Sequence[Mapping[str, Any]]) -> Round:
        if self._is_single:
            active = tuple(bool(row["active"]) for row in rows)
            return Round(number, str(rows[0]["phase"]), (str(rows[0]["operator"]),), active)
        # A row for each component and profession, one component after the other.
        firsts = list({row["component"]: row for row in rows}.values())
        return Round(
            number, "", tuple(str(row["operator"]) for row in firsts), tuple(bool(row["active"]) for row in firsts)
        )

    def _read_variant(self) -> Variant | None:
        """What the run went on with, from the header of its file: no matrix is read into memory for it."""
        name = "operator" if self._is_single else "mixture"
        try:
            data = self._store.get(f"runs/{self._run}/{name}.safetensors")
            header, _ = safetensors_header(io.BytesIO(data))
            (edit,) = (json_of(value) for value in header["__metadata__"].values())
            if name == "operator":
                return Variant.plain(str(edit["digest"]))
            parts = tuple(Part(str(c["label"]), str(c["digest"]) if c["steps"] else BASE) for c in edit["components"])
            return Variant(str(edit["digest"]), parts, WeightTable(edit["weights"], dict(edit["professions"])))
        except (ObjectMissing, ValueError, KeyError, AttributeError, TypeError, OverflowError):
            return None
