"""PixArt and Sana by real pipeline calls: what they encode, what of it counts, and that folding is transforming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline, SanaSprintPipeline

from tests.time_ops.families import make_gemma, make_gemma_tokenizer, make_pixart_pipe, make_sana_pipe
from tests.time_ops.test_families import furthest, plain_formula
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
    encoder_digest,
    restore_model,
    solve,
    solve_mixture,
    solve_statistics,
)
from time_ops.alignment import token_ids
from time_ops.captions import caption_call
from time_ops.encoding import encode_checked
from time_ops.families import text_readers
from time_ops.mixture import Mixture
from time_ops.row_encoding import encode_rows
from time_ops.rows import MASKED, TokenRows

FAMILIES: dict[str, Callable[[], Any]] = {
    "pixart-alpha": make_pixart_pipe,
    "pixart-sigma": lambda: make_pixart_pipe(sigma=True),
    "sana": make_sana_pipe,
}
POSITIONS = {"pixart-alpha": 120, "pixart-sigma": 300, "sana": 300}
PROMPTS = ["a photo of a CEO ", "a picture of an engineer"]
EDITS = [
    PromptEdit("a ceo", {"a female ceo": 0.5, "a male ceo": 0.5}),
    PromptEdit("an engineer", {"an old engineer": 1.0}),
    # Gemma has no end marker, so the source's padding begins where the destination's words go on.
    PromptEdit("an image", {"an image of an engineer": 1.0}),
]
LAMS = [2.0, 5.0, 4.0]
TEMPLATES = ("{source}", "A photo of {source}")
ENTRY = "caption_projection.linear_1"
INSTRUCTION = "\n".join(signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(family: str) -> Any:
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def operator(pipe: Any) -> EditOperator:
    pairs = encode_edits(pipe, EDITS, augmentations=TEMPLATES)
    return solve(pairs, LAMS, encode_preserved(pipe, ["a female ceo", ""]))


def draw(pipe: Any, **texts: Any) -> np.ndarray[Any, Any]:
    """Two images, with guidance by what `texts` say of the negative prompt."""
    side = 32 if isinstance(pipe, SanaPipeline) else 16
    found: np.ndarray[Any, Any] = pipe(
        **{"negative_prompt": None, **texts}, guidance_scale=4.5, num_inference_steps=2, height=side, width=side,
        use_resolution_binning=False, output_type="np", generator=[torch.Generator().manual_seed(i) for i in range(2)],
    ).images  # fmt: skip
    return found


@contextmanager
def heard(pipe: Any) -> Iterator[list[dict[str, torch.Tensor]]]:
    """What the transformer is called with, by the names of the pipeline's call."""
    calls: list[dict[str, torch.Tensor]] = []

    def listen(_: Any, __: Any, given: dict[str, torch.Tensor]) -> None:
        negative, positive = given["encoder_hidden_states"].chunk(2)
        unmasked, mask = given["encoder_attention_mask"].chunk(2)
        calls.append({
            "prompt_embeds": positive.clone(), "negative_prompt_embeds": negative.clone(),
            "prompt_attention_mask": mask.clone(), "negative_prompt_attention_mask": unmasked.clone(),
        })  # fmt: skip

    hook = pipe.transformer.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def edited(made: dict[str, torch.Tensor], transform: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor if "mask" in name else transform(tensor) for name, tensor in made.items()}


def test_folding_equals_transforming(pipe: Any, operator: EditOperator) -> None:
    """A batch of two prompts with guidance by a negative prompt that the edit moves as well."""
    texts = {"prompt": PROMPTS, "negative_prompt": "an old engineer"}
    module = pipe.transformer
    with heard(pipe) as calls:
        base = draw(pipe, **texts)
    assert operator.pooled is None
    moved = edited(calls[0], operator.transform)
    from_embeds = draw(pipe, **moved)
    positive_only = draw(pipe, **{**moved, "negative_prompt_embeds": calls[0]["negative_prompt_embeds"]})
    with operator.attached(module):
        hooked = draw(pipe, **texts)
    kept = {name: weight.clone() for name, weight in module.state_dict().items()}
    try:
        fold = operator.fold_into(module)
        folded = draw(pipe, **texts)
        changed = {n for n, w in module.state_dict().items() if not torch.equal(w, kept[n])}
    finally:
        module.load_state_dict(kept)
    assert changed == {f"{w.name}.weight" for w in fold.weights} == {f"{ENTRY}.weight"}  # and no bias
    assert furthest(folded, from_embeds) <= 1e-5
    assert furthest(folded, hooked) <= 1e-5
    for other in (base, positive_only):
        assert furthest(folded, other) > 1e-2


