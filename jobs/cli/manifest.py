"""`evenhand manifest check|build`: the commands for manifests, which need no cluster."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.config import WordingsConfig
from jobs.errors import ConfigError, ExitCode
from manifests.build import build_manifest
from manifests.errors import Fault, ManifestError
from manifests.read import PromptChecker, read_manifest
from manifests.schema import Manifest
from manifests.write import write_manifest

__all__ = ["app"]

_COLUMN_WIDTH = 24

app = typer.Typer(name="manifest", help="Check and build manifests.", no_args_is_help=True)

LabelsFlag = Annotated[str | None, typer.Option("--labels", help="The attribute's labels, with commas: female,male.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Write one JSON object instead of a table.")]


@app.command(epilog="Example: evenhand manifest build professions.csv professions.parquet")
def build(
    source: Annotated[Path, typer.Argument(metavar="IN", help="CSV or Parquet; or .txt, one profession a line.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Written as CSV if it ends in .csv, else as Parquet.")],
    labels: LabelsFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn a CSV into Parquet or back, or a list of professions into a manifest. Exit code 0, or 2."""
    try:
        manifest = _read_or_build(source, _split_labels(labels))
        write_manifest(manifest, target)
    except (OSError, ManifestError, UnicodeDecodeError) as error:
        if not as_json:
            raise error if isinstance(error, ManifestError) else ConfigError(str(error)) from error
        typer.echo(json.dumps({"file": str(target), "ok": False, "message": str(error)}, ensure_ascii=False))
        raise typer.Exit(int(ExitCode.INPUT)) from None
    if as_json:
        typer.echo(json.dumps({"file": str(target), "ok": True, **_summary(manifest)}, ensure_ascii=False))
    else:
        Console().print(
            Text(f"{target}: {len(manifest.professions)} professions in {len(manifest.rows)} rows"), soft_wrap=True
        )


@app.command(epilog="Example: evenhand manifest check professions.csv --model ./model")
def check(
    file: Annotated[Path, typer.Argument(help="Parquet or CSV.")],
    labels: LabelsFlag = None,
    model: Annotated[str | None, typer.Option(help="Also check lengths and alignment with its tokenizer.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a manifest and report every fault at once. Exit code 0, or 2 if there is something to mend.

    A model that can't be had, or has no tokenizer, ends with 3, and a store that can't be read with 4.
    """
    checker = None
    # A file that is not there needs no model to say so.
    if model and file.is_file():
        from infra.storage import StorageSettings
        from jobs.models.files import load_tokenizers
        from jobs.models.staging import fetch_model
        from jobs.runs.inputs import prompt_checker

        with tempfile.TemporaryDirectory(prefix="evenhand-") as cache:
            folder = fetch_model(model, StorageSettings.from_environment(), Path(cache), pipeline=True)
            checker = prompt_checker(load_tokenizers(folder), WordingsConfig().edit)
    name, faults, manifest = str(file), *_read_checked(file, _split_labels(labels), checker)
    if as_json:
        listed = [{"place": fault.place, **asdict(fault)} for fault in faults]
        summary = {} if manifest is None else _summary(manifest)
        typer.echo(json.dumps({"file": name, "ok": not faults, **summary, "faults": listed}, ensure_ascii=False))
    elif manifest is None:
        _show_faults(name, faults, Console())
    else:
        professions, rows = len(manifest.professions), len(manifest.rows)
        Console().print(Text(f"{name}: sound, {professions} professions in {rows} rows"), soft_wrap=True)
    raise typer.Exit(int(ExitCode.INPUT if faults else ExitCode.DONE))


def _read_or_build(source: Path, labels: list[str] | None) -> Manifest:
    if source.suffix.lower() != ".txt":
        return read_manifest(source, name=str(source), labels=labels)
    names = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    return build_manifest(names, labels=labels or ("female", "male"))


def _read_checked(
    file: Path, labels: Collection[str] | None, checker: PromptChecker | None
) -> tuple[tuple[Fault, ...], Manifest | None]:
    """All faults, or the manifest where there are none."""
    try:
        return (), read_manifest(file, name=str(file), labels=labels, checker=checker)
    except OSError as error:
        return (Fault(None, None, f"can't be opened: {error.strerror or error}; correct the name"),), None
    except ManifestError as error:
        return error.faults, None


def _split_labels(text: str | None) -> list[str] | None:
    """Labels of a comma-separated option; None if it was not given."""
    return None if text is None else [label.strip() for label in text.split(",") if label.strip()]


def _show_faults(name: str, faults: Collection[Fault], console: Console) -> None:
    """Draw the faults as a table; a single one of the whole file as a sentence."""
    faults = list(faults)
    if [(fault.row, fault.line, fault.column) for fault in faults] == [(None, None, None)]:
        console.print(Text(f"{name} {faults[0].message}"), soft_wrap=True)
        return
    table = Table(title=Text(f"{name}: {len(faults)} to mend"), title_justify="left")
    with_lines = any(fault.line is not None for fault in faults)
    table.add_column("row", justify="right", no_wrap=True)
    if with_lines:
        table.add_column("line", justify="right", no_wrap=True)
    # Names may be as long as they like: most of the width is for what to do.
    table.add_column("column", overflow="fold", max_width=_COLUMN_WIDTH)
    table.add_column("what to mend", overflow="fold")
    for fault in faults:
        places = [fault.row, fault.line] if with_lines else [fault.row]
        cells = ["" if place is None else str(place) for place in places]
        table.add_row(*cells, Text(fault.column or ""), Text(fault.message))
    console.print(table)


def _summary(manifest: Manifest) -> dict[str, object]:
    return {"professions": len(manifest.professions), "rows": len(manifest.rows), "digest": manifest.digest}
