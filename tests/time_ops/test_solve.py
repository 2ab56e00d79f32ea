from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from time_ops import (
    EditError,
    EditOperator,
    EncoderDigest,
    Problem,
    PromptEdit,
    Statistics,
    TokenPairs,
    solve,
    solve_statistics,
)
from time_ops.sums import Sums


def published(weight: torch.Tensor, pairs: list[list[tuple[torch.Tensor, torch.Tensor]]], lam: float) -> torch.Tensor:
    """TIME, eq. 5, as its public loop goes: augmentation by augmentation, with values of this one layer; float64."""
    d = weight.shape[1]
    W = weight.double()
    left, right = lam * W, lam * torch.eye(d, dtype=torch.float64)
    for edit in pairs:
        for context, target in edit:
            c, v = context.double(), target.double() @ W.T
            left.addmm_(v.T, c)
            right.addmm_(c.T, c)
    return torch.linalg.solve(right, left.T).T


def make_pairs(
    d: int,
    positions: int,
    *,
    edits: int = 1,
    destinations: int = 1,
    augmentations: int = 4,
    seed: int = 0,
    first_norm: float = 30.0,
    encoder: EncoderDigest | None = None,
) -> list[TokenPairs]:
    """Pairs laid out as a causal encoder's: a start token common to all and of great norm, then tokens of their own."""
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(d, generator=g)
    start = start * first_norm
    common = torch.randn(d, generator=g)
    found = []
    for p in range(edits):
        source = torch.randn(augmentations, positions, d, generator=g) + 0.5 * common
        targets = source + 0.3 * torch.randn(destinations, augmentations, positions, d, generator=g)
        source[:, 0] = targets[:, :, 0] = start
        if positions > 3:
            # An article after the start token: shared, and read alike in source and destination.
            source[:, 1] = targets[:, :, 1] = common
        edit = PromptEdit(f"a p{p}", {f"a k{k} p{p}": 1 / destinations for k in range(destinations)})
        found.append(TokenPairs(edit, source.reshape(-1, d), targets.reshape(destinations, -1, d), encoder=encoder))
    return found


def dense(pairs: list[TokenPairs], lams: list[float]) -> torch.Tensor:
    """A by the formula, with no care for speed; numpy."""
    d = pairs[0].source.shape[1]
    G, B = np.eye(d), np.zeros((d, d))
    for pair, lam in zip(pairs, lams, strict=True):
        c = pair.source.double().numpy()
        target = sum(a * t.double().numpy() for a, t in zip(pair.shares.tolist(), pair.destinations, strict=True))
        G += c.T @ c / lam
        B += (target - c).T @ c / lam
    return torch.from_numpy(np.eye(d) + np.linalg.solve(G, B.T).T)


LAMS = st.floats(min_value=1e-2, max_value=1e3)
SIZES = st.tuples(st.integers(2, 12), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))


def drawn(size: tuple[int, int, int, int, int]) -> list[TokenPairs]:
    d, positions, edits, destinations, seed = size
    return make_pairs(d, positions, edits=edits, destinations=destinations, augmentations=2, seed=seed, first_norm=3.0)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-8) -> bool:
    return float((a - b).norm()) <= rtol * max(1.0, float(b.norm()))


quick = settings(max_examples=25, deadline=None)


