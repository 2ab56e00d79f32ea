"""Prompts encoded into token rows: each distinct row once, and the places where it occurs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from time_ops.alignment import Alignment
from time_ops.encoding import Encoded, encode_checked
from time_ops.errors import EditError
from time_ops.prompts import DEFAULT_AUGMENTATIONS, PromptEdit, augment
from time_ops.rows import MASKED, Places, TokenRows

__all__ = ["encode_rows"]


def encode_rows(
    pipe: object,
    edits: Sequence[PromptEdit],
    preserved: Sequence[str] = (),
    *,
    augmentations: Sequence[str] = DEFAULT_AUGMENTATIONS,
    alignment: Alignment = "published",
    batch_size: int = 32,
) -> TokenRows:
    """What `encode_edits` and `encode_preserved` give, each distinct prompt encoded once and each token kept once.

    Args:
        pipe: as for `encode_edits`.
        edits: the edits; at least one.
        preserved: prompts that must keep their embeddings, as they will be drawn. Repeated ones are taken once.
        augmentations: as for `encode_edits`.
        alignment: as for `encode_edits`.
        batch_size: prompts encoded at a time.

    Raises:
        EditError: a prompt is too long or can't be aligned; all of them are named. Or there is no edit.
        ModelError: as for `encode_edits`.
    """
    if not edits:
        raise EditError("no edits to encode")
    templates, kept = tuple(augmentations), tuple(dict.fromkeys(preserved))
    encoded = encode_checked(pipe, edits, kept, augmentations=templates, alignment=alignment, batch_size=batch_size)
    numbered = _distinct(encoded.embeddings.numpy(), None if encoded.mask is None else encoded.mask.numpy())
    rows = _placed(numbered, encoded, edits, kept, templates, alignment, encoded.positions)
    if encoded.pooled is None:
        return rows
    only = np.zeros(1, np.int64)
    numbered = _distinct(encoded.pooled[:, None].numpy())
    return replace(rows, pooled=_placed(numbered, encoded, edits, kept, templates, alignment, lambda *_: only))


def _placed(
    numbered: tuple[npt.NDArray[np.float32], Places],
    encoded: Encoded,
    edits: Sequence[PromptEdit],
    kept: tuple[str, ...],
    templates: tuple[str, ...],
    alignment: Alignment,
    positions: Callable[[str, str], npt.ArrayLike],
) -> TokenRows:
    """Rows of the embeddings of one kind: distinct ones [u, d], and the number of each prompt's, [P, n]."""
    tokens, numbers = numbered
    rows = {prompt: numbers[place] for prompt, place in encoded.places.items()}
    sources, destinations = [], []
    for edit in edits:
        rendered = [augment(t, edit.source) for t in templates]
        sources.append(np.concatenate([rows[s] for s in rendered]))
        for name in edit.destinations:
            targets = [augment(t, name) for t in templates]
            aligned = [rows[d][np.asarray(positions(s, d))] for s, d in zip(rendered, targets, strict=True)]
            # Padding that is masked in the source takes no part, whatever stands in its place.
            destinations.append(np.where(sources[-1] == MASKED, MASKED, np.concatenate(aligned)))
    return TokenRows(
        tokens=tokens,
        edits=tuple(edits),
        sources=np.stack(sources),
        destinations=np.stack(destinations),
        preserved=kept,
        kept=np.stack([rows[p] for p in kept]) if kept else np.zeros((0, numbers.shape[1]), np.int32),
        augmentations=templates,
        alignment=alignment,
        encoder=encoded.encoder,
    )


def _distinct(
    embeddings: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.float32], Places]:
    """Distinct rows of [P, n, d]: [u, d], and the number of each row, [P, n]; where the mask is false, `MASKED`."""
    counted = np.ones(embeddings.shape[:2], bool) if mask is None else mask
    flat = np.ascontiguousarray(embeddings.reshape(-1, embeddings.shape[-1]) if mask is None else embeddings[mask])
    # By a digest, as the rows themselves would be held a second time as keys.
    seen: dict[bytes, int] = {}
    numbers = [seen.setdefault(hashlib.blake2b(row, digest_size=16).digest(), len(seen)) for row in flat]
    _, first = np.unique(numbers, return_index=True)
    places = np.full(embeddings.shape[:2], MASKED, np.int32)
    places[counted] = numbers
    return flat[first], cast(Places, places)
