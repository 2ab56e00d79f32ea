"""The command line. Every command has `--help` with an example and ends in a documented exit code (`jobs.errors`).

What brings torch or Ray is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from infra.local.commands import app as local_app
from jobs.config import MlflowConfig, RunConfig, WordingsConfig, load_config, read_text
from jobs.errors import ClusterError, ConfigError, ExitCode, exit_code_of
from jobs.redact import redact
from manifests.commands import build, check_manifest, split_labels

__all__ = ["app", "main"]

app = typer.Typer(
    name="evenhand",
    help="Debias text-to-image models: calibrated closed-form edits, audited with honest statistics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done and gates pass; 1 internal error; 2 input; 3 model; 4 storage; 5 gate failed; "
    "6 gate inconclusive; 7 some shards failed; 8 cluster; 9 another driver has the run; 130, 143 interrupted.",
)
app.add_typer(local_app, name="local")
manifest_app = typer.Typer(name="manifest", help="Check and build manifests.", no_args_is_help=True)
manifest_app.command("build", epilog="Example: evenhand manifest build professions.csv professions.parquet")(build)
app.add_typer(manifest_app, name="manifest")

# What `_connect` is called by.
_ON_RAY = ("debias", "audit", "export", "evaluate", "doctor")

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


def _config(file: Path | None, assignments: Sequence[str] | None, **flags: Any) -> RunConfig:
    text = None if file is None else read_text(file)
    return load_config(text, name=str(file) if file else "configuration", flags=flags, assignments=assignments or ())


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
    settings = _config(config, assignments, **flags)
    console = Console(stderr=as_json)
    from jobs.debias import debias as debias_job
    from jobs.sinks.mlflow import check_sink, sink

    check_sink(settings.mlflow)
    _connect()
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
    settings = _config(config, assignments, **flags, audit=compared or None)
    console = Console(stderr=as_json)
    from jobs.sinks.mlflow import check_sink, sink

    check_sink(settings.mlflow)
    _check_tick(schedule, tick)
    if schedule is not None:
        from jobs.scheduling.job import scheduled_audit

        ticked = scheduled_audit(settings, console, schedule=schedule, tick=tick, connect=_connect)
        if ticked.outcome is not None:
            sink(settings.mlflow, ticked.outcome.url, console)
        if as_json:
            typer.echo(ticked.entry.model_dump_json())
        raise typer.Exit(ticked.code)
    from jobs.audit import audit as audit_job

    _connect()
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
    only_unet: Annotated[bool, typer.Option("--only-unet", help="Of a diffusers folder: unet/ alone.")] = False,
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
    _connect()
    found, code = export_job(settings, earlier, wanted, Console(stderr=as_json))
    if as_json:
        typer.echo(f"[{','.join(each.model_dump_json() for each in found)}]")
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
    settings = _config(config, assignments, **flags, evaluate={"lam": lam} if lam else None)
    console = Console(stderr=as_json)
    from jobs.evaluate import evaluate as evaluate_job

    _connect()
    found = evaluate_job(settings, console)
    if as_json:
        typer.echo(found.report.model_dump_json())


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
    settings = _config(config, assignments, **flags)
    from jobs.cluster import submit as submission

    if not address or not address.startswith("http"):
        raise ClusterError(
            "give --address http://host:8265 (or RAY_ADDRESS); `evenhand local env` says it for this machine"
        )
    _check_tick(schedule, tick)
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
    settings = _config(config, assignments, **flags)
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise ConfigError(f"--rate {rate}: give images/s of one worker, more than 0")
    from jobs.planning.plan import make_plan
    from jobs.planning.text import plan_text

    found = make_plan(settings, rate=rate, workers=workers)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        Console().print(plan_text(found))


@app.command(epilog="Example: evenhand doctor run.yaml")
def doctor(
    config: ConfigFile = None,
    manifest: ManifestFlag = None,
    model: ModelFlag = None,
    classifier: ClassifierFlag = None,
    output: OutputFlag = None,
    assignments: SetFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="All findings as one JSON object.")] = False,
) -> None:
    """Try what a job will need: manifest, models, store, cluster. One table says what is wrong and how to mend it.

    Without a CONFIG, what is not given is passed over. Writes a few small objects below the output and deletes them
    again. Ends with 0, or the first of 2 input, 3 model, 4 storage, 8 cluster that has a fault; warnings don't count.
    """
    flags = {"manifest": manifest, "model": model, "classifier": classifier, "output": output}
    from jobs.doctor.models import UNGIVEN

    if config is None:
        text = "".join(f"{key}: '{UNGIVEN}'\n" for key in flags)
        settings = load_config(text, flags=flags, assignments=assignments or ())
    else:
        settings = _config(config, assignments, **flags)
    from jobs.doctor.examine import examine
    from jobs.doctor.text import diagnosis_text

    found = examine(settings, _connect)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        Console().print(diagnosis_text(found))
    raise typer.Exit(found.exit_code)


@app.command(epilog="Example: evenhand stage CompVis/stable-diffusion-v1-4 s3://bucket/models/sd14")
def stage(
    model: Annotated[str, typer.Argument(help="Hub id (name or name@revision), folder, s3:// prefix or single file.")],
    target: Annotated[str, typer.Argument(help="s3://bucket/prefix or a folder; whatever else is in it is deleted.")],
    classifier: Annotated[bool, typer.Option("--classifier", help="A classifier, not a pipeline.")] = False,
    layout: Annotated[
        str | None, typer.Option(help="Of a single file: a diffusers model of the same kind, as model_layout.")
    ] = None,
) -> None:
    """Keep a model under a prefix of the object store, whole, with checksums, for clusters without internet.

    Done again it sends what is missing. Then `--model s3://bucket/prefix` is all that a run needs; see docs/offline.md.
    """
    from jobs.models.offline import stage_to

    done = stage_to(model, target, pipeline=not classifier, layout=layout)
    Console().print(
        f"{done.url}: {done.files} files, {done.size / 1e9:.2f} GB, content {done.digest}",
        highlight=False,
        soft_wrap=True,
    )


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
    from jobs.runs.redraw import redraw

    redraw(run, out, Console())


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


@app.command(epilog="Example: evenhand mlflow s3://bucket/prefix/runs/NAME --tracking-uri http://mlflow:5000")
def mlflow(
    run: Annotated[str, typer.Argument(help="URL or path of a finished run's folder.")],
    tracking_uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", show_envvar=True, help="The tracking server.")
    ],
    experiment: Annotated[str, typer.Option(help="The experiment's name.")] = "evenhand",
) -> None:
    """Log a finished run to an MLflow tracking server; one that is there already is completed, not doubled."""
    from jobs.sinks.mlflow import log_run

    if not tracking_uri.strip() or not 0 < len(experiment.strip()) <= 500:
        raise ConfigError("give --tracking-uri http(s)://host:port, and --experiment a name of at most 500 characters")
    page = log_run(run, MlflowConfig(tracking_uri=tracking_uri, experiment=experiment))
    Console().print(page, highlight=False, soft_wrap=True)


@app.command(epilog="Example: evenhand demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Where report.json and report.html are copied to.")] = Path("out/demo"),
    keep_running: Annotated[bool, typer.Option("--keep-running", help="Leave the embedded servers up.")] = False,
    assignments: SetFlag = None,
) -> None:
    """Run the main job on the embedded cluster with the demo model; ends well on any verdict, and prints it."""
    from jobs.cli.demo import run_demo

    raise typer.Exit(run_demo(out, Console(), keep_running=keep_running, assignments=assignments or ()))


@manifest_app.command("check", epilog="Example: evenhand manifest check professions.csv --model ./model")
def check(
    file: Annotated[Path, typer.Argument(help="Parquet or CSV.")],
    labels: Annotated[str | None, typer.Option(help="The attribute's labels, separated by commas.")] = None,
    model: Annotated[str | None, typer.Option(help="Also check lengths and alignment with its tokenizer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
) -> None:
    """Check a manifest and report every fault at once. Exit code 0, or 2 if there is something to mend."""
    checker = None
    # A file that is not there needs no model to say so.
    if model and file.is_file():
        from infra.storage import StorageSettings
        from jobs.models.staging import load_tokenizers, stage
        from jobs.runs.inputs import prompt_checker

        with tempfile.TemporaryDirectory(prefix="evenhand-") as cache:
            folder = stage(model, StorageSettings.from_environment(), Path(cache), pipeline=True)
            checker = prompt_checker(load_tokenizers(folder), WordingsConfig().edit)
    code = check_manifest(file, name=str(file), labels=split_labels(labels), as_json=as_json, checker=checker)
    raise typer.Exit(code)


def _check_tick(schedule: str | None, tick: str | None) -> None:
    if tick is not None and schedule is None:
        raise ConfigError("--tick is of a series: add --schedule NAME")


def _connect() -> None:
    """Join the cluster this process belongs to; start a local one where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address.startswith("http"):
        raise ClusterError(
            f"RAY_ADDRESS is a dashboard ({address}); use `evenhand submit`, or unset it to run on this machine"
        )
    if not address:
        # Left open, the mode would make Ray write a token for later clusters. See `_guard`.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options |= {"include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster: {error}; start one with `evenhand local up`") from error


