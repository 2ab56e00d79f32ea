"""A stored mixture opened again by a worker: each component and the whole, and one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.exports.verify.driver import Checking, check_mixture
from jobs.exports.verify.samples import Compared, shipped
from jobs.models.checksums import CHECKSUMS, checksums_text, sha256_of
from jobs.report.schema import Shipped
from tests.jobs.exports.conftest import PREFIX, DemoRun
from tests.jobs.exports.verify.test_opened import tasks
from time_ops import Mixture, ModelError
from time_ops.mixture import UNEDITED


def checked(demo_run: DemoRun, demo_mixture: Mixture, said: list[str] | None = None) -> Shipped:
    told = [] if said is None else said
    checking = Checking(demo_run.pool, demo_run.config, tasks(), demo_run.texts, told.append)
    return check_mixture("diffusers", PREFIX, demo_mixture, checking)


def folder_of(demo_run: DemoRun) -> Path:
    return Path(demo_run.config.output) / PREFIX


def test_each_component_and_the_whole_draw_what_was_audited(demo_run: DemoRun, demo_mixture: Mixture) -> None:
    said: list[str] = []
    found = checked(demo_run, demo_mixture, said)
    assert found.gate.outcome == "pass"
    # Two components and the whole; the unedited model has no folder.
    assert (found.images, found.failed, found.same_label.value, found.dtype) == (3 * 4, 0, 1.0, "float32")
    assert found.largest_difference is not None
    assert found.largest_difference <= 1.01 / 255
    assert "4 images of each of 3 parts" in said[0]


def test_a_component_in_the_place_of_another_fails(demo_run: DemoRun, demo_mixture: Mixture) -> None:
    """The folder is another mixture's, whose labels are exchanged: the routes are alike, the edits are not."""
    female, male, unedited = demo_mixture.components
    other = {"female": male.operator, "male": female.operator, UNEDITED: unedited.operator}
    found = checked(demo_run, Mixture.of(other, demo_mixture.table.default))
    assert found.gate.outcome == "fail"
    assert "only: " in found.gate.reason or "whole: " in found.gate.reason


def test_another_route_is_told(demo_run: DemoRun, demo_mixture: Mixture) -> None:
    operators = {component.label: component.operator for component in demo_mixture.components}
    with pytest.raises(ModelError, match="routes otherwise than the audit"):
        checked(demo_run, Mixture.of(operators, [0.0, 0.0, 1.0]))


@pytest.mark.parametrize("name", ["pipeline.py", "mixture.json", "components/male-only/unet/config.json"])
def test_what_was_tampered_with_is_not_opened(demo_run: DemoRun, demo_mixture: Mixture, name: str) -> None:
    file = folder_of(demo_run) / name
    before = file.read_bytes()
    demo_run.pool.worker.exports.close()
    try:
        file.write_bytes(before + b" ")
        with pytest.raises(ModelError, match="differs from its checksum"):
            checked(demo_run, demo_mixture)
    finally:
        file.write_bytes(before)


def test_code_of_another_version_is_not_run(demo_run: DemoRun, demo_mixture: Mixture) -> None:
    """Its checksum is right: who can write code can write checksums."""
    folder = folder_of(demo_run)
    file, sums = folder / "pipeline.py", folder / CHECKSUMS
    before = file.read_bytes(), sums.read_bytes()
    try:
        file.write_bytes(before[0] + b"# more\n")
        names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*") if path.is_file()}
        sums.write_text(checksums_text({name: sha256_of(path) for name, path in names.items() if name != CHECKSUMS}))
        with pytest.raises(ModelError, match=r"pipeline\.py is not the one of this version"):
            checked(demo_run, demo_mixture)
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
