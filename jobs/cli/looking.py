"""The commands that look: before a run, and at what runs have left."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from jobs.cli.options import (
    ClassifierFlag,
    ConfigFile,
    ManifestFlag,
    ModelFlag,
    OutputFlag,
    RunFlag,
    SetFlag,
    read_config,
)
from jobs.cluster.connect import connect
from jobs.config import load_config
from jobs.errors import ConfigError

__all__ = ["app"]

app = typer.Typer()


@app.command(epilog="Example: evenhand plan run.yaml --rate 3.5 --workers 8")
def plan(
    config: ConfigFile = None,
    manifest: ManifestFlag = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    run: RunFlag = None,
    assignments: SetFlag = None,
    rate: Annotated[float | None, typer.Option(help="Images/s of one worker; default: of stored shards.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="How many; default: workers.count.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object.")] = False,
) -> None:
    """Say what the main job will do and cost, and how much of it is stored already. Nothing is written.

    Takes what `evenhand debias` takes, refuses what it would refuse, and needs no cluster.
    """
    flags = {"manifest": manifest, "model": model, "classifier": classifier, "output": output, "run": run}
    settings = read_config(config, assignments, **flags)
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise ConfigError(f"--rate {rate}: give images/s of one worker, more than 0")
    from jobs.planning.plan import make_plan
    from jobs.planning.text import plan_text

    made = make_plan(settings, rate=rate, workers=workers)
    if as_json:
        typer.echo(made.model_dump_json())
    else:
        Console().print(plan_text(made))


@app.command(epilog="Example: evenhand doctor run.yaml")
def doctor(
    config: ConfigFile = None,
    manifest: ManifestFlag = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    assignments: SetFlag = None,
    job: Annotated[Literal["debias", "audit", "evaluate"], typer.Option(help="Which job.")] = "debias",
    as_json: Annotated[bool, typer.Option("--json", help="All findings as one JSON object.")] = False,
) -> None:
    """Try what a job will need: manifest, models, store, cluster. One table says what is wrong and how to mend it.

    Of an evaluation the edit set is the manifest. Without a CONFIG, what is not given is passed over. Writes a few
    small objects below the output and deletes them again. Ends with 0, or the first of 2 input, 3 model, 4 storage,
    8 cluster that has a fault; warnings don't count.
    """
    flags = {"manifest": manifest, "model": model, "classifier": classifier, "output": output}
    from jobs.doctor.models import UNGIVEN

    if config is None:
        text = "".join(f"{key}: '{UNGIVEN}'\n" for key in flags)
        settings = load_config(text, flags=flags, assignments=assignments or ())
    else:
        settings = read_config(config, assignments, **flags)
    from jobs.doctor.examine import examine
    from jobs.doctor.text import diagnosis_text

    diagnosis = examine(settings, connect, job)
    if as_json:
        typer.echo(diagnosis.model_dump_json())
    else:
        Console().print(diagnosis_text(diagnosis))
    raise typer.Exit(diagnosis.exit_code)


@app.command(epilog="Example: evenhand report s3://bucket/prefix/runs/run-0123456789abcdef --out report.html")
def report(
    run: Annotated[str | None, typer.Argument(help="URL or path of a run's folder.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of report.json, and end.")] = False,
) -> None:
    """Draw a finished run's report again, from its folder alone."""
    if schema:
        from jobs.report.json_schema import published_schema

        sys.stdout.write(published_schema())
        return
    if run is None:
        raise typer.BadParameter("give a run's folder, or --schema", param_hint="RUN")
    from jobs.runs.rerender import rerender

    rerender(run, out, Console())


@app.command(epilog="Example: evenhand trend s3://bucket/prefix --series nightly --out trend.html")
def trend(
    output: Annotated[str, typer.Argument(help="Where the runs are: s3://bucket/prefix or a folder.")],
    series: Annotated[str, typer.Option(help="The name that --schedule gave.")],
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("trend.html"),
) -> None:
    """Draw a series of scheduled audits through time."""
    from jobs.scheduling.job import trend as draw

    count = draw(output, series, out)
    Console().print(f"{count} audit{'s' if count != 1 else ''}: {out}", highlight=False, soft_wrap=True)
