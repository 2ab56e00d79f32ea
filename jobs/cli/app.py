"""The command line. Every command has `--help` with an example and ends in a documented exit code (`jobs.errors`).

What brings torch or Ray is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console

from jobs.cli import jobs, keeping, local, looking, manifest
from jobs.cluster.connect import guard
from jobs.errors import ExitCode, exit_code_of
from jobs.redact import redact

__all__ = ["app", "main"]

app = typer.Typer(
    name="evenhand",
    help="Debias text-to-image models: calibrated closed-form edits, audited with honest statistics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done and gates pass; 1 internal error; 2 input; 3 model; 4 storage; 5 gate failed; "
    "6 gate inconclusive; 7 some shards failed; 8 cluster; 9 another driver has the run; 130, 143 interrupted.",
)
for group in (jobs.app, looking.app, keeping.app):
    app.add_typer(group)
app.add_typer(manifest.app)
app.add_typer(local.app)


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its documented code."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
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
        code = _explain(error, errors)
    if code == ExitCode.INTERRUPTED:
        errors.print("interrupted; the same command goes on from here. A submitted job is stopped by `ray job stop`")
    sys.stdout.flush()
    sys.exit(int(code or 0))


def _explain(error: Exception, console: Console) -> int:
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