class TestIdentities:
    @quick
    @given(SIZES, st.data())
    def test_equals_the_formula_in_every_form(self, size: Any, data: st.DataObject) -> None:
        pairs = drawn(size)
        lams = data.draw(st.lists(LAMS, min_size=len(pairs), max_size=len(pairs)))
        expected = dense(pairs, lams)
        assert close(solve(pairs, lams).matrix, expected)
        assert close(Problem(pairs).solve(lams).matrix, expected)
        assert close(Problem(pairs, statistics_bytes=0).solve(lams).matrix, expected)
        merged = [Statistics.of(p).weighted(lam) for p, lam in zip(pairs, lams, strict=True)]
        total = merged[0]
        for more in merged[1:]:
            total = total + more
        streamed = solve_statistics(Statistics.from_bytes(total.to_bytes()))
        assert close(streamed.matrix, expected)
        assert streamed.digest == solve(pairs, lams).digest

    @quick
    @given(SIZES, st.data())
    def test_is_the_least_of_what_is_minimised(self, size: Any, data: st.DataObject) -> None:
        # The gradient of sum_p 1/lam_p sum_i |W' c - W c*|^2 + |W' - W|_F^2 vanishes: no formula for A needed.
        pairs = drawn(size)
        lams = data.draw(st.lists(LAMS, min_size=len(pairs), max_size=len(pairs)))
        W = torch.randn(5, size[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        edited = W @ solve(pairs, lams).matrix
        gradient, scale = edited - W, float(W.norm())
        for p, lam in zip(pairs, lams, strict=True):
            c = p.source.double()
            found, wanted = edited @ c.T, W @ p.destination.T
            gradient += (found - wanted) @ c / lam
            scale += float((found.norm() + wanted.norm()) * c.norm()) / lam
        assert float(gradient.norm()) <= 1e-11 * scale

    @quick
    @given(SIZES, LAMS)
    def test_weights_and_embeddings_take_it_from_opposite_sides(self, size: Any, lam: float) -> None:
        pairs = drawn(size)
        operator, c = solve(pairs, lam), pairs[0].source.double()
        for height in (1, 7):  # of any layer
            W = torch.randn(height, size[0], dtype=torch.float64, generator=torch.Generator().manual_seed(height))
            assert close(c @ (W @ operator.matrix).T, operator.transform(c) @ W.T, 1e-12)

    @quick
    @given(SIZES, LAMS)
    def test_its_rank_is_that_of_the_tokens_that_move(self, size: Any, lam: float) -> None:
        d, pairs = size[0], drawn(size)
        moving = torch.cat([p.source[(p.destination - p.source.double()).norm(dim=1) > 1e-6] for p in pairs])
        distinct = len(torch.unique(moving, dim=0))
        rank = torch.linalg.matrix_rank(solve(pairs, lam).matrix - torch.eye(d, dtype=torch.float64), rtol=1e-9)
        assert int(rank) <= min(d, distinct)

    @quick
    @given(SIZES, LAMS)
    def test_destination_equal_to_source_changes_nothing(self, size: Any, lam: float) -> None:
        pairs = [TokenPairs(p.edit, p.source, p.source.expand_as(p.destinations)) for p in drawn(size)]
        # Shares of a third do not sum to one in floating point: hence not to the bit.
        assert close(solve(pairs, lam).matrix, torch.eye(size[0], dtype=torch.float64), 1e-12)

    @quick
    @given(SIZES)
    def test_weaker_and_weaker_edits_vanish(self, size: Any) -> None:
        pairs = drawn(size)
        eye = torch.eye(size[0], dtype=torch.float64)
        assert torch.equal(solve(pairs, math.inf).matrix, eye)
        assert torch.equal(Problem(pairs).solve(math.inf).matrix, eye)
        first_order = sum(Statistics.of(p).B for p in pairs)
        for lam in (1e8, 1e10):
            torch.testing.assert_close((solve(pairs, lam).matrix - eye) * lam, first_order, rtol=1e-3, atol=1e-3)

    @quick
    @given(st.integers(4, 12), st.integers(0, 10**6))
    def test_strong_edits_of_independent_tokens_are_met(self, d: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        source = torch.eye(d)[: d // 2] * 2 + 0.05 * torch.randn(d // 2, d, generator=g)
        target = torch.randn(1, d // 2, d, generator=g)
        operator = solve([TokenPairs(PromptEdit("s", {"t": 1.0}), source, target)], 1e-9)
        assert close(operator.transform(source.double()), target[0].double(), 1e-7)

    @quick
    @given(SIZES, st.randoms(use_true_random=False))
    def test_order_of_edits_is_of_no_account(self, size: Any, random: Any) -> None:
        pairs = drawn(size)
        lams = [10.0 ** (i % 3) for i in range(len(pairs))]
        order = list(range(len(pairs)))
        random.shuffle(order)
        one, other = solve(pairs, lams), solve([pairs[i] for i in order], [lams[i] for i in order])
        assert close(one.matrix, other.matrix, 1e-10)
        assert one.digest == other.digest

    @quick
    @given(SIZES, LAMS)
    def test_equal_lams_are_the_stacked_published_edit(self, size: Any, lam: float) -> None:
        pairs = drawn((*size[:3], 1, size[4]))
        W = torch.randn(5, size[0], generator=torch.Generator().manual_seed(3))
        expected = published(W, [[(p.source, p.destinations[0])] for p in pairs], lam)
        assert close(W.double() @ solve(pairs, lam).matrix, expected)

    @quick
    @given(SIZES, LAMS)
    def test_an_edit_left_out_is_as_if_absent(self, size: Any, lam: float) -> None:
        pairs = drawn((*size[:2], 3, *size[3:]))
        with_it, without = solve(pairs, [lam, math.inf, lam]), solve([pairs[0], pairs[2]], lam)
        assert torch.equal(with_it.matrix, without.matrix)
        assert close(Problem(pairs).solve([lam, math.inf, lam]).matrix, without.matrix)

    @quick
    @given(SIZES, LAMS)
    def test_preserved_prompts_add_to_the_gram_matrix_only(self, size: Any, lam: float) -> None:
        pairs = drawn(size)
        g = torch.Generator().manual_seed(9)
        tokens = torch.randn(3, size[0], generator=g)
        kept = TokenPairs(PromptEdit("k", {"k": 1.0}), tokens, tokens[None])
        expected = dense([*pairs, kept], [lam] * len(pairs) + [lam / 7])
        assert close(solve(pairs, lam, [kept], lam / 7).matrix, expected)
        assert close(Problem(pairs, [kept]).solve(lam, None, lam / 7).matrix, expected)
        eye = torch.eye(size[0], dtype=torch.float64)
        moved = [((solve(pairs, lam, [kept], k).matrix - eye) @ tokens.double().T).norm() for k in (math.inf, 1e-9)]
        assert float(moved[1]) <= 1e-3 * float(moved[0]) + 1e-6

    @quick
    @given(SIZES, st.data())
    def test_shares_blend_and_can_be_changed(self, size: Any, data: st.DataObject) -> None:
        pairs = drawn((*size[:3], 2, size[4]))
        share = data.draw(st.lists(st.floats(0, 1), min_size=len(pairs), max_size=len(pairs)))
        changed = [p.with_shares([a, 1 - a]) for p, a in zip(pairs, share, strict=True)]
        lams = [0.5 + i for i in range(len(pairs))]
        expected = dense(changed, lams)
        problem = Problem(pairs)
        assert close(problem.solve(lams, [[a, 1 - a] for a in share]).matrix, expected)
        assert problem.solve(lams, [[a, 1 - a] for a in share]).digest == solve(changed, lams).digest
        assert close(solve(changed, lams).matrix, expected)
        assert close(problem.solve(lams).matrix, dense(pairs, lams))

    @quick
    @given(SIZES)
    def test_edits_one_after_another_compose_in_order(self, size: Any) -> None:
        pairs = drawn((*size[:2], 2, *size[3:]))
        first, second = solve(pairs[:1], 0.7), solve(pairs[1:], 2.0)
        W = torch.randn(4, size[0], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        both = first @ second
        assert close((W @ first.matrix) @ second.matrix, W @ both.matrix, 1e-12)
        c = pairs[0].source.double()
        assert close(both.transform(c), first.transform(second.transform(c)), 1e-12)


def test_accumulated_edits_are_not_one_solve_and_do_not_commute() -> None:
    pairs = make_pairs(8, 4, edits=2, first_norm=2.0)
    first, second = solve(pairs[:1], 0.1), solve(pairs[1:], 0.1)
    assert not close((first @ second).matrix, (second @ first).matrix, 1e-3)
    assert not close((first @ second).matrix, solve(pairs, 0.1).matrix, 1e-3)
    assert (first @ second).digest != (second @ first).digest


def test_each_form_is_taken_where_it_is_the_cheaper() -> None:
    few, many = make_pairs(64, 8, augmentations=1), make_pairs(8, 8, edits=2)
    assert Problem(few)._gram is not None
    assert Problem(many)._sums is not None
    limited = Problem(many, statistics_bytes=1)
    assert limited._gram is None
    assert limited._sums is None


@pytest.mark.parametrize("d", [24, 29])
def test_a_wide_models_sums_are_the_formulas(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks above the diagonal and larger parts, as at 4096; narrow enough to compare with the plain formula."""
    for name, size in (("_WIDE", 16), ("_WIDE_CAPACITY", 12), ("_BLOCK", 8)):
        monkeypatch.setattr(Sums, name, size)
    pairs = make_pairs(d, 6, edits=3, destinations=2, first_norm=3.0)
    lams = [0.5, 2.0, 7.0]
    assert close(solve(pairs, lams).matrix, dense(pairs, lams))
    parts = [Statistics.of(pair).weighted(lam) for pair, lam in zip(pairs, lams, strict=True)]
    assert close(solve_statistics(parts[0] + parts[1] + parts[2]).matrix, dense(pairs, lams))
    assert torch.equal(parts[0].G, parts[0].G.T)


def test_shared_tokens_are_summed_once() -> None:
    from time_ops.sums import EditRows

    pair = make_pairs(16, 5)[0]
    rows = EditRows.of(pair)
    # Start token and article stand in all four augmentations: 4 x 5 tokens, 2 + 4 x 3 distinct.
    assert len(rows.tokens) == 14
    assert sorted(rows.counts.tolist())[-2:] == [4.0, 4.0]


def test_default_strength_of_preserved_prompts_is_the_smallest_lam() -> None:
    pairs = make_pairs(8, 4, edits=2)
    tokens = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    kept = [TokenPairs(PromptEdit("k", {"k": 1.0}), tokens, tokens[None])]
    default = solve(pairs, [0.5, 4.0], kept)
    assert default.digest == solve(pairs, [0.5, 4.0], kept, 0.5).digest
    assert torch.equal(default.matrix, solve(pairs, [0.5, 4.0], kept, 0.5).matrix)
    assert default.digest != solve(pairs, [0.5, 4.0], kept, 0.4).digest


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, [0.1, 0.0], [0.1], [0.1] * 3, 1e-320, "x", None, [[0.1]]])
def test_bad_lams_are_refused(lam: Any) -> None:
    pairs = make_pairs(8, 4, edits=2)
    for attempt in (solve, lambda p, v: Problem(p).solve(v)):
        with pytest.raises(EditError, match="lam"):
            attempt(pairs, lam)


def test_all_bad_lams_are_named() -> None:
    with pytest.raises(EditError, match=r"(?s)edit 0 \('a p0'\).*edit 2 \('a p2'\)"):
        solve(make_pairs(8, 4, edits=3), [-1.0, 1.0, math.nan])


@pytest.mark.parametrize("d", [6, 64])
def test_a_lam_too_small_to_factor_is_refused(d: int) -> None:
    pairs = make_pairs(d, 5, augmentations=1)
    source = torch.cat([pairs[0].source, pairs[0].source[1:2] * 2])
    destinations = torch.cat([pairs[0].destinations, pairs[0].destinations[:, 1:2] * 2], dim=1)
    dependent = TokenPairs(pairs[0].edit, source, destinations)
    with pytest.raises(EditError, match="too small"):
        solve([dependent], 1e-25)
    with pytest.raises(EditError, match="too small"):
        solve([dependent], 1e-306)


def test_condition_number_is_estimated() -> None:
    pair = make_pairs(12, 6)[0]
    c = pair.source.double()
    exact = float(torch.linalg.cond(torch.eye(12, dtype=torch.float64) + c.T @ c / 0.1, 1))
    found = solve([pair], 0.1).condition
    assert found is not None
    assert exact / 10 <= found <= exact * 1.001


def test_mixed_inputs_are_refused() -> None:
    one, other = make_pairs(8, 4), make_pairs(10, 4)
    with pytest.raises(EditError, match="different widths"):
        solve([*one, *other], 1.0)
    with pytest.raises(EditError, match="nothing to solve"):
        solve([], 1.0)
    with pytest.raises(EditError, match=r"(?s)c\* = c.*'a p0'"):
        solve(one, 1.0, preserve=one)
    a, b = (EncoderDigest(x, "float32", x, x) for x in "ab")
    with pytest.raises(EditError, match="several text encoders"):
        solve([*make_pairs(8, 4, encoder=a), *make_pairs(8, 4, encoder=b)], 1.0)
    with pytest.raises(EditError, match="shares for 2"):
        Problem(one).solve(1.0, [None, None])


class TestStatistics:
    def test_merge_is_associative(self) -> None:
        a, b, c = (Statistics.of(p).weighted(0.5) for p in make_pairs(8, 4, edits=3))
        left, right = (a + b) + c, a + (b + c)
        assert close(left.G, right.G, 1e-14)
        assert close(left.B, right.B, 1e-14)
        assert solve_statistics(left).digest == solve_statistics(right).digest

    def test_bytes_are_faithful_and_checked(self) -> None:
        stats = Statistics.of(make_pairs(8, 4)[0]).weighted(math.inf)
        again = Statistics.from_bytes(stats.to_bytes())
        assert again.edits == stats.edits
        assert torch.equal(again.B, stats.B)
        with pytest.raises(EditError, match="no statistics"):
            Statistics.from_bytes(b"\x00" * 40)

    def test_lam_is_needed_once(self) -> None:
        stats = Statistics.of(make_pairs(8, 4)[0])
        with pytest.raises(EditError, match="without a lam"):
            solve_statistics(stats)
        with pytest.raises(EditError, match="have their lam"):
            stats.weighted(1.0).weighted(1.0)
        with pytest.raises(EditError, match="do not merge"):
            _ = stats + Statistics.of(make_pairs(6, 4)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: TokenPairs(p.edit, p.source.half(), p.destinations), "float16"),
        (lambda p: TokenPairs(p.edit, p.source[:-1], p.destinations), "needed are"),
        (lambda p: TokenPairs(p.edit, p.source * math.nan, p.destinations), "not finite"),
        (lambda p: p.with_shares([0.5, 0.5]), "1 destinations"),
        (lambda p: p.with_shares({"x": 1.0}), "shares name"),
        (lambda p: p.with_shares([0.9]), "sum to 1"),
    ],
)
def test_bad_pairs_are_refused(change: Callable[[TokenPairs], TokenPairs], message: str) -> None:
    with pytest.raises(EditError, match=message):
        change(make_pairs(8, 4)[0])


def test_values_only_is_on_record() -> None:
    pairs = make_pairs(8, 4)
    operator: EditOperator = solve(pairs, 1.0, values_only=True)
    assert operator.values_only
    assert operator.digest != solve(pairs, 1.0).digest
    with pytest.raises(EditError, match="values-only"):
        operator.transform(pairs[0].source)
