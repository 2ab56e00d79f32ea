"""Errors that cross Ray: what a worker or a task raised, not the traceback that Ray wraps it in."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayTaskError

__all__ = ["fetch", "raised_there"]


def raised_there(error: RayTaskError) -> Exception:
    """The exception that the remote code itself raised."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def fetch(references: Any) -> Any:
    """`ray.get`, with errors as they were raised."""
    try:
        return ray.get(references)
    except RayTaskError as error:
        raise raised_there(error) from error
