"""Every family's entries, by real pipeline calls and by the formula written out: token states and pooled embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.time_ops.conftest import make_xl_pipe
from tests.time_ops.families import make_flux_pipe, make_sd3_pipe, make_t5_tokenizer
from time_ops import (
    EditError,
    EditOperator,
    ModelError,
    Problem,
    PromptEdit,
    Statistics,
    edit_model,
    encode_edits,
    encode_preserved,
    encode_texts,
    restore_model,
    solve,
    solve_mixture,
    solve_statistics,
)
from time_ops.alignment import align_prompts
from time_ops.mixture import Mixture
from time_ops.row_encoding import encode_rows
from time_ops.rows import TokenRows
from time_ops.surfaces import check_pipeline, denoiser_of, pooled_width, text_entries

FAMILIES: dict[str, Callable[[], Any]] = {"sdxl": make_xl_pipe, "sd3": make_sd3_pipe, "flux": make_flux_pipe}
PROMPTS = ["a photo of a ceo", "a picture of an engineer"]
EDITS = [
    PromptEdit("a ceo", {"a female ceo": 0.5, "a male ceo": 0.5}),
    PromptEdit("an engineer", {"an old engineer": 1.0}),
]
TEMPLATES = ("{source}", "A photo of {source}")
CALL = {
    "sdxl": {"guidance_scale": 7.5},
    "sd3": {"guidance_scale": 5.0},
    "flux": {"guidance_scale": 3.5, "true_cfg_scale": 2.5},
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(family: str) -> Any:
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def operator(pipe: Any) -> EditOperator:
    pairs = encode_edits(pipe, EDITS, augmentations=TEMPLATES)
    return solve(pairs, [2.0, 5.0], encode_preserved(pipe, ["a female ceo", ""]))


def draw(pipe: Any, family: str, **texts: Any) -> np.ndarray[Any, Any]:
    made = pipe(
        **texts, **CALL[family], num_inference_steps=2, height=16, width=16, output_type="np",
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
    )  # fmt: skip
    found: np.ndarray[Any, Any] = made.images
    return found


def embeddings(pipe: Any, family: str, negative: str = "an old cat") -> dict[str, torch.Tensor]:
    """What the pipeline makes of prompts and of a negative prompt, by its own call."""
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    if family == "flux":
        one, other = (pipe.encode_prompt(p, None, "cpu")[:2] for p in (PROMPTS, [negative] * 2))
        return dict(zip(names, (one[0], other[0], one[1], other[1]), strict=True))
    call: dict[str, Any] = {"prompt": PROMPTS, "device": "cpu", "negative_prompt": [negative] * 2}
    call |= {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
    return dict(zip(names, pipe.encode_prompt(**call), strict=True))


def furthest(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.abs(a - b).max())


def test_folding_equals_transforming(family: str, pipe: Any, operator: EditOperator) -> None:
    """A batch of two prompts with guidance by a negative prompt that the edit moves as well."""
    texts = {"prompt": PROMPTS, "negative_prompt": ["an old cat"] * 2}
    module = denoiser_of(pipe)
    base, made = draw(pipe, family, **texts), embeddings(pipe, family)
    transform = {k: operator.transform_pooled if "pooled" in k else operator.transform for k in made}
    from_embeds = draw(pipe, family, **{k: transform[k](e) for k, e in made.items()})
    tokens_only = draw(pipe, family, **{k: e if "pooled" in k else transform[k](e) for k, e in made.items()})
    pooled_only = draw(pipe, family, **{k: transform[k](e) if "pooled" in k else e for k, e in made.items()})
    with operator.attached(module):
        hooked = draw(pipe, family, **texts)
    kept = {name: weight.clone() for name, weight in module.state_dict().items()}
    try:
        fold = operator.fold_into(module)
        folded = draw(pipe, family, **texts)
        changed = {n for n, w in module.state_dict().items() if not torch.equal(w, kept[n])}
        assert changed == {f"{w.name}.weight" for w in fold.weights}  # and no bias
        if family == "sdxl":  # the sizes' columns stay, to the bit
            name = "add_embedding.linear_1.weight"
            assert torch.equal(module.state_dict()[name][:, 32:], kept[name][:, 32:])
    finally:
        module.load_state_dict(kept)
    assert furthest(folded, from_embeds) <= 1e-5
    assert furthest(folded, hooked) <= 1e-5
    # Each part does something, and neither is the whole.
    for other in (base, tokens_only, pooled_only):
        assert furthest(folded, other) > 1e-3
    assert furthest(tokens_only, base) > 1e-3
    assert furthest(pooled_only, base) > 1e-3


def states(encoder: Any, tokenizer: Any, prompt: str, length: int, layer: int | None = None) -> Any:
    ids = tokenizer([prompt], padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        made = encoder(ids, output_hidden_states=True)
    return made if layer is None else made.hidden_states[layer][0]


def by_hand(pipe: Any, family: str, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token states [n, d] and pooled [p] from the encoders themselves, as the families' papers put them together."""
    if family == "flux":
        tokens = states(pipe.text_encoder_2, pipe.tokenizer_2, prompt, 512)[0][0]
        return tokens, states(pipe.text_encoder, pipe.tokenizer, prompt, 24).pooler_output[0]
    first = states(pipe.text_encoder, pipe.tokenizer, prompt, 24, -2)
    second = states(pipe.text_encoder_2, pipe.tokenizer_2, prompt, 24, -2)
    both = torch.cat([first, second], dim=1)
    last = states(pipe.text_encoder_2, pipe.tokenizer_2, prompt, 24).text_embeds[0]
    if family == "sdxl":
        return both, last
    t5 = states(pipe.text_encoder_3, pipe.tokenizer_3, prompt, 256)[0][0]
    wide = torch.cat([both, torch.zeros(24, t5.shape[1] - both.shape[1])], dim=1)
    pooled = torch.cat([states(pipe.text_encoder, pipe.tokenizer, prompt, 24).text_embeds[0], last])
    return torch.cat([wide, t5]), pooled


