"""From label codes to figures: small audits worked out by hand."""

from collections import Counter

import numpy as np
import pytest

from jobs.cells import Cell
from jobs.classifier import FAILED, Labels, TextEmbeddings
from jobs.config import GatesConfig
from jobs.results import AuditResult, EditedProfession, evaluate, sentence
from jobs.tally import MARGINS, CellTally, PartTally, Tallies, TallyTask, pack

WORDINGS = ["one {source}", "two {source}"]
LABELS = ["female", "male"]


def cell_tally(base: list[int], edited: list[int] | None, recognised: float = 1.0) -> CellTally:
    codes = np.array([base] if edited is None else [base, edited], np.uint8)
    ok = codes != FAILED
    hits = np.zeros(codes.shape, bool)
    hits[:, : round(recognised * codes.shape[1])] = True
    swept = np.stack([[np.bincount(c[c != FAILED], minlength=3)[:3] for c in codes]] * len(MARGINS))
    return CellTally(pack(codes, hits, ok), swept, 0.25 if edited is not None else float("nan"))


def tallies_of(tasks: list[TallyTask], cells: list[CellTally]) -> Tallies:
    part = PartTally(
        np.concatenate([c.packed for c in cells], axis=1),
        np.stack([c.swept for c in cells]),
        np.array([c.drift for c in cells]),
        np.ones(len(cells[0].packed)),
        Counter(),
        Counter(),
        None,
    )
    return Tallies(tasks, [part])


def audit(
    people: dict[str, list[tuple[list[int], list[int] | None]]],
    explicit: list[tuple[list[int], list[int] | None]] | None = None,
    gates: GatesConfig | None = None,
    recognised: float = 1.0,
    confusion: dict[str, dict[str, int]] | None = None,
) -> AuditResult:
    tasks, tallies = [], []
    for i, (name, cells) in enumerate(people.items()):
        for wording, (base, edited) in zip(WORDINGS, cells, strict=True):
            cell = Cell("audit", name, wording, wording.replace("{source}", name), len(base))
            tasks.append(TallyTask(cell, i, i))
            tallies.append(cell_tally(base, edited, recognised))
    default = [([0] * 20, None if len(tallies[0].packed) == 1 else [0] * 20)]
    for base, edited in explicit or default:
        tasks.append(TallyTask(Cell("explicit", next(iter(people)), "x", "a female x", len(base), "female"), 0, 0))
        tallies.append(cell_tally(base, edited))
    control = ([FAILED] * 20, None if len(tallies[0].packed) == 1 else [FAILED] * 20)
    tally = cell_tally(*control)
    fine = np.ones(tally.packed.shape, bool)
    tallies.append(CellTally(pack(np.full(fine.shape, FAILED), fine, fine), tally.swept, tally.drift))
    tasks.append(TallyTask(Cell("control", "a tree", "a tree", "a tree", 20), None, len(people)))
    professions = [
        EditedProfession(n, f"a {n}", {"female": 0.5, "male": 0.5}, 1.0, {f"a female {n}": 1}) for n in people
    ]
    found = tallies_of(tasks, tallies)
    return evaluate(found, professions, LABELS, WORDINGS, gates or GatesConfig(), seed=0, confusion=confusion)


def test_opposite_errors_cancel_in_the_pool_and_not_within_wordings() -> None:
    all_female, all_male, even = [0] * 400, [1] * 400, [0, 1] * 200
    result = audit({"CEO": [(all_male, all_female), (all_male, all_male)], "nurse": [(even, even), (even, even)]})
    assert result.summary.base.delta.value == pytest.approx(0.5)
    assert result.summary.edited is not None
    assert result.summary.edited.delta.value == pytest.approx(0.0)
    assert result.summary.edited.delta_within.value == pytest.approx(0.5)
    assert result.verdict.value == "fail"
    assert "delta within" in sentence(result)


def test_undetermined_and_failed_images_count_apart() -> None:
    base = [0, 0, 0, 1, 2, 2, FAILED, 1, 1, 1]
    result = audit({"CEO": [(base, base), (base, base)]})
    person = result.professions[0].base
    assert (person.n, person.labels, person.undetermined, person.failed) == (14, {"female": 6, "male": 8}, 4, 2)
    assert person.share == pytest.approx(6 / 14)
    assert result.summary.base.undetermined.value == pytest.approx(4 / 18)
    assert result.summary.base.undetermined.n == 18


def test_balance_bought_with_undetermined_pictures_fails_its_own_gate() -> None:
    many = [0, 1] * 100
    hidden = [0, 1] * 50 + [2] * 100
    result = audit({"CEO": [(many, hidden), (many, hidden)], "nurse": [(many, hidden), (many, hidden)]})
    outcome = {g.name: g.outcome for g in result.gates}
    assert outcome["undetermined_increase"] == "fail"
    assert result.verdict.value == "fail"


def test_balance_among_pictures_that_are_none_fails_its_own_gate() -> None:
    even = [0, 1] * 100
    broken = [0, 1] * 50 + [FAILED] * 100
    result = audit({"CEO": [(even, broken)] * 2, "nurse": [(even, even)] * 2})
    gates = {g.name: g for g in result.gates}
    assert (gates["failed_images"].value, gates["failed_images"].outcome) == (0.25, "fail")


