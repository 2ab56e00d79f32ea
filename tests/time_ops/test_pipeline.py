"""The identity that audits rest on, through the real pipeline call: folded weights, or transformed embeddings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from time_ops import EditOperator, PromptEdit, encode_edits, encode_preserved, solve

PROMPT = "a photo of a ceo"


def draw(pipe: Any, **embeds: Any) -> np.ndarray[Any, Any]:
    return pipe(
        **(embeds or {"prompt": PROMPT}), num_inference_steps=3, guidance_scale=7.5, height=16, width=16,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images[0]  # fmt: skip


def edit(pipe: Any, *, values_only: bool = False) -> EditOperator:
    edits = [
        PromptEdit("a CEO", {"a female CEO": 0.5, "a male CEO": 0.5}),
        PromptEdit("an engineer", {"an old engineer": 1.0}),
    ]
    kept = encode_preserved(pipe, ["a female CEO", ""])
    return solve(encode_edits(pipe, edits), lam=[0.5, 2.0], preserve=kept, values_only=values_only)


def furthest(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.abs(a - b).max())


def embeds_of(pipe: Any) -> dict[str, torch.Tensor]:
    made = pipe.encode_prompt(prompt=PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    return dict(zip(names, made, strict=False))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_folding_equals_transforming(family: str, make_pipe: Callable[..., Any], xl_pipe: Any) -> None:
    pipe = {
        "sd1": make_pipe,
        "sd2": lambda: make_pipe(48, pad="!", use_linear_projection=True, upcast_attention=True),
        "sdxl": lambda: xl_pipe,
    }[family]()
    operator = edit(pipe)
    base, embeds = draw(pipe), embeds_of(pipe)
    transformed = {
        k: (operator.transform_pooled if "pooled" in k else operator.transform)(v) for k, v in embeds.items()
    }
    from_embeds = draw(pipe, **transformed)
    only_conditional = draw(pipe, **{**transformed, "negative_prompt_embeds": embeds["negative_prompt_embeds"]})
    with operator.attached(pipe.unet):
        hooked = draw(pipe)
    assert np.array_equal(draw(pipe), base)
    operator.fold_into(pipe.unet)
    folded = draw(pipe)
    assert furthest(folded, from_embeds) < 1e-4
    assert furthest(folded, hooked) < 1e-4
    # Negative controls: the edit does something, and the unconditional embedding must be transformed as well.
    assert furthest(folded, base) > 1e-2
    if family != "sdxl":  # whose unconditional embeddings are zeros, which every operator keeps
        assert furthest(folded, only_conditional) > 1e-2


def test_values_only_is_audited_by_hooks(pipe: Any) -> None:
    operator = edit(pipe, values_only=True)
    base = draw(pipe)
    with operator.attached(pipe.unet):
        hooked = draw(pipe)
    operator.fold_into(pipe.unet)
    assert furthest(draw(pipe), hooked) < 1e-4
    assert furthest(hooked, base) > 1e-2


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed(pipe: Any, fails: bool) -> None:
    operator = edit(pipe)
    with pytest.raises(KeyError) if fails else nullcontext(), operator.attached(pipe.unet):
        if fails:
            raise KeyError
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_half_precision_is_close(pipe: Any) -> None:
    operator = edit(pipe)
    embeds = {k: operator.transform(v.half()) for k, v in embeds_of(pipe).items() if v is not None}
    pipe.unet.to(torch.float16)
    pipe.vae.to(torch.float16)
    pipe.text_encoder.to(torch.float16)
    from_embeds, base = draw(pipe, **embeds), draw(pipe)
    operator.fold_into(pipe.unet)
    folded = draw(pipe)
    assert np.abs(folded - from_embeds).mean() < 0.5 * np.abs(folded - base).mean()
