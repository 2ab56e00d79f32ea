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
        ("images_per_cell: 75\nshard_images: 50", "multiple of shard_images"),
        ("attribute: {female: ['a photo of a female {profession}']}", "two labels"),
        ("run: ../elsewhere", "run"),
        ("strength: {sweep: [0.1, 1.0]}", "weakest"),
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


def test_a_set_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_config(flags=NEEDED, assignments=["seed"])
