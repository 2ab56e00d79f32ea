"""The search for a mixture's strengths on a simulated model: who falls short is strengthened, nobody else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from time_ops.search.saturation import Base, Rules, Saturation, Seen, Subject, Trial, mixing_weights

RULES = Rules(lam=0.1, least_lam=0.01, overshoot=1.4, ratio=1.0, rounds=4)
HALF = (0.5, 0.5)


def subjects(n: int, **changes: object) -> list[Subject]:
    return [replace(Subject(f"p{i}", HALF, (True, True)), **changes) for i in range(n)]  # type: ignore[arg-type]


def seen_of(
    trial: Trial, own: np.ndarray, explicit: np.ndarray | None = None, images: int = 4, labels: int = 2
) -> Seen:
    """What a model shows whose component k draws its own label for profession p in own[k, p] of the images."""
    K, P = trial.lam.shape
    tallies = np.zeros((K, P, labels + 1), np.int64)
    for k in np.flatnonzero(trial.active):
        hits = np.round(own[k] * images).astype(int)
        tallies[k, :, k] = hits
        tallies[k, :, (k + 1) % labels] = images - hits
    right = np.ones((K, P), int) if explicit is None else explicit
    pairs = np.stack([right, np.ones_like(right)], axis=-1) * trial.active[:, None, None]
    full = np.tile([10, 10], (K, 1))
    return Seen(tallies, pairs, full, full)


def run(search: Saturation, own: object, explicit: object = None) -> list[Trial]:
    trials = []
    while (trial := search.propose()) is not None:
        trials.append(trial)
        right = explicit(trial) if callable(explicit) else None
        search.tell(trial, seen_of(trial, own(trial), right))  # type: ignore[operator]
    return trials


def test_a_saturated_mixture_takes_one_round() -> None:
    search = Saturation(subjects(5), (0, 1), 2, RULES)
    trials = run(search, lambda trial: np.ones(trial.lam.shape))
    assert len(trials) == 1
    assert (search.chosen.lam == 0.1).all()
    assert search.chosen.rounds == (1, 1)
    assert search.weights() == (HALF, {})


def test_only_who_falls_short_is_strengthened_lambda_first_then_overshoot_then_less_preservation() -> None:
    rules = replace(RULES, rounds=9, overshoot=1.2, most_overshoot=1.3)
    search = Saturation(subjects(8), (0, 1), 2, rules)

    def own(trial: Trial) -> np.ndarray:
        shares = np.ones(trial.lam.shape)
        shares[1, 3] = 0.25  # whatever is done
        return shares

    trials = run(search, own)
    # Eased as far as it goes, it would only be drawn again.
    assert len(trials) == 9
    lams, overshoots, ratios = ([getattr(t, name)[1, 3] for t in trials] for name in ("lam", "overshoot", "ratio"))
    assert lams[:4] == pytest.approx([0.1, 0.1 / 3, 0.1 / 9, 0.01])
    assert overshoots[:5] == pytest.approx([1.2, 1.2, 1.2, 1.2, 1.3])
    assert ratios[4:7] == pytest.approx([1.0, 2.0, 4.0])
    others = np.ones((2, 8), bool)
    others[1, 3] = False
    assert all((t.lam[others] == 0.1).all() and (t.ratio[others] == 1).all() for t in trials)
    # The component that was done at once takes no more images.
    assert [t.active.tolist() for t in trials] == [[True, True]] + [[False, True]] * 8


def test_explicit_prompts_that_are_lost_are_held_more_and_the_edit_does_not_overshoot_so_far() -> None:
    search = Saturation(subjects(6), (0, 1), 2, replace(RULES, overshoot=1.4, rounds=3))

    def explicit(trial: Trial) -> np.ndarray:
        right = np.ones(trial.lam.shape, int)
        right[0, 2] = 0 if trial.ratio[0, 2] > 0.3 else 1
        return right

    first, second, third = run(search, lambda trial: np.ones(trial.lam.shape), explicit)
    assert second.ratio[0, 2] == 0.5
    assert second.overshoot[0, 2] == pytest.approx(1.3)
    assert third.ratio[0, 2] == 0.25
    assert (np.delete(second.ratio, 2, axis=1) == 1).all()
    assert search.chosen.rounds[0] == 3
    assert search.chosen.ratio[0, 2] == 0.25
    assert first.ratio[0, 2] == 1


def test_a_round_that_makes_it_worse_is_not_gone_on_with() -> None:
    search = Saturation(subjects(4), (0, 1), 2, RULES)
    shares = iter([0.75, 0.25, 0.0, 0.0])
    run(search, lambda trial: np.full(trial.lam.shape, next(shares)))
    assert search.chosen.rounds == (1, 1)
    assert (search.chosen.lam == 0.1).all()


def test_fixed_strengths_stay_and_what_is_left_alone_is_not_edited() -> None:
    people = [*subjects(3), Subject("fixed", HALF, (True, True), lam=7.0), Subject("one", HALF, (True, False))]
    search = Saturation(people, (0, 1), 2, replace(RULES, rounds=3))
    for trial in run(search, lambda trial: np.full(trial.lam.shape, 0.5)):
        assert (trial.lam[:, 3] == 7.0).all()
        assert trial.overshoot[1, 4] == 1.0
        assert trial.lam[1, 4] == 0.1
    assert search.edited.tolist() == [[True] * 5, [True] * 4 + [False]]


def test_no_budget_leaves_strengths_where_they_start() -> None:
    search = Saturation(subjects(2), (0, 1), 2, replace(RULES, rounds=0))
    assert search.propose() is None
    assert search.chosen.rounds == (0, 0)
    assert search.weights() == (HALF, {})


@pytest.mark.parametrize(
    ("drawn", "target", "weights"),
    [
        (np.eye(2), (0.5, 0.5), (0.5, 0.5)),
        (np.eye(3), (0.2, 0.5, 0.3), (0.2, 0.5, 0.3)),
        ([[0.9, 0.1], [0.0, 1.0]], (0.45, 0.55), (0.5, 0.5)),
        # Out of reach: all that there is of the one.
        ([[0.4, 0.6], [0.1, 0.9]], (0.5, 0.5), (1.0, 0.0)),
        # Beside the unedited model: what it lacks.
        ([[1.0, 0.0], [0.2, 0.8]], (0.5, 0.5), (0.375, 0.625)),
    ],
)
def test_weights_bring_what_components_draw_to_the_target(
    drawn: object, target: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    found = mixing_weights(np.asarray(drawn), np.array(target))
    assert found == pytest.approx(weights, abs=1e-4)
    assert sum(found) == pytest.approx(1.0, abs=1e-12)


def test_targets_and_fixed_shares_are_weights_of_a_profession() -> None:
    people = [
        *subjects(4),
        Subject("many", (0.9, 0.1), (True, True)),
        Subject("given", HALF, (True, True), None, (0.3, 0.7)),
    ]
    search = Saturation(people, (0, 1), 2, RULES)
    run(search, lambda trial: np.ones(trial.lam.shape))
    default, own = search.weights()
    assert default == HALF
    assert own == {"many": pytest.approx((0.9, 0.1)), "given": (0.3, 0.7)}


def test_a_component_that_is_shown_to_fall_short_is_drawn_more_often() -> None:
    search = Saturation(subjects(40), (0, 1), 2, replace(RULES, rounds=1))
    (trial,) = [search.propose()]
    assert trial is not None
    own = np.ones((2, 40))
    own[0] = 0.75
    search.tell(trial, seen_of(trial, own))
    default, _ = search.weights()
    # w 0.75 = 0.5, less what 160 images leave open.
    assert default == pytest.approx((2 / 3, 1 / 3), abs=0.03)
    assert 0.63 < default[0] < 2 / 3
    few = Saturation(subjects(1), (0, 1), 2, replace(RULES, rounds=1))
    first = few.propose()
    assert first is not None
    few.tell(first, seen_of(first, np.array([[0.75], [1.0]])))
    assert few.weights()[0] == HALF


def test_a_few_stray_images_move_no_weight_but_a_profession_that_does_not_follow_does() -> None:
    search = Saturation(subjects(40), (0, 1), 2, replace(RULES, rounds=1))
    trial = search.propose()
    assert trial is not None
    own = np.ones((2, 40))
    own[0, 5], own[1, 6] = 0.75, 0.0
    search.tell(trial, seen_of(trial, own))
    default, weights = search.weights()
    assert default == HALF
    assert set(weights) == {"p6"}
    assert weights["p6"][1] > 0.53


def test_beside_the_unedited_model_each_profession_has_weights_of_its_own() -> None:
    people = [Subject("low", HALF, (True, False)), Subject("high", HALF, (True, False))]
    search = Saturation(people, (0, None), 2, replace(RULES, rounds=1))
    trial = search.propose()
    assert trial is not None
    tallies = np.zeros((2, 2, 3), np.int64)
    tallies[0, :, 0] = 4
    tallies[1, 0], tallies[1, 1] = (1, 7, 0), (7, 1, 0)
    full = np.tile([4, 4], (2, 1))
    search.tell(trial, Seen(tallies, np.zeros((2, 2, 2), np.int64), full, full))
    default, own = search.weights()
    # (1 + 1/2) / 9 = 1/6 female unedited: w + (1 - w) / 6 = 1/2. "high" has too many already: nothing to add.
    assert own["low"] == pytest.approx((0.4, 0.6), abs=1e-3)
    assert own.get("high", default) == pytest.approx((0.0, 1.0), abs=1e-3)


def test_four_labels_are_searched_by_the_same_rules() -> None:
    quarter = (0.4, 0.3, 0.2, 0.1)
    people = [Subject(f"p{i}", quarter, (True,) * 4) for i in range(6)]
    search = Saturation(people, (0, 1, 2, 3), 4, RULES)
    while (trial := search.propose()) is not None:
        search.tell(trial, seen_of(trial, np.ones((4, 6)), labels=4))
    default, own = search.weights()
    assert default == pytest.approx(quarter)
    assert own == {}
    with pytest.raises(ValueError, match="where"):
        search.tell(search.trials[0][0], Seen(*(np.zeros((1,)),) * 4))


def test_what_an_edit_costs_is_relative_to_the_base() -> None:
    def seen(trial: Trial, recognised: int, undetermined: int = 0) -> Seen:
        shown = seen_of(trial, np.ones(trial.lam.shape), images=10)
        shown.tallies[:, :, 2] = undetermined
        return replace(shown, recognised=np.tile([recognised, 10], (2, 1)))

    base = Base(recognised=0.7, undetermined=0.2)
    search = Saturation(subjects(4), (0, 1), 2, replace(RULES, base=base))
    trial = search.propose()
    assert trial is not None
    assert search.shortfall(seen(trial, 7, 2), 0) == 0
    assert search.shortfall(seen(trial, 6, 2), 0) == pytest.approx(0.95 - 6 / 7)
    assert search.shortfall(seen(trial, 7, 5), 0) == pytest.approx(1 / 3 - 0.2 - 0.05)
    # A saturated component that costs too much overshoots less, down to the destination itself; then it is over.
    search.tell(trial, seen(trial, 5))
    overshoots = []
    while (trial := search.propose()) is not None:
        overshoots.append(float(trial.overshoot[0, 0]))
        search.tell(trial, seen(trial, 5))
    assert overshoots == pytest.approx([1.3, 1.2, 1.1])
    ended = Saturation(subjects(4), (0, 1), 2, replace(RULES, base=base, overshoot=1.0, rounds=9))
    trial = ended.propose()
    assert trial is not None
    ended.tell(trial, seen(trial, 5))
    assert ended.propose() is None


def test_one_profession_that_does_not_follow_keeps_a_large_manifest_going() -> None:
    search = Saturation(subjects(300), (0, 1), 2, RULES)
    trial = search.propose()
    assert trial is not None
    own = np.ones((2, 300))
    own[0, 7] = 0.0
    search.tell(trial, seen_of(trial, own))
    assert search.shortfall(search.trials[0][1], 0) == 0
    second = search.propose()
    assert second is not None
    assert second.active.tolist() == [True, False]
    assert second.lam[0, 7] < second.lam[0, 6]


def test_a_component_without_an_image_is_not_taken_for_a_good_one() -> None:
    search = Saturation(subjects(2), (0, 1), 2, RULES)
    trial = search.propose()
    assert trial is not None
    empty = seen_of(trial, np.ones((2, 2)), images=0)
    assert search.shortfall(empty, 0) == np.inf
