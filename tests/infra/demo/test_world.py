"""The world: deterministic, every profession its own look, pixel rules that know outline and scarf, clean captions."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.demo import CONTROLS, HELD_OUT_WORDINGS, PROFESSIONS, WORDINGS
from infra.demo.captions import (
    AGES,
    AMBIGUOUS_SHARE,
    CONTROL_SHARE,
    GENDERS,
    NAMED_SHARE,
    STYLED_WORDINGS,
    Scene,
    all_captions,
    draw_scene,
    draw_shares,
    fill,
    source,
)
from infra.demo.sprites import LOOKS
from infra.demo.world import draw, draw_all, perceived_age, perceived_ages, perceived_gender, perceived_genders

STANDARD = draw_shares(None)


def scenes(seed, count, **kwargs):
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, STANDARD, **kwargs) for _ in range(count)]


def pictures(seed):
    rng = np.random.default_rng(seed)
    return np.stack([draw(draw_scene(rng, STANDARD), rng) for _ in range(50)])


def test_the_world_follows_from_the_generator():
    assert np.array_equal(pictures(3), pictures(3))
    assert not np.array_equal(pictures(3), pictures(4))
    assert pictures(3).shape == (50, 32, 32, 3)
    assert pictures(3).dtype == np.uint8


def test_all_35_professions_have_a_look_and_a_consistent_bias():
    names = [p.name for p in PROFESSIONS]
    assert len(names) == len(set(names)) == 35
    assert set(LOOKS) == set(names)
    assert sum(p.direction == "female" for p in PROFESSIONS) == 20
    for p in PROFESSIONS:
        # An edit pushes against the bias of the training pictures.
        assert (p.female_share < 0.5) == (p.direction == "female")
        assert 0.1 <= p.old_share <= 0.85
        assert p.source == ("an " if p.name[0] in "aeiou" else "a ") + p.name
    assert 3 <= sum(abs(p.female_share - 0.5) <= 0.1 for p in PROFESSIONS) <= 5
    # The two biases are not the same one under two names.
    correlation = np.corrcoef([p.female_share for p in PROFESSIONS], [p.old_share for p in PROFESSIONS])[0, 1]
    assert abs(correlation) < 0.35
    assert 0.4 < np.mean([p.old_share for p in PROFESSIONS]) < 0.6


def test_professions_are_pairwise_distinguishable():
    rng = np.random.default_rng(0)
    means = {
        p.name: draw_all([Scene("", p.name, "male", "young", ("plain",))] * 40, rng).astype(float).mean(axis=0)
        for p in PROFESSIONS
    }
    again = {
        p.name: draw_all([Scene("", p.name, "female", "old", ("plain",))] * 40, rng).astype(float).mean(axis=0)
        for p in PROFESSIONS
    }
    for a, b in itertools.combinations(means, 2):
        own = np.abs(means[a] - again[a])[:, 18:].mean()
        other = np.abs(means[a] - means[b])[:, 18:].mean()
        assert other > own + 5, (a, b)
    looks = [(look.wall, look.floor) for look in LOOKS.values()]
    assert len(set(looks)) == len(looks)
    assert len({look.tool for look in LOOKS.values()}) == len(looks)


@pytest.mark.parametrize("wording", STYLED_WORDINGS, ids=lambda w: w.style + w.template[:4])
def test_no_tool_vanishes(wording):
    # Every tool region must hold strong edges against its background.
    rng = np.random.default_rng(1)
    for p in PROFESSIONS:
        region = draw(Scene("", p.name, "male", "young", (wording.style,)), rng)[3:27, 19:].astype(float)
        contrast = np.abs(np.diff(region, axis=0)).max(axis=2)
        assert np.sort(contrast.ravel())[-15] > 40, (p.name, wording.style)


@pytest.mark.parametrize("gender", GENDERS)
def test_the_pixel_rules_know_outline_and_scarf_in_every_wording(gender):
    rng = np.random.default_rng(2)
    for wording in STYLED_WORDINGS:
        drawn = [
            Scene("", p.name, gender, age, (wording.style,)) for p in PROFESSIONS for age in AGES for _ in range(2)
        ]
        images = draw_all(drawn, rng)
        labels = perceived_genders(images)
        assert labels.count(gender) / len(labels) >= 0.98, wording
        right = [label == scene.age for label, scene in zip(perceived_ages(images), drawn, strict=True)]
        assert np.mean(right) >= 0.98, wording


def test_the_pixel_rules_withstand_blur_and_noise():
    rng = np.random.default_rng(5)
    drawn = [s for s in scenes(5, 1500) if s.gender]
    images = draw_all(drawn, rng).astype(float)
    blurred = images.copy()
    blurred[:, 1:-1, 1:-1] = 0.6 * images[:, 1:-1, 1:-1] + 0.1 * (
        images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    )
    noisy = np.clip(blurred + rng.normal(0, 8, images.shape), 0, 255).astype(np.uint8)
    right = [a == s.gender for a, s in zip(perceived_genders(noisy), drawn, strict=True)]
    assert np.mean(right) > 0.96
    assert perceived_gender(noisy[0]) == perceived_genders(noisy[:1])[0]
    right = [a == s.age for a, s in zip(perceived_ages(noisy), drawn, strict=True)]
    assert np.mean(right) > 0.97
    assert perceived_age(noisy[0]) == perceived_ages(noisy[:1])[0]


def test_the_pixel_rule_does_not_call_a_blank_picture():
    blank = np.full((32, 32, 3), 128, np.uint8)
    assert perceived_gender(blank) == "undetermined"
    assert perceived_age(blank) == "young"


def test_captions_keep_their_shares():
    drawn = scenes(7, 20_000)
    people = [s for s in drawn if s.gender]

    def names(scene, words):
        return bool(set(words) & set(scene.caption.split()))

    def says(scene):
        return names(scene, ("female", "male")), names(scene, ("young", "old"))

    assert len(people) / len(drawn) == pytest.approx(1 - CONTROL_SHARE, abs=0.01)
    shares = {kind: sum(says(s) == kind for s in people) / len(people) for kind in itertools.product((0, 1), repeat=2)}
    assert 1 - shares[False, False] == pytest.approx(NAMED_SHARE, abs=0.02)
    assert shares[True, False] == pytest.approx(0.17, abs=0.01)
    assert shares[False, True] == pytest.approx(0.10, abs=0.01)
    assert shares[True, True] == pytest.approx(0.15, abs=0.01)
    for scene in people:
        says_gender, says_age = says(scene)
        assert not says_gender or f" {scene.gender} " in f" {scene.caption}"
        assert not says_age or f" {scene.age} " in f" {scene.caption}"
    # What a caption leaves open follows the profession's shares, each on its own.
    neutral = [s for s in people if not says(s)[0]]
    ambiguous = sum(s.gender == "undetermined" for s in neutral) / len(neutral)
    assert ambiguous == pytest.approx(AMBIGUOUS_SHARE, abs=0.01)
    for p in PROFESSIONS:
        of_p = [s.gender for s in neutral if s.subject == p.name and s.gender != "undetermined"]
        assert of_p.count("female") / len(of_p) == pytest.approx(p.female_share, abs=0.12), p.name
        ages = [s.age for s in people if s.subject == p.name and not says(s)[1]]
        assert ages.count("old") / len(ages) == pytest.approx(p.old_share, abs=0.12), p.name
    assert all(s.age is None for s in drawn if not s.gender)
    assert {s.subject for s in drawn if not s.gender} == set(CONTROLS)


def held_out_words():
    known = set(" ".join(fill(w, "x") for w in WORDINGS).lower().split())
    return {word for w in HELD_OUT_WORDINGS for word in fill(w, "x").lower().split()} - known


def test_training_captions_never_hold_a_held_out_wording():
    assert len(HELD_OUT_WORDINGS) >= 3
    assert any(w.endswith("{source}") for w in HELD_OUT_WORDINGS)
    assert any(w.startswith("{source}") for w in HELD_OUT_WORDINGS)
    new = held_out_words()
    assert {"illustration", "snapshot", "laughing", "bench"} <= new
    drawn = [s.caption for s in scenes(8, 60_000)] + [s.caption for s in scenes(9, 20_000, guessed_share=0.1)]
    for caption in drawn + all_captions():
        assert not {"illustration", "snapshot", "laughing", "bench"} & set(caption.lower().split()), caption


def test_sources_name_age_before_gender_with_the_article_that_fits():
    ceo, attendant = (next(p for p in PROFESSIONS if p.name == name) for name in ("CEO", "attendant"))
    assert [source(ceo), source(ceo, "female"), source(ceo, age="old")] == ["a CEO", "a female CEO", "an old CEO"]
    assert source(ceo, "male", "old") == "an old male CEO"
    assert source(attendant, "female", "young") == "a young female attendant"
    assert source(attendant) == "an attendant"


def test_every_wording_carries_the_words_of_gender_and_age_in_training():
    captions = set(all_captions())
    seen = {s.caption for s in scenes(10, 60_000)}
    for wording in WORDINGS:
        for gender, age in (("female", None), ("male", None), (None, "young"), (None, "old")):
            forms = {fill(wording, source(p, gender, age)) for p in PROFESSIONS}
            assert forms <= captions
            assert len(forms & seen) > 22, wording
        for gender, age in itertools.product(("female", "male"), AGES):
            forms = {fill(wording, source(p, gender, age)) for p in PROFESSIONS}
            assert forms <= captions
            assert len(forms & seen) > 15, wording


def test_share_seeds_redraw_the_shares_within_each_direction():
    standard = draw_shares(None)
    assert standard.female == {p.name: p.female_share for p in PROFESSIONS}
    assert standard.old == {p.name: p.old_share for p in PROFESSIONS}
    assert draw_shares(1) == draw_shares(1)
    for kind in ("female", "old"):
        one, two = (getattr(draw_shares(seed), kind) for seed in (1, 2))
        assert set(one) == set(two) == {p.name for p in PROFESSIONS}
        assert one != two
        assert all(0 < share < 1 for share in one.values())


def test_importing_the_package_imports_no_torch():
    code = "import sys, infra.demo; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]).returncode == 0
