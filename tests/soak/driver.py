"""One driver of the soak: the command itself, with a shorter lease, a clock that steps, and workers that cost nothing.

    python -m tests.soak.driver audit run.yaml       # no-op shards, whatever the configuration's model
    python -m tests.soak.driver debias run.yaml      # the job as it is
    python -m tests.soak.driver                      # forks such drivers, so that each starts without its imports

The wall clock that the lease and run.json read is ahead by what the file SOAK_CLOCK says, in seconds, at any moment.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import jobs.audit
import jobs.debias
import jobs.runs.folder
import jobs.runs.lease
import jobs.runs.run
from jobs.cli import main as cli
from tests.soak.absent import without
from tests.soak.faults import LEASE_S

__all__ = ["main", "seeded_worker"]


class SteppedClock(datetime):
    """The wall clock, ahead or behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """The time, and what the file says."""
        return datetime.now(tz) + timedelta(seconds=float(Path(os.environ["SOAK_CLOCK"]).read_text("utf-8") or 0))


def seeded_worker(*args: Any) -> object:
    """A `SeededWorker`, whose process does without the models' libraries."""
    without("diffusers", "transformers")
    from tests.soak.worker import SeededWorker

    return SeededWorker(*args)


def main(arguments: Sequence[str]) -> None:
    """Run the command and exit with its code."""
    jobs.runs.run.BEAT_S = LEASE_S / 4  # type: ignore[misc]
    jobs.runs.lease.datetime = jobs.runs.folder.datetime = SteppedClock  # type: ignore[attr-defined,misc]
    jobs.audit.make_worker = seeded_worker  # type: ignore[attr-defined]
    cli(arguments)


def serve() -> None:
    """Fork a driver for each line of standard input, as it comes.

    A line is JSON: `arguments`, and `log`, the file for its output. The answer is its pid; once it has ended, its code
    is in the file of the log's name and `.code`, negative for a signal.
    """
    logs: dict[int, str] = {}
    while True:
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], 0.05)
        if ready:
            line = sys.stdin.buffer.readline()
            if not line:
                for pid in logs:
                    os.kill(pid, signal.SIGKILL)
                return
            order = json.loads(line)
            pid = os.fork()
            if not pid:
                break
            logs[pid] = order["log"]
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
        while logs and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            beside = Path(f"{logs[ended[0]]}.new")
            beside.write_text(str(os.waitstatus_to_exitcode(ended[1])), "utf-8")
            beside.replace(f"{logs.pop(ended[0])}.code")
    out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    main(order["arguments"])


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1:])
    serve()
