"""Options that several commands take, and the configuration that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.config import RunConfig, load_config, read_text
from jobs.errors import ConfigError

__all__ = [
    "ClassifierFlag",
    "ConfigFile",
    "JsonFlag",
    "ManifestFlag",
    "ModelFlag",
    "OutputFlag",
    "RunFlag",
    "ScheduleFlag",
    "SetFlag",
    "TickFlag",
    "check_tick",
    "read_config",
]

ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; keys may also come by flag or environment.")]
ManifestFlag = Annotated[str | None, typer.Option("--manifest", help="Parquet or CSV: a path, or s3://bucket/key.")]
ModelFlag = Annotated[str | None, typer.Option("--model", help="Hub id, local folder or s3:// prefix.")]
ClassifierFlag = Annotated[str | None, typer.Option("--classifier", help="Dual encoder (CLIP, SigLIP, ...), likewise.")]
OutputFlag = Annotated[str | None, typer.Option("--output", help="s3://bucket/prefix or a folder.")]
RunFlag = Annotated[str | None, typer.Option("--run", help="The run's name; default: from its contents.")]
SetFlag = Annotated[list[str] | None, typer.Option("--set", help="Any key: sampler.steps=20. May be repeated.")]
ScheduleFlag = Annotated[str | None, typer.Option(help="A series of audits, by any name; see docs/scheduling.md.")]
TickFlag = Annotated[
    str | None, typer.Option(help="2026-11-21T00:00Z: what this audit of the series stands for; default: from now.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="The report as JSON on standard output.")]


def read_config(file: Path | None, assignments: Sequence[str] | None, **flags: Any) -> RunConfig:
    """The run's configuration: a file, where one is given, with environment, flags and assignments over it."""
    text = None if file is None else read_text(file)
    return load_config(text, name=str(file) if file else "configuration", flags=flags, assignments=assignments or ())


def check_tick(schedule: str | None, tick: str | None) -> None:
    """Refuse, with a ConfigError, a tick that is of no series."""
    if tick is not None and schedule is None:
        raise ConfigError("--tick is of a series: add --schedule NAME")
