"""Which destination token stands for each source token.

Two alignments, both over token ids, articles taken as equal ("an" counts as "a"):

`published`
    The rule of TIME's public code. Source tokens, start and end marker included, are found in order inside the
    destination's, each at its first place after the one before. Behind the end marker the rest of the destination maps
    one to one, and source positions that are left over map to the last position. It is defined only where the source's
    tokens are a subsequence of the destination's.

`lcs`
    The same wherever the published rule is defined. Elsewhere a longest common subsequence of the two is matched, and a
    source token outside it maps to the last destination token before the next match: CLIP is causal, so that token has
    read all that stands in the source token's place.

T5 is not causal: what the destination adds reaches all its tokens, those before it and the padding too. So every
token's embedding moves, and the same correspondence holds. Its SentencePiece tokenizer has no start marker, and writes
"a" as two tokens and "an" as one: an article is aligned whole, its first token with the first, its last with the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from time_ops.errors import EditError

__all__ = ["Alignment", "align_prompts", "align_tokens", "token_ids"]

Alignment = Literal["published", "lcs"]
Positions = npt.NDArray[np.int64]


def token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Tokenize a prompt, with start and end marker, neither padded nor truncated.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the text.
    """
    # The length is ours to judge and to name, so the tokenizer's own warning about it is switched off.
    return [int(i) for i in tokenizer(prompt, truncation=False, padding=False, verbose=False)["input_ids"]]


def align_prompts(
    tokenizer: Any, source: str, destination: str, *, positions: int | None = None, alignment: Alignment = "published"
) -> Positions:
    """Destination position of each source position.

    Args:
        tokenizer: the text encoder's transformers tokenizer.
        source: source prompt, as encoded.
        destination: destination prompt, as encoded.
        positions: the encoder's number of positions n; the tokenizer's `model_max_length` by default.
        alignment: "published", or "lcs" for prompts that the published rule does not cover.

    Returns:
        int64 array [n]; source embedding i corresponds to destination embedding `result[i]`.

    Raises:
        EditError: a prompt is longer than n, or the published rule is undefined: the destination lacks or reorders
            words of the source. Both prompts and the words are named.
    """
    n = int(tokenizer.model_max_length) if positions is None else positions
    a, b = token_ids(tokenizer, source), token_ids(tokenizer, destination)
    faults = [f"{p!r} has {len(t)} tokens" for p, t in ((source, a), (destination, b)) if len(t) > n]
    if faults:
        raise EditError.listing(f"prompts are longer than the encoder's {n} positions:", faults)
    article = _Articles(tokenizer)
    first, second = article.merged(a), article.merged(b)
    aligned, missing = align_tokens([u.token for u in first], [u.token for u in second], n, alignment=alignment)
    aligned = _spread(aligned, first, second, n)
    if missing:
        known = {u.token for u in second}
        reordered = all(first[i].token in known for i in missing)
        missing = [place for i in missing for place in range(first[i].start, first[i].stop)]
        words = " ".join(repr(w) for w in _words(tokenizer, a, missing))
        raise EditError(
            f"source {source!r} can't be aligned with destination {destination!r}: the destination "
            f"{'has in another order' if reordered else 'lacks'} {words}. "
            'Write a destination that holds every word of the source in its order, or ask for alignment="lcs".'
        )
    return aligned


def align_tokens(
    source: Sequence[int], destination: Sequence[int], positions: int, *, alignment: Alignment = "published"
) -> tuple[Positions, list[int]]:
    """Align two token sequences, markers included, articles already merged.

    Args:
        source: source token ids, at most `positions`.
        destination: destination token ids, at most `positions`.
        positions: the encoder's number of positions n.
        alignment: the rule; see the module.

    Returns:
        The int64 array [n], and the indices of the source tokens that the published rule could not place (then the
        array is unusable); empty with "lcs".

    Raises:
        EditError: unknown rule.
    """
    if alignment not in get_args(Alignment):
        raise EditError(f"unknown alignment {alignment!r}: choose one of {', '.join(get_args(Alignment))}")
    placed, missing = _in_order(source, destination)
    if missing and alignment == "lcs":
        placed, missing = _longest_common(source, destination), []
    behind = placed[-1] + 1 if placed else 0
    placed.extend(range(behind, positions))
    placed.extend([positions - 1] * (positions - len(placed)))
    # A destination shorter than the source leaves the tail longer than the encoder: cut it, as positions end there.
    return np.asarray(placed[:positions], dtype=np.int64), missing


