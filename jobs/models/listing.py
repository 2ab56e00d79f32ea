"""Names in messages: a few of many, with the verb that fits."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

__all__ = ["are", "have", "lack", "some"]

_SHOWN = 4


def some(names: Collection[str]) -> str:
    """The first few, and how many more."""
    shown = ", ".join([*names][:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def are(names: Collection[str]) -> str:
    """The verb that follows these names."""
    return "is" if len(names) == 1 else "are"


def have(files: Collection[Path]) -> str:
    """The verb that follows these files."""
    return "has" if len(files) == 1 else "have"


def lack(files: Collection[Path]) -> str:
    """The verb that follows these files."""
    return "lacks" if len(files) == 1 else "lack"
