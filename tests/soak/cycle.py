"""One cycle: a run from its start to its end, with faults on the way, its command given again whenever it ended early.

result = Cycle(world, job, calm, faults).run()
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from infra.storage import ObjectChanged, ObjectMissing
from tests.soak.check import Finished, Verdict, compare, read_finished
from tests.soak.faults import LEASE_S, OF_OBJECTS, OF_REQUESTS, Fault, Kind
from tests.soak.wire import Ledger
from tests.soak.world import Driver, Job, World

__all__ = ["Calm", "Cycle", "Result", "run_calmly"]

DONE = (0, 5, 6)
AGAIN = (4, 7, 8, 9, 130, 143)
_POLL_S, _RETRY_S = 0.02, 1.0
_LONGEST_S, _TAKEOVER_S = 1800, 60
_MAKING = 0.6
"""The share of faults that come while shards are being made; the others while they are read and the report written."""


@dataclass(frozen=True)
class Calm:
    """An undisturbed run of a job."""

    job: Job
    finished: Finished
    shards: int
    seconds: float


@dataclass
class Result:
    """What one cycle came to."""

    done: Counter[Kind] = field(default_factory=Counter)
    left: list[Fault] = field(default_factory=list)
    """Faults whose time never came, as the run was over."""
    codes: Counter[int] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    seconds: float = 0.0


def run_calmly(world: World, job: Job) -> Calm:
    """Run a job without any fault.

    Raises:
        RuntimeError: it did not end well.
    """
    mine = job.elsewhere()
    begun, ledger = time.monotonic(), world.proxy.begin(mine.prefix)
    driver = world.start(mine)
    driver.wait(_LONGEST_S)
    if driver.code not in DONE:
        raise RuntimeError(f"the calm run ended with {driver.code}:\n{driver.said()}")
    return Calm(job, read_finished(world.store(mine.prefix)), ledger.stored, time.monotonic() - begun)


class Cycle:
    """A job under faults.

    Args:
        world: where.
        calm: the same job, undisturbed.
        faults: what is to happen, in the list's order; they come in that of their times.
    """

    def __init__(self, world: World, calm: Calm, faults: Sequence[Fault]) -> None:
        self._world, self._calm, self._job = world, calm, calm.job.elsewhere()
        self._pending = deque(sorted(faults, key=self._due))
        self._waiting: list[tuple[float, Fault]] = []
        self._armed: list[Fault] = []
        self._others: list[Driver] = []
        self._snapshots: list[dict[str, str]] = []
        self._result = Result()

    def run(self) -> Result:
        """All of it."""
        begun = time.monotonic()
        self._ledger = self._world.proxy.begin(self._job.prefix)
        self._driver = self._world.start(self._job)
        try:
            self._go(begun)
            for other in self._others:
                self._ended(other, other.wait(_LONGEST_S))
            self._finish()
        finally:
            for driver in (self._driver, *self._others):
                driver.kill()
            self._world.clock.write_text("0", "utf-8")
        self._result.seconds = time.monotonic() - begun
        return self._result

    def _due(self, fault: Fault) -> float:
        """In shards stored while they are made, and from then on in requests."""
        return fault.at * self._calm.shards / _MAKING

    def _progress(self) -> float:
        ledger = self._ledger
        return ledger.stored + (ledger.since if ledger.stored >= self._calm.shards else 0)

    def _go(self, begun: float) -> None:
        while (code := self._driver.code) not in DONE:
            if time.monotonic() - begun > _LONGEST_S:
                raise TimeoutError(f"the run does not end:\n{self._driver.said()}")
            if code is not None:
                self._ended(self._driver, code)
                self._driver = self._world.start(self._job)
            self._strike()
            time.sleep(_POLL_S)
        self._ended(self._driver, code)

    def _ended(self, driver: Driver, code: int) -> None:
        self._result.codes[code] += 1
        if code not in (*DONE, *AGAIN, -signal.SIGKILL):
            self._result.verdict.wrong.append(f"a driver ended with {code}: {driver.said()}")

    def _strike(self) -> None:
        """Let the next fault happen whose time has come; one that finds no victim waits a little."""
        now = time.monotonic()
        tried = [pair for pair in self._waiting if pair[0] <= now][:1]
        if tried:
            self._waiting.remove(tried[0])
            fault = tried[0][1]
        elif self._pending and self._due(self._pending[0]) <= self._progress():
            fault = self._pending.popleft()
        else:
            return
        if self._inject(fault):
            self._result.done[fault.kind] += 1
            self._snapshots.append(self._ledger.holds())
        else:
            self._waiting.append((now + _RETRY_S, fault))

    def _inject(self, fault: Fault) -> bool:
        world, proxy = self._world, self._world.proxy
        if fault.kind in OF_REQUESTS:
            self._armed.append(fault)
            proxy.strike.append((fault.kind, fault.draw))  # type: ignore[arg-type]
            return True
        if fault.kind in OF_OBJECTS:
            return self._damage(fault)
        acts: dict[Kind, Callable[[float], bool | None]] = {
            "no_room": world.no_room,
            "worker": world.kill_worker,
            "raylet": world.kill_raylet,
            "store": world.restart_store,
            "driver": self._kill_driver,
            "paused": self._pause,
            "clock": self._step_clock,
            "lease_time": self._move_lease,
        }
        return acts[fault.kind](fault.draw) is not False

    def _damage(self, fault: Fault) -> bool:
        """The next shard that is stored, before its writer hears of it; or one that lies there."""
        if self._ledger.stored < self._calm.shards and fault.draw < 0.5:
            self._armed.append(fault)
            self._world.proxy.tear.append((fault.kind, fault.draw))
            return True
        held = sorted(self._ledger.holds())
        if not held:
            return False
        key = held[int(fault.draw * len(held))]
        self._ledger.shards[key].damaged += 1
        self._world.damage(f"{self._job.prefix}/{key}", fault.kind, fault.draw)
        return True

    def _kill_driver(self, _: float) -> None:
        self._driver.kill()
        self._ended(self._driver, -signal.SIGKILL)
        self._driver = self._world.start(self._job)

    def _pause(self, draw: float) -> None:
        """SIGSTOP, until another driver has the lease and has had it for a while; then both go on."""
        first, world = self._driver, self._world
        before = self._holder()
        first.send(signal.SIGSTOP)
        self._driver = world.start(self._job)
        deadline = time.monotonic() + _TAKEOVER_S
        while self._driver.code is None and self._holder() in (before, None) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(LEASE_S * draw)
        first.send(signal.SIGCONT)
        self._others.append(first)

    def _holder(self) -> str | None:
        record = self._world.holder(self._job.prefix)
        return None if record is None else str(json.loads(record)["holder"])

    def _step_clock(self, draw: float) -> None:
        """From two days back to two days ahead."""
        self._world.clock.write_text(str(round((draw - 0.5) * 4 * 86400)), "utf-8")

    def _move_lease(self, draw: float) -> bool:
        """What the lease's object says of times becomes wrong by days."""
        store = self._world.store(self._job.prefix)
        try:
            data, tag = store.get_tagged("runs/r/LEASE")
            record = json.loads(data)
            moment = datetime.now(UTC) + timedelta(days=(draw - 0.5) * 40)
            record |= {"acquired": moment.isoformat(), "expires": moment.isoformat()}
            store.put("runs/r/LEASE", json.dumps(record).encode(), if_match=tag)
        except (ObjectMissing, ObjectChanged):
            return False
        return True

    def _finish(self) -> None:
        """Mend what was damaged after it had been read, as the same command does; then look at everything."""
        store, ledger, result = self._world.store(self._job.prefix), self._ledger, self._result
        still = {*self._world.proxy.strike, *self._world.proxy.tear}
        unspent = [fault for fault in self._armed if (fault.kind, fault.draw) in still]
        result.done -= Counter(fault.kind for fault in unspent)
        result.left = [*self._pending, *(fault for _, fault in self._waiting), *unspent]
        self._world.proxy.strike.clear()
        self._world.proxy.tear.clear()
        wrong = result.verdict.wrong
        first = read_finished(store)
        verdict = compare(self._calm.finished, first, ledger)
        if any(shard.damaged for shard in ledger.shards.values()):
            self._driver = self._world.start(self._job)
            self._ended(self._driver, self._driver.wait(_LONGEST_S))
            # What was damaged after it had last been read is the one difference that the first time may have.
            unmended = [what for what in verdict.wrong if not what.startswith("shards differ")]
            verdict = compare(self._calm.finished, read_finished(store), ledger)
            verdict.wrong += [what for what in unmended if what not in verdict.wrong]
        verdict.wrong += wrong + self._touched(ledger)
        result.verdict = verdict

    def _touched(self, ledger: Ledger) -> list[str]:
        """Shards that were stored at a fault, are other bytes now, and were no two workers' at once."""
        now = {key: shard for key, shard in ledger.shards.items() if not shard.damaged}
        changed = {
            key
            for before in self._snapshots
            for key, digest in before.items()
            if key in now and now[key].digests[-1] != digest and now[key].misses < 2
        }
        return [f"{key} was stored before a fault and made again" for key in sorted(changed)]
