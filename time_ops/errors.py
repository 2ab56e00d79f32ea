"""The two ways an edit can fail for reasons that its user can mend. Both are `ValueError` and both pickle."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["EditError", "ModelError"]


class EditError(ValueError):
    """An edit, a prompt, a strength or an operator file to be mended; the message names every bad one at once."""

    @classmethod
    def listing(cls, what: str, faults: Sequence[str]) -> EditError:
        """One error for several faults, each on a line of its own."""
        return cls("\n  - ".join([what, *faults]))


class ModelError(ValueError):
    """A model that can't be edited or encoded, with the reason."""

    @classmethod
    def listing(cls, what: str, faults: Sequence[str]) -> ModelError:
        """One error for several reasons, each on a line of its own."""
        return cls("\n  - ".join([what, *faults]))
