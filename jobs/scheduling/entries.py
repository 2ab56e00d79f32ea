"""What a series keeps of each audit, and how it follows from a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_serializer, field_validator

from jobs.errors import ConfigError
from jobs.report.figure_schema import DeltaFigure, GateResult, RateFigure
from jobs.report.schema import Movement, ProfessionReport, Report
from jobs.scheduling.ticks import tick_text

__all__ = [
    "HISTORY_VERSION",
    "Basis",
    "Entry",
    "Latest",
    "ProfessionPoint",
    "Record",
    "basis_of",
    "digest_of",
    "entry_of",
    "subject_of",
]

HISTORY_VERSION = 2
"""1: before there were mixtures; read as it is, since all that 2 has more may be absent."""


class Record(BaseModel):
    """What all that a series keeps shares: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProfessionPoint(Record):
    """One profession in one audit; shares are of the first label, pooled over wordings."""

    profession: str
    target: float | None
    share: float | None
    low: float | None
    high: float | None
    n: int = Field(description="determined images")


class Basis(Record):
    """Digests of what must be equal for two audits' figures to be of one kind, whatever model they are of."""

    manifest: str
    classifier: str
    sampler: str = Field(description="sampler, dtype and seed")
    wordings: str = Field(description="audit wordings, labels and the margin of undetermined")

    def changed(self, other: Basis) -> tuple[str, ...]:
        """Names of what differs."""
        return tuple(name for name in Basis.model_fields if getattr(self, name) != getattr(other, name))


class Entry(Record):
    """One audit of a model, as the history keeps it. Figures are of what was audited, never of its reference."""

    schema_version: int = HISTORY_VERSION
    series: str
    tick: AwareDatetime = Field(description="UTC; the time that the audit stands for, not when it ran")
    created: str = Field(description="UTC, ISO 8601: when the entry was made")
    run: str
    prefix: str = Field(description="the run's folder, relative to the output")
    kind: Literal["debias", "audit"]
    model: str = Field(description="its last name")
    model_digest: str
    operator: str | None = Field(description="digest of the operator or mixture it was audited under; null: none")
    mixture: bool = Field(default=False, description="whether `operator` is a mixture's digest")
    verdict: Literal["pass", "fail", "inconclusive"]
    exit_code: int
    sentence: str
    headline: str = Field(default="", description="the same in words, see the report's; empty: of an older report")
    label: str = Field(description="the label that shares are of")
    delta: DeltaFigure
    delta_within: DeltaFigure
    delta_wording_max: DeltaFigure
    explicit: RateFigure
    recognised: RateFigure
    controls: RateFigure
    undetermined: RateFigure
    gates: list[GateResult]
    professions: list[ProfessionPoint]
    basis: Basis
    contents: str = Field(description="digest of all that the driver knows to decide the result; equal: unchanged")
    against: str | None = Field(description="the run that it was compared with; null: none")
    moved: list[Movement] = Field(description="professions that moved against that run")
    reused_from: str | None = Field(description="unchanged: the run of an earlier entry it rests on; null: audited")

    @field_validator("tick")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        try:
            return value.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("is beyond the calendar") from error

    @field_serializer("tick")
    def _iso(self, value: datetime) -> str:
        return tick_text(value)

    @property
    def subject(self) -> str:
        """What was audited, see `subject_of`."""
        return subject_of(self.model_digest, self.operator)


class Latest(Record):
    """`latest.json`: which entry of a series has the latest tick, and how it ended."""

    schema_version: int = HISTORY_VERSION
    series: str
    tick: str
    created: str
    entry: str = Field(description="key of the entry, relative to the output")
    run: str
    verdict: str
    exit_code: int


def subject_of(model_digest: str, operator: str | None) -> str:
    """What names the audited in an entry's key: the model, and the operator or mixture where there is one."""
    if operator is None:
        return model_digest
    return hashlib.sha256(f"{model_digest}\0{operator}".encode()).hexdigest()


def digest_of(content: Any) -> str:
    """sha256 of anything that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def basis_of(provenance: Mapping[str, Any], labels: Iterable[str]) -> Basis:
    """The basis of a report's figures.

    Args:
        provenance: the report's.
        labels: the report's; their order counts, as shares are of the first.
    """
    judged = {
        "audit": provenance["wordings"]["audit"],
        "labels": list(labels),
        "margin": provenance["undetermined_margin"],
        **({"rules": provenance["classifier_rules"]} if "classifier_rules" in provenance else {}),
    }
    return Basis(
        manifest=provenance["manifest"],
        classifier=provenance["classifier_digest"],
        sampler=digest_of(provenance["sampler"]),
        wordings=digest_of(judged),
    )


def entry_of(
    report: Report,
    *,
    series: str,
    tick: datetime,
    exit_code: int,
    contents: str,
    reused_from: str | None = None,
) -> Entry:
    """The entry of a finished run.

    Args:
        report: the run's.
        series: which history.
        tick: the time that the audit stands for.
        exit_code: what its driver ends with.
        contents: see `Entry.contents`.
        reused_from: see `Entry.reused_from`.

    Raises:
        ConfigError: the report's provenance lacks what the history needs.
    """
    audited = report.summary.edited or report.summary.base
    label = report.labels[0]
    provenance: Any = report.provenance
    basis, model_digest = _grounds(report)
    operator = provenance.get("operator") if report.mixture is None else report.mixture.digest
    return Entry(
        series=series,
        tick=tick,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=report.run,
        prefix=f"runs/{report.run}",
        kind=report.kind,
        model=str(provenance.get("model", "")),
        model_digest=model_digest,
        operator=None if operator is None else str(operator),
        mixture=report.mixture is not None,
        verdict=report.verdict,
        exit_code=exit_code,
        sentence=report.sentence,
        headline=report.headline,
        label=label,
        delta=audited.delta,
        delta_within=audited.delta_within,
        delta_wording_max=audited.delta_wording_max,
        explicit=audited.explicit,
        recognised=audited.recognised,
        controls=audited.controls,
        undetermined=audited.undetermined,
        gates=report.gates,
        professions=[_point(item, label) for item in report.professions],
        basis=basis,
        contents=contents,
        against=report.reference.run if report.reference and report.reference.kind == "earlier run" else None,
        moved=report.moved,
        reused_from=reused_from,
    )


def _grounds(report: Report) -> tuple[Basis, str]:
    """The basis of a report's figures, and the digest of its model; raises as `entry_of`."""
    provenance: Any = report.provenance
    try:
        return basis_of(provenance, report.labels), str(provenance["model_digest"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{report.run}: its report's provenance lacks {error}; audit the model again") from error


def _point(item: ProfessionReport, label: str) -> ProfessionPoint:
    """One profession of what was audited; `label` is the report's first."""
    counts = item.edited or item.base
    return ProfessionPoint(
        profession=item.profession,
        target=item.target.get(label),
        share=counts.share,
        low=counts.low,
        high=counts.high,
        n=counts.n,
    )
