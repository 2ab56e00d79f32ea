"""`evenhand manifest check|build`: the command line of this package.

`jobs` adds `--model` to `check` by registering its own command around `check_manifest`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from manifests.build import build_manifest
from manifests.errors import Fault, ManifestError
from manifests.read import PromptChecker, read_manifest
from manifests.schema import Manifest
from manifests.write import write_manifest

__all__ = ["INPUT_FAULT", "app", "check_manifest", "show_faults", "split_labels"]

INPUT_FAULT = 2
"""Exit code: the input must be mended."""

_COLUMN_WIDTH = 24

app = typer.Typer(no_args_is_help=True, help="Check and build manifests.")

LabelsOption = Annotated[str | None, typer.Option("--labels", help="The attribute's labels, with commas: female,male.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON object instead of a table.")]


def split_labels(text: str | None) -> list[str] | None:
    """Labels of a comma-separated option; None if it was not given."""
    return None if text is None else [label.strip() for label in text.split(",") if label.strip()]


def check_manifest(
    source: Path | bytes,
    *,
    name: str,
    labels: Collection[str] | None = None,
    checker: PromptChecker | None = None,
    as_json: bool = False,
) -> int:
    """Check, say what was found on standard output, and return the exit code: 0, or 2 for an input to mend."""
    try:
        manifest = read_manifest(source, name=name, labels=labels, checker=checker)
    except OSError as error:
        reason = error.strerror or str(error)
        faults: tuple[Fault, ...] = (Fault(None, None, f"can't be opened: {reason}; correct the name"),)
    except ManifestError as error:
        faults = error.faults
    else:
        if as_json:
            typer.echo(json.dumps({"file": name, "ok": True, **_summary(manifest), "faults": []}, ensure_ascii=False))
        else:
            professions, rows = len(manifest.professions), len(manifest.rows)
            Console().print(Text(f"{name}: sound, {professions} professions in {rows} rows"), soft_wrap=True)
        return 0
    if as_json:
        found = [{"place": fault.place, **asdict(fault)} for fault in faults]
        typer.echo(json.dumps({"file": name, "ok": False, "faults": found}, ensure_ascii=False))
    else:
        show_faults(name, faults, Console())
    return INPUT_FAULT


def show_faults(name: str, faults: Collection[Fault], console: Console) -> None:
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


@app.command(epilog="Example: evenhand manifest check professions.csv --labels female,male")
def check(
    file: Annotated[Path, typer.Argument(help="Parquet or CSV.")],
    labels: LabelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a manifest and report every fault at once. Exit code 0, or 2 if there is something to mend."""
    raise typer.Exit(check_manifest(file, name=str(file), labels=split_labels(labels), as_json=as_json))


@app.command(epilog="Example: evenhand manifest build professions.csv professions.parquet")
def build(
    source: Annotated[Path, typer.Argument(metavar="IN", help="CSV or Parquet; or .txt, one profession a line.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Written as CSV if it ends in .csv, else as Parquet.")],
    labels: LabelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a CSV into Parquet or back, or a list of professions into a manifest. Exit code 0, or 2."""
    try:
        if source.suffix.lower() == ".txt":
            names = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
            manifest = build_manifest(names, labels=split_labels(labels) or ("female", "male"))
        else:
            manifest = read_manifest(source, name=str(source), labels=split_labels(labels))
        write_manifest(manifest, target)
    except (OSError, ManifestError, UnicodeDecodeError) as error:
        message = str(error)
        if as_json:
            typer.echo(json.dumps({"file": str(target), "ok": False, "message": message}, ensure_ascii=False))
        else:
            Console(stderr=True).print(Text(message), soft_wrap=True)
        raise typer.Exit(INPUT_FAULT) from None
    if as_json:
        typer.echo(json.dumps({"file": str(target), "ok": True, **_summary(manifest)}, ensure_ascii=False))
    else:
        Console().print(
            Text(f"{target}: {len(manifest.professions)} professions in {len(manifest.rows)} rows"), soft_wrap=True
        )
