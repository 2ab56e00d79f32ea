"""What a report says of a mixture's components: small counts, worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from jobs.auditing.mixture_figures import left_alone, mixture_report
from jobs.auditing.tally import MARGINS, PartTally, Tallies, TallyTask
from jobs.images.cells import Cell
from jobs.report.mixture_schema import ComponentReport, MixtureReport
from manifests import Manifest, ManifestRow
from time_ops import EditOperator, Mixture
from time_ops.route import ROUTE_VERSION, UNEDITED
from time_ops.stats.intervals import rate, wilson

LABELS = ["female", "male"]
FEMALE, MALE = EditOperator(2 * torch.eye(4)), EditOperator(3 * torch.eye(4))
MIXTURE = Mixture.of({"female": FEMALE, "male": MALE}, [0.4, 0.6], {"a CEO": [0.75, 0.25], "a tree": [0.5, 0.5]})
ONE, TWO = "one {source}", "two {source}"


def manifest_of(**labels: tuple[str, ...]) -> Manifest:
    return Manifest(
        tuple(
            ManifestRow(profession=name, source=f"a {name}", destination=f"a {label} {name}", label=label)
            for name, of in labels.items()
            for label in of
        )
    )


BOTH = manifest_of(nurse=("female", "male"), CEO=("female", "male"))


@dataclass
class Counts:
    """Tallies put together cell by cell; each component's are labels and undetermined, recognised, and images."""

    tasks: list[TallyTask] = field(default_factory=list)
    components: list[np.ndarray] = field(default_factory=list)

    def cell(self, kind: str, subject: str, wording: str, *counts: list[int], label: str | None = None) -> Counts:
        found = np.array(counts, np.int32)
        images = int(found[:, -1].sum())
        prompt = wording.replace("{source}", f"a {subject}")
        self.tasks.append(TallyTask(Cell(kind, subject, wording, prompt, images, label), 0, 0))  # type: ignore[arg-type]
        self.components.append(found)
        return self

    @property
    def tallies(self) -> Tallies:
        """Nothing but the counts is looked at: all else is zero."""
        n, cells = sum(task.images for task in self.tasks), len(self.tasks)
        part = PartTally(
            np.zeros((2, n), np.uint8),
            np.zeros((cells, len(MARGINS), 2, len(LABELS) + 1), np.int32),
            np.zeros(cells),
            np.stack(self.components),
            np.zeros(2),
            Counter(),
            Counter(),
            None,
        )
        return Tallies(self.tasks, [part])

    def report(self, mixture: Mixture = MIXTURE, manifest: Manifest = BOTH) -> MixtureReport:
        return mixture_report(mixture, self.tallies, manifest, LABELS)


def audit() -> Counts:
    """Columns: female, male, undetermined, recognised, images that are none failed."""
    found = Counts()
    found.cell("audit", "nurse", ONE, [8, 1, 1, 10, 10], [0, 9, 1, 8, 10])
    found.cell("audit", "nurse", TWO, [6, 4, 0, 9, 10], [1, 9, 0, 10, 10])
    found.cell("audit", "CEO", ONE, [9, 0, 0, 9, 9], [5, 5, 0, 10, 10])
    found.cell("audit", "CEO", TWO, [10, 0, 0, 10, 10], [4, 4, 2, 8, 10])
    found.cell("explicit", "nurse", "a male nurse", [1, 3, 1, 5, 5], [0, 5, 0, 5, 5], label="male")
    found.cell("explicit", "CEO", "a male CEO", [0, 5, 0, 5, 5], [0, 5, 0, 5, 5], label="male")
    found.cell("explicit", "CEO", "a female CEO", [4, 0, 0, 4, 4], [2, 1, 2, 5, 5], label="female")
    found.cell("control", "a tree", "a tree", [0, 0, 0, 5, 6], [0, 0, 0, 6, 6])
    found.cell("control", "a lake", "a lake", [0, 0, 0, 6, 6], [0, 0, 0, 2, 5])
    return found


@pytest.fixture(scope="module")
def report() -> MixtureReport:
    return audit().report()


@pytest.fixture(scope="module")
def female(report: MixtureReport) -> ComponentReport:
    return report.components[0]


@pytest.fixture(scope="module")
def male(report: MixtureReport) -> ComponentReport:
    return report.components[1]


def test_it_says_what_the_mixture_is(report: MixtureReport) -> None:
    assert (report.digest, report.route) == (MIXTURE.digest, ROUTE_VERSION)
    assert report.weights == {"female": 0.4, "male": 0.6}
    # Weights of the table that belong to no profession of the run are nobody's here.
    (own,) = report.professions
    assert (own.profession, own.source, own.weights) == ("CEO", "a CEO", {"female": 0.75, "male": 0.25})
    assert [(c.label, c.operator, c.weight) for c in report.components] == [
        ("female", FEMALE.digest, 0.4),
        ("male", MALE.digest, 0.6),
    ]
    assert report.left_alone == {}
    assert MixtureReport.model_validate_json(report.model_dump_json()) == report


def test_a_components_own_share_is_of_determined_audit_images_and_names_the_worst(
    female: ComponentReport, male: ComponentReport
) -> None:
    assert (female.own.value, female.own.n, female.own.worst) == (pytest.approx(33 / 38), 38, "nurse")
    assert (male.own.value, male.own.n, male.own.worst) == (pytest.approx(27 / 37), 37, "CEO")
    exact = rate(33, 38)
    assert (female.own.low, female.own.high) == (exact.low, exact.high)
    # Of every kind, failed ones aside.
    assert (female.images, male.images) == (10 + 10 + 9 + 10 + 5 + 5 + 4 + 6 + 6, 40 + 15 + 6 + 5)


