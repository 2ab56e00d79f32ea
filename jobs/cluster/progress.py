"""Progress of a job: bars in a terminal, plain lines in a log, and machine-readable lines for `evenhand submit`.

A driver under Ray writes to a log, not to a terminal. With `EVENHAND_PROGRESS=json` it writes one line per update
behind `MARK`, and the follower draws the bar.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

__all__ = ["MARK", "Advance", "Counts", "Listener", "Reporter", "Stage", "bars", "update_bar"]

MARK = "@evenhand-progress "
_LINE_EVERY_S = 10.0
_MARK_EVERY_S = 0.5
# Shards of one call are told of in one burst, which must not be cut in two.
_BURST_S = 0.5
_SPAN_S = 5.0
# Long enough to smooth bursts, short enough to forget the loading of models.
_WINDOW_S = 120.0
_WINDOW_SPANS = 10


@dataclass(frozen=True)
class Counts:
    """What came of shards; the three counts of images do not overlap."""

    images_made: int = 0
    """Usable images made now."""
    images_reused: int = 0
    """Usable images found in the store."""
    images_failed: int = 0
    """Black, not finite or undecodable, made or found."""
    shards_done: int = 0
    shards_failed: int = 0
    """Given up; none of their images is counted above."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def images(self) -> int:
        """All images of the shards that are done."""
        return self.images_made + self.images_reused + self.images_failed


class Advance(Protocol):
    """Tells a stage that one shard has ended."""

    def __call__(
        self, images: int, reused: bool = False, failed_images: int = 0, *, shard_failed: bool = False
    ) -> None:
        """Count one shard.

        Args:
            images: how many it has.
            reused: it was found in the store, not made now.
            failed_images: how many of them are unusable.
            shard_failed: it was given up; its images are not done and never will be.
        """


class _Pace:
    """Images made per second over the last minutes.

    Images found in the store come a hundred times faster and say nothing of those still to be made. So time is cut
    into spans of some seconds, and a span in which images were only found counts neither way.
    """

    def __init__(self, now: float) -> None:
        self._spans: deque[tuple[float, int]] = deque()
        self._start = self._last = now
        self._made = 0
        self.per_s = 0.0
        """0 while none was made."""

    def add(self, now: float, made: int) -> None:
        """Note that a shard ended, with so many images made."""
        if now - self._last > _BURST_S and self._last - self._start >= _SPAN_S:
            if self._made:
                self._spans.append((self._last - self._start, self._made))
            self._start, self._made = self._last, 0
            # At least so many spans, as one round of slow workers may take longer than the window.
            while len(self._spans) > _WINDOW_SPANS and sum(s for s, _ in self._spans) - self._spans[0][0] > _WINDOW_S:
                self._spans.popleft()
        self._last = now
        self._made += made
        spans = [*self._spans, (now - self._start, self._made)] if self._made else self._spans
        # Kept, not worked out on demand: other threads read it.
        self.per_s = sum(m for _, m in spans) / max(sum(s for s, _ in spans), 1e-3) if spans else 0.0


