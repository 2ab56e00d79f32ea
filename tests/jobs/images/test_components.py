"""Which components a manifest's mixture has, and what of it can't be made, told before anything is drawn."""

import pytest

from jobs.config import RunConfig
from jobs.errors import ConfigError
from jobs.images.components import check_mixture, components_of, tried_wordings
from manifests import Manifest, ManifestRow
from tests.jobs import helpers

WORDINGS = {"edit": ["{source}", "A photo of {source}"], "calibration": ["A photo of {source}"]}


def rows(*sources: tuple[str, dict[str, float | None]]) -> Manifest:
    """A profession for each source, with the targets of its labels."""
    return Manifest(
        tuple(
            ManifestRow(profession=s, source=s, destination=f"{s} {label}", label=label, target=target)
            for s, labels in sources
            for label, target in labels.items()
        )
    )


BOTH: dict[str, float | None] = {"female": None, "male": None}


def config(**keys: object) -> RunConfig:
    return helpers.config(**{"wordings": WORDINGS, **keys})


def test_components_are_the_labels_that_destinations_name_in_the_attributes_order() -> None:
    labels = ["old", "female", "male"]
    assert components_of(rows(("a CEO", {"male": None, "female": None})), labels) == ["female", "male"]
    assert components_of(rows(("a CEO", {"male": None})), labels) == ["male", "unedited"]
    assert components_of(rows(("a CEO", {"male": None}), ("a cook", {"old": None})), labels) == ["old", "male"]


def test_strengths_are_tried_on_wordings_that_the_tried_edit_has_not() -> None:
    assert tried_wordings(config()) == ([True, False], ["A photo of {source}"])
    # An older configuration, whose wordings are the same: every other one of the edit's is held out.
    same = ["{source}", "A photo of {source}", "A sketch of {source}", "{source} at sea"]
    used, tried = tried_wordings(config(wordings={"edit": same, "calibration": same}))
    assert used == [True, False, True, False]
    assert tried == ["A photo of {source}", "{source} at sea"]
    only = tried_wordings(config(wordings={"edit": ["{source}"], "calibration": ["{source}"]}))
    assert only == ([True], ["{source}"])


def test_a_good_manifest_passes_and_other_forms_are_not_looked_at() -> None:
    check_mixture(rows(("a CEO", BOTH), ("a cook", BOTH)), config())
    bad = rows(("a dog", BOTH), ("the CEO", {"female": 0.8, "male": None}), ("a CEO", BOTH))
    check_mixture(bad, config(form="single", controls=["a photo of a dog"]))


def test_all_that_is_wrong_is_told_at_once() -> None:
    bad = rows(("a dog", BOTH), ("the CEO", {"female": 0.8, "male": None}), ("a CEO", BOTH), ("...", {"female": None}))
    with pytest.raises(ConfigError) as caught:
        check_mixture(bad, config(controls=["A photo of a dog"], mixture={"budget": 0}))
    for part in (
        "control 'A photo of a dog' is in mixture.neutral",
        "'A photo of a dog' is to be edited, and mixture.neutral keeps it",
        "sources 'the CEO' and 'a CEO' have the same words",
        "source '...' has no word",
        "...: a component leaves them alone",
    ):
        assert part in str(caught.value)


def test_sources_of_the_same_words_may_want_the_same() -> None:
    check_mixture(rows(("the CEO", BOTH), ("a CEO", BOTH)), config())
