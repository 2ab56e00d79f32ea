"""A finished run on an MLflow tracking server: figures, settings, digests, report and operator.

evenhand mlflow s3://bucket/prefix/runs/run-0123456789abcdef --tracking-uri http://mlflow:5000

One MLflow run stands for one run of ours, found again by its tag: the same command again adds nothing. Only what a
finished run's COMPLETE names is read, so a server that is away costs no run; the command goes on where it failed.
MLflow's client is the extra `mlflow`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Console

from infra.storage import StorageError, StorageSettings
from jobs.config import MlflowConfig
from jobs.errors import ConfigError, ExitCode, JobError
from jobs.redact import redact, without_credentials
from jobs.report.figure_schema import DeltaFigure, RateFigure, ShareFigure
from jobs.report.formatting import finite, plain_text
from jobs.report.mixture_schema import ComponentReport
from jobs.report.schema import Report, VariantSummary
from jobs.runs.finished import FinishedRun, read_finished

__all__ = ["ARTIFACTS", "SinkError", "check_sink", "log_run", "metrics_of", "params_of", "sink"]

ARTIFACTS = ("report.html", "report.json", "junit.xml", "operator.safetensors", "mixture.safetensors")

_KEY = "evenhand.key"
# What one request of MLflow takes, and the longest value of a parameter.
_METRICS, _PARAMS, _PARAM_LENGTH = 1000, 100, 6000


class SinkError(JobError):
    """The tracking server can't be reached, or refuses."""

    code = ExitCode.STORAGE


def check_sink(config: MlflowConfig) -> None:
    """Before anything is spent: whether a run can be logged as configured, as far as this machine knows.

    Raises:
        ConfigError: MLflow's client is not installed, or the address is none.
    """
    if config.tracking_uri is None:
        return
    if find_spec("mlflow") is None:
        raise ConfigError(
            "mlflow.tracking_uri is set, but MLflow is not installed. In a checkout of Evenhand: "
            "pip install -c constraints.txt '.[mlflow]'"
        )
    parts = urlsplit(config.tracking_uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"mlflow.tracking_uri {without_credentials(config.tracking_uri)}: give the address of a tracking server, "
            "http(s)://host:port"
        )


def sink(config: MlflowConfig, url: str, console: Console) -> None:
    """Log a run that has just finished, where a server is configured; one that fails is told, and costs nothing.

    Args:
        config: where to.
        url: of the run's folder.
        console: for people.
    """
    if config.tracking_uri is None:
        return
    try:
        console.print(f"mlflow: {log_run(url, config)}", highlight=False, soft_wrap=True)
    except (JobError, StorageError) as error:
        text = f"the run is complete, but MLflow does not have it: {redact(str(error))}\nlater: evenhand mlflow {url}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def log_run(url: str, config: MlflowConfig) -> str:
    """Log a finished run, or complete what an earlier call began.

    Args:
        url: of the run's folder, `<output>/runs/NAME`.
        config: where to.

    Returns:
        Address of the MLflow run's page.

    Raises:
        ConfigError: there is no finished run, or see `check_sink`.
        SinkError: the server can't be reached or refuses.
        StorageError: the run can't be read.
    """
    if config.tracking_uri is None:
        raise ConfigError("give the tracking server: --tracking-uri http://host:5000, or mlflow.tracking_uri")
    check_sink(config)
    earlier = read_finished(url, StorageSettings.from_environment())
    # Only here: an extra that most runs do without, and seconds to import.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException

    # The client prints links to standard output, which is `--json`'s.
    with _credentials(config.tracking_uri) as address, redirect_stdout(sys.stderr):
        try:
            return _log_finished(earlier, address, config.experiment)
        except (MlflowException, OSError) as error:
            raise SinkError(f"{address}: {plain_text(str(error))[:1000]}") from error


def _log_finished(earlier: FinishedRun, address: str, experiment: str) -> str:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client, report = MlflowClient(address), earlier.report
    existing = client.get_experiment_by_name(experiment)
    if existing is not None and existing.lifecycle_stage != "active":
        raise SinkError(f"{address}: the experiment {experiment!r} is deleted there; restore it, or name another one")
    number = client.create_experiment(experiment) if existing is None else existing.experiment_id
    key = hashlib.sha256(f"{report.run}\0{earlier.evidence}".encode()).hexdigest()
    known = client.search_runs([number], filter_string=f"tags.`{_KEY}` = '{key}'", max_results=1)
    moment = _milliseconds(report.created)
    if known:
        run = known[0]
    else:
        started = moment - round(1000 * report.cost.wall_s)
        run = client.create_run(number, start_time=started, tags={_KEY: key}, run_name=report.run)
    run_id: str = run.info.run_id
    metrics = [Metric(name, value, moment, 0) for name, value in metrics_of(report).items()]
    params = [Param(k, v) for k, v in params_of(report, earlier.configuration).items() if k not in run.data.params]
    tags = [RunTag(name, value) for name, value in _tags(report).items()]
    for some in _batches(metrics, _METRICS):
        client.log_batch(run_id, metrics=some)
    for some in _batches(params, _PARAMS):
        client.log_batch(run_id, params=some)
    for some in _batches(tags, _PARAMS):
        client.log_batch(run_id, tags=some)
    with tempfile.TemporaryDirectory(prefix="evenhand-") as folder:
        for name in ARTIFACTS:
            if name in earlier.files:
                path = Path(folder) / name
                path.write_bytes(earlier.read(name))
                client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED", end_time=moment)
    return f"{address.rstrip('/')}/#/experiments/{number}/runs/{run_id}"


