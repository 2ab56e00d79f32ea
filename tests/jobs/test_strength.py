"""The sweep: weakest sufficient edit, fixed strengths left alone."""

import numpy as np

from jobs.strength import choose, scale_of, sweep
from time_ops import EditOperator

TARGETS = np.array([[0.5, 0.5], [0.5, 0.5]])


def counts(female: float) -> np.ndarray:
    k = round(female * 20)
    return np.tile([k, 20 - k, 0], (2, 3, 1))


def run(shares: list[float], fixed: list[float | None] | None = None) -> tuple[list, list]:
    solved: list[tuple[float, ...]] = []
    answers = iter(shares)

    def solve(lam: tuple[float, ...]) -> EditOperator:
        solved.append(lam)
        return EditOperator.identity(4)

    relatives = [10.0**-i for i in range(len(shares))]
    tried = sweep(relatives, 2.0, fixed or [None, None], solve, lambda _o, _n: counts(next(answers)), TARGETS, 0.2)
    return tried, solved


def test_the_weakest_sufficient_edit_ends_the_search() -> None:
    tried, solved = run([1.0, 0.8, 0.55, 0.5])
    assert solved == [(2.0, 2.0), (0.2, 0.2), (0.02, 0.02)]
    assert choose(tried, 0.2) is tried[2]
    np.testing.assert_allclose(tried[2].delta, 0.1)
    assert tried[2].delta_within < 0.1


def test_where_none_suffices_the_best_is_taken_not_the_strongest() -> None:
    tried, _ = run([1.0, 0.65, 0.1])
    assert len(tried) == 3
    assert choose(tried, 0.2) is tried[1]


def test_fixed_strengths_stay() -> None:
    _, solved = run([1.0, 0.5], fixed=[None, 7.0])
    assert solved == [(2.0, 7.0), (0.2, 7.0)]


def test_the_scale_is_the_median_norm() -> None:
    # Edits that change nothing have no say.
    assert scale_of([0.0, 1.0, 2.0, 6.0, 0.0]) == 2.0
    assert scale_of([0.0]) == 1.0


def test_pictures_that_nobody_can_label_are_no_success() -> None:
    blank = np.tile([0, 0, 20], (2, 3, 1))
    answers = iter([counts(1.0), blank])
    tried = sweep(
        [1.0, 0.1], 1.0, [None, None], lambda _: EditOperator.identity(4), lambda _o, _n: next(answers), TARGETS, 0.2
    )
    assert tried[1].delta_within == 1.0
    assert choose(tried, 0.2) is tried[0]
