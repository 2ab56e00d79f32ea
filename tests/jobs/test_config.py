"""The configuration: precedence, refusals, all faults at once."""

import pytest

from jobs.config import load_config
from jobs.errors import ConfigError, ExitCode, exit_code_of

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
        ("- a\n- b", "mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(text, flags=NEEDED)


def test_labels_of_two_sources_never_mix() -> None:
    text = "attribute: {young: ['a young {profession}'], old: ['an old {profession}']}"
    assert list(load_config(text, flags=NEEDED).attribute) == ["young", "old"]


def test_a_confusion_table_is_of_the_attributes_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "confusion: {female: {female: 47, male: 3}, male: {male: 48}}"
    assert load_config(text, flags=NEEDED).confusion == {"female": {"female": 47, "male": 3}, "male": {"male": 48}}
    monkeypatch.setenv("EVENHAND_CONFUSION", '{"female": {"female": 1}, "male": {"male": 1}}')
    assert load_config(text, flags=NEEDED).confusion == {"female": {"female": 1}, "male": {"male": 1}}


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
