"""An edit that a worker solves where it draws: sent as some hundred bytes, where an operator is megabytes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EditRequest"]


@dataclass(frozen=True, slots=True)
class EditRequest:
    """All that decides an operator, the model's text encoder aside.

    Attributes:
        source: the prompt to be read anew.
        destination: as what.
        lam: how strongly; smaller is stronger.
        wordings: templates of the edit's prompts.
    """

    source: str
    destination: str
    lam: float
    wordings: tuple[str, ...]
