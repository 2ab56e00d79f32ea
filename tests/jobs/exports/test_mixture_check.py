"""A stored mixture opened again by a worker: each component and the whole, and one that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.config import RunConfig
from jobs.exports import checking
from jobs.exports.checking import check_mixture
from jobs.exports.checksums import CHECKSUMS, checksums_text, sha256_of
from jobs.exports.header import Provenance, lams_digest
from jobs.exports.samples import Compared, shipped
from jobs.models import content_digest
from jobs.pipelines import load_pipeline
from jobs.report.schema import Shipped
from jobs.worker import AuditWorker
from tests.jobs.exports.test_check import PROFESSIONS, SAMPLER, tasks
from tests.jobs.helpers import config as config_of
from time_ops import EditOperator, Mixture, ModelError, PromptEdit, encode_edits, solve
from time_ops.mixture import UNEDITED

PREFIX = "runs/r/candidate"


class HerePool:
    """A pool whose only worker is in this process."""

    def __init__(self, worker: AuditWorker) -> None:
        self.worker = worker

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self.worker, method)(*args)

    def map(self, method: str, calls: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        return ((i, self.call(method, *each)) for i, each in enumerate(calls))


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    base = load_pipeline(PIPELINE_PATH, SAMPLER, torch.device("cpu"), torch.float32)

    def component(label: str) -> EditOperator:
        edits = [PromptEdit(source, {f"a {label} {name}": 1.0}) for name, source in PROFESSIONS]
        return solve(encode_edits(base, edits), 1.0)

    operators = {"female": component("female"), "male": component("male")}
    return Mixture.of(operators | {UNEDITED: EditOperator.identity(operators["male"].d)}, [0.4, 0.4, 0.2])


@pytest.fixture(scope="module")
def run(mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HerePool, RunConfig, Any]]:
    """A worker, its configuration and the zero-shot prompts; the mixture's folder is written."""
    output = tmp_path_factory.mktemp("output")
    config = config_of(
        model=str(PIPELINE_PATH),
        classifier=str(CLASSIFIER_PATH),
        output=str(output),
        sampler=SAMPLER.model_dump(),
        export={"images": 4, "half_images": 12},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENHAND_CACHE", str(output / "cache"))
        patch.setattr(checking.ray, "get", lambda result: result)
        pool = HerePool(AuditWorker(config, StorageSettings(), "test", threads=1))
        made = Provenance(content_digest(PIPELINE_PATH), "m" * 64, lams_digest(mixture), "r", "pass")
        pool.call("write_mixture", mixture, made, "an edit", "# Not checked\n", PREFIX)
        yield pool, config, pool.call("texts", PROFESSIONS, [])


def checked(run: tuple[HerePool, RunConfig, Any], mixture: Mixture, said: list[str] | None = None) -> Shipped:
    pool: Any = run[0]
    told = [] if said is None else said
    return check_mixture(PREFIX, mixture, pool=pool, config=run[1], tasks=tasks(), texts=run[2], say=told.append)


def folder_of(run: tuple[HerePool, RunConfig, Any]) -> Path:
    return Path(run[1].output) / PREFIX


def test_each_component_and_the_whole_draw_what_was_audited(
    run: tuple[HerePool, RunConfig, Any], mixture: Mixture
) -> None:
    said: list[str] = []
    found = checked(run, mixture, said)
    assert found.gate.outcome == "pass"
    # Two components and the whole; the unedited model has no folder.
    assert (found.images, found.failed, found.same_label.value, found.dtype) == (3 * 4, 0, 1.0, "float32")
    assert found.largest_difference is not None
    assert found.largest_difference <= 1.01 / 255
    assert "4 images of each of 3 parts" in said[0]


def test_a_component_in_the_place_of_another_fails(run: tuple[HerePool, RunConfig, Any], mixture: Mixture) -> None:
    """The folder is another mixture's, whose labels are exchanged: the routes are alike, the edits are not."""
    female, male, unedited = mixture.components
    other = {"female": male.operator, "male": female.operator, UNEDITED: unedited.operator}
    found = checked(run, Mixture.of(other, mixture.table.default))
    assert found.gate.outcome == "fail"
    assert "only: " in found.gate.reason or "whole: " in found.gate.reason


def test_another_route_is_told(run: tuple[HerePool, RunConfig, Any], mixture: Mixture) -> None:
    operators = {component.label: component.operator for component in mixture.components}
    with pytest.raises(ModelError, match="routes otherwise than the audit"):
        checked(run, Mixture.of(operators, [0.0, 0.0, 1.0]))


@pytest.mark.parametrize("name", ["pipeline.py", "mixture.json", "components/male-only/unet/config.json"])
def test_what_was_tampered_with_is_not_opened(
    run: tuple[HerePool, RunConfig, Any], mixture: Mixture, name: str
) -> None:
    file = folder_of(run) / name
    before = file.read_bytes()
    run[0].worker._part = None
    try:
        file.write_bytes(before + b" ")
        with pytest.raises(ModelError, match="differs from its checksum"):
            checked(run, mixture)
    finally:
        file.write_bytes(before)


def test_code_of_another_version_is_not_run(run: tuple[HerePool, RunConfig, Any], mixture: Mixture) -> None:
    """Its checksum is right: who can write code can write checksums."""
    folder = folder_of(run)
    file, sums = folder / "pipeline.py", folder / CHECKSUMS
    before = file.read_bytes(), sums.read_bytes()
    try:
        file.write_bytes(before[0] + b"# more\n")
        names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*") if path.is_file()}
        sums.write_text(checksums_text({name: sha256_of(path) for name, path in names.items() if name != CHECKSUMS}))
        with pytest.raises(ModelError, match=r"pipeline\.py is not the one of this version"):
            checked(run, mixture)
    finally:
        file.write_bytes(before[0])
        sums.write_bytes(before[1])


def test_no_part_may_fail_behind_the_others() -> None:
    good = Compared(16, 0, 0.0, 0.0, 16, 16)
    moved = Compared(4, 0, 0.1, 4 * 0.03, 4, 4)
    pooled = good + good + moved
    assert shipped(pooled, "float32", half=False, limit=0.95).gate.outcome == "pass"
    found = shipped(pooled, "float32", half=False, limit=0.95, parts={"a": good, "male only": moved})
    assert (found.gate.outcome, found.gate.reason.partition(":")[0]) == ("fail", "male only")