class Stage:
    """One stage under way.

    Args:
        name: what people call it.
        total: images that it is to come to.
        clock: seconds, never going back.
    """

    def __init__(self, name: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.total = total
        self.state: Literal["running", "done", "stopped"] = "running"
        """`stopped`: it ended by an error, or with images missing that no failed shard explains."""
        self.counts = Counts()
        self.lost = 0
        """Images of shards that were given up."""
        self._clock = clock
        self._started = clock()
        self._pace = _Pace(self._started)

    def add(self, images: int, reused: bool = False, failed_images: int = 0, *, shard_failed: bool = False) -> Counts:
        """Count one shard, see `Advance`; returns what it adds to the counts."""
        if shard_failed:
            self.lost += images
            delta = Counts(shards_failed=1)
        else:
            usable = images - failed_images
            delta = Counts(0 if reused else usable, usable if reused else 0, failed_images, shards_done=1)
            self._pace.add(self._clock(), 0 if reused else images)
        self.counts += delta
        return delta

    def end(self, *, whole: bool) -> None:
        """No more shards come; `whole` is False after an error."""
        self.state = "done" if whole and self.done + self.lost >= self.total else "stopped"

    @property
    def done(self) -> int:
        """Images made or found so far."""
        return self.counts.images

    @property
    def rate(self) -> float:
        """Images made per second of late, those found in the store left out; 0 while none was made."""
        return self._pace.per_s

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return self._clock() - self._started

    @property
    def left_s(self) -> float | None:
        """Seconds still to go if all that is left must be made; None while there is nothing to tell from."""
        left = self.total - self.done - self.lost
        if left <= 0 or self.state != "running":
            return 0.0
        return left / self.rate if self.rate else None

    def facts(self) -> dict[str, Any]:
        """As run.json and the marked lines have it."""
        left = self.left_s
        return {
            "stage": self.name,
            "state": self.state,
            "total": self.total,
            "done": self.done,
            "reused": self.counts.images_reused,
            "given_up": self.lost,
            "per_s": round(self.rate, 2),
            "left_s": None if left is None else round(left, 1),
        }

    def line(self) -> str:
        """One line for people."""
        text = f"{self.name}: {self.done}/{self.total}"
        if self.state == "running":
            left = _duration(self.left_s)
            return f"{text}, {self.rate:.1f}/s, {left} left" if left else text
        notes = [f"stopped after {_duration(self.seconds)}" if self.state == "stopped" else _duration(self.seconds)]
        counted = {
            "found in the store": self.counts.images_reused,
            "unusable": self.counts.images_failed,
            "given up": self.lost,
        }
        return ", ".join([text, *notes, *(f"{count} {what}" for what, count in counted.items() if count)])


Listener = Callable[[Stage, Counts], None]
"""Called as a stage begins, after each shard with what that one added, and as the stage ends."""


def bars(console: Console) -> Progress:
    """The look of all our progress bars: what, how far, how fast, how long still."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        console=console,
    )


def update_bar(progress: Progress, task: TaskID, facts: Mapping[str, Any]) -> None:
    """Bring a bar up to `Stage.facts`, or to those of a marked line; it needs `rate=""` when it is added."""
    left = _duration(facts["left_s"])
    texts = {
        "running": f"{facts['per_s']:.1f}/s" + (f", {left} left" if left else ""),
        "done": f"done, {facts['given_up']} given up" if facts["given_up"] else "done",
        "stopped": "stopped",
    }
    progress.update(task, completed=facts["done"], total=facts["total"], rate=texts[facts["state"]])


class Reporter:
    """Shows stages, and hands each change to listeners (which keep run.json and the metrics true)."""

    def __init__(self, console: Console, *listeners: Listener) -> None:
        self._console = console
        self._listeners = listeners
        self._marked = os.environ.get("EVENHAND_PROGRESS") == "json"

    def say(self, text: str) -> None:
        """One line for people, whatever the medium."""
        self._console.print(text, markup=False, highlight=False)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """A stage of `total` images; yields the function to be called as each of its shards ends."""
        stage = Stage(name, total)
        with self._bar(stage) if self._console.is_terminal and not self._marked else self._lines(stage) as show:

            def advance(
                images: int, reused: bool = False, failed_images: int = 0, *, shard_failed: bool = False
            ) -> None:
                tell(stage.add(images, reused, failed_images, shard_failed=shard_failed))

            def tell(delta: Counts) -> None:
                for listener in self._listeners:
                    listener(stage, delta)
                show()

            whole = False
            tell(Counts())
            try:
                yield advance
                whole = True
            finally:
                stage.end(whole=whole)
                tell(Counts())

    @contextmanager
    def _bar(self, stage: Stage) -> Iterator[Callable[[], None]]:
        with bars(self._console) as progress:
            task = progress.add_task(stage.name, total=stage.total, rate="")
            yield lambda: update_bar(progress, task, stage.facts())

    @contextmanager
    def _lines(self, stage: Stage) -> Iterator[Callable[[], None]]:
        every = _MARK_EVERY_S if self._marked else _LINE_EVERY_S
        due = 0.0

        def show() -> None:
            nonlocal due
            if time.monotonic() < due and stage.state == "running":
                return
            due = time.monotonic() + every
            if self._marked:
                facts = stage.facts()
                fields = facts | {"rate": facts["per_s"]}
                self._console.print(MARK + json.dumps(fields), highlight=False, markup=False, soft_wrap=True)
            else:
                self.say(stage.line())

        yield show


def _duration(seconds: float | None) -> str:
    """As h:mm:ss; "" where it is not known."""
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
