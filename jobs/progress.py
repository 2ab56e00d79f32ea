"""Progress of a job: bars in a terminal, plain lines in a log, and machine-readable lines for `evenhand submit`.

A driver under Ray writes to a log, not to a terminal. With `EVENHAND_PROGRESS=json` it writes one line per update
behind `MARK`, and the follower draws the bar.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["MARK", "Reporter", "Stage", "bars"]

MARK = "@evenhand-progress "
_LINE_EVERY_S = 10.0
_MARK_EVERY_S = 0.5


def bars(console: Console) -> Progress:
    """The look of all our progress bars: what, how far, how fast, how long still."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )


@dataclass
class Stage:
    """One stage under way."""

    name: str
    total: int
    done: int = 0
    started: float = 0.0

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.done / max(time.monotonic() - self.started, 1e-9)


class Reporter:
    """Shows stages, and hands each change to a listener (which keeps run.json true)."""

    def __init__(self, console: Console, listener: Callable[[Stage], None] | None = None) -> None:
        self._console = console
        self._listener = listener
        self._marked = os.environ.get("EVENHAND_PROGRESS") == "json"

    def say(self, text: str) -> None:
        """One line for people, whatever the medium."""
        self._console.print(text, highlight=False)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A stage of `total` units; yields the function that adds to those done."""
        stage = Stage(name, total, started=time.monotonic())
        if self._marked or not self._console.is_terminal:
            with self._lines(stage) as advance:
                yield advance
            return
        with bars(self._console) as progress:
            task: TaskID = progress.add_task(name, total=total, rate="")

            def advance(units: int) -> None:
                stage.done += units
                progress.update(task, completed=stage.done, rate=f"{stage.rate:.1f}/s")
                self._tell(stage)

            yield advance

    @contextmanager
    def _lines(self, stage: Stage) -> Iterator[Callable[[int], None]]:
        every = _MARK_EVERY_S if self._marked else _LINE_EVERY_S
        last = 0.0

        def write() -> None:
            if self._marked:
                fields = {"stage": stage.name, "done": stage.done, "total": stage.total, "rate": round(stage.rate, 2)}
                self._console.print(MARK + json.dumps(fields), highlight=False, markup=False, soft_wrap=True)
            else:
                left = (stage.total - stage.done) / stage.rate if stage.done else float("nan")
                self.say(f"{stage.name}: {stage.done}/{stage.total}, {stage.rate:.1f}/s, {left:.0f} s left")

        def advance(units: int) -> None:
            nonlocal last
            stage.done += units
            self._tell(stage)
            if time.monotonic() - last >= every:
                last = time.monotonic()
                write()

        write()
        yield advance
        write()

    def _tell(self, stage: Stage) -> None:
        if self._listener:
            self._listener(stage)
