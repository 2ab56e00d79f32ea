"""What the embedded cluster raises."""

from __future__ import annotations

__all__ = ["LocalError"]


class LocalError(RuntimeError):
    """The embedded cluster can't do what was asked; the message says why and what to do."""
