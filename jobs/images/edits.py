"""An edit of either form, one operator or a mixture, as the jobs handle it."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.images.shards import BASE
from jobs.images.variants import Part, Variant
from time_ops import EditOperator, Mixture

__all__ = ["Edit", "operators_of", "variant_of"]

Edit = EditOperator | Mixture
"""What was solved, of either form."""


def variant_of(edit: Edit | None) -> Variant:
    """What an edit draws; None: the base model."""
    if not isinstance(edit, Mixture):
        return Variant.plain(BASE if edit is None else edit.digest)
    parts = tuple(Part(c.label, BASE if c.is_identity else c.operator.digest) for c in edit.components)
    return Variant(edit.digest, parts, edit.table)


def operators_of(edit: Edit | None) -> Sequence[EditOperator]:
    """The operators that workers need in order to draw an edit's images."""
    if edit is None:
        return ()
    if isinstance(edit, Mixture):
        return tuple(c.operator for c in edit.components if not c.is_identity)
    return (edit,)
