"""The seeded list of faults: what happens, and how far into a run. `fault_list(seed, count)` is the same each time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["KINDS", "LEASE_S", "OF_OBJECTS", "OF_REQUESTS", "Fault", "Kind", "fault_list"]

Kind = Literal[
    "slow_down",
    "delay",
    "cut_answer",
    "cut_request",
    "no_room",
    "torn",
    "flipped",
    "worker",
    "raylet",
    "driver",
    "store",
    "paused",
    "clock",
    "lease_time",
]
"""Of requests: answered 503, late, the answer or the request itself cut off; for a while no write finds room (507).
Of objects: a shard cut short, or one bit of it flipped. SIGKILL of a worker, a raylet, the driver, the store. A driver
stopped for longer than its lease while another one takes over, then woken. The drivers' clock steps. The lease's own
times are set far off."""
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_REQUESTS: tuple[Kind, ...] = ("slow_down", "delay", "cut_answer", "cut_request")
OF_OBJECTS: tuple[Kind, ...] = ("torn", "flipped")

LEASE_S = 3.0
"""Of the soak's drivers, instead of 20 s: a dead one is taken over in seconds, and many can die."""

# Out of 100: what costs seconds of everybody's time is rarer, and still comes tens of times in a thousand.
_WEIGHTS: dict[Kind, int] = {
    "slow_down": 16,
    "delay": 15,
    "cut_answer": 16,
    "cut_request": 16,
    "no_room": 5,
    "torn": 7,
    "flipped": 7,
    "worker": 6,
    "raylet": 2,
    "driver": 3,
    "store": 2,
    "paused": 2,
    "clock": 2,
    "lease_time": 1,
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        number: its place in the whole list.
        kind: what happens.
        at: when, from 0 (nothing is stored yet) to 1 (shards are stored and read, and the report is written).
        draw: a number in [0, 1) for whatever else is left to chance: which victim, which bit, for how long.
    """

    number: int
    kind: Kind
    at: float
    draw: float


def fault_list(seed: int, count: int) -> list[Fault]:
    """So many faults, by the seed alone; a longer list begins with the shorter one."""
    chance = random.Random(f"evenhand soak {seed}")
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    return [Fault(i, chance.choices(kinds, weights)[0], chance.random(), chance.random()) for i in range(count)]
