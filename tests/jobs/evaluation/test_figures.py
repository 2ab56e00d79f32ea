"""An evaluation without a cluster: what is drawn, how images are decided on, what the figures are."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from infra.storage import LocalStore
from jobs.auditing.tally import parts_of
from jobs.cli import main
from jobs.config import EvaluateConfig, SamplerConfig
from jobs.errors import ConfigError, ExitCode
from jobs.evaluation.figures import evaluation_sentence, figures_of
from jobs.evaluation.operators import SolvedEdit
from jobs.evaluation.tally import (
    DESTINATION,
    NONE,
    SOURCE,
    MeasureFrame,
    Measures,
    MeasureTask,
    PromptTexts,
    cell_of,
    measure_part,
)
from jobs.evaluation.tasks import Solved, base_cells, requests_of, solved_of, specs_of, tasks_of, texts_of
from jobs.images.cells import cut_cell
from jobs.images.generator import Generator
from jobs.images.requests import EditRequest
from jobs.images.shards import BASE, STATUSES, Shard, ShardSpec
from jobs.runs.identity import evaluation_identity, identity_of
from manifests import EditSet, Fault, ManifestError, PromptPair, TestedEdit
from tests.jobs.helpers import RECIPE, config, manifest
from time_ops import EditOperator

ROSES = TestedEdit(
    1,
    "roses",
    "blue roses",
    (PromptPair("a field of roses", "a field of blue roses"),),
    (PromptPair("tulips", "blue tulips"),),
)
KITES = TestedEdit(
    3, "kites", "torn kites", (), (PromptPair("tulips", "torn tulips"), PromptPair("roses", "torn roses"))
)
LAMS = (0.1, 1.0)
WANTED = {"lam": list(LAMS), "images": 3, "control_images": 2}
RUN = config(evaluate=WANTED, controls=["a lake"], shard_images=2)


def solved(*edits: TestedEdit) -> Solved:
    found = [[SolvedEdit(f"{edit.source}-{lam}", 2.0) for lam in LAMS] for edit in edits]
    return solved_of(EditSet(edits), RUN, found)


def test_an_edit_that_cannot_be_solved_is_left_out_and_the_others_go_on() -> None:
    good, bad = [SolvedEdit("a"), SolvedEdit("b")], [SolvedEdit("c"), SolvedEdit(fault="lam 0.1 is too small")]
    found = solved_of(EditSet((ROSES, KITES)), RUN, [bad, good])
    assert found.edits == (KITES,)
    assert found.left_out == (Fault(1, None, "lam 0.1 is too small; the edit is left out"),)
    assert [found.requests[digest].lam for digest in ("a", "b")] == [0.1, 1.0]
    assert {request.source for request in found.requests.values()} == {"kites"}
    with pytest.raises(ManifestError, match="too small"):
        solved_of(EditSet((ROSES,)), RUN, [bad])


def test_base_and_oracle_prompts_are_drawn_once_whatever_edits_share_them() -> None:
    tasks = tasks_of(solved(ROSES, KITES), RUN)
    prompts = [(cell.prompt, cell.images) for cell in base_cells(tasks)]
    assert len(set(prompts)) == len(prompts)
    assert {prompt for prompt, _ in prompts} == {
        *("roses", "blue roses", "a field of roses", "a field of blue roses", "tulips", "kites", "torn kites", "a lake")
    }
    base = list(specs_of(tasks, RECIPE, RUN, edited=False))
    assert {spec.operator for spec in base} == {BASE}
    # Three images in blocks of two, and a control of two.
    assert Counter(spec.count for spec in base) == {2: 8, 1: 7}


def test_every_edit_is_drawn_under_its_own_operator_at_every_lam() -> None:
    tasks = tasks_of(solved(ROSES, KITES), RUN)
    specs = list(specs_of(tasks, RECIPE, RUN, edited=True))
    assert list(dict.fromkeys(spec.operator for spec in specs)) == ["roses-0.1", "roses-1.0", "kites-0.1", "kites-1.0"]
    assert {spec.prompt for spec in specs if spec.operator == "kites-1.0"} == {"kites", "tulips", "roses", "a lake"}
    assert len({spec.digest for spec in specs}) == len(specs)


def test_only_what_changes_has_an_oracle_of_its_own() -> None:
    tasks = tasks_of(solved(ROSES), RUN)
    assert [(task.role, task.prompt, task.oracle) for task in tasks] == [
        ("source", "roses", "blue roses"),
        ("positive", "a field of roses", "a field of blue roses"),
        ("negative", "tulips", None),
        ("control", "a lake", None),
    ]
    texts = texts_of([ROSES], RUN.controls)
    assert [(texts[t.text], None if t.other is None else texts[t.other]) for t in tasks][2:] == [
        ("tulips", "blue tulips"),
        ("a lake", None),
    ]


def test_a_control_that_speaks_of_an_edits_source_is_not_unrelated_to_it() -> None:
    run = config(evaluate=WANTED, controls=["a lake", "A photo of Roses", "a rosebush"])
    tasks = tasks_of(solved(ROSES, KITES), run)
    drift = [(task.edit, task.prompt) for task in tasks if task.role == "control"]
    assert drift == [(0, "a lake"), (0, "a rosebush"), (1, "a lake"), (1, "A photo of Roses"), (1, "a rosebush")]


def test_parts_hold_whole_prompts_in_order() -> None:
    tasks = [MeasureTask(i, "source", str(i), 9_000, 0, 1, None, ()) for i in range(5)]
    parts = list(parts_of(tasks, 2))
    assert [task for part in parts for task in part] == tasks
    assert len(parts) == 5


def store_shard(store: LocalStore, spec: ShardSpec, embeddings: list[list[float]], statuses: list[str]) -> None:
    codes = np.array([STATUSES.index(status) for status in statuses], np.uint8)
    shard = Shard(spec, np.array(embeddings, np.float32), codes, [None] * spec.count, {"seconds": 1.0, "device": "x"})
    store.put(spec.object_key, shard.to_bytes(), content_type="application/vnd.apache.parquet")


UP, SIDE, LEAN = [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]


def test_images_are_decided_on_from_the_shards(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    run = config(evaluate={"images": 3, "lam": [1.0]})
    task = MeasureTask(0, "positive", "roses", 3, 0, 1, "blue roses", ("op",))
    texts = PromptTexts(np.array([SIDE, UP], np.float32), 10.0)
    for prompt, operator, found, statuses in (
        ("roses", BASE, [SIDE, SIDE, LEAN], ["ok", "ok", "ok"]),
        ("blue roses", BASE, [UP, UP, UP], ["ok", "ok", "ok"]),
        ("roses", "op", [UP, SIDE, [0.0, 0.0]], ["ok", "ok", "black"]),
    ):
        (spec,) = cut_cell(cell_of(prompt, 3), RECIPE, operator, run, pictures=False)
        store_shard(store, spec, found, statuses)
    part = measure_part([task], MeasureFrame(RECIPE, (1.0,)), texts, run, store, "rows.parquet")
    (found,) = part.measures
    assert found.states.tolist() == [
        [SOURCE, SOURCE, DESTINATION],
        [DESTINATION] * 3,
        [DESTINATION, SOURCE, NONE],
    ]
    # The first image moved a quarter turn, the second not at all; the black one is not compared.
    assert found.distance == pytest.approx([0.0, np.mean([1, 1, 0.2]), 0.5], abs=1e-6)
    assert found.clip == pytest.approx([(1 + 1 + 0.6) / 3, 0.0, 0.5], abs=1e-6)
    assert found.spread == pytest.approx(1 - (1 + 0.6 + 0.6) / 3, abs=1e-6)
    assert part.statuses == {"black": 1}
    assert sum(part.makers.values()) == 9
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    edited = [row for row in rows if row["variant"] == "edited"]
    assert [(row["label"], row["status"]) for row in edited] == [
        ("destination", "ok"),
        ("source", "ok"),
        (None, "black"),
    ]
    assert edited[0]["destination_probability"] == pytest.approx(1 / (1 + np.exp(-10)))
    assert [row["seed"] for row in edited] == [row["seed"] for row in rows if row["variant"] == "base"]
    assert len(rows) == 9


def test_images_of_a_shard_that_was_given_up_are_none(tmp_path: Path) -> None:
    store, run = LocalStore(tmp_path), config(evaluate={"images": 2, "lam": [1.0]})
    task = MeasureTask(0, "negative", "tulips", 2, 0, 1, None, ("op",))
    (base,) = cut_cell(cell_of("tulips", 2), RECIPE, BASE, run, pictures=False)
    (lost,) = cut_cell(cell_of("tulips", 2), RECIPE, "op", run, pictures=False)
    store_shard(store, base, [SIDE, SIDE], ["ok", "ok"])
    texts = PromptTexts(np.array([SIDE, UP], np.float32), 10.0)
    part = measure_part([task], MeasureFrame(RECIPE, (1.0,), frozenset({lost.digest})), texts, run, store, None)
    # A negative has no oracle of its own: it is the base's.
    assert part.measures[0].states.tolist() == [[SOURCE] * 2, [SOURCE] * 2, [NONE] * 2]
    assert part.statuses == {"missing": 2}
    assert part.sha256 is None


def measures(base: str, oracle: str, *edited: str, clip: float = 0.25) -> Measures:
    """Images as letters: s, d, or - for none."""
    states = np.array([["-sd".index(letter) for letter in text] for text in (base, oracle, *edited)], np.uint8)
    n = len(states)
    moved = np.array([0.0, 0.0, *[0.1] * (n - 2)])
    return Measures(states, np.full(n, 0.5), np.full(n, clip) - moved, moved, 0.4)


def test_the_figures_of_two_edits_at_two_lams() -> None:
    found = solved(ROSES, KITES)
    tasks = tasks_of(found, RUN)
    given = [
        measures("sss", "ddd", "ddd", "dds"),  # roses: efficacy
        measures("ssd", "ddd", "ddd", "dss"),  # a field of roses: generality
        measures("sss", "sss", "sdd", "sss"),  # tulips: specificity
        measures("ss", "ss", "ss", "ss"),  # a lake
        measures("sss", "dd-", "ddd", "sss"),  # kites
        measures("sss", "sss", "sss", "sss"),
        measures("dss", "dss", "sss", "dss"),
        measures("ss", "ss", "ss", "ss"),
    ]
    report = figures_of(found, tasks, given, RUN)
    base, oracle, strong, weak = report.summary
    assert [(each.variant, each.lam) for each in report.summary] == [
        ("base", None),
        ("oracle", None),
        ("edited", 0.1),
        ("edited", 1.0),
    ]
    assert base.efficacy.value == 0.0
    assert oracle.efficacy.value == 1.0
    assert oracle.efficacy.n == 5
    assert strong.efficacy.value == 1.0
    assert weak.efficacy.value == pytest.approx((2 / 3 + 0) / 2)
    # Kites have no positives: generality is of the roses alone.
    assert (strong.generality.value, strong.generality.n) == (1.0, 3)
    assert base.specificity.value == pytest.approx((1 + 5 / 6) / 2)
    assert oracle.specificity == base.specificity
    assert strong.specificity.value == pytest.approx((1 / 3 + 1) / 2)
    assert strong.specificity_kept is not None
    assert strong.specificity_kept.value == pytest.approx((1 / 3 + 1) / (1 + 5 / 6))
    assert base.specificity_kept is None
    assert strong.harmonic.value == pytest.approx(3 / (1 + 1 + 1.5))
    assert strong.drift is not None
    assert strong.drift.clip_change.value == pytest.approx(-10)
    assert strong.drift.distance.value == pytest.approx(0.1)
    assert strong.drift.distance.n == 4
    assert [(control.prompt, control.lam) for control in report.controls] == [("a lake", 0.1), ("a lake", 1.0)]
    roses = report.edits[0].variants[2]
    assert (roses.specificity.value, roses.specificity.n) == (pytest.approx(1 / 3), 3)
    assert roses.operator == "roses-0.1"
    assert report.edits[1].variants[2].generality.value is None
    assert evaluation_sentence(report.summary).startswith("At lam 0.1, the best of 2: efficacy 100.0 % (base 0.0 %)")


def test_an_operator_is_known_as_long_as_somebody_draws_with_it() -> None:
    generator = Generator(None, SamplerConfig())
    operator = EditOperator(torch.eye(4, dtype=torch.float64))
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with generator.knowing([operator]):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with generator.knowing([operator]):
        thread.start()
        assert entered.wait(10)
    assert generator.knows(operator.digest)
    leave.set()
    thread.join()
    assert not generator.knows(operator.digest)
    generator.add_operator(operator)
    with generator.knowing([operator]):
        pass
    assert generator.knows(operator.digest)


def test_defaults_are_the_published_ones() -> None:
    found = config()
    assert (found.evaluate.lam, found.evaluate.images) == ((0.1,), 24)
    assert (found.sampler.steps, found.sampler.guidance_scale) == (50, 7.5)
    assert len(found.evaluate.wordings) == 4
    assert requests_of(ROSES, found) == [EditRequest("roses", "blue roses", 0.1, found.evaluate.wordings)]


@pytest.mark.parametrize("lam", [[], [0.0], [-1.0], [1.0, 1.0], [float("inf")]])
def test_strengths_that_make_no_sweep_are_refused(lam: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.lam"):
        config(evaluate={"lam": lam})


def test_strengths_are_taken_in_order() -> None:
    assert EvaluateConfig(lam=(10.0, 0.1, 1.0)).lam == (0.1, 1.0, 10.0)


def test_identity_follows_what_decides_an_evaluation_and_nothing_else() -> None:
    one = evaluation_identity(RUN, "edits", RECIPE)
    assert one == evaluation_identity(RUN.model_copy(update={"output": "there", "images_per_cell": 7}), "edits", RECIPE)
    assert one != evaluation_identity(RUN, "others", RECIPE)
    changed = RUN.model_copy(update={"evaluate": RUN.evaluate.model_copy(update={"images": 4})})
    assert one != evaluation_identity(changed, "edits", RECIPE)
    # A debias run has no regard to it.
    nurse = manifest("nurse")
    assert identity_of(RUN, nurse, RECIPE) == identity_of(changed, nurse, RECIPE)


def test_the_command_names_every_key_that_must_be_mended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--edits", "edits.csv", "--model", "m", "--output", "o", "--lam", "0.1", "--lam", "0"])
    assert ended.value.code == ExitCode.INPUT
    said = capsys.readouterr().err
    assert "classifier: is needed" in said
    assert "evaluate.lam: must be numbers above 0" in said
    assert "manifest" not in said.partition("Known keys")[0]