def _guard(command: str | None) -> None:
    """Let a Ray of the command's own ask for a token, which this process and its children alone have.

    It has to be said before Ray is imported; and not where a Ray is joined, of this environment or of this machine.
    """
    here = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")  # noqa: S108 - Ray's own place
    joins = bool(os.environ.get("RAY_ADDRESS")) or here.exists()
    if command in _ON_RAY and not joins and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its documented code."""
    signal.signal(signal.SIGTERM, _terminated)
    _guard(next(iter(sys.argv[1:] if arguments is None else arguments), None))
    # Libraries' advice to their own users says nothing to ours; their errors still come through.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("ray").setLevel(logging.ERROR)
    errors = Console(stderr=True)
    run: Callable[..., Any] = typer.main.get_command(app)
    try:
        code = run(args=list(arguments) if arguments is not None else None, prog_name="evenhand", standalone_mode=False)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except (typer.Exit, SystemExit) as stop:
        code = stop.exit_code if isinstance(stop, typer.Exit) else stop.code
    except Exception as error:  # noqa: BLE001 - the last resort of a process: every failure gets an exit code
        code = _explained(error, errors)
    if code == ExitCode.INTERRUPTED:
        errors.print("interrupted; the same command goes on from here. A submitted job is stopped by `ray job stop`")
    sys.stdout.flush()
    sys.exit(int(code or 0))


def _explained(error: Exception, console: Console) -> int:
    """A user's mistake in words; an internal error with its traceback."""
    show = getattr(error, "show", None)
    if callable(show) and hasattr(error, "exit_code"):
        show()
        return int(error.exit_code)
    code = exit_code_of(error)
    if code is None:
        # Not drawn by rich, which wraps lines: a secret in two pieces would not be found.
        text = redact("".join(traceback.format_exception(error)))
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return int(ExitCode.FAULT)
    console.print(redact(f"error: {error}"), style="red", markup=False, highlight=False, soft_wrap=True)
    return int(code)


if __name__ == "__main__":
    main()
