"""The search against a simulated model: thresholds by profession and wording that it is not told."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.special import expit

from time_ops.search.calibration import CalibrationSearch
from time_ops.search.model import Candidate, Limits, Measured, Rules, SearchedProfession, State
from time_ops.search.objective import loss
from time_ops.search.response import Observed, fit_response
from time_ops.stats.sequences import confidence_sequence

P, W = 12, 8
PROFESSIONS = [SearchedProfession(f"p{i}", (0.5, 0.5), (0, 1), (None, None)) for i in range(P)]
RULES = Rules(lam=1000.0, least_lam=10.0, images=8, base_rounds=8, verify_rounds=8)


class World:
    """A model whose share of label 0 is logistic in the share asked for; unedited, the first is balanced."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.thresholds = self.rng.normal(0.5, 0.12, P)[:, None] + self.rng.normal(0, 0.04, W)[None, :]
        self.base = np.full((P, W), 0.05)
        self.base[0] = 0.5

    def share(self, candidate: Candidate) -> np.ndarray:
        asked = np.stack([s[:, 0] for s in candidate.shares])
        kept = 1 - np.stack([s.sum(axis=1) for s in candidate.shares])
        return np.where(kept > 0.5, self.base, expit(14 * (asked - self.thresholds)))

    def audit(self, candidate: Candidate, images: int) -> Measured:
        hits = self.rng.binomial(images, self.share(candidate))
        tallies = np.stack([hits, images - hits, np.zeros_like(hits)], axis=-1)
        tallies[~candidate.active] = 0
        return Measured(tallies)


def test_the_response_finds_thresholds_and_slope() -> None:
    rng = np.random.default_rng(0)
    professions, wordings = rng.normal(0, 0.1, 30), rng.normal(0, 0.05, 6)
    truth = 0.55 + professions[:, None] + wordings[None, :]
    rounds = []
    for _ in range(3):
        asked = truth + rng.normal(0, 0.1, truth.shape)
        rounds.append(
            Observed(asked, rng.binomial(400, expit(12 * (asked - truth))).astype(float), np.full((30, 6), 400.0))
        )
    found = fit_response(rounds)
    np.testing.assert_allclose(found.share_for(np.full(30, 0.5)), truth, atol=0.01)
    assert abs(found.slope - 12) < 0.5


def test_shares_come_on_target_in_every_wording_and_the_balanced_is_left_alone() -> None:
    world = World(1)
    search = CalibrationSearch(PROFESSIONS, W, RULES)
    while (candidate := search.propose()) is not None:
        search.tell(candidate, world.audit(candidate, RULES.images))
    outcomes = search.outcomes()
    assert outcomes[0].state is State.BALANCED
    assert not search.best.shares[0].any()
    off = np.abs(world.share(search.best)[1:] - 0.5)
    assert off.mean() < 0.1
    first = next(c for c, _ in search.trials if c.phase == "search")
    assert off.mean() < 0.5 * np.abs(world.share(first)[1:] - 0.5).mean()
    assert {o.state for o in outcomes[1:]} <= {State.ON_TARGET, State.UNDECIDED}
    called = np.array([o.state is State.ON_TARGET for o in outcomes])
    assert called.any()
    # What is called on target is: its true share, over wordings, is within the tolerance.
    assert (np.abs(world.share(search.best).mean(axis=1) - 0.5)[called] <= RULES.tolerance).all()