def test_each_wording_by_itself(female: ComponentReport, male: ComponentReport) -> None:
    assert [w.wording for w in female.wordings] == [ONE, TWO]
    one, two = female.wordings
    assert (one.n, one.labels, one.undetermined) == (18, {"female": 17, "male": 1}, 1)
    assert (two.n, two.labels, two.undetermined) == (20, {"female": 16, "male": 4}, 0)
    assert (one.share, two.share) == (pytest.approx(17 / 18), pytest.approx(0.8))
    low, high = wilson(17, 18)
    assert (one.low, one.high) == (float(low), float(high))
    assert [w.share for w in male.wordings] == [pytest.approx(14 / 19), pytest.approx(13 / 18)]


def test_explicit_prompts_pooled_and_by_label(female: ComponentReport, male: ComponentReport) -> None:
    assert (female.explicit.value, female.explicit.n) == (pytest.approx(12 / 14), 14)
    assert {k: (v.value, v.n) for k, v in female.explicit_by_label.items()} == {
        "female": (1.0, 4),
        "male": (pytest.approx(0.8), 10),
    }
    assert {k: (v.value, v.n) for k, v in male.explicit_by_label.items()} == {
        "female": (pytest.approx(0.4), 5),
        "male": (1.0, 10),
    }
    assert (male.explicit.value, male.explicit.n) == (pytest.approx(12 / 15), 15)


def test_recognised_controls_and_undetermined(female: ComponentReport, male: ComponentReport) -> None:
    # Recognition is of audit images: explicit prompts say more than the profession.
    assert (female.recognised.value, female.recognised.n) == (pytest.approx(38 / 39), 39)
    assert (male.recognised.value, male.recognised.n) == (pytest.approx(36 / 40), 40)
    assert (female.controls.value, female.controls.n) == (pytest.approx(11 / 12), 12)
    assert (male.controls.value, male.controls.n) == (pytest.approx(8 / 11), 11)
    assert (female.undetermined.value, female.undetermined.n) == (pytest.approx(1 / 39), 39)
    assert (male.undetermined.value, male.undetermined.n) == (pytest.approx(3 / 40), 40)


def test_a_label_that_no_explicit_prompt_names_has_no_figure() -> None:
    found = Counts().cell("audit", "nurse", ONE, [4, 0, 0, 4, 4], [0, 4, 0, 4, 4])
    found.cell("explicit", "nurse", "a male nurse", [0, 2, 0, 2, 2], [0, 2, 0, 2, 2], label="male")
    assert set(found.report().components[0].explicit_by_label) == {"male"}


def test_a_component_that_drew_nothing_knows_nothing() -> None:
    found = Counts()
    found.cell("audit", "nurse", ONE, [0, 0, 0, 0, 0], [0, 4, 0, 4, 4])
    found.cell("explicit", "nurse", "a male nurse", [0, 0, 0, 0, 0], [0, 2, 0, 2, 2], label="male")
    found.cell("control", "a tree", "a tree", [0, 0, 0, 0, 0], [0, 0, 0, 1, 1])
    female, male = found.report().components
    assert female.images == 0
    for figure in (female.own, female.explicit, female.recognised, female.controls, female.undetermined):
        assert (figure.value, figure.n, figure.low, figure.high) == (None, 0, 0.0, 1.0)
    assert female.own.worst is None
    (wording,) = female.wordings
    assert (wording.n, wording.share, wording.low, wording.high) == (0, None, None, None)
    assert (male.own.value, male.own.worst) == (1.0, "nurse")


def test_a_profession_without_determined_images_is_not_the_worst() -> None:
    found = Counts().cell("audit", "nurse", ONE, [3, 1, 0, 4, 4], [0, 4, 0, 4, 4])
    found.cell("audit", "CEO", ONE, [0, 0, 4, 4, 4], [0, 4, 0, 4, 4])
    own = found.report().components[0].own
    assert (own.value, own.n, own.worst) == (0.75, 4, "nurse")


# Professions that a component leaves alone


def test_the_unedited_component_has_no_label_of_its_own() -> None:
    half = Mixture.of({"female": FEMALE, UNEDITED: EditOperator.identity(4)})
    only = manifest_of(nurse=("female",), CEO=("female",))
    found = Counts().cell("audit", "nurse", ONE, [4, 0, 0, 4, 4], [1, 3, 0, 4, 4])
    found.cell("explicit", "nurse", "a female nurse", [2, 0, 0, 2, 2], [1, 0, 1, 2, 2], label="female")
    report = found.report(half, only)
    female, unedited = report.components
    assert female.own.value == 1.0
    assert (unedited.label, unedited.operator, unedited.weight) == (UNEDITED, None, 0.5)
    assert (unedited.own.value, unedited.own.n, unedited.own.low, unedited.own.high) == (None, 0, 0.0, 1.0)
    (wording,) = unedited.wordings
    assert (wording.n, wording.labels, wording.share) == (4, {"female": 1, "male": 3}, None)
    assert (wording.low, wording.high) == (None, None)
    assert (unedited.explicit.value, unedited.explicit.n) == (0.5, 2)
    assert unedited.recognised.value == 1.0
    # It leaves all alone: that is what it is.
    assert report.left_alone == {}


def test_who_lacks_a_destination_is_named_by_component() -> None:
    mixed = manifest_of(nurse=("female", "male"), CEO=("female",), baker=("male",), cook=("female",))
    assert left_alone(["female", "male", UNEDITED], mixed) == {"female": ["baker"], "male": ["CEO", "cook"]}
    assert left_alone(["male", "female"], mixed) == {"male": ["CEO", "cook"], "female": ["baker"]}
    assert left_alone(["female", "male"], BOTH) == {}
    assert audit().report(manifest=mixed).left_alone == {"female": ["baker"], "male": ["CEO", "cook"]}
