"""Run the soak and print what it came to: `python -m tests.soak --faults 1000 --seed 7`.

Ends with 1 if anything did not hold; the seed makes the same faults again.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tests.soak.cycle import Calm, Cycle, Result, run_calmly
from tests.soak.faults import KINDS, Fault, Kind, fault_list
from tests.soak.world import World

__all__ = ["Total", "main", "soak"]

_DEMO_EVERY, _DEMO_FAULTS = 6, 10


class Total:
    """What all cycles came to."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kinds: Counter[Kind] = Counter()
        self.codes: Counter[int] = Counter()
        self.cycles: Counter[str] = Counter()
        self.images = self.lost = self.doubled = self.twice = self.probes = 0
        self.seconds = 0.0
        self.wrong: list[str] = []

    def add(self, number: int, calm: Calm, result: Result) -> None:
        """Count a cycle, and tell of it."""
        self.kinds += result.done
        self.codes += result.codes
        self.cycles[calm.job.command] += 1
        self.images += sum(calm.finished.counted().values())
        self.lost += result.verdict.lost
        self.doubled += result.verdict.doubled
        self.twice += result.verdict.twice
        self.probes += result.verdict.probes
        self.wrong += [f"seed {self.seed}, cycle {number}: {what}" for what in result.verdict.wrong]
        codes = " ".join(f"{code}x{n}" for code, n in sorted(result.codes.items()))
        _say(
            f"cycle {number} ({calm.job.command}): {result.done.total()} faults in {result.seconds:.0f} s, "
            f"drivers ended {codes}; lost {result.verdict.lost}, doubled {result.verdict.doubled}"
        )
        for what in result.verdict.wrong:
            _say(f"  {what}")

    def table(self) -> str:
        """In markdown."""
        minutes = self.seconds / 60
        lines = ["| fault | times |", "|---|---|"]
        lines += [f"| {kind} | {self.kinds[kind]} |" for kind in KINDS]
        cycles = ", ".join(f"{n} of {command}" for command, n in sorted(self.cycles.items()))
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(self.codes.items()))
        lines += [
            "",
            f"{self.kinds.total()} faults, seed {self.seed}, in {minutes:.1f} minutes: "
            f"{self.kinds.total() / minutes:.0f} a minute. Runs: {cycles}. Drivers by exit code: {codes}.",
            f"{self.images:,} images: {self.lost} lost, {self.doubled} doubled. {self.twice} shards were two "
            f"workers' at once, {self.probes} probes were left by killed drivers. {len(self.wrong)} checks failed.",
        ]
        return "\n".join([*lines, *self.wrong])


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def soak(
    faults: list[Fault], seed: int, *, shards: int, per_cycle: int, demo: bool, minutes: float, folder: Path
) -> Total:
    """Let all faults happen, cycle by cycle; those whose run was over before their time come in the next one."""
    total = Total(seed)
    with World(folder) as world:
        calm = [run_calmly(world, world.noop_job(shards))]
        if demo:
            calm.append(run_calmly(world, world.demo_job()))
        _say(", ".join(f"calm {c.job.command}: {c.shards} shards in {c.seconds:.0f} s" for c in calm))
        begun, number, left = time.monotonic(), 0, list(faults)
        while left and total.seconds < 60 * minutes:
            number += 1
            small = demo and number % _DEMO_EVERY == _DEMO_EVERY // 2
            size = _DEMO_FAULTS if small else per_cycle
            now, left = left[:size], left[size:]
            try:
                result = Cycle(world, calm[small], now).run()
            except Exception as error:  # noqa: BLE001 - whatever it was, it is told, and the others go on
                total.wrong.append(f"seed {seed}, cycle {number}: {type(error).__name__}: {error}")
                _say(total.wrong[-1])
            else:
                left = [*result.left, *left]
                total.add(number, calm[small], result)
            total.seconds = time.monotonic() - begun
    return total


def main(
    faults: Annotated[int, typer.Option(help="How many in all.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the list of faults.")] = 0,
    shards: Annotated[int, typer.Option(help="No-op shards of a run.")] = 2000,
    per_cycle: Annotated[int, typer.Option(help="Faults of a run.")] = 40,
    minutes: Annotated[float, typer.Option(help="Begin no run after so many.")] = 600,
    demo: Annotated[bool, typer.Option(help="Every sixth run draws with the demo model.")] = True,
) -> None:
    """Soak the job in faults."""
    with tempfile.TemporaryDirectory(prefix="evenhand-soak-", ignore_cleanup_errors=True) as folder:
        total = soak(
            fault_list(seed, faults),
            seed,
            shards=shards,
            per_cycle=per_cycle,
            demo=demo,
            minutes=minutes,
            folder=Path(folder),
        )
    sys.stdout.write(total.table() + "\n")
    sys.stdout.flush()
    # Ray's library leaves threads behind that may outlive what they talk to.
    os._exit(1 if total.wrong else 0)


if __name__ == "__main__":
    typer.run(main)
