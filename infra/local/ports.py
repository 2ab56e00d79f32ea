"""Free loopback ports, the same ones as last time where possible.

Ray's workers take 10002-19999 by default and the system gives out 32768 upwards, so the embedded servers stay between.
SeaweedFS opens each port's twin, 10000 higher, for gRPC.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

from infra.local.errors import LocalError

__all__ = ["RAY_PORTS", "SEAWEED_PORTS", "WORKER_PORTS", "choose_ports", "is_free"]

SEAWEED_PORTS = ("s3", "master", "volume", "filer", "admin")
RAY_PORTS = (
    "gcs",
    "dashboard",
    "agent",
    "agent_grpc",
    "metrics",
    "node_manager",
    "object_manager",
    "runtime_env",
    "client",
    "autoscaler_metrics",
    "dashboard_metrics",
)
WORKER_PORTS = 200
"""Ports kept for Ray's workers: one block, whose first is the port `workers`."""

_SEAWEED_RANGE = range(20000, 22700)
_RAY_RANGE = range(23000, 29000)
_TWIN = 10000


def is_free(port: int) -> bool:
    """Return whether nothing listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def choose_ports(kind: str, last: Mapping[str, int], seed: int) -> dict[str, int]:
    """Choose the ports of one server.

    Args:
        kind: "seaweed" or "ray".
        last: the ports of last time, by name; reused if all are free.
        seed: where the search begins, so that two homes rarely meet.

    Raises:
        LocalError: too few ports are free.
    """
    if kind == "seaweed":
        return _choose(SEAWEED_PORTS, _SEAWEED_RANGE, last, seed, lambda port: is_free(port) and is_free(port + _TWIN))
    chosen = _choose(RAY_PORTS, _RAY_RANGE, last, seed, is_free)
    start = _RAY_RANGE.stop
    blocks = range(start, start + 1000, WORKER_PORTS)
    first = [last["workers"]] if last.get("workers") in blocks else []
    for block in [*first, *blocks[seed % len(blocks) :], *blocks]:
        if all(map(is_free, range(block, block + WORKER_PORTS))):
            return chosen | {"workers": block}
    raise LocalError("no block of free ports for Ray's workers between 29000 and 30000. Stop other local clusters.")


def _choose(
    names: Sequence[str], ports: range, last: Mapping[str, int], seed: int, free: Callable[[int], bool]
) -> dict[str, int]:
    if all(name in last and last[name] in ports and free(last[name]) for name in names):
        return {name: last[name] for name in names}
    turned = [*ports[seed % len(ports) :], *ports[: seed % len(ports)]]
    chosen: list[int] = []
    for port in turned:
        if free(port):
            chosen.append(port)
        if len(chosen) == len(names):
            return dict(zip(names, chosen, strict=True))
    raise LocalError(f"too few free ports between {ports.start} and {ports.stop}. Stop other local clusters.")