@contextmanager
def _credentials(uri: str) -> Iterator[str]:
    """The address without name and password; MLflow reads them where it puts them into no message."""
    parts = urlsplit(uri)
    given = {"MLFLOW_TRACKING_USERNAME": parts.username, "MLFLOW_TRACKING_PASSWORD": parts.password}
    before = {name: os.environ.get(name) for name in given}
    try:
        for name, value in given.items():
            if value is not None:
                os.environ[name] = unquote(value)
        yield without_credentials(uri)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def metrics_of(report: Report) -> dict[str, float]:
    """Every figure with its interval and n: `delta`, `delta_low`, `delta_high`, `delta_n` and so on.

    Of two variants the last one, which the gates read, goes without a prefix, the other one as `base.`. What has no
    value is left out. Of a mixture also each component's own rates, as `component.LABEL.own` and so on.
    """
    summary = report.summary
    metrics = _variant(summary.edited or summary.base, "")
    if summary.edited is not None:
        metrics |= _variant(summary.base, "base.")
    for each in () if report.mixture is None else report.mixture.components:
        metrics |= _component(each)
    for gate in report.gates:
        metrics |= _ends(f"gate.{_name(gate.name)}", gate.value, gate.low, gate.high)
    for name in ("wall_s", "worker_s", "images", "images_reused", "shards_failed"):
        metrics[f"cost.{name}"] = getattr(report.cost, name)
    return {name: float(known) for name, value in metrics.items() if (known := finite(value)) is not None}


def _variant(summary: VariantSummary, prefix: str) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for name in VariantSummary.model_fields:
        figure = getattr(summary, name)
        if isinstance(figure, DeltaFigure | RateFigure):
            metrics |= _ends(prefix + name, figure.value, figure.low, figure.high) | {f"{prefix}{name}_n": figure.n}
        elif isinstance(figure, float | int):
            metrics[prefix + name] = figure
    metrics |= _by_label(f"{prefix}explicit", summary.explicit_by_label)
    if summary.parity is not None:
        parity: dict[str, ShareFigure] = {"difference": summary.parity.difference, "ratio": summary.parity.ratio}
        for name, share in parity.items():
            metrics |= _ends(f"{prefix}parity_{name}", share.value, share.low, share.high)
    for name in ("delta", "delta_within"):
        metrics[f"{prefix}{name}_floor"] = getattr(summary, name).floor
    return metrics


def _component(component: ComponentReport) -> dict[str, float | None]:
    prefix = f"component.{_name(component.label)}"
    metrics: dict[str, float | None] = {f"{prefix}.weight": component.weight, f"{prefix}.images": component.images}
    for name in ("own", "explicit", "recognised", "controls", "undetermined"):
        metrics |= _rate(f"{prefix}.{name}", getattr(component, name))
    return metrics | _by_label(f"{prefix}.explicit", component.explicit_by_label)


def _by_label(prefix: str, rates: Mapping[str, RateFigure]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for label, rate in rates.items():
        metrics |= _rate(f"{prefix}.{_name(label)}", rate)
    return metrics


def _rate(name: str, rate: RateFigure) -> dict[str, float | None]:
    return _ends(name, rate.value, rate.low, rate.high) | {f"{name}_n": rate.n}


def _ends(name: str, value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def params_of(report: Report, configuration: Mapping[str, Any]) -> dict[str, str]:
    """Settings as run.json has them, the digests and versions of the report's provenance, and the form of the edit."""
    kept = ("model_digest", "classifier_digest", "manifest", "operator", "device", "versions")
    provenance = {f"provenance.{name}": report.provenance[name] for name in kept if name in report.provenance}
    sampler = report.provenance.get("sampler")
    if isinstance(sampler, dict) and "dtype" in sampler:
        provenance["provenance.dtype"] = sampler["dtype"]
    # How a run was worked off may differ when it goes on, and a parameter of MLflow stands for ever.
    settings = {k: v for k, v in configuration.items() if k not in ("workers", "storage", "mlflow", "schedule")}
    form: dict[str, Any] = {}
    if report.mixture is not None:
        known = report.mixture.model_dump(include={"digest", "route", "weights"})
        form = {
            "form": "mixture",
            "mixture": known | {"components": [each.label for each in report.mixture.components]},
        }
    elif report.provenance.get("operator") is not None:
        form = {"form": "single"}
    flat = _flat(settings) | _flat(provenance) | _flat(form)
    return {_name(name)[:250]: value[:_PARAM_LENGTH] for name, value in flat.items() if value}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _tags(report: Report) -> dict[str, str]:
    tags = {
        "evenhand.run": report.run,
        "evenhand.kind": report.kind,
        "evenhand.verdict": report.verdict,
        "evenhand.schema_version": str(report.schema_version),
        # What MLflow's page shows as the run's description.
        "mlflow.note.content": "\n\n".join(filter(None, (report.headline, report.sentence))),
    }
    if report.mixture is not None:
        tags["evenhand.form"] = "mixture"
    if report.reference is not None:
        tags["evenhand.reference"] = report.reference.run
    return tags | {f"evenhand.gate.{_name(gate.name)}": gate.outcome for gate in report.gates}


def _name(text: str) -> str:
    """A name as every MLflow store takes it: letters and digits of any script, a few signs, and a dot for any other."""
    return "".join(c if c.isalnum() or c in "_-. " else "." for c in text)


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _milliseconds(created: str) -> int:
    return round(1000 * datetime.fromisoformat(created).timestamp())
