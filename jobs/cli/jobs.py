"""The commands that run a job: here, on a cluster, or as the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from jobs.cli.options import (
    ClassifierFlag,
    ConfigFile,
    JsonFlag,
    ManifestFlag,
    ModelFlag,
    OutputFlag,
    RunFlag,
    ScheduleFlag,
    SetFlag,
    TickFlag,
    check_tick,
    read_config,
)
from jobs.cluster.connect import connect
from jobs.errors import ClusterError, ConfigError

__all__ = ["app"]

app = typer.Typer()


@app.command(epilog="Example: evenhand debias run.yaml --set sampler.steps=20 --set images_per_cell=100")
def debias(
    config: ConfigFile = None,
    manifest: ManifestFlag = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    run: RunFlag = None,
    assignments: SetFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Audit, calibrate, edit, audit again, write checkpoint and report. The main job.

    Runs on the Ray cluster of this environment (RAY_ADDRESS, or the one it was submitted to), and starts a local
    Ray where there is none. The same command again goes on where the last one stopped.
    """
    flags = {"manifest": manifest, "model": model, "classifier": classifier, "output": output, "run": run}
    settings = read_config(config, assignments, **flags)
    console = Console(stderr=as_json)
    from jobs.debias import debias as debias_job
    from jobs.sinks.mlflow import check_sink, sink

    check_sink(settings.mlflow)
    connect()
    outcome = debias_job(settings, console)
    sink(settings.mlflow, outcome.url, console)
    if as_json:
        typer.echo(outcome.report.model_dump_json())
    raise typer.Exit(int(outcome.code))


