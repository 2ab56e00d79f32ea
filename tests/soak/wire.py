"""The proxy of the soak: it does what the list says to requests and shards, and keeps a ledger of what it saw.

with SoakProxy(server.endpoint, damage) as proxy:
    proxy.begin(prefix)
    proxy.strike.append("cut_answer")      # the next request's answer is cut off
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from infra.storage.s3_upload import SHA256
from tests import faults
from tests.soak.faults import Kind

__all__ = ["Ledger", "SoakProxy"]


@dataclass
class Shard:
    """What became of one shard's key."""

    misses: int = 0
    """How often a worker looked for it and it was not there."""
    lost: int = 0
    """Likewise, after it had been stored."""
    digests: list[str] = field(default_factory=list)
    """Of each making that was stored; a write that was tried again counts once."""
    damaged: int = 0


@dataclass
class Ledger:
    """What one run's requests came to."""

    prefix: str
    shards: dict[str, Shard] = field(default_factory=dict)
    stored: int = 0
    """Shards that have been stored at least once."""
    since: int = 0
    """Requests since a shard was last stored for the first time."""
    requests: int = 0

    def holds(self) -> dict[str, str]:
        """Key of each shard stored -> digest of its bytes; without those that were ever damaged."""
        whole = {key: shard for key, shard in list(self.shards.items()) if shard.digests and not shard.damaged}
        return {key: shard.digests[-1] for key, shard in whole.items()}


class SoakProxy(faults.FaultyProxy):
    """Passes requests on, unless `strike` names what is to happen to the next one, or `tear` to the next shard.

    Args:
        upstream: the server.
        damage: does to a stored object of this key what a kind says, by a number in [0, 1).
    """

    def __init__(self, upstream: str, damage: Callable[[str, Kind, float], None]) -> None:
        super().__init__(upstream, every=0)
        self._damage = damage
        self.strike: deque[tuple[faults.Fault, float]] = deque()
        self.tear: deque[tuple[Kind, float]] = deque()
        self._full_until = 0.0
        self.ledger = Ledger("")

    def begin(self, prefix: str) -> Ledger:
        """Look at another run from now on."""
        with self._lock:
            self.ledger = Ledger(prefix)
            self.strike.clear()
            self.tear.clear()
        return self.ledger

    def fill(self, seconds: float) -> None:
        """Refuse writes for lack of room, for so long."""
        self._full_until = time.monotonic() + seconds

    def next_fault(self, command: str, path: str) -> faults.Fault | None:
        """See `FaultyProxy.next_fault`."""
        with self._lock:
            self.ledger.requests += 1
            self.ledger.since += 1
            if command == "PUT" and time.monotonic() < self._full_until:
                return "no_room"
            if not self.strike:
                return None
            fault, draw = self.strike.popleft()
            self.delay_s = 0.2 + 2 * draw
            return fault

    def answered(
        self, command: str, path: str, request: Mapping[str, str], status: int, answer: Mapping[str, str]
    ) -> None:
        """Note what became of a shard; and tear it, where that is due, before its writer is told that all is well."""
        _, found, key = path.partition(f"/{self.ledger.prefix}/shards/")
        if not found:
            return
        with self._lock:
            shard = self.ledger.shards.setdefault(f"shards/{key}", Shard())
            if command == "GET" and status == 404:
                shard.misses += 1
                shard.lost += bool(shard.digests)
            if command != "PUT" or status != 200:
                return
            digest = request[f"x-amz-meta-{SHA256}"]
            if not shard.digests:
                self.ledger.stored += 1
                self.ledger.since = 0
            if shard.digests[-1:] != [digest]:
                shard.digests.append(digest)
            due = self.tear.popleft() if self.tear else None
            shard.damaged += due is not None
        if due is not None:
            self._damage(f"{self.ledger.prefix}/shards/{key}", *due)