def test_embeddings_are_those_of_the_encoders_themselves(family: str, pipe: Any) -> None:
    prompts = ["a ceo", "", "a photo of an engineer", "a ceo"]
    found = encode_texts(pipe, prompts, batch_size=2)
    assert found.pooled is not None
    assert found.pooled.shape == (4, pooled_width(denoiser_of(pipe)))
    for prompt, tokens, pooled in zip(prompts, found.tokens, found.pooled, strict=True):
        expected = by_hand(pipe, family, prompt)
        torch.testing.assert_close(tokens, expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pooled, expected[1], rtol=1e-5, atol=1e-5)


# Where the tokens of "a ceo" stand in "a female ceo": CLIP's start, a, ceo, end; T5's "▁", "a", "▁ceo", end.
CLIP_PLACES = [0, 1, 3, *range(4, 24), 23]


def t5_places(n: int) -> list[int]:
    return [0, 1, 3, *range(4, n), n - 1]


def plain_formula(
    cases: list[tuple[list[tuple[torch.Tensor, torch.Tensor]], float]],
) -> tuple[np.ndarray[Any, Any], float]:
    """I + (sum (c* - c) c^T / lam) (I + sum c c^T / lam)^-1, token by token in float64; and the first edit's scale."""
    d = cases[0][0][0][0].shape[-1]
    G, B, scale = np.eye(d), np.zeros((d, d)), 0.0
    for k, (pairs, lam) in enumerate(cases):
        own = np.zeros((d, d))
        for c, wanted in pairs:
            for x, y in zip(c.double().reshape(-1, d).numpy(), wanted.double().reshape(-1, d).numpy(), strict=True):
                own += np.outer(y - x, x)
                G += np.outer(x, x) / lam
        B += own / lam
        scale = float(np.linalg.svd(own, compute_uv=False)[0]) if k == 0 else scale
    return np.eye(d) + B @ np.linalg.inv(G), scale