@app.command(epilog="Example: evenhand audit run.yaml --model s3://bucket/checkpoint --base s3://bucket/model")
def audit(
    config: ConfigFile = None,
    manifest: ManifestFlag = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    run: RunFlag = None,
    operator: Annotated[
        str | None,
        typer.Option(
            help="operator.safetensors or mixture.safetensors: audit the model under it, compared with the model."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Compare with this model: hub id, folder or s3:// prefix.")] = None,
    against: Annotated[str | None, typer.Option(help="Compare with an earlier run: s3://bucket/prefix/runs/R.")] = None,
    schedule: ScheduleFlag = None,
    tick: TickFlag = None,
    assignments: SetFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Audit a model, a checkpoint or an operator, without editing; alone, or compared on common seeds.

    Runs where `evenhand debias` runs, and ends with the same exit codes: 5 where a gate fails, a regression included.
    A finished run's folder says the same as any other: report.json, report.html, junit.xml, COMPLETE; no checkpoint.
    With --schedule it is an entry in that series' history, once per tick and model; --json then gives the entry.
    """
    flags = {"manifest": manifest, "model": model, "classifier": classifier, "output": output, "run": run}
    compared = {key: v for key, v in (("operator", operator), ("base", base), ("against", against)) if v is not None}
    settings = read_config(config, assignments, **flags, audit=compared or None)
    console = Console(stderr=as_json)
    from jobs.sinks.mlflow import check_sink, sink

    check_sink(settings.mlflow)
    check_tick(schedule, tick)
    if schedule is not None:
        from jobs.scheduling.job import scheduled_audit

        ticked = scheduled_audit(settings, console, schedule=schedule, tick=tick, connect=connect)
        if ticked.outcome is not None:
            sink(settings.mlflow, ticked.outcome.url, console)
        if as_json:
            typer.echo(ticked.entry.model_dump_json())
        raise typer.Exit(ticked.code)
    from jobs.audit import audit as audit_job

    connect()
    outcome = audit_job(settings, console)
    sink(settings.mlflow, outcome.url, console)
    if as_json:
        typer.echo(outcome.report.model_dump_json())
    raise typer.Exit(int(outcome.code))


@app.command(epilog="Example: evenhand export s3://bucket/prefix/runs/NAME --form lora --form operator")
def export(
    run: Annotated[str, typer.Argument(help="URL or path of a finished run's folder, <output>/runs/NAME.")],
    form: Annotated[
        list[str] | None,
        typer.Option(
            help="diffusers, single-file, lora, operator or tensors; may be repeated. Default: as the base model is, a "
            "folder or a single file."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base model, where the run's was a folder that is elsewhere now.")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    base_file: Annotated[
        str | None,
        typer.Option(help="For a single file: the base model's own, a path or s3://bucket/key; default: the model."),
    ] = None,
    only_unet: Annotated[bool, typer.Option("--only-unet", help="Of a folder: unet/ or transformer/ alone.")] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="Of a LoRA; default: as --error asks.")] = None,
    error: Annotated[float, typer.Option(min=0, max=0.99, help="What a LoRA may leave out of the edit.")] = 1e-3,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Of a LoRA; default: the model's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Although a gate did not pass; its card says so.")] = False,
    assignments: SetFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was exported, as JSON.")] = False,
) -> None:
    """Export a finished run's edit: as a diffusers folder, single file, LoRA, operator or the edited tensors alone.

    Each is opened again from storage and drawn with beside the edit that was audited; a LoRA is audited at its rank.
    What passes lies under exports/<form>/ of the run, with SHA256SUMS; what does not stays exports/<form>-candidate/.
    """
    from infra.storage import StorageSettings
    from jobs.export import Wanted, base_file_for, default_forms, export_config, known_forms
    from jobs.export import export as export_job

    flags = {"model": model, "classifier": classifier}
    settings, earlier = export_config(run, StorageSettings.from_environment(), flags, assignments or ())
    forms = known_forms(form) if form else default_forms(settings)
    wanted = Wanted(forms, base_file_for(settings, base_file), only_unet, rank, error, dtype, force)
    connect()
    exported, code = export_job(settings, earlier, wanted, Console(stderr=as_json))
    if as_json:
        typer.echo(f"[{','.join(each.model_dump_json() for each in exported)}]")
    raise typer.Exit(int(code))


@app.command(epilog="Example: evenhand evaluate run.yaml --edits timed.csv --lam 0.01 --lam 0.1 --lam 1")
def evaluate(
    config: ConfigFile = None,
    edits: Annotated[
        str | None, typer.Option("--edits", "--manifest", help="Edit set, Parquet or CSV: a path, or s3://bucket/key.")
    ] = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    run: RunFlag = None,
    lam: Annotated[list[float] | None, typer.Option(help="Strength of the edits; several are a sweep.")] = None,
    assignments: SetFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure the edits of a set, each by itself: efficacy, generality, specificity, and drift on unrelated prompts.

    The set is what the configuration calls its manifest, in TIMED's layout; see docs/evaluation.md. Runs where
    `evenhand debias` runs. It judges nothing: it ends with 0 on any figures.
    """
    flags = {"manifest": edits, "model": model, "classifier": classifier, "output": output, "run": run}
    settings = read_config(config, assignments, **flags, evaluate={"lam": lam} if lam else None)
    console = Console(stderr=as_json)
    from jobs.evaluate import evaluate as evaluate_job

    connect()
    evaluated = evaluate_job(settings, console)
    if as_json:
        typer.echo(evaluated.report.model_dump_json())


@app.command(epilog="Example: evenhand submit run.yaml --address http://127.0.0.1:8265")
def submit(
    config: ConfigFile = None,
    manifest: ManifestFlag = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    run: RunFlag = None,
    assignments: SetFlag = None,
    job: Annotated[Literal["debias", "audit", "evaluate"], typer.Option(help="Which job.")] = "debias",
    schedule: ScheduleFlag = None,
    tick: TickFlag = None,
    address: Annotated[str | None, typer.Option(envvar="RAY_ADDRESS", help="The cluster's dashboard.")] = None,
    submission_id: Annotated[str | None, typer.Option(help="Idempotency key: a job of this id is followed.")] = None,
    python: Annotated[str, typer.Option(help="The interpreter on the cluster.")] = "python",
) -> None:
    """Submit a job to a Ray cluster, follow it, and end with the driver's own exit code.

    What an audit compares with is given as `--set audit.base=...`, `audit.operator` or `audit.against`. Of an
    evaluation the edit set is the manifest, and its strengths are `--set evaluate.lam=[0.1,1]`.
    """
    flags = {"manifest": manifest, "model": model, "classifier": classifier, "output": output, "run": run}
    settings = read_config(config, assignments, **flags)
    from jobs.cluster import submit as submission

    if not address or not address.startswith("http"):
        raise ClusterError(
            "give --address http://host:8265 (or RAY_ADDRESS); `evenhand local env` says it for this machine"
        )
    check_tick(schedule, tick)
    if schedule is not None and job != "audit":
        raise ConfigError("--schedule is of audits: add --job audit")
    given = {"--schedule": schedule, "--tick": tick}
    code = submission.submit(
        settings,
        address,
        Console(),
        command=job,
        arguments=[f"{flag}={value}" for flag, value in given.items() if value is not None],
        submission_id=submission_id,
        python=python,
    )
    raise typer.Exit(code)


@app.command(epilog="Example: evenhand demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Where report.json and report.html are copied to.")] = Path("out/demo"),
    keep_running: Annotated[bool, typer.Option("--keep-running", help="Leave the embedded servers up.")] = False,
    assignments: SetFlag = None,
) -> None:
    """Run the main job on the embedded cluster with the demo model; ends well on any verdict, and prints it."""
    from jobs.cli.demo import run_demo

    raise typer.Exit(run_demo(out, Console(), keep_running=keep_running, assignments=assignments or ()))
