"""The commands that keep: a model in the store, a run at a tracking server."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from jobs.config import MlflowConfig
from jobs.errors import ConfigError

__all__ = ["app"]

app = typer.Typer()


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
    from jobs.models.offline import publish_model

    done = publish_model(model, target, pipeline=not classifier, layout=layout)
    Console().print(
        f"{done.url}: {done.files} files, {done.size / 1e9:.2f} GB, content {done.digest}",
        highlight=False,
        soft_wrap=True,
    )


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
