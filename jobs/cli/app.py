"""The command line. Every command has `--help` with an example and ends in a documented exit code (`jobs.errors`).

What brings torch or Ray is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from infra.local.commands import app as local_app
from jobs.cluster.connect import guard
from jobs.config import WordingsConfig
from jobs.errors import ExitCode, exit_code_of
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
        from jobs.models.files import load_tokenizers
        from jobs.models.staging import stage
        from jobs.runs.inputs import prompt_checker

        with tempfile.TemporaryDirectory(prefix="evenhand-") as cache:
            folder = stage(model, StorageSettings.from_environment(), Path(cache), pipeline=True)
            checker = prompt_checker(load_tokenizers(folder), WordingsConfig().edit)
    code = check_manifest(file, name=str(file), labels=split_labels(labels), as_json=as_json, checker=checker)
    raise typer.Exit(code)


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its documented code."""
    signal.signal(signal.SIGTERM, _terminated)
    guard(next(iter(sys.argv[1:] if arguments is None else arguments), None))
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
