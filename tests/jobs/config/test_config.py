"""The configuration: precedence, refusals, all faults at once."""

import pytest

from jobs.config import (
    DEFAULT_EDIT_WORDINGS,
    MIXTURE_CALIBRATION_WORDINGS,
    RunConfig,
    load_config,
)
from jobs.config.classifiers import members_of
from jobs.errors import ConfigError, ExitCode, exit_code_of
from time_ops.prompts import VARIED_AUGMENTATIONS

NEEDED = {"manifest": "m.parquet", "model": "m", "classifier": "c", "output": "out"}


def test_flags_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "sampler: {steps: 10, guidance_scale: 3.0, height: 64}\nseed: 1"
    monkeypatch.setenv("EVENHAND_SAMPLER__STEPS", "20")
    monkeypatch.setenv("EVENHAND_SEED", "2")
    config = load_config(text, flags=NEEDED, assignments=["seed=3"])
    assert (config.seed, config.sampler.steps, config.sampler.guidance_scale) == (3, 20, 3.0)
    assert config.sampler.height == 64
    assert config.sampler.width == 512


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("images_per_cel: 50\nsampler: {steps: 0}\nseed: -1", flags={"manifest": "m"})
    message = str(caught.value)
    for key in ("images_per_cel", "sampler.steps", "seed", "model", "classifier", "output"):
        assert key in message
    assert exit_code_of(caught.value) is ExitCode.INPUT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wordings: {audit: ['A photo of {source}']}", "held out"),
        ("wordings: {audit: ['a person']}", "source"),
        ("attribute: {female: ['a photo of a female {profession}']}", "two labels"),
        ("run: ../elsewhere", "run"),
        ("calibration: {lam: 0.1, least_lam: 0.2}", "must not be larger"),
        ("confusion: {female: {female: 9}, male: {mal: 9}}", r"names \['mal'\]"),
        ("confusion: {female: {female: 9, male: 1}}", r"true label is \['male'\]"),
        ("confusion: {female: {female: 6, male: 3}, male: {female: 4, male: 2}}", "singular"),
        ("confusion: {female: {female: 9}, male: {male: -1}}", "greater than or equal to 0"),
        ("form: both", "mixture"),
        ("mixture: {lam: 0.1, least_lam: 0.2}", "must not be larger"),
        ("mixture: {overshoot: 1.6, most_overshoot: 1.5}", "must not be smaller"),
        ("mixture: {neutral: [a cat, A cat]}", "repeats a prompt"),
        ("attribute: {unedited: [a], female: [b]}", "`unedited` is what a mixture calls the model itself"),
        ("- a\n- b", "mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(text, flags=NEEDED)


def test_a_mixture_has_other_default_wordings_than_a_single_edit() -> None:
    mixture, single = load_config(flags=NEEDED), load_config("form: single", flags=NEEDED)
    assert (mixture.form, mixture.wordings.edit) == ("mixture", VARIED_AUGMENTATIONS)
    assert mixture.wordings.calibration == MIXTURE_CALIBRATION_WORDINGS
    assert single.wordings.edit == single.wordings.calibration == DEFAULT_EDIT_WORDINGS
    assert mixture.wordings.audit == single.wordings.audit
    # Of what is given, nothing is replaced; the rest is the form's.
    text = "wordings: {calibration: ['{source} now']}"
    given = load_config(text, flags=NEEDED).wordings
    assert (given.edit, given.calibration) == (VARIED_AUGMENTATIONS, ("{source} now",))
    assert load_config(f"form: single\n{text}", flags=NEEDED).wordings.edit == DEFAULT_EDIT_WORDINGS


def test_the_form_counts_wherever_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENHAND_FORM", "single")
    assert load_config("form: mixture", flags=NEEDED).wordings.edit == DEFAULT_EDIT_WORDINGS
    assert load_config(flags=NEEDED, assignments=["form=mixture"]).wordings.edit == VARIED_AUGMENTATIONS


@pytest.mark.parametrize(
    ("keys", "components", "rounds"),
    [
        ({}, 2, 2),
        ({}, 3, 2),
        ({}, 4, 2),
        ({}, 9, 1),
        ({"budget": 100}, 2, 4),
        ({"budget": 100, "rounds": 1}, 2, 1),
        # One round at least where there is a budget at all, and none without.
        ({"budget": 1}, 2, 1),
        ({"budget": 0}, 2, 0),
        ({"rounds": 0}, 2, 0),
    ],
)
def test_a_mixtures_rounds_are_what_its_budget_allows(keys: dict[str, int], components: int, rounds: int) -> None:
    search = {"images": 4, "explicit_images": 1, "budget": 20, "rounds": 4} | keys
    assert load_config(flags=NEEDED | {"mixture": search}).mixture.rounds_of(components) == rounds


def test_labels_of_two_sources_never_mix() -> None:
    text = "attribute: {young: ['a young {profession}'], old: ['an old {profession}']}"
    assert list(load_config(text, flags=NEEDED).attribute) == ["young", "old"]


def test_a_confusion_table_is_of_the_attributes_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "confusion: {female: {female: 47, male: 3}, male: {male: 48}}"
    assert load_config(text, flags=NEEDED).confusion == {"female": {"female": 47, "male": 3}, "male": {"male": 48}}
    monkeypatch.setenv("EVENHAND_CONFUSION", '{"female": {"female": 1}, "male": {"male": 1}}')
    assert load_config(text, flags=NEEDED).confusion == {"female": {"female": 1}, "male": {"male": 1}}


def test_a_classifier_is_a_name_a_mapping_or_a_list_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    head = "{model: h, recognition: c, labels: {female: [F], male: [M]}}"
    one = load_config(f"classifier: {head}", flags=NEEDED | {"classifier": None}, assignments=["classifier.margin=0.3"])
    (member,) = members_of(one.classifier)
    assert (member.model, member.margin, member.labels) == ("h", 0.3, {"female": ("F",), "male": ("M",)})
    assert load_config(f"classifier: {head}", flags=NEEDED).classifier == "c"
    several = load_config(f"classifier: [c, {head}]", flags=NEEDED | {"classifier": None})
    assert [each.model for each in members_of(several.classifier)] == ["c", "h"]
    assert RunConfig(**several.model_dump(mode="json")) == several
    for text, model in (("a/b@c", "a/b@c"), ('{"model": "h"}', "h")):
        monkeypatch.setenv("EVENHAND_CLASSIFIER", text)
        assert members_of(load_config(flags=NEEDED | {"classifier": None}).classifier)[0].model == model
    # Labels of two sources never mix.
    monkeypatch.setenv("EVENHAND_CLASSIFIER", '{"labels": {"female": ["W"], "male": ["N"]}}')
    (mixed,) = members_of(load_config(f"classifier: {head}", flags=NEEDED | {"classifier": None}).classifier)
    assert mixed.labels == {"female": ("W",), "male": ("N",)}


def test_a_faulty_classifier_in_a_list_does_not_make_the_list_empty() -> None:
    with pytest.raises(ConfigError, match="3 faults") as caught:
        load_config("classifier: [{modle: h}, 3]", flags=NEEDED | {"classifier": None})
    assert "at least 1 item" not in str(caught.value)
    with pytest.raises(ConfigError, match="names none"):
        load_config("classifier: []", flags=NEEDED | {"classifier": None})


def test_a_set_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_config(flags=NEEDED, assignments=["seed"])


@pytest.mark.parametrize(
    ("kept", "of_each_shard"), [(4, [3, 1, 0]), (0, [0, 0, 0]), (99, [3, 3, 3]), ("all", [3, 3, 3])]
)
def test_pictures_are_the_first_of_each_cell(kept: int | str, of_each_shard: list[int]) -> None:
    pictures = load_config(flags=NEEDED | {"pictures": {"per_cell": kept}}).pictures
    assert [pictures.of_shard(first, 3) for first in (0, 3, 6)] == of_each_shard


def test_more_labels_than_a_byte_has_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 60 labels"):
        load_config(flags=NEEDED | {"attribute": {str(i): [f"a {i}"] for i in range(61)}})
