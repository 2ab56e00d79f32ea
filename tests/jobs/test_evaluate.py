"""The evaluation on a real Ray and a real S3 store with the demo model: one run, and the same run again.

Small on purpose: whether the figures are right is tested where they are computed.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import LocalStore, ObjectStore, StorageSettings
from jobs.config import RunConfig, load_config
from jobs.evaluate import Evaluated, evaluate
from jobs.evaluation.operators import EditSolver
from jobs.evaluation.tasks import requests_of
from jobs.images.recipe import recipe_of
from jobs.images.shards import Shard, ShardSpec
from jobs.runs.rerender import rerender
from jobs.worker.worker import Worker
from manifests import ManifestError, read_edit_set
from tests.conftest import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EDITS = """old,new,positive1,gt1,negative1,gn1
a cat,a cat at night,A painting of a cat,A painting of a cat at night,a boat,a boat at night
a boat,a boat at night,A sketch of a boat,A sketch of a boat at night,a cat,a cat at night
a tree,a house,A sketch of a tree,A sketch of a house,,
"""
LAMS = (10.0, 200.0)
# Three images of each of the eight prompts that the base model draws, the oracles among them; two of the control.
BASE = 8 * 3 + 2
EDITED = 2 * len(LAMS) * (3 * 3 + 2)


@dataclass
class Done:
    """A store, a configuration, and the run twice: what came of it, and what came of it again."""

    store: ObjectStore
    config: RunConfig
    first: Evaluated
    again: Evaluated
    said: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every image's."""
        data = self.store.get(f"runs/{self.first.run}/images/part-00000.parquet")
        return list(pq.read_table(pa.BufferReader(data)).to_pylist())


@pytest.fixture(scope="module")
def done(s3_server: S3Server, shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "edits.csv").write_text(EDITS)
    with pytest.MonkeyPatch.context() as patch:
        s3_server.apply(patch)
        store = s3_server.store()
        keys = {
            "manifest": str(folder / "edits.csv"),
            "model": str(PIPELINE_PATH),
            "classifier": str(CLASSIFIER_PATH),
            "output": store.url(),
            "evaluate": {"lam": list(LAMS), "images": 3, "control_images": 2},
            "controls": ["a photo of a flower"],
            "sampler": {"steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 8},
            "pictures": {"per_cell": 1, "format": "png"},
            "workers": {"count": 1},
        }
        config = load_config(yaml.safe_dump(keys))
        console = Console(file=io.StringIO(), width=120)
        yield Done(store, config, evaluate(config, console), evaluate(config, console), console.file.getvalue())  # type: ignore[attr-defined]


def test_every_image_is_a_row_and_every_figure_a_count_of_rows(done: Done) -> None:
    report = done.first.report
    assert (report.cost.images, report.cost.images_reused) == (BASE + EDITED, 0)
    counted: Counter[tuple[Any, ...]] = Counter()
    for row in done.rows:
        assert row["status"] == "ok"
        counted[row["edit"], row["role"], row["variant"], row["lam"], row["label"]] += 1
    for number, edit in enumerate(report.edits):
        for found in edit.variants:
            for role, label, figure in (
                ("source", "destination", found.efficacy),
                ("positive", "destination", found.generality),
                ("negative", "source", found.specificity),
            ):
                # What should stay is drawn by the base model, in the oracle's row too.
                variant = "base" if (found.variant, role) == ("oracle", "negative") else found.variant
                hits = counted[number, role, variant, found.lam, label]
                assert (figure.value, figure.n) == (hits / 3, 3), (edit.source, found.variant, role)


def test_the_edits_take_and_the_oracle_shows_what_they_should_reach(done: Done) -> None:
    base, oracle, strong, _ = done.first.report.summary
    assert base.efficacy.value == 0.0
    assert oracle.efficacy.value == 1.0
    assert strong.efficacy.value == 1.0
    assert strong.drift is not None
    assert (strong.drift.distance.value or 0.0) > 0.0


def test_a_row_that_cannot_be_aligned_is_reported_and_the_others_went_on(done: Done) -> None:
    report = done.first.report
    assert (report.rows, [edit.row for edit in report.edits]) == (3, [1, 2])
    (left_out,) = report.left_out
    assert left_out.place == "row 3 (line 4), column 'new'"
    assert "lacks 'tree'" in left_out.reason
    assert "2 of 3 edits" in done.said


def test_the_same_command_again_finds_every_shard(done: Done) -> None:
    again = done.again.report
    assert done.again.run == done.first.run
    assert (again.cost.images, again.cost.images_reused) == (0, BASE + EDITED)
    for name in ("summary", "edits", "controls", "left_out", "pictures"):
        assert getattr(again, name) == getattr(done.first.report, name)


def test_a_batch_of_many_operators_draws_what_each_draws_alone(done: Done, tmp_path: Path) -> None:
    edits = read_edit_set(EDITS.encode()).edits
    config = done.config.model_copy(update={"output": str(tmp_path)})
    worker = Worker(config, StorageSettings(), "alone", threads=1)
    request = requests_of(edits[1], config)[1]
    (solved,) = worker.solve_edits([request])
    assert solved.digest == done.first.report.edits[1].variants[3].operator
    spec = ShardSpec(
        recipe_of(config, worker.probe()), solved.digest, "audit", "a boat", 0, 3, pictures=1, picture_format="png"
    )
    solver = EditSolver(lambda: worker.resident.pipe, worker.resident.models)
    worker.run([spec], [solver.solved(solved.digest, request)])
    one = Shard.from_bytes(LocalStore(tmp_path).get(spec.object_key), spec)
    other = Shard.from_bytes(done.store.get(spec.object_key), spec)
    assert np.array_equal(one.embeddings, other.embeddings)
    assert one.pictures == other.pictures


def test_the_folder_stands_alone(done: Done, tmp_path: Path) -> None:
    names = {name.removeprefix(f"runs/{done.first.run}/") for name in done.store.list(f"runs/{done.first.run}")}
    assert {"run.json", "edits.parquet", "report.json", "report.html", "COMPLETE", "images/part-00000.parquet"} <= names
    assert sum(name.startswith("pictures/") for name in names) == 2 * (2 + len(LAMS))
    kept = read_edit_set(done.store.get(f"runs/{done.first.run}/edits.parquet"))
    assert [edit.source for edit in kept.edits] == ["a cat", "a boat"]
    rerender(done.first.url, tmp_path / "page.html", Console(file=io.StringIO()))
    assert (tmp_path / "page.html").read_bytes() == done.store.get(f"runs/{done.first.run}/report.html")


def test_a_set_of_which_nothing_is_left_is_refused_before_any_worker_starts(done: Done, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("old,new,positive1,gt1\na tree,a house,trees,houses\na cat,a cat,cats,cats\n")
    config = done.config.model_copy(update={"manifest": str(tmp_path / "none.csv")})
    with pytest.raises(ManifestError, match=r"(?s)row 1 .*lacks 'tree'.*row 2 .*same prompt"):
        evaluate(config, Console(file=io.StringIO()))