def _in_order(source: Sequence[int], destination: Sequence[int]) -> tuple[list[int], list[int]]:
    """First places of the source's tokens in the destination, and the indices of those that have none."""
    placed: list[int] = []
    missing: list[int] = []
    start = 0
    for i, token in enumerate(source):
        j = next((j for j in range(start, len(destination)) if destination[j] == token), None)
        if j is None:
            missing.append(i)
        else:
            placed.append(j)
            start = j + 1
    return placed, missing


def _longest_common(source: Sequence[int], destination: Sequence[int]) -> list[int]:
    """Places by a longest common subsequence; ties go to the earliest place in the destination."""
    m, k = len(source), len(destination)
    length = np.zeros((m + 1, k + 1), dtype=np.int64)
    for i in range(m - 1, -1, -1):
        for j in range(k - 1, -1, -1):
            same = source[i] == destination[j]
            length[i, j] = length[i + 1, j + 1] + 1 if same else max(length[i + 1, j], length[i, j + 1])
    matched: dict[int, int] = {}
    i = j = 0
    while i < m and j < k:
        if source[i] == destination[j]:
            matched[i] = j
            i, j = i + 1, j + 1
        elif length[i, j + 1] >= length[i + 1, j]:
            j += 1
        else:
            i += 1
    placed: list[int] = []
    following = k
    for i in range(m - 1, -1, -1):
        following = matched.get(i, following)
        placed.append(following if i in matched else max(following - 1, 0))
    return placed[::-1]


@dataclass(frozen=True)
class _Unit:
    """What is aligned as one: a token, or the tokens of an article; their places are [start, stop)."""

    token: int
    start: int
    stop: int


def _spread(aligned: Positions, source: Sequence[_Unit], destination: Sequence[_Unit], positions: int) -> Positions:
    """Positions of tokens, from those of units; behind the last unit one follows the other, as units do."""
    count, longer = len(destination), 0 if not destination else destination[-1].stop - len(destination)
    if longer == 0 and all(u.stop - u.start == 1 for u in source):
        return aligned
    last = positions - 1
    placed: list[int] = []
    for unit, at in zip(source, aligned.tolist(), strict=False):
        start, stop = (destination[at].start, destination[at].stop) if at < count else (at + longer, at + longer + 1)
        inner = range(unit.stop - unit.start)
        # First token with the first, and all others with the last but for those that have one of their own.
        placed += [min(start + i, stop - 1) if i < len(inner) - 1 else stop - 1 for i in inner]
    behind = placed[-1] + 1 if placed else 0
    placed.extend(range(behind, positions))
    placed.extend([last] * (positions - len(placed)))
    return np.minimum(np.asarray(placed[:positions], dtype=np.int64), last)


class _Articles:
    """Takes "an" for "a". As published, a token is an "an" if it decodes to that; pieces within words count too."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ids = token_ids(tokenizer, "a")
        around = [tokenizer.decode([i]).strip().lower() for i in ids]
        # CLIP's "a" stands between two markers, T5's in front of one; SentencePiece may write it as "▁", "a".
        inner = [i for i, text in zip(ids, around, strict=True) if text in ("a", "")]
        spelled = "".join(tokenizer.decode([i]).strip() for i in inner)
        # Where "a" is spelled by other tokens there is no article to merge into.
        self._article = tuple(inner) if inner and spelled == "a" else None

    def merged(self, ids: Sequence[int]) -> list[_Unit]:
        """Units of a prompt, markers included."""
        units: list[_Unit] = []
        at, article = 0, self._article
        while at < len(ids):
            length = 1
            token = ids[at]
            if article is not None:
                if tuple(ids[at : at + len(article)]) == article:
                    token, length = article[-1], len(article)
                elif self._tokenizer.decode([token]).strip() == "an":
                    token = article[-1]
            units.append(_Unit(token, at, at + length))
            at += length
        return units


def _words(tokenizer: Any, ids: Sequence[int], missing: Sequence[int]) -> list[str]:
    """Spell the missing tokens as text, neighbours joined, so that a split word reads as one."""
    runs: list[list[int]] = []
    for i in missing:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [str(tokenizer.decode([ids[i] for i in run])).strip() for run in runs]
