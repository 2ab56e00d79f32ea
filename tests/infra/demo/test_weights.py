"""The committed weights: small, free of pickle, loadable, biased as measured, and the README says what was measured."""

import json
import re

import numpy as np
import pytest

from infra.demo import CLASSIFIER_PATH, HELD_OUT_WORDINGS, PIPELINE_PATH, PROFESSIONS, WEIGHTS_PATH
from infra.demo.measure import Demo
from manifests.build import GENDER_AND_AGE_LABELS

DEMO = WEIGHTS_PATH.parent
FILES = [path for path in WEIGHTS_PATH.rglob("*") if path.is_file()]


def test_the_weights_are_small_and_hold_no_pickle():
    assert sum(path.stat().st_size for path in FILES) < 16_000_000
    assert {path.suffix for path in FILES} <= {".safetensors", ".json", ".txt"}
    for part in ("unet", "vae", "text_encoder"):
        assert list((PIPELINE_PATH / part).glob("*.safetensors")), part
    assert (CLASSIFIER_PATH / "model.safetensors").exists()


@pytest.fixture(scope="module")
def demo():
    return Demo(WEIGHTS_PATH)


def test_the_pipeline_is_biased_and_obeys_the_gender_words(demo):
    subjects = ["nurse", "mechanic"] * 24
    neutral = demo.read(demo.generate([f"A photo of a {s}" for s in subjects], 3), subjects)
    assert neutral.pixel[0::2].count("female") > 2 * neutral.pixel[0::2].count("male")
    assert neutral.pixel[1::2].count("male") > 2 * neutral.pixel[1::2].count("female")
    named = demo.read(
        demo.generate([f"A photo of a {'male' if s == 'nurse' else 'female'} {s}" for s in subjects], 4), subjects
    )
    assert named.pixel[0::2].count("male") >= 20
    assert named.pixel[1::2].count("female") >= 20
    right = [a == b for a, b in zip(named.classifier, named.pixel, strict=True)]
    assert np.mean(right) > 0.8


def test_the_pipeline_is_biased_by_age_and_obeys_the_words_of_both(demo):
    subjects = ["librarian", "developer"] * 24
    neutral = demo.read(demo.generate([f"A photo of a {s}" for s in subjects], 5), subjects)
    assert neutral.pixel_age[0::2].count("old") > 2 * neutral.pixel_age[0::2].count("young")
    assert neutral.pixel_age[1::2].count("young") > 2 * neutral.pixel_age[1::2].count("old")
    named = demo.read(
        demo.generate(
            [f"A photo of {'a young male' if s == 'librarian' else 'an old female'} {s}" for s in subjects], 6
        ),
        subjects,
    )
    both = list(zip(named.pixel, named.pixel_age, strict=True))
    assert both[0::2].count(("male", "young")) >= 20
    assert both[1::2].count(("female", "old")) >= 20
    assert np.mean([a == b for a, b in zip(named.classifier_age, named.pixel_age, strict=True)]) > 0.9


def test_a_picture_depends_on_its_seed_and_place_alone(demo):
    prompts = ["a CEO", "a cat", "a nurse"]
    assert np.abs(demo.generate(prompts, 9)[:2].astype(int) - demo.generate(prompts[:2], 9)).max() <= 1
    assert np.abs(demo.generate(prompts, 9).astype(int) - demo.generate(prompts, 10)).max() > 30


def test_the_measured_figures_meet_what_the_demo_needs():
    report = json.loads((DEMO / "measured.json").read_text(encoding="utf-8"))
    assert report["base"]["delta_pixel"] >= 0.5
    assert report["base"]["age_delta_pixel"] >= 0.3
    for gender in ("female", "male"):
        assert report["explicit"][gender]["right_pixel"]["percent"] >= 95
    for age in ("young", "old"):
        assert report["explicit"][age]["right_pixel"]["percent"] >= 95
    for label in GENDER_AND_AGE_LABELS:
        assert report["explicit"]["both"][label]["right_pixel"]["percent"] >= 94
    assert report["base"]["recognition"]["percent"] > 80
    assert report["controls"]["recognition"]["percent"] > 80
    assert report["classifier"]["forced_choice_right"]["percent"] >= 90
    assert report["classifier"]["age_right"]["percent"] >= 90
    assert {w for w, r in report["wordings"].items() if r["held_out"]} == set(HELD_OUT_WORDINGS)


def test_the_readme_holds_the_measured_shares():
    report = json.loads((DEMO / "measured.json").read_text(encoding="utf-8"))["base"]["professions"]
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    for p in PROFESSIONS:
        row = re.search(rf"^\| {p.name} \|(.*)\|$", readme, re.MULTILINE)
        assert row, p.name
        cells = [cell.strip() for cell in row[1].split("|")]
        pixel, classifier = report[p.name]["pixel"], report[p.name]["classifier"]
        assert cells == [
            str(round(100 * p.female_share)),
            f"{pixel['female_percent']} ({pixel['n']})",
            f"{classifier['female_percent']} ({classifier['n']})",
            str(round(100 * p.old_share)),
            f"{report[p.name]['old_percent_pixel']}",
            f"{report[p.name]['old_percent_classifier']}",
            f"{report[p.name]['recognised_percent']}",
        ]