def test_the_solve_is_the_formula_for_both_kinds(family: str, pipe: Any) -> None:
    n = {"sdxl": 24, "sd3": 24 + 256, "flux": 512}[family]
    places = {"sdxl": CLIP_PLACES, "sd3": [*CLIP_PLACES, *(24 + i for i in t5_places(256))], "flux": t5_places(512)}[
        family
    ]
    assert len(places) == n
    source, kept = by_hand(pipe, family, "a ceo"), by_hand(pipe, family, "a photo")
    target = by_hand(pipe, family, "a female ceo")
    aligned = target[0][places]
    lam, kept_lam, weaker = 3.0, 7.0, 2.0
    pairs = encode_edits(pipe, [PromptEdit("a ceo", {"a female ceo": 1.0})], augmentations=["{source}"])
    found = solve(pairs, lam, encode_preserved(pipe, ["a photo"]), kept_lam, pooled=weaker)
    expected, scale = plain_formula([([(source[0], aligned)], lam), ([(kept[0], kept[0])], kept_lam)])
    assert np.linalg.norm(found.matrix.numpy() - expected) < 1e-5 * np.linalg.norm(expected)
    # The pooled lam is in units of the pooled embeddings' own scale.
    _, own = plain_formula([([(source[1], target[1])], lam)])
    ratio = weaker * own / scale
    expected, _ = plain_formula([([(source[1], target[1])], ratio * lam), ([(kept[1], kept[1])], ratio * kept_lam)])
    assert found.pooled is not None
    assert np.linalg.norm(found.pooled.matrix.numpy() - expected) < 1e-5 * np.linalg.norm(expected)
    (record,) = found.pooled.steps[0].edits
    assert record.lam == pytest.approx(ratio * lam, rel=1e-4)
    assert solve(pairs, lam, pooled=float("inf")).pooled is None


def test_all_ways_to_solve_agree(pipe: Any, operator: EditOperator) -> None:
    pairs = encode_edits(pipe, EDITS, augmentations=TEMPLATES)
    kept = encode_preserved(pipe, ["a female ceo", ""])
    rows = TokenRows.from_bytes(encode_rows(pipe, EDITS, ["a female ceo", ""], augmentations=TEMPLATES).to_bytes())
    ratio = rows.pooled_ratio
    streamed = Statistics.of(pairs[0]).weighted(2.0, ratio) + Statistics.of(pairs[1]).weighted(5.0, ratio)
    for pair in kept:
        streamed += Statistics.of(pair, preserved=True).weighted(2.0, ratio)
    ways = {
        "problem": Problem(pairs, kept).solve([2.0, 5.0]),
        "summed": Problem(pairs, kept, statistics_bytes=0).solve([2.0, 5.0], [None, None]),
        "rows": solve_statistics(rows.statistics([2.0, 5.0], ratio=ratio)),
        "streamed": solve_statistics(Statistics.from_bytes(streamed.to_bytes())),
    }
    assert operator.pooled is not None
    for name, found in ways.items():
        assert found.pooled is not None, name
        # Rows encode all prompts in one batch, which float32 rounds otherwise.
        near = 1e-4 if name in ("rows", "streamed") else 1e-9
        for one, other in ((found, operator), (found.pooled, operator.pooled)):
            assert torch.linalg.norm(one.matrix - other.matrix) < near * torch.linalg.norm(other.matrix), name
    assert ways["problem"].digest == operator.digest
    with pytest.raises(EditError, match="pooled embeddings and without"):
        _ = streamed + Statistics(streamed.G, streamed.B)


