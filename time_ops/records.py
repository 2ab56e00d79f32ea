"""What of its inputs decides an operator, and how that is written: canonical JSON, the same bytes on every machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from time_ops.encoders import EncoderDigest

__all__ = [
    "EditRecord",
    "SolveInputs",
    "canonical_json",
    "canonical_step",
    "from_json_number",
    "json_number",
    "record_from",
    "step_from",
]


@dataclass(frozen=True)
class EditRecord:
    """What of one edit decides the operator.

    Attributes:
        source: source prompt.
        destinations: (prompt, share), sorted by prompt; the source itself is one where it keeps a share.
        lam: its strength; inf: left out of the solve. None in statistics that have no lam yet.
        augmentations: templates, sorted: their order is of no account. Those that blend otherwise have a record apart.
        alignment: rule of the token correspondence.
        tokens: sha256 of the embeddings where no known encoder made them, else "".
    """

    source: str
    destinations: tuple[tuple[str, float], ...]
    lam: float | None
    augmentations: tuple[str, ...] = ("{source}",)
    alignment: str = "published"
    tokens: str = ""


@dataclass(frozen=True)
class SolveInputs:
    """All that decides one solve, in canonical order.

    Attributes:
        edits: sorted records of the edits.
        preserved: sorted records of the preserved prompts, each with its lam.
        encoder: the text encoder; None where embeddings were made by hand.
        values_only: only the value projections are edited.
        rank: of a step without edits: directions of what came before that were kept (`time_ops.lora`), chosen by the
            weights of the model that it is for.
    """

    edits: tuple[EditRecord, ...]
    preserved: tuple[EditRecord, ...] = ()
    encoder: EncoderDigest | None = None
    values_only: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(sorted(self.edits, key=_sort_key)))
        object.__setattr__(self, "preserved", tuple(sorted(self.preserved, key=_sort_key)))


def _sort_key(record: EditRecord) -> str:
    return canonical_json(_canonical_record(record))


def _canonical_record(record: EditRecord) -> dict[str, Any]:
    return {
        **asdict(record),
        "lam": json_number(record.lam),
        "destinations": sorted([prompt, share] for prompt, share in record.destinations),
        "augmentations": sorted(record.augmentations),
    }


def canonical_step(step: SolveInputs) -> dict[str, Any]:
    """What of a solve's inputs is hashed and stored."""
    return {
        "edits": [_canonical_record(r) for r in step.edits],
        "preserved": [_canonical_record(r) for r in step.preserved],
        "encoder": None if step.encoder is None else asdict(step.encoder),
        "values_only": step.values_only,
        **({} if step.rank is None else {"rank": step.rank}),
    }


def step_from(stored: Mapping[str, Any]) -> SolveInputs:
    """A solve's inputs as `canonical_step` wrote them; raises what an odd value does."""
    encoder = stored["encoder"]
    return SolveInputs(
        tuple(record_from(r) for r in stored["edits"]),
        tuple(record_from(r) for r in stored["preserved"]),
        None if encoder is None else EncoderDigest(**encoder),
        bool(stored["values_only"]),
        stored.get("rank"),
    )


def record_from(stored: Mapping[str, Any]) -> EditRecord:
    """An edit's record as it was stored; raises what an odd value does."""
    return EditRecord(
        source=stored["source"],
        destinations=tuple((prompt, float(share)) for prompt, share in stored["destinations"]),
        lam=from_json_number(stored["lam"]),
        augmentations=tuple(stored["augmentations"]),
        alignment=stored["alignment"],
        tokens=stored["tokens"],
    )


def json_number(value: float | None) -> float | str | None:
    """JSON has no infinity; shortest round-trip digits otherwise, the same on every machine."""
    return value if value is None or math.isfinite(value) else str(value)


def from_json_number(value: float | str | None) -> float | None:
    """What `json_number` wrote."""
    return None if value is None else float(value)


def canonical_json(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
