"""The world: deterministic, every profession its own look, a pixel rule that knows the outline, clean captions."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.demo import CONTROLS, HELD_OUT_WORDINGS, PROFESSIONS, WORDINGS
from infra.demo.captions import (
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
from infra.demo.world import draw, draw_all, perceived_gender, perceived_genders

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
        assert p.source == ("an " if p.name[0] in "aeiou" else "a ") + p.name
    assert 3 <= sum(abs(p.female_share - 0.5) <= 0.1 for p in PROFESSIONS) <= 5


def test_professions_are_pairwise_distinguishable():
    rng = np.random.default_rng(0)
    means = {
        p.name: draw_all([Scene("", p.name, "male", ("plain",))] * 40, rng).astype(float).mean(axis=0)
        for p in PROFESSIONS
    }
    again = {
        p.name: draw_all([Scene("", p.name, "female", ("plain",))] * 40, rng).astype(float).mean(axis=0)
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
        region = draw(Scene("", p.name, "male", (wording.style,)), rng)[3:27, 19:].astype(float)
        contrast = np.abs(np.diff(region, axis=0)).max(axis=2)
        assert np.sort(contrast.ravel())[-15] > 40, (p.name, wording.style)


@pytest.mark.parametrize("gender", GENDERS)
def test_the_pixel_rule_knows_the_outline_in_every_wording(gender):
    rng = np.random.default_rng(2)
    for wording in STYLED_WORDINGS:
        drawn = [Scene("", p.name, gender, (wording.style,)) for p in PROFESSIONS for _ in range(4)]
        labels = perceived_genders(draw_all(drawn, rng))
        assert labels.count(gender) / len(labels) >= 0.98, wording


def test_the_pixel_rule_withstands_blur_and_noise():
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


def test_the_pixel_rule_does_not_call_a_blank_picture():
    assert perceived_gender(np.full((32, 32, 3), 128, np.uint8)) == "undetermined"


def test_captions_keep_their_shares():
    drawn = scenes(7, 20_000)
    people = [s for s in drawn if s.gender]

    def is_named(scene):
        return any(f" {gender} " in f" {scene.caption}" for gender in ("female", "male"))

    named = [s for s in people if is_named(s)]
    assert len(people) / len(drawn) == pytest.approx(1 - CONTROL_SHARE, abs=0.01)
    assert len(named) / len(people) == pytest.approx(NAMED_SHARE, abs=0.02)
    for scene in named:
        assert f" {scene.gender} " in f" {scene.caption}"
    neutral = [s for s in people if not is_named(s)]
    ambiguous = sum(s.gender == "undetermined" for s in neutral) / len(neutral)
    assert ambiguous == pytest.approx(AMBIGUOUS_SHARE, abs=0.01)
    for p in PROFESSIONS:
        of_p = [s.gender for s in neutral if s.subject == p.name and s.gender != "undetermined"]
        assert of_p.count("female") / len(of_p) == pytest.approx(p.female_share, abs=0.12), p.name
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


def test_every_wording_carries_the_gender_words_in_training():
    captions = set(all_captions())
    seen = {s.caption for s in scenes(10, 60_000)}
    for wording in WORDINGS:
        for gender in ("female", "male"):
            forms = {fill(wording, source(p, gender)) for p in PROFESSIONS}
            assert forms <= captions
            assert len(forms & seen) > 25, wording


def test_share_seeds_redraw_the_shares_within_each_direction():
    assert draw_shares(None) == {p.name: p.female_share for p in PROFESSIONS}
    assert draw_shares(1) == draw_shares(1) != draw_shares(2)
    assert all(0 < share < 1 for share in draw_shares(1).values())


def test_importing_the_package_imports_no_torch():
    code = "import sys, infra.demo; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]).returncode == 0
