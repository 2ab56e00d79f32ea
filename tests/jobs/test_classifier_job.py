"""A head and a dual encoder that have to agree, on a real Ray and a real S3 store with the demo model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import ObjectStore
from jobs.audit import audit
from jobs.config import RunConfig
from jobs.errors import ConfigError
from jobs.planning.plan import make_plan
from manifests import write_manifest
from tests.conftest import S3Server
from tests.jobs.helpers import config, manifest
from tests.jobs.images.classifiers import save_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IMAGES = 2 * 4 + 2 + 1
MEANT = {"female": ["Female"], "male": ["Male"]}


@pytest.fixture(scope="module")
def here(
    s3_server: S3Server, shared_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ObjectStore, RunConfig]]:
    """A store that a run of the dual encoder alone has filled, and that run's configuration."""
    folder = tmp_path_factory.mktemp("classifiers")
    write_manifest(manifest("nurse"), folder / "m.parquet")
    save_head("vit", folder / "head", ("Male", "Female"), seed=3)
    with pytest.MonkeyPatch.context() as patch:
        s3_server.apply(patch)
        store = s3_server.store()
        alone = config(
            manifest=str(folder / "m.parquet"),
            model=str(PIPELINE_PATH),
            classifier=str(CLASSIFIER_PATH),
            output=store.url(),
            wordings={"audit": ["A painting of {source}", "{source} laughing"]},
            controls=("a photo of a tree",),
            images_per_cell=4,
            explicit_images=1,
            control_images=1,
            shard_images=4,
            sampler={"steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 4, "dtype": "float32"},
            pictures={"per_cell": 0},
            workers={"count": 1},
        )
        audit(alone, Console(file=io.StringIO()))
        yield store, alone


def changed(alone: RunConfig, classifier: Any) -> RunConfig:
    return RunConfig(**{**alone.model_dump(mode="json"), "classifier": classifier})


def rows(store: ObjectStore, run: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(pa.BufferReader(store.get(name))) for name in sorted(store.list(f"runs/{run}/images"))]
    return list(pa.concat_tables(tables).to_pylist())


def test_a_head_joins_a_dual_encoder_and_another_margin_draws_nothing(here: tuple[ObjectStore, RunConfig]) -> None:
    store, alone = here
    head = {"model": str(Path(alone.manifest).parent / "head"), "labels": MEANT, "margin": 0.0}
    both = changed(alone, [str(CLASSIFIER_PATH), head])
    (note,) = make_plan(both).notes
    assert note.startswith(f"{IMAGES} of these images were drawn before for classifier alone")
    assert "head needs the images themselves" in note
    printed = io.StringIO()
    first = audit(both, Console(file=printed, width=400))
    assert note in printed.getvalue()
    assert (first.report.cost.images, first.report.cost.images_reused) == (IMAGES, 0)
    assert make_plan(both).notes == []

    found = [row for row in rows(store, first.run) if row["kind"] == "audit"]
    said = [row["by_classifier"] for row in found]
    for row in found:
        one, other = row["by_classifier"]
        assert row["label"] == (one if one == other else "undetermined")
        assert row["classifiers_differ"] == (None if "undetermined" in (one, other) else one != other)
    compared = [pair for pair in said if "undetermined" not in pair]
    figure = first.report.summary.base.disagreement
    assert figure is not None
    assert (figure.n, figure.value) == (len(compared), np.mean([a != b for a, b in compared]) if compared else None)
    assert first.report.summary.base.no_face is None
    assert "disagreement" in printed.getvalue()
    page = store.get(f"runs/{first.run}/report.html").decode()
    assert "Disagreement" in page
    assert "labels are given by classifier + head" in page
    state = json.loads(store.get(f"runs/{first.run}/run.json"))
    assert state["configuration"]["classifier"][1]["model"] == "head"

    # Labels follow from what is stored: for the head alone, with another margin, nothing is drawn.
    relabelled = make_plan(changed(alone, {**head, "margin": 0.9, "recognition": str(CLASSIFIER_PATH)}))
    base = next(stage for stage in relabelled.stages if stage.name == "base audit")
    assert (base.images, base.images_to_make) == (IMAGES, 0)
    assert relabelled.identity != make_plan(both).identity
    # What is compared with an earlier run is counted from its rows as it was counted there.
    compared_run = audit(
        both.model_copy(update={"audit": both.audit.model_copy(update={"against": first.url})}), Console(file=printed)
    )
    before = compared_run.report.summary.base
    assert before.disagreement == first.report.summary.base.disagreement
    sweep = [row["undetermined_base"] for row in first.report.margin_sweep]
    assert [row["undetermined_base"] for row in compared_run.report.margin_sweep] == sweep


def test_labels_that_the_head_lacks_end_a_plan(here: tuple[ObjectStore, RunConfig]) -> None:
    store, alone = here
    there = set(store.list())
    head = {"model": str(Path(alone.manifest).parent / "head"), "labels": {"female": ["Woman"], "male": ["Male"]}}
    bad = changed(alone, [str(CLASSIFIER_PATH), head])
    with pytest.raises(ConfigError, match="no label 'Woman'; it has Male, Female"):
        make_plan(bad)
    assert set(store.list()) == there