def test_files_keep_the_pooled_operator(operator: EditOperator, tmp_path: Path) -> None:
    assert operator.pooled is not None
    found = EditOperator.load(operator.save(tmp_path / "operator.safetensors"))
    assert found.pooled is not None
    assert torch.equal(found.pooled.matrix, operator.pooled.matrix)
    assert (found.digest, found.checksum) == (operator.digest, operator.checksum)
    alone = EditOperator(operator.matrix, operator.steps, operator.condition, operator.versions)
    assert len({operator.digest, alone.digest, operator.pooled.digest}) == 3
    # Who knows only operators of token states must not take this file for one.
    assert b"evenhand-operator/2" in operator.to_bytes()
    assert b"evenhand-operator/1" in alone.to_bytes()
    damaged = operator.to_bytes().replace(operator.pooled.matrix.numpy().tobytes()[:64], bytes(64))
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(EditError, match="pooled is damaged"):
        EditOperator.load(tmp_path / "damaged.safetensors")
    both = operator @ operator
    assert both.pooled is not None
    torch.testing.assert_close(both.pooled.matrix, operator.pooled.matrix @ operator.pooled.matrix)
    assert (alone @ operator).pooled is operator.pooled


def test_a_mixture_routes_both_embeddings_alike(family: str, pipe: Any, tmp_path: Path) -> None:
    solved = solve_mixture(
        pipe, {"female": {"a ceo": "a female ceo"}, "male": {"a ceo": "a male ceo"}},
        preserve=["a photo"], augmentations=TEMPLATES,
    )  # fmt: skip
    mixture = Mixture.load(solved.save(tmp_path / "mixture.safetensors"))
    assert (mixture.digest, mixture.checksum) == (solved.digest, solved.checksum)
    # One image of each component: the seeds are those that `draw` gives its generators.
    assert {mixture.component_of(seed) for seed in range(2)} == {0, 1}
    made = embeddings(pipe, family)
    routed = {
        k: (mixture.transform_pooled if "pooled" in k else mixture.transform)(e, range(2), PROMPTS)
        for k, e in made.items()
    }
    drawn = draw(pipe, family, **routed)
    module = denoiser_of(pipe)
    kept = {name: weight.clone() for name, weight in module.state_dict().items()}
    for image, seed in enumerate(range(2)):
        try:
            mixture.components[mixture.component_of(seed)].operator.fold_into(module)
            folded = draw(pipe, family, prompt=PROMPTS, negative_prompt=["an old cat"] * 2)
        finally:
            module.load_state_dict(kept)
        assert furthest(folded[image], drawn[image]) <= 1e-5
        assert furthest(folded[1 - image], drawn[1 - image]) > 1e-3


def test_a_mixture_with_the_unedited_model_keeps_its_pooled_embedding(tmp_path: Path) -> None:
    solved = solve_mixture(make_xl_pipe(), {"female": {"a ceo": "a female ceo"}}, preserve=[], augmentations=TEMPLATES)
    found = Mixture.load(solved.save(tmp_path / "mixture.safetensors"))
    assert [c.is_identity for c in found.components] == [False, True]
    assert found.pooled_d == 32
    pooled = torch.randn(1, 32)
    seed = next(s for s in range(100) if found.component_of(s) == 1)
    assert torch.equal(found.transform_pooled(pooled, [seed]), pooled)
    with pytest.raises(EditError, match=r"\[B, p\]"):
        found.transform_pooled(pooled[0], [seed])


def test_the_example_of_the_docs_runs() -> None:
    # Behind "From a notebook", four spaces in.
    page = (Path(__file__).parents[2] / "docs/families.md").read_text().partition("## From a notebook")[2]
    lines = page.partition("\n## ")[0].splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    small = code.replace("solve_mixture(pipe, ", "solve_mixture(pipe, preserve=[], augmentations=TEMPLATES, edits=")
    names: dict[str, Any] = {"pipe": make_xl_pipe(), "torch": torch, "TEMPLATES": TEMPLATES}
    exec(small, names)  # noqa: S102 - the project's own page
    assert len(names["images"]) == 2


