"""What calibration keeps is enough to go on from, and the report's section tells it as it was."""

import math

import numpy as np
import pytest
from scipy.special import expit

from jobs.editing.search_single import professions_of
from jobs.editing.single_evidence import Trial, evidence_bytes, section_of, trials_of
from manifests import Manifest, ManifestRow
from tests.jobs.helpers import config, manifest
from time_ops.search.calibration import CalibrationSearch
from time_ops.search.model import Candidate, Measured, Rules

LABELS = ["female", "male"]
CONFIG = config(
    form="single",
    attribute={"female": ["a female {profession}"], "male": ["a male {profession}"]},
    wordings={"edit": ["{source}", "A photo of {source}"], "calibration": ["{source}", "A photo of {source}"]},
)
MANIFEST = manifest("nurse", "CEO", "baker")
RULES = Rules(lam=100.0, least_lam=10.0, images=6)
THRESHOLDS = np.array([[0.4, 0.45], [0.6, 0.7], [0.5, 0.5]])


def audit(candidate: Candidate, rng: np.random.Generator) -> Measured:
    """A model whose share of the first label is logistic in the share asked for; the third's is balanced unedited."""
    asked = np.stack([s[:, 0] for s in candidate.shares])
    edited = np.stack([s.sum(axis=1) for s in candidate.shares]) > 0
    share = np.where(edited, expit(12 * (asked - THRESHOLDS)), np.array([[0.02], [0.02], [0.5]]))
    hits = rng.binomial(5, share)
    tallies = np.stack([hits, 5 - hits, np.ones_like(hits)], axis=-1)
    tallies[~candidate.active] = 0
    return Measured(tallies, (30, 36), (11, 12), (8, 8))


def searched(rounds: int | None = None) -> tuple[CalibrationSearch, list[Trial]]:
    search, rng = CalibrationSearch(professions_of(MANIFEST, LABELS), 2, RULES), np.random.default_rng(0)
    trials: list[Trial] = []
    while (candidate := search.propose()) is not None and (rounds is None or len(trials) < rounds):
        operator = "base" if candidate.phase == "base" else f"{hash(candidate.shares[0].tobytes()):x}"
        trials.append(Trial(candidate, audit(candidate, rng), operator))
        search.tell(candidate, trials[-1].measured)
    return search, trials


def test_a_search_read_back_proposes_the_same_to_the_last_bit() -> None:
    search, trials = searched(5)
    again = CalibrationSearch(search.professions, 2, RULES)
    read = trials_of(evidence_bytes(trials, MANIFEST, LABELS), MANIFEST)
    assert [t.operator for t in read] == [t.operator for t in trials]
    for trial in read:
        again.tell(trial.candidate, trial.measured)
    one, other = search.propose(), again.propose()
    assert one is not None
    assert other is not None
    assert (one.number, one.phase) == (other.number, other.phase)
    np.testing.assert_array_equal(one.lam, other.lam)
    np.testing.assert_array_equal(one.active, other.active)
    np.testing.assert_array_equal(np.stack(one.shares), np.stack(other.shares))
    assert again.chosen_rounds() == search.chosen_rounds()
    assert [t.measured.explicit for t in read] == [(11, 12)] * 5


def test_no_round_is_a_file_too() -> None:
    assert trials_of(evidence_bytes([], MANIFEST, LABELS), MANIFEST) == []
    with pytest.raises(ValueError, match="no calibration evidence"):
        trials_of(b"PAR1 but no more", MANIFEST)


def test_the_section_tells_each_round_and_each_profession() -> None:
    search, trials = searched()
    found = section_of(search, trials, MANIFEST, CONFIG)
    assert [r.round for r in found.rounds] == list(range(1, len(trials) + 1))
    assert {r.round for r in found.rounds if r.chosen} == search.chosen_rounds()
    # Two wordings, two explicit prompts of each profession that takes part, and the controls: some may have failed.
    search_of = CONFIG.calibration
    per_profession = 2 * search_of.images + 2 * search_of.explicit_images
    controls = len(CONFIG.controls) * search_of.control_images
    active = [int(t.candidate.active.sum()) for t in trials]
    assert [r.images for r in found.rounds] == [n * per_profession + controls for n in active]
    assert found.images == sum(r.images for r in found.rounds)
    first = found.rounds[0]
    assert (first.professions, first.explicit) == (3, 11 / 12)
    assert first.undetermined == pytest.approx(1 / 6)
    assert first.delta_within is not None
    assert first.floor_within is not None
    # Five images: the exact mean distance from one half, doubled, of a binomial share.
    wanted = 2 * sum(math.comb(5, k) / 32 * abs(k / 5 - 0.5) for k in range(6))
    assert first.floor_within == pytest.approx(wanted)
    nurse = found.professions[0]
    assert [s.round for s in nurse.steps] == [
        t.candidate.number for t in trials if t.candidate.phase != "base" and t.candidate.active[0]
    ]
    last = next(t for t in reversed(trials) if t.candidate.number == nurse.steps[-1].round)
    counts = last.measured.tallies[0].sum(axis=0)
    assert (nurse.steps[-1].n, nurse.steps[-1].undetermined) == (counts[:2].sum(), counts[2])
    assert nurse.steps[-1].share == counts[0] / counts[:2].sum()
    assert nurse.steps[-1].shares == {
        "a female nurse": pytest.approx(last.candidate.shares[0][:, 0].mean()),
        "a male nurse": pytest.approx(last.candidate.shares[0][:, 1].mean()),
    }


def test_what_has_a_lambda_is_solved_as_the_manifest_says() -> None:
    rows = [
        ManifestRow(profession="nurse", source="a nurse", destination=f"a {g} nurse", label=g, share=share, lam=lam)
        for g, share, lam in (("female", 0.3, 5.0), ("male", None, 5.0))
    ]
    rows += [ManifestRow(profession="CEO", source="a CEO", destination="a female CEO", label="female")]
    nurse, ceo = professions_of(Manifest(tuple(rows)), LABELS)
    assert nurse.shares == pytest.approx((0.3, 0.7))
    assert (nurse.lam, nurse.labels) == (5.0, (0, 1))
    assert (ceo.shares, ceo.lam, ceo.labels, ceo.target) == ((None,), None, (0,), (0.5, 0.5))
