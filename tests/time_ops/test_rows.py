from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from time_ops import EditError, PromptEdit, TokenPairs, encode_edits, encode_preserved, solve, solve_statistics
from time_ops.records import EditRecord
from time_ops.row_encoding import encode_rows
from time_ops.rows import TokenRows

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


# Wordings that differ, shares that leave a rest, and one that leaves everything; the last edit is its own destination.
SHARES = [
    np.array([[0.6, 0.4], [0.2, 0.3]]),
    np.array([[0.0], [0.75]]),
    np.array([0.0, 0.0, 0.0]),
    np.array([[0.25], [1.0]]),
]
LAM = [2.0, 8.0, 0.5, 4.0]


def plain_sums(rows: TokenRows, shares: list[Any], lam: list[float], kept_lam: list[float]) -> tuple[Any, Any]:
    """G and B token by token, as the formula is written, of the pairs of each edit and wording."""
    d, positions = rows.tokens.shape[1], rows.kept.shape[1]
    G, B = np.zeros((d, d)), np.zeros((d, d))
    for pair, of_edit, strength in zip(pairs_of(rows), shares, lam, strict=True):
        sources, destinations = pair.source.double().numpy(), pair.destinations.double().numpy()
        for i, c in enumerate(sources):
            own = of_edit if of_edit.ndim == 1 else of_edit[i // positions]
            blend = sum((a * star for a, star in zip(own, destinations[:, i], strict=True)), (1 - own.sum()) * c)
            G += np.outer(c, c) / strength
            B += np.outer(blend - c, c) / strength
    for pair, strength in zip(kept_of(rows), kept_lam, strict=True):
        for c in pair.source.double().numpy():
            G += np.outer(c, c) / strength
    return G, B


def test_wordings_have_their_own_blends_and_preserved_prompts_their_own_lam(encoded: tuple[Any, TokenRows]) -> None:
    pipe, rows = encoded
    # Half of the tokens are each wording's, in the order of the augmentations.
    for number, template in enumerate(TEMPLATES):
        part = slice(24 * number, 24 * (number + 1))
        for found, alone in zip(pairs_of(rows), encode_edits(pipe, EDITS, augmentations=[template]), strict=True):
            torch.testing.assert_close(found.source[part], alone.source, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.destinations[:, part], alone.destinations, rtol=1e-5, atol=1e-5)
    kept_lam = [0.25, 20.0, math.inf]
    found = rows.statistics(LAM, SHARES, kept_lam)
    G, B = plain_sums(rows, SHARES, LAM, kept_lam)
    assert np.linalg.norm(found.G.numpy() - G) < 1e-12 * np.linalg.norm(G)
    assert np.linalg.norm(found.B.numpy() - B) < 1e-12 * np.linalg.norm(B)
    assert [(r.source, r.lam) for r in found.preserved] == list(zip(rows.preserved, kept_lam, strict=True))
    # Nothing of all edits moved: all are preserved, at their lams.
    still = rows.statistics(LAM, [np.zeros((2, len(e.destinations))) for e in EDITS], math.inf)
    assert not still.B.any()
    G, _ = plain_sums(rows, [np.zeros(len(e.destinations)) for e in EDITS], LAM, [math.inf] * 3)
    assert np.linalg.norm(still.G.numpy() - G) < 1e-12 * np.linalg.norm(G)


def test_records_name_each_blend_and_what_stays(encoded: tuple[Any, TokenRows]) -> None:
    _, rows = encoded
    bare, photo = TEMPLATES
    both = tuple(sorted(TEMPLATES))
    statistics = rows.statistics(LAM, SHARES, 3.0)
    assert statistics.edits == (
        EditRecord("a nurse", (("a female nurse", 0.4), ("a male nurse", 0.6)), 2.0, (bare,)),
        EditRecord("a nurse", (("a female nurse", 0.3), ("a male nurse", 0.2), ("a nurse", 0.5)), 2.0, (photo,)),
        EditRecord("a ceo", (("a ceo", 1.0), ("a female ceo", 0.0)), 8.0, (bare,)),
        EditRecord("a ceo", (("a ceo", 0.25), ("a female ceo", 0.75)), 8.0, (photo,)),
        EditRecord(
            "an engineer",
            (("a female engineer", 0.0), ("a male engineer", 0.0), ("an engineer", 1.0), ("an old engineer", 0.0)),
            0.5,
            both,
        ),
        EditRecord("a cat", (("a cat", 1.0),), 4.0, both),
    )
    # One blend for all wordings, given for each of them, is the same edit; a part's place in the sum is of no account.
    own = [list(e.destinations.values()) for e in EDITS]
    digest = solve_statistics(rows.statistics(LAM, preserve_lam=3.0)).digest
    assert solve_statistics(rows.statistics(LAM, [np.array([s, s]) for s in own], [3.0] * 3)).digest == digest
    assert digest == solve(pairs_of(rows), LAM, kept_of(rows), 3.0).digest
    # As for `PromptEdit`: a thousandth of a thousandth is rounding, and no part that stays.
    assert len(rows.statistics(LAM, [[0.75, 0.2499995], *own[1:]]).edits[0].destinations) == 2
    other = encode_rows(encoded[0], EDITS[:1], augmentations=TEMPLATES).statistics([1.0])
    first, second = solve_statistics(statistics + other), solve_statistics(other + statistics)
    assert first.digest == second.digest != digest
    changed = [SHARES[0][::-1], *SHARES[1:]]
    assert solve_statistics(rows.statistics(LAM, changed, 3.0) + other).digest != first.digest


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
    with pytest.raises(EditError, match="4 edits, but shares for 3"):
        rows.norms([[1.0]] * 3)
    good = [[0.5, 0.5], [1.0], [1.0, 0.0, 0.0], [1.0]]
    bad: dict[int, Any] = {0: [[0.5, 0.5]] * 3, 1: [[1.0], [4.1]], 2: [math.nan, 0.0, 0.0], 3: ["most"]}
    for number, edit in enumerate(EDITS):
        with pytest.raises(EditError, match=edit.source) as caught:
            rows.statistics([1.0] * 4, [bad[i] if i == number else s for i, s in enumerate(good)])
        assert str(caught.value).count("edit of") == 1
    with pytest.raises(
        EditError, match=r"(?s)'a nurse'.*\[2\] or \[2, 2\], not \[3, 2\].*'a ceo'.*4\.1.*'an eng.*'a cat'"
    ):
        rows.statistics([1.0] * 4, list(bad.values()))
    for wrong in ([-0.1, 0.5], [math.inf, -math.inf], [[0.5, 0.5], [3.5, 0.501]]):
        with pytest.raises(EditError, match="'a nurse': shares must be finite, not negative and sum to at most 4"):
            rows.norms([wrong, *good[1:]])
    with pytest.raises(EditError, match=r"3 preserved prompts, but preserve_lam of shape \[2\]"):
        rows.statistics([1.0] * 4, None, [1.0, 2.0])
    with pytest.raises(EditError, match=r"(?s)prompt 0 \(''\).*prompt 2 \('a photo of an old cat'\): preserve_lam -1"):
        rows.statistics([1.0] * 4, None, [0.0, 2.0, -1.0])
    with pytest.raises(EditError, match="preserve_lam"):
        encode_rows(encoded[0], EDITS[:1]).statistics([1.0], None, 0.0)
    with pytest.raises(EditError, match=r"lacks(.|\n)*24 positions"):
        encode_rows(encoded[0], [PromptEdit("a ceo", {"a nurse": 1.0})], ["a cat " * 30])
