"""The page of configuration keys is what the code says."""

from pathlib import Path

from jobs.config import MixtureConfig, RunConfig
from jobs.config.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_it_has_every_key_with_type_default_and_meaning() -> None:
    lines = reference().splitlines()
    for key in (*RunConfig.model_fields, *MixtureConfig.model_fields):
        assert f"## {key}" in lines or any(line.startswith(f"| `{key}` | ") for line in lines), key
    assert "| `least_lam` | number, > 0 | `0.01` | the smallest, and so the strongest edit, that is tried |" in lines
    assert "| `count` | integer or null, ≥ 1 | `null` |" in "\n".join(lines)
