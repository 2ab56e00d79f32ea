"""From label codes to figures: small audits worked out by hand."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from jobs.auditing.figures import AuditedProfession, AuditResult, audit_figures
from jobs.auditing.gates import figure_text
from jobs.auditing.sentence import audit_sentence
from jobs.auditing.tally import MARGINS, CellTally, PartTally, Tallies, TallyTask, pack
from jobs.config import GatesConfig
from jobs.images.cells import Cell
from jobs.images.labels import FAILED, Labels, TextEmbeddings
from jobs.report.figure_schema import GateResult

WORDINGS = ["one {source}", "two {source}"]
LABELS = ["female", "male"]


def cell_tally(base: list[int], edited: list[int] | None, recognised: float = 1.0) -> CellTally:
    codes = np.array([base] if edited is None else [base, edited], np.uint8)
    ok = codes != FAILED
    hits = np.zeros(codes.shape, bool)
    hits[:, : round(recognised * codes.shape[1])] = True
    swept = np.stack([[np.bincount(c[c != FAILED], minlength=3)[:3] for c in codes]] * len(MARGINS))
    drift = 0.25 if edited is not None else float("nan")
    return CellTally(pack(codes, hits, ok), swept, drift, np.zeros((0, 5), np.int32))


def tallies_of(tasks: list[TallyTask], cells: list[CellTally]) -> Tallies:
    part = PartTally(
        np.concatenate([c.packed for c in cells], axis=1),
        np.stack([c.swept for c in cells]),
        np.array([c.drift for c in cells]),
        np.stack([c.components for c in cells]),
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
    named: list[tuple[str, list[int]]] | None = None,
    compared: bool = False,
) -> AuditResult:
    tasks, tallies = [], []
    for i, (name, cells) in enumerate(people.items()):
        for wording, (base, edited) in zip(WORDINGS, cells, strict=True):
            cell = Cell("audit", name, wording, wording.replace("{source}", name), len(base))
            tasks.append(TallyTask(cell, i, i))
            tallies.append(cell_tally(base, edited, recognised))
    default = [([0] * 20, None if len(tallies[0].packed) == 1 else [0] * 20)]
    labels = [label for label, _ in named] if named else ["female"] * len(explicit or default)
    for label, (base, edited) in zip(labels, explicit or default, strict=True):
        tasks.append(TallyTask(Cell("explicit", next(iter(people)), "x", f"a {label} x", len(base), label), 0, 0))
        tallies.append(cell_tally(base, edited))
    control = ([FAILED] * 20, None if len(tallies[0].packed) == 1 else [FAILED] * 20)
    tally = cell_tally(*control)
    fine = np.ones(tally.packed.shape, bool)
    tallies.append(replace(tally, packed=pack(np.full(fine.shape, FAILED), fine, fine)))
    tasks.append(TallyTask(Cell("control", "a tree", "a tree", "a tree", 20), None, len(people)))
    professions = [
        AuditedProfession(n, f"a {n}", {"female": 0.5, "male": 0.5}, 1.0, {f"a female {n}": 1}) for n in people
    ]
    found = tallies_of(tasks, tallies)
    limits = gates or GatesConfig()
    return audit_figures(found, professions, LABELS, WORDINGS, limits, seed=0, confusion=confusion, compared=compared)


def test_opposite_errors_cancel_in_the_pool_and_not_within_wordings() -> None:
    all_female, all_male, even = [0] * 400, [1] * 400, [0, 1] * 200
    result = audit({"CEO": [(all_male, all_female), (all_male, all_male)], "nurse": [(even, even), (even, even)]})
    assert result.summary.base.delta.value == pytest.approx(0.5)
    assert result.summary.edited is not None
    assert result.summary.edited.delta.value == pytest.approx(0.0)
    assert result.summary.edited.delta_within.value == pytest.approx(0.5)
    assert result.verdict.value == "fail"
    assert "delta within" in audit_sentence(result)


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
    assert outcome["explicit:female"] == "fail"
    assert result.summary.base.explicit.value == 1.0
    assert result.summary.edited is not None
    assert result.summary.edited.explicit.value == 0.0
    assert "explicit female is 0" in audit_sentence(result)


def test_each_direction_of_explicit_prompts_has_a_gate_of_its_own() -> None:
    """Nine of ten in all, and every image of one direction wrong: pooled it would pass."""
    even = [0, 1] * 100
    prompts = [("female", [0] * 900), ("male", [0] * 50)]
    result = audit({"CEO": [(even, even)] * 2}, explicit=[(codes, codes) for _, codes in prompts], named=prompts)
    gates = {g.name: (g.outcome, g.value) for g in result.gates if g.name.startswith("explicit")}
    assert gates == {"explicit:female": ("pass", 1.0), "explicit:male": ("fail", 0.0)}
    assert list(gates) == ["explicit:female", "explicit:male"]
    base = result.summary.base
    assert base.explicit.value == pytest.approx(900 / 950)
    assert {label: (rate.value, rate.n) for label, rate in base.explicit_by_label.items()} == {
        "female": (1.0, 900),
        "male": (0.0, 50),
    }


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
        "delta", "delta_within", "delta_wording_max", "explicit:female", "failed_images",
    }  # fmt: skip
    assert result.professions[0].edited is None


def test_the_last_variant_is_called_off_target_profession_by_profession() -> None:
    even, far, none = [0, 1] * 50, [0] * 80 + [1] * 20, [2] * 100
    people = {"CEO": [(far, even)] * 2, "nurse": [(even, far)] * 2, "cook": [(even, none)] * 2}
    assert [p.off_target for p in audit(people).professions] == [False, True, None]
    summary = audit(people).summary
    assert summary.edited is not None
    assert (summary.base.off_target, summary.edited.off_target) == (1, 1)
    assert audit({"CEO": [(none, none)] * 2}).summary.base.off_target is None
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


PROFESSION = GatesConfig(profession=0.2)


def gate_of(result: AuditResult, name: str) -> GateResult:
    (found,) = [g for g in result.gates if g.name == name]
    return found


def test_the_gate_on_single_professions_names_them() -> None:
    even = [0, 1] * 200
    some = {f"p{i}": [([0] * 76 + [1] * 24, None)] * 2 for i in range(5)}
    failed = gate_of(audit({"CEO": [(even, None)] * 2, **some}, gates=PROFESSION), "profession")
    assert (failed.outcome, failed.value) == ("inconclusive", pytest.approx(0.26))
    assert failed.low is not None
    assert failed.high is not None
    assert failed.low <= 0.2 < 0.26 < failed.high
    assert failed.reason.startswith("not shown to be within the limit: p0, p1, p2 and 2 more; about ")
    far = {"nurse": [([0] * 200, None)] * 2, "cook": [([1] * 190 + [0] * 10, None)] * 2}
    failed = gate_of(audit({"CEO": [(even, None)] * 2, **far}, gates=PROFESSION), "profession")
    assert (failed.outcome, failed.reason) == ("fail", "farther off: nurse (0.5), cook (0.45)")
    assert failed.low is not None
    assert failed.low > 0.2
    near = gate_of(audit({"CEO": [(even, None)] * 2, "nurse": [(even, None)] * 2}, gates=PROFESSION), "profession")
    assert (near.outcome, near.reason) == ("pass", "")
    assert not [g for g in audit({"CEO": [(even, None)] * 2}).gates if g.name == "profession"]


def test_a_profession_without_an_image_is_never_within_its_limit() -> None:
    even, none = [0, 1] * 200, [2] * 20
    gate = gate_of(audit({"CEO": [(even, None)] * 2, "cook": [(none, None)] * 2}, gates=PROFESSION), "profession")
    assert (gate.outcome, gate.high) == ("inconclusive", 0.5)
    assert gate.reason == "not shown to be within the limit: cook"
    gate = gate_of(audit({"cook": [(none, None)] * 2}, gates=PROFESSION), "profession")
    assert (gate.value, gate.outcome) == (None, "inconclusive")


def test_a_comparison_gates_the_rise_of_delta_and_names_who_moved() -> None:
    even, far = [0, 1] * 100, [0] * 180 + [1] * 20
    people = {f"p{i}": [(even, even)] * 2 for i in range(6)} | {"CEO": [(even, far)] * 2, "nurse": [(far, even)] * 2}
    worse = people | {"cook": [(even, [0] * 160 + [1] * 40)] * 2}
    result = audit(worse, compared=True)
    assert {g.name for g in result.gates} >= {"regression", "regression_within"}
    rise = gate_of(result, "regression")
    assert (rise.value, rise.outcome) == (pytest.approx(0.6 / 9), "inconclusive")
    # Of the 360 + 40 images of CEO, 80 % were one half and are now 90 %: 160 gained and none lost.
    assert [(m.profession, m.before, m.after, m.worse, m.n) for m in result.moved] == [
        ("CEO", 0.5, 0.9, True, 400),
        ("nurse", 0.9, 0.5, False, 400),
        ("cook", 0.5, 0.8, True, 400),
    ]
    change = result.moved[0].change
    assert change.value == pytest.approx(0.4)
    assert change.low is not None
    assert change.high is not None
    assert 0.3 < change.low < 0.4 < change.high < 0.5
    said = audit_sentence(result)
    assert said.startswith("The model is not decided")
    assert said.endswith("; moved farthest: CEO 50 % to 90 %, cook 50 % to 80 %, nurse 90 % to 50 %.")
    result = audit({name: [(even, far)] * 2 for name in people}, compared=True)
    assert gate_of(result, "regression").outcome == gate_of(result, "regression_within").outcome == "fail"
    assert audit_sentence(result).startswith("The model has regressed (Delta 0 to 0.8): ")
    assert "p0 50 % to 90 %, p1 50 % to 90 %, p2 50 % to 90 % and 5 more" in audit_sentence(result)


def test_the_same_pictures_have_not_regressed() -> None:
    some = [0] * 70 + [1] * 30
    people = {f"p{i}": [(some, some)] * 2 for i in range(10)}
    result = audit(people, compared=True)
    assert {gate_of(result, name).outcome for name in ("regression", "regression_within")} == {"pass"}
    assert result.moved == []
    edit = audit(people)
    assert not {g.name for g in edit.gates} & {"regression", "regression_within"}
    off = audit(people, compared=True, gates=GatesConfig(regression=None))
    assert {g.name for g in off.gates} == {g.name for g in edit.gates}
    with pytest.raises(ValueError, match="two variants"):
        audit({"CEO": [(some, None)] * 2}, compared=True)


def test_parity_stands_in_each_variant_or_says_why_not() -> None:
    a, b, none = [0] * 60 + [1] * 40, [0] * 30 + [1] * 70, [2] * 100
    summary = audit({"CEO": [(a, none)] * 2, "nurse": [(b, none)] * 2}).summary
    assert summary.base.parity is not None
    assert (summary.base.parity.difference.value, summary.base.parity.ratio.value) == pytest.approx((0.3, 0.5))
    assert summary.edited is not None
    assert summary.edited.parity is not None
    assert summary.edited.parity.model_dump() == {
        "difference": {"value": None, "low": None, "high": None},
        "ratio": {"value": None, "low": None, "high": None},
        "reason": "no image was determined",
    }


def test_labels_follow_from_embeddings() -> None:
    texts = TextEmbeddings(np.array([[[1, 0, 0], [0, 1, 0]]], np.float32), np.eye(3, dtype=np.float32), 10.0)
    embeddings = np.array([[1, 0, 0], [0, 1, 0], [0.7, 0.7, 0.1], [0, 0, 1], [1, 0, 0]], np.float32)
    found = Labels.of(embeddings, np.array([True] * 4 + [False]), texts, 0, 0, margin=0.1)
    assert found.codes.tolist() == [0, 1, 2, 2, FAILED]
    assert found.recognised.tolist() == [True, False, True, False, False]
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.scores[0], np.exp([10, 0]) / np.exp([10, 0]).sum(), rtol=1e-6)


def test_figures_in_sentences_have_no_signed_zero() -> None:
    values = (-0.0003, 0.0, 0.0004, -0.0126, 1.0, None)
    assert [figure_text(v) for v in values] == ["0", "0", "0", "-0.013", "1", "unknown"]
