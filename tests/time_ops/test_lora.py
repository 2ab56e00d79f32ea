from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from time_ops import EditError, EditOperator, ModelError
from time_ops.lora import truncate
from time_ops.records import EditRecord, SolveInputs


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operator_of(d: int, rank: int, *, size: float = 0.1, seed: int = 1) -> EditOperator:
    shift = drawn(d, rank, seed=seed) @ drawn(rank, d, seed=seed + 1)
    return EditOperator(torch.eye(d, dtype=torch.float64) + size * shift / torch.linalg.norm(shift))


def stacked_edit(operator: EditOperator, weights: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(weights).double() @ (operator.matrix - torch.eye(operator.d, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(
    d=st.integers(2, 24),
    outs=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    rank=st.integers(1, 24),
    kept=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_no_other_shared_factor_of_this_rank_is_nearer(
    d: int, outs: list[int], rank: int, kept: int, seed: int
) -> None:
    weights = [drawn(out, d, seed=seed + i) for i, out in enumerate(outs)]
    operator = operator_of(d, min(rank, d), seed=seed + 50)
    edit = stacked_edit(operator, weights)
    left, values, right = torch.linalg.svd(edit, full_matrices=False)
    low = truncate(operator, weights, rank=kept)
    best = (left[:, : low.rank] * values[: low.rank]) @ right[: low.rank]
    found = torch.cat([low.up(w) for w in weights]) @ low.down
    norm = torch.linalg.norm(edit)
    # Where two singular values are close, other directions are as good: errors are compared, not vectors.
    assert torch.linalg.norm(edit - found) <= torch.linalg.norm(edit - best) + 1e-12 * norm
    assert abs(low.error - float(torch.linalg.norm(edit - best) / norm)) < 1e-12
    weight_error = float(torch.linalg.norm(edit - found) / torch.linalg.norm(torch.cat(weights)))
    assert low.weight_error == pytest.approx(weight_error, rel=1e-6, abs=1e-14)
    torch.testing.assert_close(low.singular_values, values[: low.rank], rtol=1e-9, atol=1e-12 * float(norm))
    torch.testing.assert_close(low.down @ low.down.T, torch.eye(low.rank, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("size", [1e-6, 0.1, 10.0])
def test_few_edits_come_back_exactly_at_their_own_rank(rank: int, size: float) -> None:
    weights = [drawn(40, 16, seed=i) for i in range(4)]
    operator = operator_of(16, rank, size=size)
    low = truncate(operator, weights, error=0)
    assert low.rank == rank
    for weight in weights:
        edited = weight + low.up(weight) @ low.down
        torch.testing.assert_close(edited, operator.edited(weight), rtol=1e-13, atol=1e-13 * max(size, 1))


def test_small_directions_keep_their_digits() -> None:
    """Singular values over ten decades: a Gram matrix would have lost those below 1e-8 of the first."""
    d = 12
    basis = torch.linalg.qr(drawn(d, d)).Q
    values = torch.logspace(0, -10, d, dtype=torch.float64)
    operator = EditOperator(torch.eye(d, dtype=torch.float64) + (basis * values) @ basis.T)
    weights = [torch.linalg.qr(drawn(d, d, seed=5)).Q]
    low = truncate(operator, weights, error=0)
    # A holds its own entries to 1e-16.
    torch.testing.assert_close(low.singular_values, values[: low.rank], rtol=1e-5, atol=0)
    assert low.rank == d


@pytest.mark.parametrize("error", [0.5, 1e-1, 1e-3])
def test_the_rank_is_the_smallest_that_keeps_to_the_error(error: float) -> None:
    weights = [drawn(40, 16, seed=i) for i in range(4)]
    operator = operator_of(16, 16)
    low = truncate(operator, weights, error=error)
    assert low.error <= error
    assert truncate(operator, weights, rank=low.rank - 1).error > error


def test_half_precision_weights_and_layers_narrower_than_the_text() -> None:
    weights = [drawn(3, 16, seed=i).half() for i in range(2)]
    operator = operator_of(16, 16)
    low = truncate(operator, weights, error=0)
    assert low.rank == 6  # of no more rows than the layers have
    found = torch.cat([low.up(w) for w in weights]) @ low.down
    torch.testing.assert_close(found, stacked_edit(operator, weights), rtol=1e-12, atol=1e-14)


def test_what_can_not_be_truncated_is_refused() -> None:
    weights, operator = [drawn(8, 4)], operator_of(4, 4)
    with pytest.raises(EditError, match="at least 1"):
        truncate(operator, weights, rank=0)
    with pytest.raises(EditError, match="below 1"):
        truncate(operator, weights, error=1.0)
    with pytest.raises(EditError, match="changes none"):
        truncate(EditOperator.identity(4), weights)
    with pytest.raises(ModelError, match=r"weight 1 has shape \[8, 5\]"):
        truncate(operator, [*weights, drawn(8, 5)])
    with pytest.raises(ModelError, match="weight 0 is not finite"):
        truncate(operator, [torch.full((8, 4), torch.inf)])
    with pytest.raises(ModelError, match="no weights"):
        truncate(operator, [])


def test_as_an_operator_it_is_the_update_and_no_other_one(tmp_path: Path) -> None:
    """What an audit at that rank takes: keys of its images must tell it from the whole edit and from other ranks."""
    step = SolveInputs((EditRecord("a CEO", (("a female CEO", 1.0),), 0.1),))
    whole = replace(operator_of(16, 9), steps=(step,))
    weights = [drawn(40, 16, seed=i) for i in range(3)]
    two, four = (truncate(whole, weights, rank=rank) for rank in (2, 4))
    found = two.operator(whole)
    for weight in weights:
        torch.testing.assert_close(weight @ found.matrix, weight + two.up(weight) @ two.down)
    assert len({whole.digest, found.digest, four.operator(whole).digest}) == 3
    assert EditOperator.load(found.save(tmp_path / "two.safetensors")).digest == found.digest
    assert [s.rank for s in found.steps] == [None, 2]
