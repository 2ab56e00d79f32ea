"""The search against a simulated model: thresholds by profession and wording that it is not told."""

import numpy as np
from scipy.special import expit

from time_ops.calibration import Calibration, Candidate, Measured, Profession, Rules, State
from time_ops.response import Observed, fit_response

P, W = 12, 8
PROFESSIONS = [Profession(f"p{i}", (0.5, 0.5), (0, 1), (None, None)) for i in range(P)]
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
    np.testing.assert_allclose(found.predict(found.share_for(np.full(30, 0.3))), 0.3)


def test_shares_come_on_target_in_every_wording_and_the_balanced_is_left_alone() -> None:
    world = World(1)
    search = Calibration(PROFESSIONS, W, RULES)
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
    rounds = [c for c, _ in search.trials]
    assert len({c.first for c in rounds}) == len(rounds)


def test_a_resumed_search_goes_on_as_if_it_had_not_stopped() -> None:
    world, search = World(2), Calibration(PROFESSIONS, W, RULES)
    for _ in range(5):
        candidate = search.propose()
        assert candidate is not None
        search.tell(candidate, world.audit(candidate, RULES.images))
    again = Calibration(PROFESSIONS, W, RULES)
    for trial in search.trials:
        again.tell(*trial)
    one, other = search.propose(), again.propose()
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.lam, other.lam)
    for mine, theirs in zip(one.shares, other.shares, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (one.phase, one.number, one.first) == (other.phase, other.number, other.first)


def test_all_fixed_needs_no_search() -> None:
    fixed = Profession("p", (0.5, 0.5), (0, 1), (0.4, 0.6), lam=30.0)
    search = Calibration([fixed], W, RULES)
    assert search.propose() is None
    assert search.best.lam.tolist() == [30.0]
    np.testing.assert_array_equal(search.best.shares[0], np.tile([0.4, 0.6], (W, 1)))
    assert search.outcomes()[0].state is State.FIXED


def test_wordings_that_the_edit_has_not_follow_the_others() -> None:
    world = World(3)
    search = Calibration(PROFESSIONS, W, RULES, unedited=[1, 4])
    while (candidate := search.propose()) is not None:
        search.tell(candidate, world.audit(candidate, RULES.images))
    shares = search.best.shares[5][:, 0]
    own = np.delete(shares, [1, 4])
    assert own.std() > 0.005
    np.testing.assert_allclose(shares[[1, 4]], own.mean())