def test_embeddings_and_masks_are_those_of_the_pipelines_own_call(family: str, pipe: Any) -> None:
    with heard(pipe) as calls:
        draw(pipe, prompt=PROMPTS, negative_prompt="")
    found = encode_texts(pipe, [*PROMPTS, "", PROMPTS[0]], batch_size=1)
    assert found.pooled is None
    assert found.mask is not None
    assert found.mask.dtype == torch.bool
    assert found.tokens.shape[1] == POSITIONS[family]
    torch.testing.assert_close(found.tokens[:2], calls[0]["prompt_embeds"], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.mask[:2], calls[0]["prompt_attention_mask"].bool())
    assert torch.equal(found.mask[3], found.mask[0])
    assert torch.equal(found.tokens[3], found.tokens[0])
    # What is held of the empty prompt is what guidance reads of it, though Sana puts no instruction in front there.
    (empty,) = encode_preserved(pipe, [""])
    negative = calls[0]["negative_prompt_embeds"][0][calls[0]["negative_prompt_attention_mask"][0].bool()]
    assert len(negative) == 1
    assert float((empty.source - negative).abs().amax(dim=1).min()) < 1e-5
    if family == "sana":
        with torch.no_grad():
            bare = pipe.encode_prompt(PROMPTS, False, device="cpu")[0]
        assert float((found.tokens[:2, 1] - bare[:, 1]).abs().max()) > 0.1


