"""The `evenhand local` commands. `status` and `env` end with the cluster's exit code where it is not up."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra import local
from infra.local.cluster import CONFLICTING
from jobs.errors import ClusterError, ConfigError, ExitCode

__all__ = ["app"]

app = typer.Typer(name="local", help="An S3 server and a one-node Ray on this machine.", no_args_is_help=True)
_console = Console()


@app.command()
def up(
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs that Ray hands out. Default: all.")] = None,
    bucket: Annotated[str, typer.Option(help="The bucket to have; made if missing.")] = "evenhand",
) -> None:
    """Start the embedded cluster, or repair it. Its home is EVENHAND_HOME, or ./.evenhand.

    Example: evenhand local up --cpus 4
    """
    with Console(stderr=True).status("Starting the S3 server and Ray ..."):
        cluster = local.up(num_cpus=cpus, bucket=bucket)
    _console.print("[green]The cluster is up.[/green]")
    _show(cluster)
    _console.print(
        '\nNext, in this shell:\n  eval "$(evenhand local env)"\n  evenhand submit run.yaml',
        markup=False,
        highlight=False,
    )


@app.command()
def down() -> None:
    """Stop the embedded cluster and all its jobs; the store's data stays."""
    ran = local.down()
    _console.print("Stopped; the data is kept." if ran else "Nothing was running.")
    _console.print("Start again: evenhand local up. Delete the data: evenhand local wipe --yes")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Ask both servers. Exits 0 when the cluster is up and 8 when it is not."""
    state = local.status()
    if as_json:
        fields = dataclasses.asdict(state) | {"up": state.is_up}
        _console.print_json(json.dumps(fields, default=str))
    else:
        colour = "green" if state.is_up else "yellow"
        _console.print(f"[{colour}]{'up' if state.is_up else 'not up'}[/{colour}]")
        _console.print(f"  store   {escape(state.store)}\n  ray     {escape(state.ray)}", highlight=False)
        if state.cluster:
            _show(state.cluster)
        else:
            _console.print("Start or repair it: evenhand local up")
    raise typer.Exit(int(ExitCode.DONE if state.is_up else ExitCode.CLUSTER))


@app.command()
def env() -> None:
    """Print the shell commands that point AWS and Ray clients at the cluster.

    Example: eval "$(evenhand local env)"
    """
    state = local.status()
    if state.cluster is None:
        raise ClusterError(f"the cluster at {state.home} is not up. Start it: evenhand local up")
    typer.echo(f"unset {' '.join(CONFLICTING)}")
    for name, value in state.cluster.environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def wipe(yes: Annotated[bool, typer.Option("--yes", help="Really.")] = False) -> None:
    """Delete the store's data; the cluster must be down."""
    if not yes:
        raise ConfigError("this deletes all objects in the embedded store. To do it: evenhand local wipe --yes")
    local.wipe()
    _console.print("The store's data is deleted. Start again: evenhand local up")


def _show(cluster: local.LocalCluster) -> None:
    for name, value in (
        ("home", cluster.home),
        ("bucket", cluster.url),
        ("S3", cluster.s3_endpoint),
        ("Ray", cluster.dashboard_url),
    ):
        _console.print(f"  {name:7} {value}", markup=False, highlight=False, soft_wrap=True)
