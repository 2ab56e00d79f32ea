"""Configurations: every key with every wrong type, aliases, duplicates, and YAML that becomes something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from jobs.config import RunConfig, load_config
from jobs.errors import ConfigError
from tests.fuzz.judging import judged
from tests.fuzz.profiles import inputs
from tests.fuzz.strategies import broken_bytes, broken_json, odd_texts, odd_values

WHOLE: dict[str, Any] = {
    "manifest": "professions.csv",
    "model": "CompVis/stable-diffusion-v1-4",
    "classifier": "openai/clip-vit-base-patch32",
    "output": "out",
    "attribute": {"female": ["a photo of a female {profession}"], "male": ["a photo of a male {profession}"]},
    "confusion": {"female": {"female": 9, "male": 1}, "male": {"female": 1, "male": 9}},
    "wordings": {"edit": ["A painting of {source}"], "audit": ["{source} working"]},
    "sampler": {"steps": 20, "guidance_scale": 7.5, "batch_size": "auto"},
    "evaluate": {"lam": [0.1, 0.2]},
    "mlflow": {"tracking_uri": "http://user:secret@host"},
    "schedule": {"every": "1d"},
    "seed": 1,
}


def keys(model: type[BaseModel] = RunConfig, above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inside = field.annotation
        if isinstance(inside, type) and issubclass(inside, BaseModel):
            yield from keys(inside, f"{above}{name}.")
        yield f"{above}{name}"


KEYS = tuple(keys())
HOSTILE_KEYS = (
    "_cli_parse_args", "_env_file", "_secrets_dir", "_init_kwargs", "__pydantic_self__", "self", "cls", "values",
    "model_config", "model_fields", "__class__", "sampler.steps", "EVENHAND_SEED", "", " ", "model ", "Model",
)  # fmt: skip


def loaded(kind: str, text: str, **more: Any) -> RunConfig | None:
    return judged(kind, lambda: load_config(text, name="run.yaml", **more), says="run.yaml", size=len(text))


@given(st.sampled_from(KEYS), odd_values)
@inputs(150)
def test_every_key_with_any_value(key: str, value: Any) -> None:
    values = dict(WHOLE)
    *sections, last = key.split(".")
    if sections:
        values[sections[0]] = {**values.get(sections[0], {}), last: value}
    else:
        values[last] = value
    loaded("configuration, values", json.dumps(values))


@given(broken_json(WHOLE, most=4))
@inputs(60)
def test_several_things_wrong_at_once(values: Any) -> None:
    loaded("configuration, values", json.dumps(values))


@given(st.sampled_from(HOSTILE_KEYS) | odd_texts, odd_values)
@inputs(30)
def test_keys_that_are_none(key: str, value: Any) -> None:
    found = loaded("configuration, keys", json.dumps({**WHOLE, key: value}))
    assert found is None or key in RunConfig.model_fields


@given(broken_bytes(yaml.safe_dump(WHOLE).encode()))
@inputs(60)
def test_yaml_that_was_whole_once(data: bytes) -> None:
    loaded("configuration, broken YAML", data.decode("utf-8", "replace"))


TAGS = (
    "!!int", "!!float", "!!timestamp", "!!binary", "!!set", "!!omap", "!!pairs", "!!bool", "!!null", "!!str", "!x",
    "!!python/object/apply:os.system",
)  # fmt: skip
SCALARS = (
    "2026-13-45", "2026-02-30 25:61:61", "0x", "0x" + "f" * 5000, "1" * 5000, "1_000", "12:99", "1e99999", ".inf",
    "-.inf", ".nan", "~", "yes", "0o17", "0b2", "'", '"\\ud800"', "&a [*a]", "&a {b: *a}", "*b", "<<", "{<<: [1]}",
    "{<<: {a: 1}}", "? [a]", "{[a]: b}", "{{a: b}: c}", "[" * 3000, "- " * 2000, "|", ">-", "%YAML 9.9", "---", "=",
)  # fmt: skip


@given(st.sampled_from((*KEYS, "x")), st.sampled_from(("", *TAGS)), st.sampled_from(SCALARS) | odd_texts)
@inputs(100)
def test_yaml_that_becomes_something_else(key: str, tag: str, scalar: str) -> None:
    *sections, last = key.split(".")
    above = f"{sections[0]}:\n  " if sections else ""
    text = yaml.safe_dump({k: v for k, v in WHOLE.items() if k not in (*sections, last)})
    loaded("configuration, YAML types", f"{text}{above}{last}: {tag} {scalar}\n")


def laughs(levels: int = 30) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"controls: *l{levels - 1}", f"wordings: {{audit: *l{levels - 1}}}"])


BOMBS = {
    "aliases of aliases": laughs(),
    "an alias of itself": "controls: &a [*a, *a]\nsampler: &b {steps: *b}\nattribute: &c {female: *c}",
    "merges of merges": "a: &a0 {x: 1}\n"
    + "\n".join(f"b{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 30)),
    "depth": "controls: " + "[" * 20_000,
    "depth of blocks": "controls:\n" + "".join(" " * i + "-\n" for i in range(1, 1500)),
    "size": "controls: [" + "x, " * 700_000 + "]",
    "many keys": "\n".join(f"k{i}: 1" for i in range(40_000)),
    "many faults": "controls: [" + "1, " * 100_000 + "]",
    "many prompts": "controls: [" + ", ".join(f"p{i}" for i in range(100_000)) + "]",
    "a large number": "seed: 0x" + "f" * 500_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_text_that_becomes_large(name: str) -> None:
    assert loaded("configuration, bombs", BOMBS[name] + "\n") is None


@pytest.mark.parametrize("key", ["model", "seed"])
def test_a_key_that_is_there_twice_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.* twice"):
        load_config(yaml.safe_dump(WHOLE) + f"{key}: 2\n", name="run.yaml")
    with pytest.raises(ConfigError, match=r"steps.* twice"):
        load_config(yaml.safe_dump(WHOLE).replace("  steps: 20", "  steps: 20\n  steps: 30"), name="run.yaml")


def test_an_anchor_is_no_fault() -> None:
    text = yaml.safe_dump({key: value for key, value in WHOLE.items() if key != "wordings"})
    text += "wordings:\n  edit: &e ['A photo of {source}']\n  calibration: *e\n"
    assert load_config(text).wordings.calibration == ("A photo of {source}",)


@given(st.sampled_from((*KEYS, "", "=", ".", "sampler..steps", "_env_file")), odd_texts | st.sampled_from(SCALARS))
@inputs(60)
def test_flags(key: str, value: str) -> None:
    text = yaml.safe_dump(WHOLE)
    judged("configuration, --set", lambda: load_config(text, name="run.yaml", assignments=[f"{key}={value}"]))


@given(st.sampled_from(KEYS), odd_texts | st.sampled_from(('{"a": [', "[" * 5000, '{"female": "x"}', "[1]", "NaN")))
@inputs(60)
def test_the_environment(key: str, value: str) -> None:
    name = "EVENHAND_" + key.upper().replace(".", "__")
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv(name, value)
        except (ValueError, UnicodeEncodeError):  # the system holds no such text
            return
        judged("configuration, environment", lambda: load_config(yaml.safe_dump(WHOLE), name="run.yaml"))
