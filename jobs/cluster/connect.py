"""Joining a Ray cluster, or starting one of the command's own."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from jobs.errors import ClusterError

__all__ = ["connect", "guard"]

# What `connect` is called by.
_ON_RAY = ("debias", "audit", "export", "evaluate", "doctor")
_ANSWER_S = 2.0


def connect() -> None:
    """Join the cluster this process belongs to; start a local one where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address.startswith("http"):
        raise ClusterError(
            f"RAY_ADDRESS is a dashboard ({address}); use `evenhand submit`, or unset it to run on this machine"
        )
    if not address:
        # Left open, the mode would make Ray write a token for later clusters. See `guard`.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options |= {"include_dashboard": False}
        if not _is_here():
            # Else Ray waits for minutes for one that was killed: it goes by a file, which that one has left behind.
            options |= {"address": "local"}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster: {error}; start one with `evenhand local up`") from error


def guard(command: str | None) -> None:
    """Let a Ray of the command's own ask for a token, which this process and its children alone have.

    It has to be said before Ray is imported; and not where a Ray is joined, of this environment or of this machine.
    """
    joins = bool(os.environ.get("RAY_ADDRESS")) or _is_here()
    if command in _ON_RAY and not joins and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _is_here() -> bool:
    """Whether a Ray that was started on this machine answers; `ray.init` would join it."""
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")  # noqa: S108 - Ray's own place
    try:
        host, _, port = file.read_text(encoding="utf-8").strip().rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError):
        return False
    return True
