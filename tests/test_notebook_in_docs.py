"""The Python in README.md and docs/notebook.md runs, and its mixtures draw what the text says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.demo.world import perceived_genders

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)


def run_blocks(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in BLOCK.findall(text):
        exec(compile(re.sub("^    ", "", block, flags=re.MULTILINE), "docs", "exec"), names)  # noqa: S102
    return names


def drawn(names: dict[str, Any], prompt: str) -> list[str]:
    """Perceived genders of eight images under the mixture, seeds 0 to 7."""
    prompts, seeds = [prompt] * 8, range(8)
    embeds, negative = names["pipe"].encode_prompt(prompts, "cpu", 1, True)
    images = names["pipe"](
        prompt_embeds=names["mixture"].transform(embeds, seeds, prompts),
        negative_prompt_embeds=names["mixture"].transform(negative, seeds, prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=10,
        guidance_scale=3.0,
    ).images
    return genders(images)


def genders(images: list[Any]) -> list[str]:
    return list(perceived_genders(np.stack([np.asarray(image) for image in images])))


def test_the_readmes_mixture_draws_what_the_route_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text().split("## From a notebook, without Ray\n")[1].split("\n## ")[0]
    names = run_blocks(section)
    mixture = names["mixture"]
    assert genders(names["images"]) == [mixture.labels[mixture.component_of(seed)] for seed in range(8)]
    assert drawn(names, "A painting of a male CEO") == ["male"] * 8
    assert drawn(names, "A painting of a female CEO") == ["female"] * 8


def test_the_notebook_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks((ROOT / "docs" / "notebook.md").read_text())
    assert names["mixture"].checksum
    assert genders(names["images"]) == names["drawn_by"]
    assert set(names["drawn_by"]) == {"female", "male"}
