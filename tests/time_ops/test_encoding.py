from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from time_ops import (
    DEFAULT_AUGMENTATIONS,
    EditError,
    EditOperator,
    ModelError,
    PromptEdit,
    check_prompts,
    encode_edits,
    encode_preserved,
    encode_prompts,
    encoder_digest,
    solve,
)
from time_ops.alignment import align_prompts
from time_ops.prompts import augment


def by_pipeline(pipe: Any, prompt: str) -> torch.Tensor:
    made = pipe.encode_prompt(prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return made[0][0]


def state(module: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_embeddings_are_the_pipelines_own(family: str, make_pipe: Callable[..., Any], xl_pipe: Any) -> None:
    pipe = {"sd1": make_pipe, "sd2": lambda: make_pipe(48, pad="!"), "sdxl": lambda: xl_pipe}[family]()
    prompts = ["a ceo", "", "a female ceo", "a ceo"]
    found = encode_prompts(pipe, prompts, batch_size=2)
    assert found.shape[:2] == (4, 24)
    assert found.shape[2] == pipe.unet.config.cross_attention_dim
    for prompt, tokens in zip(prompts, found, strict=True):
        torch.testing.assert_close(tokens, by_pipeline(pipe, prompt), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0], found[3])


def test_pad_token_and_layer_matter(make_pipe: Callable[..., Any], xl_pipe: Any) -> None:
    # Against the encoders themselves, so that a fault of the pipeline's call can't hide.
    sd1, sd2 = make_pipe(), make_pipe(pad="!")
    assert not torch.allclose(encode_prompts(sd1, ["a cat"])[0, 5:], encode_prompts(sd2, ["a cat"])[0, 5:])
    ids = xl_pipe.tokenizer(["a cat"], padding="max_length", max_length=24, return_tensors="pt").input_ids
    ids_2 = xl_pipe.tokenizer_2(["a cat"], padding="max_length", max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        first = xl_pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        second = xl_pipe.text_encoder_2(ids_2, output_hidden_states=True).hidden_states[-2]
    found = encode_prompts(xl_pipe, ["a cat"])
    torch.testing.assert_close(found, torch.cat([first, second], dim=-1), rtol=1e-5, atol=1e-5)


def test_each_distinct_prompt_is_encoded_once(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda prompt, **kw: (seen.extend(prompt), original(prompt, **kw))[1])
    encode_edits(pipe, [PromptEdit("a ceo", {"a female ceo": 1.0}), PromptEdit("a ceo", {"a male ceo": 1.0})])
    assert len(seen) == len(set(seen)) == 3 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_encoded_in_float32_and_restored_bit_for_bit(pipe: Any, dtype: torch.dtype) -> None:
    wanted = encode_prompts(pipe, ["a ceo"])
    pipe.text_encoder.to(dtype)
    pipe.text_encoder.train()
    pipe.text_encoder.final_layer_norm.eval()
    modes = [m.training for m in pipe.text_encoder.modules()]
    before, pointers = state(pipe.text_encoder), [p.data_ptr() for p in pipe.text_encoder.parameters()]
    found = encode_prompts(pipe, ["a ceo"])
    assert found.dtype == torch.float32
    # Exactly a float32 model with these (rounded) weights.
    assert all(torch.equal(before[k], v) and before[k].dtype == v.dtype for k, v in state(pipe.text_encoder).items())
    assert [p.data_ptr() for p in pipe.text_encoder.parameters()] == pointers
    assert [m.training for m in pipe.text_encoder.modules()] == modes
    pipe.text_encoder.float().eval()
    assert torch.equal(found, encode_prompts(pipe, ["a ceo"]))
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.1)


def test_restored_when_encoding_fails(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.text_encoder.half()

    def fail(**_: Any) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(pipe, "encode_prompt", fail)
    with pytest.raises(KeyError, match="planted"):
        encode_prompts(pipe, ["a ceo"])
    assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.float16}


def test_pairs_hold_aligned_rows_of_every_augmentation(pipe: Any) -> None:
    edit = PromptEdit("A ceo", {"A female ceo": 0.25, "a male ceo": 0.75})
    pair = encode_edits(pipe, [edit])[0]
    assert pair.source.shape == (4 * 24, 32)
    assert pair.destinations.shape == (2, 4 * 24, 32)
    assert pair.edit == edit
    assert pair.augmentations == DEFAULT_AUGMENTATIONS
    templates = ["{}", "A photo of {}", "An image of {}", "A picture of {}"]
    for i, template in enumerate(templates):
        rows = slice(24 * i, 24 * (i + 1))
        source = template.format("a ceo")
        torch.testing.assert_close(pair.source[rows], by_pipeline(pipe, source), rtol=1e-5, atol=1e-5)
        for k, name in enumerate(["a female ceo", "a male ceo"]):
            destination = template.format(name)
            index = align_prompts(pipe.tokenizer, source, destination)
            wanted = by_pipeline(pipe, destination)[torch.from_numpy(index)]
            torch.testing.assert_close(pair.destinations[k, rows], wanted, rtol=1e-5, atol=1e-5)
    blend = 0.25 * pair.destinations[0].double() + 0.75 * pair.destinations[1].double()
    torch.testing.assert_close(pair.destination, blend, rtol=0, atol=1e-12)
    assert pair.shares.tolist() == [0.25, 0.75]
    assert pair.with_shares({"a male ceo": 0.5, "A female ceo": 0.5}).shares.tolist() == [0.5, 0.5]


def test_what_stands_before_the_difference_is_not_moved(pipe: Any) -> None:
    pair = encode_edits(pipe, [PromptEdit("a ceo", {"a female ceo": 1.0})])[0]
    shift = (pair.destinations[0] - pair.source).abs().amax(dim=1)
    assert float(shift[:2].max()) < 1e-5 < float(shift[2])


def test_custom_augmentations_and_articles(pipe: Any) -> None:
    assert augment("A photo of {source}", "An engineer") == "A photo of an engineer"
    assert augment("{source} at work", "An engineer") == "An engineer at work"
    assert augment("{source}", "{odd}") == "{odd}"
    edits = [PromptEdit("an engineer", {"a female engineer": 1.0})]
    pair = encode_edits(pipe, edits, augmentations=["{source} at work"])[0]
    assert pair.source.shape == (24, 32)
    torch.testing.assert_close(pair.source, by_pipeline(pipe, "an engineer at work"), rtol=1e-5, atol=1e-5)
    for bad in ([], ["no place"], ["{source} {source}"], ["{source}", "{source}"]):
        with pytest.raises(EditError, match="augmentation"):
            encode_edits(pipe, edits, augmentations=bad)


def test_preserved_prompts_keep_their_embeddings(pipe: Any) -> None:
    kept = encode_preserved(pipe, ["a female ceo", "", "a female ceo"])
    assert [k.edit.source for k in kept] == ["a female ceo", ""]
    assert all(k.is_preserved and k.source.shape == (24, 32) for k in kept)
    torch.testing.assert_close(kept[1].source, by_pipeline(pipe, ""), rtol=1e-5, atol=1e-5)


def test_every_bad_edit_is_named(pipe: Any) -> None:
    long = "a " + "cat " * 30
    edits = [
        PromptEdit("a ceo", {"a female ceo": 1.0}),
        PromptEdit("a zebra", {"a female ceo": 1.0}),
        PromptEdit("a cat", {long: 1.0}),
    ]
    with pytest.raises(EditError) as caught:
        encode_edits(pipe, edits)
    message = str(caught.value)
    assert "lacks 'zebra'" in message
    assert repr(long) in message
    assert "'a ceo'" not in message.replace("'a female ceo'", "")
    pair = encode_edits(pipe, edits[:2], alignment="lcs")[1]
    assert pair.alignment == "lcs"
    with pytest.raises(EditError, match=r"32 tokens, the text encoder 24"):
        encode_prompts(pipe, ["a ceo", "cat " * 30])
    with pytest.raises(EditError, match="no prompts"):
        encode_prompts(pipe, [])


def test_faults_by_row_from_the_tokenizer_alone(tokenizer: Any) -> None:
    nearly = "cat " * 20
    edits = [
        PromptEdit("a ceo", {"a female ceo": 0.5, "a nurse": 0.5}),
        PromptEdit(nearly, {nearly: 1.0}),
    ]
    faults = check_prompts(tokenizer, edits, prompts=["a cat", "cat " * 23])
    assert [(f.kind, f.edit, f.destination) for f in faults] == [
        ("alignment", 0, "a nurse"),
        ("length", 1, None),
        ("length", 1, nearly),
        ("length", None, None),
    ]
    # Bare it fits in 24 positions, behind a prefix no more.
    assert faults[1].prompt.startswith("A photo of")
    assert check_prompts(tokenizer, edits[1:], augmentations=["{source}"]) == []
    assert pickle.loads(pickle.dumps(faults)) == faults  # noqa: S301


@pytest.mark.parametrize(
    "destinations",
    [{}, {"b": 0.5}, {"b": -0.1, "c": 1.1}, {"b": math.nan}, {"b": math.inf}, {"b": "x"}, {"b": 2.0}, {3: 1.0}, ["b"]],
)
def test_bad_destinations_are_refused(destinations: Any) -> None:
    with pytest.raises(EditError, match="'a'"):
        PromptEdit("a", destinations)


def test_prompt_edits_are_values() -> None:
    edit = PromptEdit("a", {"b": 1.0})
    assert edit == PromptEdit("a", {"b": 1})
    assert len({edit, PromptEdit("a", {"b": 1.0})}) == 1
    assert pickle.loads(pickle.dumps(edit)) == edit  # noqa: S301
    with pytest.raises(AttributeError):
        edit.source = "c"  # type: ignore[misc]


class TestEncoderDigest:
    def test_another_encoder_is_refused_with_both_digests(self, pipe: Any, tmp_path: Path) -> None:
        solved = solve(encode_edits(pipe, [PromptEdit("a ceo", {"a female ceo": 1.0})]), 1.0)
        operator = EditOperator.load(solved.save(tmp_path / "operator.safetensors"))
        operator.check_encoder(pipe)
        was = encoder_digest(pipe)
        with torch.no_grad():
            pipe.text_encoder.final_layer_norm.bias[0] += 0.01
        with pytest.raises(ModelError) as caught:
            operator.check_encoder(pipe)
        assert was.exact in str(caught.value)
        assert encoder_digest(pipe).exact in str(caught.value)
        EditOperator.identity(32).check_encoder(pipe)

    def test_a_change_behind_autograds_back_is_seen(self, pipe: Any) -> None:
        before = encoder_digest(pipe)
        pipe.text_encoder.final_layer_norm.weight.data[3] *= 1.01
        assert encoder_digest(pipe).exact != before.exact

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_the_same_in_half_precision_matches(self, pipe: Any, dtype: torch.dtype) -> None:
        full = encoder_digest(pipe)
        pipe.text_encoder.to(dtype)
        half = encoder_digest(pipe)
        assert full.exact != half.exact
        assert full.matches(half)
        assert half.matches(full)
        pipe.text_encoder.float()
        assert encoder_digest(pipe).exact == half.exact

    def test_depends_on_tokenizer_and_configuration(self, make_pipe: Callable[..., Any]) -> None:
        digests = [encoder_digest(make_pipe()), encoder_digest(make_pipe(pad="!"))]
        pipe = make_pipe()
        pipe.text_encoder.config.num_attention_heads = 4
        digests.append(encoder_digest(pipe))
        assert len({d.exact for d in digests}) == 3
        assert not digests[0].matches(digests[1])
        assert encoder_digest(make_pipe()) == digests[0]

    def test_is_the_same_after_use(self, pipe: Any) -> None:
        before = encoder_digest(pipe)
        encode_prompts(pipe, ["a ceo"])
        pipe.tokenizer(["a cat"], padding="max_length", truncation=True, max_length=7)
        assert encoder_digest(pipe) == before
        fresh = type(pipe)(**pipe.components, requires_safety_checker=False)
        assert encoder_digest(fresh) == before


def test_encoders_that_can_not_be_used_are_refused(pipe: Any) -> None:
    pipe.tokenizer.model_max_length = 30
    with pytest.raises(ModelError, match="pads to 30 tokens, but the text encoder has 24"):
        encode_prompts(pipe, ["a cat"])
    pipe.tokenizer.model_max_length = 24
    with torch.no_grad():
        pipe.text_encoder.final_layer_norm.bias[0] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        encode_prompts(pipe, ["a cat"])
    pipe.text_encoder.to("meta")
    with pytest.raises(ModelError, match="meta device"):
        encode_prompts(pipe, ["a cat"])
    pipe.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer"):
        encoder_digest(pipe)
