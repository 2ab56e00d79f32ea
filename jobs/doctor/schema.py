"""What a diagnosis consists of, as `evenhand doctor --json` prints it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator

from jobs.errors import ExitCode, exit_code_of
from jobs.redact import redact

__all__ = ["Area", "Diagnosis", "Finding", "of_error", "run_check", "said"]

Area = Literal["input", "model", "storage", "cluster"]

_CODES: dict[Area, ExitCode] = {
    "input": ExitCode.INPUT,
    "model": ExitCode.MODEL,
    "storage": ExitCode.STORAGE,
    "cluster": ExitCode.CLUSTER,
}


class Finding(BaseModel):
    """One check and what came of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: Area
    check: str = Field(description="what was tried")
    outcome: Literal["ok", "warning", "fault"] = Field(description="fault: a job would end with the area's exit code")
    found: str
    mend: str = Field("", description="what to do about it")

    @field_validator("found", "mend")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        return redact(value)


class Diagnosis(BaseModel):
    """All checks, in the order in which they were made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    findings: list[Finding]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_code(self) -> int:
        """Of the first area that has a fault, in the order input, model, storage, cluster; else 0."""
        faults = {finding.area for finding in self.findings if finding.outcome == "fault"}
        return next((int(code) for area, code in _CODES.items() if area in faults), int(ExitCode.DONE))


def said(message: str) -> tuple[str, str]:
    """An error's message as what was found and what to do: messages end with their advice, after the last full stop.

    Lists of faults, one a line, and messages of one sentence stay whole.
    """
    if "\n" in message:
        return message, ""
    for mark in (". ", "; "):
        found, _, mend = message.partition(mark)
        if mend:
            return found, mend[0].upper() + mend[1:]
    return message, ""


def of_error(area: Area, check: str, error: Exception) -> Finding:
    """A fault; of the area that the error's own exit code is of, where it has one."""
    code = exit_code_of(error)
    found, mend = said(str(error))
    return Finding(
        area=next((each for each, known in _CODES.items() if known == code), area),
        check=check,
        outcome="fault",
        found=found,
        mend=mend,
    )


def run_check(area: Area, check: str, action: Callable[[], str | Finding]) -> Finding:
    """What `action` finds; an error that a user can act on is a fault, any other is raised."""
    try:
        result = action()
    except Exception as error:
        if exit_code_of(error) is None:
            raise
        return of_error(area, check, error)
    return result if isinstance(result, Finding) else Finding(area=area, check=check, outcome="ok", found=result)