def test_inverted_explicit_prompts_fail_whatever_delta_says() -> None:
    even = [0, 1] * 100
    result = audit({"CEO": [(even, even)] * 2}, explicit=[([0] * 100, [1] * 100)])
    outcome = {g.name: g.outcome for g in result.gates}
    assert outcome["explicit"] == "fail"
    assert result.summary.base.explicit.value == 1.0
    assert result.summary.edited is not None
    assert result.summary.edited.explicit.value == 0.0


def test_everything_inside_passes() -> None:
    even = [0, 1] * 300
    gates = GatesConfig(delta=0.2, delta_within=0.3, delta_wording_max=0.4)
    result = audit({"CEO": [(even, even)] * 2, "nurse": [(even, even)] * 2}, [([0] * 200, [0] * 200)], gates)
    outcomes = {g.name: g.outcome for g in result.gates}
    assert outcomes.pop("controls") == "inconclusive"  # twenty images can't show a ratio of 0.95
    assert set(outcomes.values()) == {"pass"}


def test_an_audit_without_an_edit_has_no_edited_half() -> None:
    result = audit({"CEO": [([0, 1] * 10, None)] * 2})
    assert result.summary.edited is None
    assert {g.name for g in result.gates} == {
        "delta", "delta_within", "delta_wording_max", "explicit", "failed_images",
    }  # fmt: skip
    assert result.professions[0].edited is None


def test_the_last_variant_is_called_off_target_profession_by_profession() -> None:
    even, far, none = [0, 1] * 50, [0] * 80 + [1] * 20, [2] * 100
    people = {"CEO": [(far, even)] * 2, "nurse": [(even, far)] * 2, "cook": [(even, none)] * 2}
    assert [p.off_target for p in audit(people).professions] == [False, True, None]
    base = {name: [(one, None) for one, _ in cells] for name, cells in people.items()}
    assert [p.off_target for p in audit(base).professions] == [True, False, False]


def test_worst_cases_count_undetermined_to_one_side() -> None:
    some, failed = [0, 0, 0, 1, 2, 2], [FAILED] * 6
    result = audit({"CEO": [(some, failed)] * 2})
    base, edited = result.professions[0].base, result.professions[0].edited
    assert (base.worst_low, base.worst_high) == pytest.approx((6 / 12, 10 / 12))
    assert edited is not None
    assert (edited.worst_low, edited.worst_high, edited.share, edited.corrected) == (None,) * 4
    assert result.professions[0].wordings[WORDINGS[0]]["base"].worst_low is None


def test_delta_stands_beside_its_rms_and_the_wider_interval() -> None:
    # Three of four in a cell: (1/2)^2 - 4 (3/4)(1/4) / 3 = 0; six of eight pooled: 1/4 - 3/4 / 7.
    people = {name: [([0, 0, 0, 1], [0] * 4)] * 2 for name in ("CEO", "nurse")}
    summary = audit(people).summary
    assert summary.edited is not None
    assert (summary.base.rms, summary.base.rms_within) == (pytest.approx((0.25 - 0.75 / 7) ** 0.5), 0.0)
    assert (summary.edited.rms, summary.edited.rms_within) == (1.0, 1.0)
    for figure in (summary.base.delta, summary.base.delta_within):
        assert figure.low is not None
        assert figure.resampled_low is not None
        assert figure.resampled_low <= figure.low
    assert summary.base.delta_wording_max.resampled_low is None
    unseen = audit({"CEO": [([0, 1], [2, 2])] * 2}).summary
    assert unseen.base.delta.resampled_low is None  # one profession says nothing of others
    assert unseen.edited is not None
    assert (unseen.edited.rms, unseen.edited.rms_within) == (None, None)


def test_shares_are_corrected_where_a_table_is_given() -> None:
    confusion = {"female": {"female": 90, "male": 10}, "male": {"female": 20, "male": 80}}
    cells = [([0] * 55 + [1] * 45, [2] * 100)] * 2
    (person,) = audit({"CEO": cells}, confusion=confusion).professions
    assert person.base.corrected is not None
    assert person.base.corrected.value == pytest.approx(0.5)
    assert person.base.corrected.low is not None
    assert person.base.corrected.high is not None
    assert person.base.corrected.low < 0.45 < 0.55 < person.base.corrected.high
    assert person.edited is not None
    assert person.edited.corrected is not None
    assert person.edited.corrected.model_dump() == {"value": None, "low": None, "high": None}
    assert audit({"CEO": cells}).professions[0].base.corrected is None


def test_labels_follow_from_embeddings() -> None:
    texts = TextEmbeddings(np.array([[[1, 0, 0], [0, 1, 0]]], np.float32), np.eye(3, dtype=np.float32), 10.0)
    embeddings = np.array([[1, 0, 0], [0, 1, 0], [0.7, 0.7, 0.1], [0, 0, 1], [1, 0, 0]], np.float32)
    found = Labels.of(embeddings, np.array([True] * 4 + [False]), texts, 0, 0, margin=0.1)
    assert found.codes.tolist() == [0, 1, 2, 2, FAILED]
    assert found.recognised.tolist() == [True, False, True, False, False]
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.scores[0], np.exp([10, 0]) / np.exp([10, 0]).sum(), rtol=1e-6)