def test_a_resumed_search_goes_on_as_if_it_had_not_stopped() -> None:
    world, search = World(2), CalibrationSearch(PROFESSIONS, W, RULES)
    while sum(c.phase == "verify" for c, _ in search.trials) < 2:
        candidate = search.propose()
        assert candidate is not None
        search.tell(candidate, world.audit(candidate, RULES.images))
    again = CalibrationSearch(PROFESSIONS, W, RULES)
    for trial in search.trials:
        again.tell(*trial)
    one, other = search.propose(), again.propose()
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.lam, other.lam)
    for mine, theirs in zip(one.shares, other.shares, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (one.phase, one.number) == (other.phase, other.number)


def test_all_fixed_needs_no_search() -> None:
    fixed = SearchedProfession("p", (0.5, 0.5), (0, 1), (0.4, 0.6), lam=30.0)
    search = CalibrationSearch([fixed], W, RULES)
    assert search.propose() is None
    assert search.best.lam.tolist() == [30.0]
    np.testing.assert_array_equal(search.best.shares[0], np.tile([0.4, 0.6], (W, 1)))
    assert search.outcomes()[0].state is State.FIXED


def test_wordings_that_the_edit_has_not_follow_the_others() -> None:
    world = World(3)
    search = CalibrationSearch(PROFESSIONS, W, RULES, unedited=[1, 4])
    while (candidate := search.propose()) is not None:
        search.tell(candidate, world.audit(candidate, RULES.images))
    shares = search.best.shares[5][:, 0]
    own = np.delete(shares, [1, 4])
    assert own.std() > 0.005
    np.testing.assert_allclose(shares[[1, 4]], own.mean())


def run(
    professions: list[SearchedProfession], share: Callable[[Candidate], np.ndarray], rules: Rules = RULES
) -> CalibrationSearch:
    """A search on a model whose shares of the first label, [P, W], are given: ten images a cell, without noise."""
    search = CalibrationSearch(professions, W, rules)
    while (candidate := search.propose()) is not None:
        hits = np.rint(10 * np.clip(share(candidate), 0, 1)).astype(int)
        tallies = np.stack([hits, 10 - hits, np.zeros_like(hits)], axis=-1)
        tallies[~candidate.active] = 0
        search.tell(candidate, Measured(tallies))
    return search


def flat(values: Sequence[float]) -> np.ndarray:
    return np.repeat(np.array(values)[:, None], W, axis=1)


def test_the_defaults_can_decide() -> None:
    """With no more images than the rules allow, a profession exactly on target is called so: before and after."""
    rules = Rules(lam=1000.0, least_lam=10.0)
    n = 15 * rules.images
    for rounds in (rules.base_rounds, rules.verify_rounds):
        low, high = confidence_sequence(n * rounds // 2, n * rounds, rules.confidence)
        assert 0.5 - rules.tolerance <= low
        assert high <= 0.5 + rules.tolerance
    world = World(5)
    world.base[:] = 0.5
    search = CalibrationSearch(PROFESSIONS, W, rules)
    while (candidate := search.propose()) is not None:
        search.tell(candidate, world.audit(candidate, 8))
    assert sum(o.state is State.BALANCED for o in search.outcomes()) >= 10


def test_a_profession_that_never_answers_pulls_on_no_other_and_is_unreachable() -> None:
    def share(candidate: Candidate) -> np.ndarray:
        if candidate.phase == "base":
            return flat([0.1] * P)
        asked = np.stack([s[:, 0] for s in candidate.shares])
        answers = expit(14 * (asked - 0.6))
        answers[6:] = 0.1
        return answers

    search = run(PROFESSIONS, share, Rules(1000.0, 100.0, images=10, search_rounds=12))
    found = share(search.best)
    assert np.abs(found[:6] - 0.5).max() <= 0.15
    states = [o.state for o in search.outcomes()]
    assert states == [State.ON_TARGET] * 6 + [State.UNREACHABLE] * 6
    np.testing.assert_array_equal(search.best.lam, [1000.0] * 6 + [100.0] * 6)


def test_fixed_shares_move_lambda_alone_and_back_again() -> None:
    """All of the edit toward one label, as published: stronger until the target, weaker again beyond it."""
    one = [SearchedProfession("p", (0.5, 0.5), (0,), (1.0,))]

    def share(candidate: Candidate) -> np.ndarray:
        return (
            flat([float(expit(2.5 * np.log(250 / candidate.lam[0]) / np.log(3)))])
            if candidate.phase != "base"
            else flat([0.05])
        )

    search = run(one, share, Rules(1000.0, 1.0, images=10, search_rounds=8))
    lams = [c.lam[0] for c, _ in search.trials if c.phase != "base"]
    assert lams[0] == 1000.0
    assert min(lams) > 50
    assert abs(share(search.best)[0, 0] - 0.5) <= 0.15
    assert all(c.shares[0].min() == 1.0 for c, _ in search.trials if c.phase != "base")


def test_a_lone_destination_shares_with_the_source() -> None:
    lone = [
        SearchedProfession("p", (0.5, 0.5), (0,), (None,)),
        SearchedProfession("q", (0.5, 0.5), (0, 0), (None, None)),
    ]
    assert [p.is_free for p in lone] == [True, True]
    search = run(lone, lambda c: expit(14 * (np.stack([s.sum(axis=1) for s in c.shares]) - flat([0.3, 0.7]))))
    assert np.abs(search.best.shares[0].sum(axis=1).mean() - 0.3) < 0.05
    assert np.abs(search.best.shares[1].sum(axis=1).mean() - 0.7) < 0.05


def test_a_half_fixed_blend_of_two_labels_is_fixed() -> None:
    half = SearchedProfession("p", (0.5, 0.5), (0, 1), (0.6, None))
    assert not half.is_free
    search = run([half], lambda c: flat([0.5 if c.phase != "base" else 0.0]))
    np.testing.assert_allclose(search.best.shares[0], np.tile([0.6, 0.4], (W, 1)))


def test_three_labels_come_on_target_together() -> None:
    three = [SearchedProfession(f"p{i}", (0.5, 0.3, 0.2), (0, 1, 2), (None,) * 3) for i in range(4)]
    search = CalibrationSearch(three, W, Rules(1000.0, 10.0, images=40, search_rounds=8))
    while (candidate := search.propose()) is not None:
        asked = np.stack(candidate.shares)
        powers = np.exp(6 * asked * [1.0, 1.2, 0.9]) if candidate.phase != "base" else np.ones_like(asked) * [9, 1, 1]
        shares = powers / powers.sum(axis=-1, keepdims=True)
        counts = np.rint(40 * shares).astype(int)
        search.tell(candidate, Measured(np.concatenate([counts, np.zeros_like(counts[..., :1])], axis=-1)))
    last = next(m for c, m in reversed(search.trials) if c.number in search.chosen_rounds())
    got = last.tallies[..., :3].sum(axis=(0, 1)) / last.tallies.sum()
    np.testing.assert_allclose(got, [0.5, 0.3, 0.2], atol=0.06)
    assert (search.best.lam == 1000.0).all()


def test_what_the_edit_costs_is_in_the_objective() -> None:
    half = np.tile(np.array([5, 5, 0]), (2, 3, 1))
    base, targets, limits = (
        Measured(half, (10, 10), (10, 10), (10, 10)),
        np.full((2, 2), 0.5),
        Limits(0.9, 0.9, 0.9, 0.05),
    )
    assert loss(base, base, targets, limits) == 0
    opposite = np.array([[[10, 0, 0], [0, 10, 0], [5, 5, 0]]] * 2)
    assert loss(Measured(opposite, (10, 10), (10, 10), (10, 10)), base, targets, limits) > 0.7
    vague = half + np.array([0, 0, 5])
    for worse, cost in (
        (Measured(half, (6, 10), (10, 10), (10, 10)), 0.3),
        (Measured(half, (10, 10), (6, 10), (10, 10)), 0.3),
        (Measured(half, (10, 10), (10, 10), (6, 10)), 0.3),
        (Measured(vague, (10, 10), (10, 10), (10, 10)), 1 / 3 - 0.05),
    ):
        assert loss(worse, base, targets, limits) == pytest.approx(cost)


def test_a_verified_candidate_gives_way_only_to_a_much_better_one() -> None:
    search = CalibrationSearch(PROFESSIONS[:1], W, Rules(1000.0, 10.0, base_rounds=1, search_rounds=2, verify_rounds=1))
    female = (10, 2, 5, 10)
    while (candidate := search.propose()) is not None:
        hits = np.full((1, W), female[candidate.number - 1])
        search.tell(candidate, Measured(np.stack([hits, 10 - hits, 0 * hits], axis=-1)))
    assert [c.phase for c, _ in search.trials] == ["base", "search", "search", "verify"]
    assert search.best.number == 3
