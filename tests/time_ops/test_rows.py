from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from time_ops import EditError, PromptEdit, TokenPairs, encode_edits, encode_preserved, solve, solve_statistics
from time_ops.rows import TokenRows, encode_rows

TEMPLATES = ("{source}", "A photo of {source}")
EDITS = [
    PromptEdit("a nurse", {"a male nurse": 0.75, "a female nurse": 0.25}),
    PromptEdit("a ceo", {"a female ceo": 1.0}),
    PromptEdit("an engineer", {"a female engineer": 0.5, "a male engineer": 0.25, "an old engineer": 0.25}),
    PromptEdit("a cat", {"a cat": 1.0}),
]
# "a female ceo" is a destination too, so its tokens are those of an edit.
PRESERVED = ["", "a female ceo", "a photo of an old cat", ""]


@pytest.fixture
def encoded(make_pipe: Callable[..., Any]) -> tuple[Any, TokenRows]:
    pipe = make_pipe()
    return pipe, encode_rows(pipe, EDITS, PRESERVED, augmentations=TEMPLATES)


def pairs_of(rows: TokenRows) -> list[TokenPairs]:
    """The same tokens in full."""
    tokens, at, found = torch.from_numpy(rows.tokens), 0, []
    for edit, source in zip(rows.edits, rows.sources, strict=True):
        places = rows.destinations[at : at + len(edit.destinations)]
        at += len(places)
        found.append(TokenPairs(edit, tokens[source], tokens[places], rows.augmentations, encoder=rows.encoder))
    return found


def kept_of(rows: TokenRows) -> list[TokenPairs]:
    tokens = torch.from_numpy(rows.tokens)
    return [
        TokenPairs(PromptEdit(prompt, {prompt: 1.0}), tokens[places], tokens[places][None], encoder=rows.encoder)
        for prompt, places in zip(rows.preserved, rows.kept, strict=True)
    ]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    eye = torch.eye(len(expected), dtype=torch.float64)
    return float((found - expected).norm() / (expected - eye).norm())


def test_the_tokens_are_those_of_the_pairs(encoded: tuple[Any, TokenRows]) -> None:
    pipe, rows = encoded
    for found, expected in zip(pairs_of(rows), encode_edits(pipe, EDITS, augmentations=TEMPLATES), strict=True):
        torch.testing.assert_close(found.source, expected.source, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.destinations, expected.destinations, rtol=1e-6, atol=1e-6)
    for found, expected in zip(kept_of(rows), encode_preserved(pipe, PRESERVED), strict=True):
        torch.testing.assert_close(found.source, expected.source, rtol=1e-6, atol=1e-6)
    assert len(np.unique(rows.tokens, axis=0)) == len(rows.tokens)
    # The start token is the first of every prompt, and one row.
    assert len(np.unique(rows.sources[:, [0, 24]])) == 1


@pytest.mark.parametrize(
    ("lam", "preserve_lam"), [([3.0, 0.5, 20.0, 1.0], 2.0), ([1.0, math.inf, 5.0, 5.0], None), ([math.inf] * 4, 3.0)]
)
def test_statistics_give_the_operator_of_one_solve(
    encoded: tuple[Any, TokenRows], lam: list[float], preserve_lam: float | None
) -> None:
    _, rows = encoded
    shares = [[0.1, 0.9], [1.0], [0.0, 1.0, 0.0], [1.0]]
    pairs = [p.with_shares(s) for p, s in zip(pairs_of(rows), shares, strict=True)]
    expected = solve(pairs, lam, kept_of(rows), preserve_lam)
    found = solve_statistics(rows.statistics(lam, shares, preserve_lam))
    assert found.digest == expected.digest
    if math.isfinite(min(lam)):
        assert error(found.matrix, expected.matrix) < 1e-12
    else:
        assert torch.equal(found.matrix, expected.matrix)
    own = solve_statistics(rows.statistics(lam, preserve_lam=preserve_lam))
    assert own.digest == solve(pairs_of(rows), lam, kept_of(rows), preserve_lam).digest


def test_norms_are_those_of_the_first_order_edits(encoded: tuple[Any, TokenRows]) -> None:
    _, rows = encoded
    expected = [
        float(torch.linalg.matrix_norm((p.destination - p.source.double()).T @ p.source.double(), ord=2))
        for p in pairs_of(rows)
    ]
    assert expected[3] == 0
    np.testing.assert_allclose(rows.norms(), expected, rtol=1e-12)


def test_bytes_keep_everything(encoded: tuple[Any, TokenRows]) -> None:
    _, rows = encoded
    again = TokenRows.from_bytes(rows.to_bytes())
    for name in ("edits", "preserved", "augmentations", "alignment", "encoder"):
        assert getattr(again, name) == getattr(rows, name)
    for name in ("tokens", "sources", "destinations", "kept"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name), strict=True)
    alone = encode_rows(encoded[0], EDITS[:1])
    assert TokenRows.from_bytes(alone.to_bytes()).kept.shape == (0, 24)
    with pytest.raises(EditError, match="no token rows"):
        TokenRows.from_bytes(rows.to_bytes()[:-10])


def test_what_does_not_fit_is_refused(encoded: tuple[Any, TokenRows]) -> None:
    _, rows = encoded
    with pytest.raises(EditError, match="4 edits, but 1 lams"):
        rows.statistics([1.0])
    with pytest.raises(EditError, match="'a ceo'"):
        rows.statistics([1.0, 0.0, 1.0, 1.0])
    with pytest.raises(EditError, match="shares are for"):
        rows.norms([[1.0]] * 4)
    with pytest.raises(EditError, match="sum to 1"):
        rows.norms([[0.5, 0.4], [1.0], [1.0, 0.0, 0.0], [1.0]])
    with pytest.raises(EditError, match=r"lacks(.|\n)*24 positions"):
        encode_rows(encoded[0], [PromptEdit("a ceo", {"a nurse": 1.0})], ["a cat " * 30])