def test_edit_and_restore_bit_for_bit(family: str, pipe: Any) -> None:
    module = denoiser_of(pipe)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    edit_model(pipe, "a ceo", "a female ceo")
    edit_model(pipe, "an engineer", "an old engineer", restart_params=False)
    changed = {n for n, w in module.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {f"{entry.name}.weight" for entry in text_entries(module)}
    assert restore_model(pipe)
    assert all(torch.equal(w, before[n]) for n, w in module.state_dict().items())


def test_sentencepiece_articles_are_aligned_whole() -> None:
    tokenizer = make_t5_tokenizer(12)

    def places(source: str, destination: str) -> list[int]:
        return [int(i) for i in align_prompts(tokenizer, source, destination)]

    assert places("a ceo", "a female ceo")[:4] == [0, 1, 3, 4]
    # "▁an" is one token, "▁", "a" are two: it stands for the article's last, and both of those for it.
    assert places("an engineer", "a female engineer")[:3] == [1, 3, 4]
    assert places("a ceo", "an old ceo") == [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert places("an engineer", "an engineer") == list(range(12))
    with pytest.raises(EditError, match=r"lacks 'ceo'"):
        places("a ceo", "a female engineer")


def test_what_is_added_reaches_all_tokens_of_t5() -> None:
    """CLIP is causal and leaves the tokens before the difference, T5 moves them, and its padding too."""
    pair = encode_edits(make_sd3_pipe(), [PromptEdit("a ceo", {"a female ceo": 1.0})], augmentations=["{source}"])[0]
    moved = (pair.destinations[0] - pair.source).abs().amax(dim=1)
    assert float(moved[:2].max()) < 1e-5
    assert float(moved[24:26].min()) > 1e-3
    assert float(moved[24 + 100]) > 1e-4


def test_without_t5_sd3_has_zeros_in_its_place() -> None:
    pipe = make_sd3_pipe()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    pair = encode_edits(pipe, [PromptEdit("a ceo", {"a female ceo": 1.0})], augmentations=["{source}"])[0]
    assert pair.source.shape == (24 + 256, 64)
    assert not bool(pair.source[24:].any())
    assert solve([pair], 1.0).d == 64


def test_refusals_have_their_reason() -> None:
    flux, sd3, xl = make_flux_pipe(), make_sd3_pipe(), make_xl_pipe()
    operator = EditOperator(torch.eye(64) * 2, pooled=EditOperator.identity(48))
    with pytest.raises(ModelError, match="linear_1 reads embeddings of width 32, the edit has 48"):
        operator.fold_into(flux.transformer)
    with pytest.raises(ModelError, match="width 64, the edit has 8"):
        EditOperator(torch.eye(8) * 2).fold_into(sd3.transformer)
    with pytest.raises(ModelError, match="pooled embeddings of width 32, the edit has 33"):
        EditOperator(torch.eye(48), pooled=EditOperator.identity(33)).fold_into(xl.unet)
    with pytest.raises(ModelError, match="keys and values alike"):
        text_entries(sd3.transformer, values_only=True)
    sd3.transformer.image_proj = torch.nn.Linear(2, 2)
    flux.transformer.encoder_hid_proj = torch.nn.Linear(2, 2)
    for pipe in (sd3, flux):
        with pytest.raises(ModelError, match="IP-Adapter is loaded"):
            check_pipeline(pipe)
    xl.controlnet = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="ControlNet reads the text"):
        check_pipeline(xl)
    with pytest.raises(EditError, match="no pooled operator of its own"):
        EditOperator(torch.eye(2), pooled=operator)
    # A model without a pooled embedding can't take the edit of one.
    from tests.time_ops.conftest import make_unet

    with pytest.raises(ModelError, match="reads no pooled embedding"):
        EditOperator(torch.eye(64), pooled=EditOperator.identity(8)).fold_into(make_unet(64))