def test_sana_sprint_is_encoded_alike() -> None:
    """Its own call has an instruction too, and no negative prompt."""
    sana = make_sana_pipe()
    parts = {n: getattr(sana, n) for n in ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")}
    one, other = (encode_texts(p, PROMPTS) for p in (sana, SanaSprintPipeline(**parts)))
    torch.testing.assert_close(one.tokens, other.tokens)
    assert one.mask is not None
    assert other.mask is not None
    assert torch.equal(one.mask, other.mask)


def by_hand(pipe: Any, prompt: str) -> torch.Tensor:
    """States of a prompt's own tokens, encoded without any padding."""
    front = INSTRUCTION if isinstance(pipe, SanaPipeline) else ""
    ids = pipe.tokenizer(front + prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        states: torch.Tensor = pipe.text_encoder(ids)[0][0]
    behind = len(pipe.tokenizer(front).input_ids) - 1 if front else 1
    return torch.cat([states[:1], states[behind:]])


# Where the tokens of "a ceo" stand in "a female ceo": T5's "▁", "a", "▁ceo", end; Gemma's start, "▁a", "▁ceo".
PLACES = {"pixart-alpha": [0, 1, 3, 4], "pixart-sigma": [0, 1, 3, 4], "sana": [0, 1, 3]}


def test_the_solve_is_the_formula_over_what_the_model_attends_to(family: str, pipe: Any) -> None:
    source, kept, target = (by_hand(pipe, p) for p in ("a ceo", "a photo", "a female ceo"))
    lam, kept_lam, places = 3.0, 7.0, PLACES[family]
    assert len(places) == len(source)
    pairs = encode_edits(pipe, [PromptEdit("a ceo", {"a female ceo": 1.0})], augmentations=["{source}"])
    found = solve(pairs, lam, encode_preserved(pipe, ["a photo"]), kept_lam)
    expected, _ = plain_formula([([(source, target[places])], lam), ([(kept, kept)], kept_lam)])
    size = np.linalg.norm(expected)
    assert np.linalg.norm(found.matrix.numpy() - expected) < 1e-5 * size
    # Padding, were it counted, would weigh more than the words.
    every = encode_texts(pipe, ["a ceo", "a photo", "a female ceo"]).tokens
    n = POSITIONS[family]
    padded = [*places, *range(places[-1] + 1, n), *[n - 1] * (n - len(places))][:n]
    counted, _ = plain_formula([([(every[0], every[2][padded])], lam), ([(every[1], every[1])], kept_lam)])
    assert np.linalg.norm(counted - expected) > 0.05 * size


def test_all_ways_to_solve_agree(pipe: Any, operator: EditOperator) -> None:
    pairs = encode_edits(pipe, EDITS, augmentations=TEMPLATES)
    kept = encode_preserved(pipe, ["a female ceo", ""])
    made = encode_rows(pipe, EDITS, ["a female ceo", ""], augmentations=TEMPLATES)
    rows = TokenRows.from_bytes(made.to_bytes())
    streamed, *others = (Statistics.of(pair).weighted(lam) for pair, lam in zip(pairs, LAMS, strict=True))
    for other in (*others, *(Statistics.of(pair, preserved=True).weighted(2.0) for pair in kept)):
        streamed += other
    ways = {
        "problem": Problem(pairs, kept).solve(LAMS),
        "summed": Problem(pairs, kept, statistics_bytes=0).solve(LAMS, [None] * 3),
        "rows": solve_statistics(rows.statistics(LAMS)),
        "streamed": solve_statistics(Statistics.from_bytes(streamed.to_bytes())),
    }
    for name, found in ways.items():
        # Rows encode all prompts in one batch, which float32 rounds otherwise.
        near = 1e-4 if name in ("rows", "streamed") else 1e-9
        assert torch.linalg.norm(found.matrix - operator.matrix) < near * torch.linalg.norm(operator.matrix), name
    assert ways["rows"].digest == operator.digest
    # No padding takes room among the rows, and one augmentation's tokens are found among those of all.
    assert int((rows.sources[0] != MASKED).sum()) == len(pairs[0].source)
    assert len(rows.tokens) < 100
    assert np.array_equal(rows.destinations == MASKED, rows.sources[[0, 0, 1, 2]] == MASKED)
    bare = solve_statistics(rows.of_augmentations([True, False]).statistics(LAMS))
    alone = solve(encode_edits(pipe, EDITS, augmentations=["{source}"]), LAMS, kept)
    assert torch.linalg.norm(bare.matrix - alone.matrix) < 1e-4 * torch.linalg.norm(alone.matrix)


def test_a_mixture_is_folded_as_it_is_transformed(pipe: Any, tmp_path: Path) -> None:
    solved = solve_mixture(
        pipe, {"female": {"a ceo": "a female ceo"}, "male": {"a ceo": "a male ceo"}},
        preserve=["a photo"], augmentations=TEMPLATES,
    )  # fmt: skip
    mixture = Mixture.load(solved.save(tmp_path / "mixture.safetensors"))
    assert {mixture.component_of(seed) for seed in range(2)} == {0, 1}
    with heard(pipe) as calls:
        draw(pipe, prompt=PROMPTS, negative_prompt="an old engineer")
    drawn = draw(pipe, **edited(calls[0], lambda e: mixture.transform(e, range(2), PROMPTS)))
    module = pipe.transformer
    kept = {name: weight.clone() for name, weight in module.state_dict().items()}
    for image, seed in enumerate(range(2)):
        try:
            mixture.components[mixture.component_of(seed)].operator.fold_into(module)
            folded = draw(pipe, prompt=PROMPTS, negative_prompt="an old engineer")
        finally:
            module.load_state_dict(kept)
        assert furthest(folded[image], drawn[image]) <= 1e-5
        assert furthest(folded[1 - image], drawn[1 - image]) > 1e-3


def test_the_example_of_the_docs_draws_what_folding_draws(pipe: Any) -> None:
    page = (Path(__file__).parents[2] / "docs/families.md").read_text().partition("## PixArt and Sana")[2]
    lines = page.partition("\n## ")[0].splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    small = code.replace("solve_mixture(pipe, ", "solve_mixture(pipe, preserve=[], augmentations=TEMPLATES, edits=")
    side = 32 if isinstance(pipe, SanaPipeline) else 16
    size = f"steps=2, height={side}, width={side}, use_resolution_binning=False, output_type='np', guidance_scale=4.5"
    names: dict[str, Any] = {"pipe": pipe, "torch": torch, "TEMPLATES": TEMPLATES}
    exec(small.replace("steps=2", size), names)  # noqa: S102 - the project's own page
    mixture: Mixture = names["mixture"]
    for image, seed in enumerate(range(2)):
        with mixture.components[mixture.component_of(seed)].operator.attached(pipe.transformer):
            drawn = draw(pipe, prompt=names["prompts"], negative_prompt="")
        assert furthest(drawn[image], names["images"][image]) <= 1e-5
        assert furthest(drawn[1 - image], names["images"][1 - image]) > 1e-4


def test_edit_and_restore_bit_for_bit(pipe: Any) -> None:
    before = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    edit_model(pipe, "a ceo", "a female ceo")
    edit_model(pipe, "an engineer", "an old engineer", restart_params=False)
    changed = {n for n, w in pipe.transformer.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {f"{ENTRY}.weight"}
    assert restore_model(pipe)
    assert all(torch.equal(w, before[n]) for n, w in pipe.transformer.state_dict().items())
    with pytest.raises(ModelError, match="linear_1 feeds keys and values alike"):
        edit_model(pipe, "a ceo", "a female ceo", with_to_k=False)


def test_tokens_are_those_that_the_pipeline_reads(family: str, pipe: Any) -> None:
    """In lower case and without outer spaces, as the pipelines prepare captions."""
    (reader,) = text_readers(pipe)
    shouted, quiet = (encode_edits(pipe, [PromptEdit(a, {b: 1.0})], augmentations=["{source}"])[0]
                      for a, b in ((" A CEO", "a Female CEO "), ("a ceo", "a female ceo")))  # fmt: skip
    assert torch.equal(shouted.source, quiet.source)
    assert torch.equal(shouted.destinations, quiet.destinations)
    spelled = [reader.decode([i]) for i in token_ids(reader, "An old CEO")]
    expected = {"sana": ["<bos>", " an", " old", " ceo"]}.get(family, ["an", "old", "ceo", "</s>"])
    assert spelled == expected
    # One word more than there is room for beside the marker.
    most = POSITIONS[family]
    assert encode_texts(pipe, ["old " * (most - 1)]).tokens.shape[1] == most
    with pytest.raises(EditError, match=f"has {most + 1} tokens, the text encoder {most} positions"):
        encode_texts(pipe, ["old " * most])


def test_other_words_align_to_tokens_that_count(pipe: Any) -> None:
    """A destination without the source's words, by their longest common subsequence."""
    edit = PromptEdit("a photo of a ceo", {"a male": 1.0})
    encoded = encode_checked(pipe, [edit], [], augmentations=["{source}"], alignment="lcs", batch_size=4)
    assert encoded.mask is not None
    found = encoded.positions("a photo of a ceo", "a male")
    source, target = (encoded.mask[encoded.places[p]] for p in ("a photo of a ceo", "a male"))
    assert int(source.sum()) > int(target.sum())
    assert bool(target[found[source]].all())
    # Were one of them masked, its pair would be padding.
    short = encoded.mask.clone()
    short[encoded.places["a male"], 1] = False
    with pytest.raises(EditError, match="would correspond to padding"):
        replace(encoded, mask=short).aligned("a photo of a ceo", "a male")


def test_padding_in_front_is_refused() -> None:
    pipe = make_pixart_pipe()
    pipe.tokenizer.padding_side = "left"
    with pytest.raises(ModelError, match="pad to the right"):
        encode_edits(pipe, EDITS)


def test_what_is_not_known_of_a_call_is_refused() -> None:
    class Bare(SanaPipeline):  # type: ignore[misc]
        def __call__(self, prompt: str) -> None: ...

    pipe = make_sana_pipe()
    pipe.__class__ = Bare
    with pytest.raises(ModelError, match="no max_sequence_length"):
        encode_texts(pipe, ["a ceo"])
    pixart = make_pixart_pipe()
    pixart._text_preprocessing = None
    with pytest.raises(ModelError, match="no _text_preprocessing"):
        encode_texts(pixart, ["a ceo"])
    with pytest.raises(ModelError, match="reads no pooled embedding"):
        EditOperator(torch.eye(64) * 2, pooled=EditOperator.identity(8)).fold_into(pixart.transformer)


def test_captions_are_cleaned_where_the_pipeline_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sana's call cleans none; PixArt's does where it can, and only there."""
    for there in (False, True):
        for name in ("is_bs4_available", "is_ftfy_available"):
            monkeypatch.setattr(f"diffusers.utils.{name}", lambda there=there: there)
        assert caption_call(make_pixart_pipe()).clean is there
        assert not caption_call(make_sana_pipe()).clean


@pytest.mark.parametrize(
    "change",
    [{"query_pre_attn_scalar": 8}, {"attn_logit_softcapping": 20.0}, {"rms_norm_eps": 1e-3}, {"sliding_window": 8}],
    ids=str,
)
def test_the_digest_tells_what_changes_gemmas_embeddings(change: dict[str, Any]) -> None:
    class Pipe:
        def __init__(self, **changes: Any) -> None:
            torch.manual_seed(0)
            self.tokenizer = make_gemma_tokenizer()
            self.text_encoder = make_gemma(self.tokenizer, 48, **changes)

    one, same, other = Pipe(), Pipe(), Pipe(**change)
    ids = one.tokenizer("a photo of an old ceo in a picture of a male engineer", return_tensors="pt").input_ids
    states = [pipe.text_encoder(ids)[0] for pipe in (one, same, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert encoder_digest(one) == encoder_digest(same)
    assert encoder_digest(one).exact != encoder_digest(other).exact
