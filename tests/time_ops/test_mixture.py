"""Mixtures: a batch through its components, one file, and what is refused; components solved from one pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load, save

from infra.demo import PIPELINE_PATH
from time_ops import (
    Component,
    EditError,
    EditOperator,
    Mixture,
    ModelError,
    PromptEdit,
    encode_prompts,
    solve_mixture,
    solve_statistics,
)
from time_ops.files import header_of
from time_ops.mixture import is_mixture
from time_ops.prompts import augment
from time_ops.records import EditRecord, SolveInputs
from time_ops.route import UNEDITED, WeightTable, route
from time_ops.row_encoding import encode_rows
from time_ops.rows import TokenRows
from time_ops.strengths import Strengths

TEMPLATES = ("{source}", "a photo of {source}")
EDITS = [
    PromptEdit("a nurse", {"a female nurse": 0.5, "a male nurse": 0.5}),
    PromptEdit("a ceo", {"a female ceo": 0.5, "a male ceo": 0.5}),
    PromptEdit("an engineer", {"a male engineer": 1.0}),
]
GENDERS = {
    "female": {"a nurse": "a female nurse", "a ceo": "a female ceo"},
    "male": {"a nurse": "a male nurse", "a ceo": "a male ceo", "an engineer": "a male engineer"},
}


def operator(seed: int, d: int = 8) -> EditOperator:
    matrix = torch.eye(d, dtype=torch.float64) + torch.randn(
        d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return EditOperator(matrix, (SolveInputs((EditRecord("a ceo", (("a female ceo", 1.0),), float(seed + 1)),)),), 3.0)


@pytest.fixture
def mixture() -> Mixture:
    own = {"a nurse": (0.9, 0.1)}
    return Mixture.of({"female": operator(1), "male": operator(2)}, (0.25, 0.75), own)


def test_each_image_passes_through_the_component_that_its_seed_picks(mixture: Mixture) -> None:
    embeds, seeds = torch.randn(40, 5, 8, dtype=torch.float64), list(range(100, 140))
    prompts = ["a photo of a nurse" if i % 2 else "a cat" for i in range(40)]
    found = mixture.transform(embeds, seeds, prompts)
    chosen = [route(s, (0.9, 0.1) if "nurse" in p else (0.25, 0.75)) for s, p in zip(seeds, prompts, strict=True)]
    assert len(set(chosen)) == 2
    for i, k in enumerate(chosen):
        assert torch.equal(found[i], mixture.components[k].operator.transform(embeds[i]))
    # One generator for the batch: the place decides beside the seed.
    batch = mixture.transform(embeds, 7, "a cat")
    for i in range(40):
        k = route(7, (0.25, 0.75), i)
        assert torch.equal(batch[i], mixture.components[k].operator.transform(embeds[i]))
    assert mixture.transform(embeds.half(), seeds).dtype == torch.float16
    with pytest.raises(EditError, match="40 images, but 39 seeds"):
        mixture.transform(embeds, seeds[1:])
    with pytest.raises(EditError, match=r"\[B, n, d\]"):
        mixture.transform(embeds[0], 7)
    with pytest.raises(ModelError, match="width 4"):
        mixture.transform(embeds[..., :4], seeds)


def test_a_file_gives_the_mixture_back_and_equal_ones_equal_bytes(mixture: Mixture, tmp_path: Path) -> None:
    path = mixture.save(tmp_path / "deep" / "mixture.safetensors")
    again = Mixture.load(path)
    assert again.digest == mixture.digest
    assert again.labels == ("female", "male")
    assert again.table.of("a nurse") == (0.9, 0.1)
    for one, other in zip(again.components, mixture.components, strict=True):
        assert torch.equal(one.operator.matrix, other.operator.matrix)
        assert one.operator.digest == other.operator.digest
    assert again.to_bytes() == mixture.to_bytes() == path.read_bytes()
    assert is_mixture(path.read_bytes())
    assert not is_mixture(operator(1).to_bytes())
    small = Mixture.from_bytes(mixture.to_bytes(dtype=torch.float32))
    assert small.digest == mixture.digest
    assert len(mixture.to_bytes(dtype=torch.float32)) < len(mixture.to_bytes())


def test_weights_and_components_and_the_order_are_part_of_the_digest(mixture: Mixture) -> None:
    female, male = (c.operator for c in mixture.components)
    others = [
        Mixture.of({"female": female, "male": male}, (0.26, 0.74), {"a nurse": (0.9, 0.1)}),
        Mixture.of({"female": female, "male": male}, (0.25, 0.75)),
        Mixture.of({"male": male, "female": female}, (0.25, 0.75), {"a nurse": (0.9, 0.1)}),
        Mixture.of({"female": female, "male": female}, (0.25, 0.75), {"a nurse": (0.9, 0.1)}),
        Mixture.of({"woman": female, "male": male}, (0.25, 0.75), {"a nurse": (0.9, 0.1)}),
    ]
    assert len({mixture.digest, *(m.digest for m in others)}) == 6


def test_a_damaged_file_is_told(mixture: Mixture, tmp_path: Path) -> None:
    data = bytearray(mixture.to_bytes())
    data[-3] ^= 1
    with pytest.raises(EditError, match=r"(?s)male is damaged.*checksum"):
        Mixture.from_bytes(bytes(data))
    with pytest.raises(EditError, match="cut short"):
        Mixture.from_bytes(mixture.to_bytes()[:50])
    with pytest.raises(EditError, match="is not a mixture"):
        Mixture.from_bytes(operator(1).to_bytes())
    with pytest.raises(FileNotFoundError):
        Mixture.load(tmp_path / "none")
    for key, value in (("route", 2), ("format", "evenhand-mixture/9"), ("weights", [0.5, 0.5]), ("components", 1)):
        header = json.loads(header_of(mixture.to_bytes())["evenhand"])
        changed = save(load(mixture.to_bytes()), metadata={"evenhand": json.dumps({**header, key: value})})
        with pytest.raises(EditError):
            Mixture.from_bytes(changed)


def test_what_is_no_mixture_is_refused_with_all_its_faults() -> None:
    with pytest.raises(EditError, match="1 component"):
        Mixture.of({"female": operator(1)})
    values_only = EditOperator(torch.eye(4), (SolveInputs((), values_only=True),))
    with pytest.raises(EditError) as caught:
        Mixture((Component("a", operator(1)), Component("a", values_only)), WeightTable((1.0,)))
    for part in ("repeated", "different widths: [4, 8]", "values only", "1 weights for 2"):
        assert part in str(caught.value)


@pytest.fixture
def rows(make_pipe: Callable[..., Any]) -> TokenRows:
    kept = ["", *(augment(t, d) for e in EDITS for d in e.destinations for t in TEMPLATES)]
    return encode_rows(make_pipe(), EDITS, kept, augmentations=TEMPLATES)


def plain(rows: TokenRows, one: Strengths, used: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """G and B token by token, as the formula is written."""
    T, d, n = rows.tokens.astype(np.float64), rows.tokens.shape[1], rows.kept.shape[1]
    G, B, row = np.zeros((d, d)), np.zeros((d, d)), 0
    assert one.shares is not None
    assert one.push is not None
    lams = dict(zip(rows.preserved, np.broadcast_to(one.preserve_lam, len(rows.preserved)), strict=True))
    for e, edit in enumerate(EDITS):
        for j, destination in enumerate(edit.destinations):
            for w in used:
                for i in range(w * n, (w + 1) * n):
                    c, star = T[rows.sources[e, i]], T[rows.destinations[row, i]]
                    share = float(np.asarray(one.shares[e])[j])
                    B += np.outer(share * (star - c), c) / one.lam[e]
                    # The pushed explicit prompt: its own token, moved away from the source's.
                    B += one.push[e][j] * np.outer(star - c, star) / lams[augment(TEMPLATES[w], destination)]
                    if j == 0:
                        G += np.outer(c, c) / one.lam[e]
            row += 1
    for places, prompt in zip(rows.kept, rows.preserved, strict=True):
        for place in places:
            G += np.outer(T[place], T[place]) / lams[prompt]
    return G, B


def test_components_of_one_pass_are_the_formula_each(rows: TokenRows) -> None:
    kept = [2.0, *[1.5, math.inf] * 5]
    asked = [
        Strengths([1.0, 2.0, 4.0], [[1.4, 0.0], [1.2, 0.0], [0.0]], kept, [[0.0, 0.6], [0.0, 0.3], [0.6]]),
        Strengths([1.0, 0.5, 4.0], [[0.0, 1.4], [0.0, 1.0], [1.3]], kept[::-1], [[0.6, 0.0], [0.6, 0.0], [0.0]]),
    ]
    for statistics, one in zip(rows.component_statistics(asked), asked, strict=True):
        G, B = plain(rows, one, [0, 1])
        assert np.linalg.norm(statistics.G.numpy() - G) < 1e-12 * np.linalg.norm(G)
        assert np.linalg.norm(statistics.B.numpy() - B) < 1e-12 * np.linalg.norm(B)
        expected = np.eye(len(G)) + B @ np.linalg.inv(np.eye(len(G)) + G)
        assert np.linalg.norm(solve_statistics(statistics).matrix.numpy() - expected) < 1e-9 * np.linalg.norm(expected)
    # One alone gives the same sums, and its records say what overshoots and what is pushed.
    (alone,) = rows.component_statistics(asked[:1])
    together = rows.component_statistics(asked)[0]
    assert torch.allclose(alone.G, together.G, rtol=1e-13)
    assert torch.allclose(alone.B, together.B, rtol=1e-12, atol=1e-12)
    assert alone.edits == together.edits
    assert alone.preserved == together.preserved
    blend = dict(alone.edits[0].destinations)
    assert blend["a nurse"] == pytest.approx(-0.4)
    pushed = {r.source: dict(r.destinations) for r in alone.preserved}
    assert pushed["a male nurse"] == {"a male nurse": 1.6, "a nurse": -0.6}
    assert pushed[""] == {"": 1.0}
    other = Strengths(asked[0].lam, asked[0].shares, kept, [[0.0, 0.5], [0.0, 0.3], [0.6]])
    digests = {solve_statistics(rows.component_statistics([s])[0]).digest for s in (asked[0], other)}
    assert len(digests) == 2


def test_wordings_that_are_held_out_take_no_part(rows: TokenRows) -> None:
    one = Strengths([1.0] * 3, [[1.0, 0.0], [1.0, 0.0], [0.0]], 2.0, [[0.0, 0.5], [0.0, 0.5], [0.5]])
    (found,) = rows.of_augmentations([True, False]).component_statistics([one])
    G, B = plain(rows, one, [0])
    assert np.linalg.norm(found.B.numpy() - B) < 1e-12 * np.linalg.norm(B)
    assert np.linalg.norm(found.G.numpy() - G) < 1e-12 * np.linalg.norm(G)
    assert {r.augmentations for r in found.edits} == {("{source}",)}
    for wrong in ([False, False], [True]):
        with pytest.raises(EditError, match="2 augmentations"):
            rows.of_augmentations(wrong)


def test_a_notebooks_mixture_edits_each_label_and_keeps_what_it_should() -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained(PIPELINE_PATH, local_files_only=True)
    found = solve_mixture(pipe, GENDERS, 0.01, overshoot=1.0, ratio=1.0, push=0.0, augmentations=TEMPLATES)
    assert found.labels == ("female", "male")
    assert found.weights_of("anything") == (0.5, 0.5)
    prompts = ("a nurse", "a female nurse", "a male nurse", "a photo of a dog", "")
    words = {p: e.double() for p, e in zip(prompts, encode_prompts(pipe, prompts), strict=True)}
    female, male = (c.operator for c in found.components)

    def off(operator: EditOperator, prompt: str, wanted: str) -> float:
        # From the noun on: the article is the same for all.
        return float((operator.transform(words[prompt]) - words[wanted])[2:].norm())

    for one, other, operator in (("female", "male", female), ("male", "female", male)):
        moved = off(operator, "a nurse", "a nurse")
        assert off(operator, "a nurse", f"a {one} nurse") < 0.5 * off(operator, "a nurse", f"a {other} nurse")
        assert off(operator, f"a {other} nurse", f"a {other} nurse") < 0.5 * moved
        for kept in ("a photo of a dog", ""):
            assert off(operator, kept, kept) < 0.5 * moved
    # Without a destination of its label a source is left alone: its own record says so.
    (engineer,) = [r for r in female.steps[0].edits if r.source == "an engineer"]
    assert dict(engineer.destinations).get("an engineer") == 1.0


def test_with_one_label_the_unedited_model_is_the_other_component(make_pipe: Callable[..., Any]) -> None:
    found = solve_mixture(make_pipe(), {"female": GENDERS["female"]}, augmentations=TEMPLATES, weights=(0.3, 0.7))
    assert found.labels == ("female", UNEDITED)
    assert [c.is_identity for c in found.components] == [False, True]
    embeds = torch.randn(1, 3, found.d)
    seed = next(s for s in range(100) if found.component_of(s) == 1)
    assert torch.equal(found.transform(embeds, [seed]), embeds)
    with pytest.raises(EditError, match="no edits"):
        solve_mixture(make_pipe(), {})
