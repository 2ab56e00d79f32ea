"""The familiar verbs, against the published loop written out plainly, and against diffusers' own pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import nn

import time_ops
from infra.demo import PIPELINE_PATH
from infra.demo.world import perceived_genders
from tests.time_ops.conftest import make_encoder, make_tokenizer
from time_ops import EditError, EditOperator, ModelError, edit_model, encode_edits, restore_model, solve

AUGS = ["A photo of ", "An image of ", "A picture of "]
FIRST, SECOND = ("a CEO", "a female CEO"), ("an engineer", "an old engineer")


def published(pipe: Any, pair: tuple[str, str], lamb: float, *, keys: bool = True, augs: list[str] = AUGS) -> None:
    """Edit by the published loop: layer by layer, augmentation by augmentation, from the current weights; float64."""
    contexts, targets = [], []
    for old, new in [pair, *((aug + pair[0], aug + pair[1]) for aug in augs)]:
        ids = [pipe.tokenizer(t, padding="max_length", return_tensors="pt").input_ids for t in (old, new)]
        c, t = (pipe.text_encoder(i)[0][0].detach().double() for i in ids)
        n, end = len(c), pipe.tokenizer.eos_token_id
        a, b = (i[0].tolist() for i in ids)
        index, j = [], 0
        for token in a[: a.index(end) + 1]:
            while b[j] != token:
                j += 1
            index.append(j)
            j += 1
        index += list(range(j, n))
        index += [n - 1] * (n - len(index))
        contexts.append(c)
        targets.append(t[index])
    for name, layer in pipe.unet.named_modules():
        if name.endswith("attn2.to_v") or (keys and name.endswith("attn2.to_k")):
            W = layer.weight.detach().double()
            left, right = lamb * W, lamb * torch.eye(W.shape[1], dtype=torch.float64)
            for c, t in zip(contexts, targets, strict=True):
                left += (t @ W.T).T @ c
                right += c.T @ c
            layer.weight = nn.Parameter((left @ torch.inverse(right)).to(layer.weight.dtype))


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> float:
    """Largest error of a weight, relative to its edit."""
    edited = [k for k in base if not torch.equal(base[k], wanted[k])]
    assert edited == [k for k in base if not torch.equal(base[k], found[k])]
    return max(float((found[k] - wanted[k]).norm() / (wanted[k] - base[k]).norm()) for k in edited)


def draw(pipe: Any) -> np.ndarray[Any, Any]:
    return pipe("a photo of a ceo", num_inference_steps=3, height=16, width=16, output_type="np",
                generator=torch.Generator().manual_seed(0)).images[0]  # fmt: skip


@pytest.mark.parametrize(("keys", "augs"), [(True, AUGS), (False, []), (True, ["at work "])])
def test_edits_equal_the_published_loop_also_where_they_accumulate(pipe: Any, keys: bool, augs: list[str]) -> None:
    pipe.unet.double()
    reference, base = copy.deepcopy(pipe), weights(pipe)
    published(reference, FIRST, 0.1, keys=keys, augs=augs)
    edit_model(pipe, *FIRST, with_to_k=keys, with_augs=augs)
    # The plain inverse loses digits of its own at lamb 0.1; ours are compared with a solve in test_solve.py.
    assert distance(weights(pipe), weights(reference), base) < 1e-7
    published(reference, SECOND, 5.0, keys=keys, augs=augs)
    both = edit_model(pipe, *SECOND, 5.0, False, with_to_k=keys, with_augs=augs)
    assert distance(weights(pipe), weights(reference), base) < 1e-7
    # What is returned stands for all that the weights carry.
    restore_model(pipe)
    assert equal(weights(pipe), base)
    both.fold_into(pipe.unet)
    assert distance(weights(pipe), weights(reference), base) < 1e-7


def test_the_pipeline_of_diffusers_changes_nothing_unless_its_search_is_mended(make_pipe: Callable[..., Any]) -> None:
    variants = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_variants")
    published_pipeline = variants.pipeline_stable_diffusion_model_editing.StableDiffusionModelEditingPipeline
    pipe = make_pipe(768)
    pipe.tokenizer = make_tokenizer(77)  # the width and length that are written into the published code
    pipe.text_encoder = make_encoder(pipe.tokenizer, 768, layers=1)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    parts |= {"requires_safety_checker": False, "with_augs": ["A photo of "]}
    base = weights(pipe)
    published_pipeline(**parts).edit_model(*FIRST, lamb=10.0)
    assert equal(weights(pipe), base)
    for module in pipe.unet.modules():
        if type(module) is Attention:
            module.__class__ = type("CrossAttention", (Attention,), {})  # the name that it looks for
    published_pipeline(**parts).edit_model(*FIRST, lamb=10.0)
    wanted = weights(pipe)
    pipe.unet.load_state_dict(base)
    edit_model(pipe, *FIRST, lamb=10.0, with_augs=["A photo of "])
    assert distance(weights(pipe), wanted, base) < 1e-3  # its float32 inverse: 1e-4 was measured


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_original_weights_come_back_bit_for_bit(pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    pipe.scheduler = PNDMScheduler(steps_offset=1, skip_prk_steps=True)
    base, picture = weights(pipe), draw(pipe)
    assert not restore_model(pipe)
    edit_model(pipe, *FIRST)
    edit_model(pipe, *SECOND)
    restarted = weights(pipe)
    edit_model(pipe, *FIRST, restart_params=False)
    assert not equal(weights(pipe), restarted)
    # Another pipeline with the same UNet finds the same way back.
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    edit_model(other, *SECOND)
    assert equal(weights(pipe), restarted)
    assert np.abs(draw(pipe) - picture).max() > 1e-2
    copied = copy.deepcopy(pipe)
    for edited in (pipe, copied):
        assert restore_model(edited)
        assert equal(weights(edited), base)
        assert np.array_equal(draw(edited), picture)
        assert not restore_model(edited)


def test_a_model_cast_after_its_edit_gets_its_originals_in_that_dtype(pipe: Any) -> None:
    wanted = weights(copy.deepcopy(pipe).to(torch.bfloat16))
    edit_model(pipe, *FIRST)
    pipe.to(torch.bfloat16)
    restore_model(pipe)
    assert equal(weights(pipe), wanted)


def test_several_edits_are_one_solve(pipe: Any) -> None:
    edits = [time_ops.PromptEdit(s, {d: 1.0}) for s, d in (FIRST, SECOND)]
    wanted = solve(encode_edits(pipe, edits), lam=[0.1, 3.0])
    found = edit_model(pipe, [FIRST[0], SECOND[0]], [FIRST[1], SECOND[1]], [0.1, 3.0])
    assert found.digest == wanted.digest
    assert found.checksum == wanted.checksum
    with pytest.raises(EditError, match="2 source prompts and 1 destination"):
        edit_model(pipe, [FIRST[0], SECOND[0]], FIRST[1])


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (("a CEO", "a female nurse"), {}, "lacks 'ceo'"),
        (SECOND, {"lamb": 0.0}, "positive"),
        (SECOND, {"with_to_k": False, "restart_params": False}, "values-only"),
    ],
)
def test_an_edit_that_is_refused_changes_nothing(
    pipe: Any, arguments: tuple[str, str], options: dict[str, Any], reason: str
) -> None:
    base = weights(pipe)
    edit_model(pipe, *FIRST)
    before = weights(pipe)
    with pytest.raises(EditError, match=reason):
        edit_model(pipe, *arguments, **options)
    assert equal(weights(pipe), before)
    assert restore_model(pipe)
    assert equal(weights(pipe), base)


def test_changes_by_others_are_not_undone_unsaid(pipe: Any) -> None:
    edit_model(pipe, *FIRST)
    EditOperator(2 * torch.eye(32, dtype=torch.float64)).fold_into(pipe.unet)
    before = weights(pipe)
    for change in (restore_model, lambda p: edit_model(p, *SECOND), lambda p: edit_model(p, *SECOND, 0.1, False)):
        with pytest.raises(ModelError, match=r"8 edited projections were changed .* Load the pipeline again"):
            change(pipe)
    assert equal(weights(pipe), before)


class LoraLinear(nn.Module):
    """Stands for an adapter's layer: the linear layer that it wraps, and a low-rank path beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2)


def test_a_lora_that_is_not_merged_is_refused(pipe: Any) -> None:
    base = weights(pipe)
    attention = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    plain = attention.to_k
    attention.to_k = LoraLinear(plain)
    with pytest.raises(ModelError, match=r"to_k is wrapped by an adapter .*fuse and unload it, or unload it"):
        edit_model(pipe, *FIRST)
    attention.to_k = plain
    assert equal(weights(pipe), base)
    edit_model(pipe, *FIRST)
    attention.to_k = LoraLinear(plain)
    with pytest.raises(ModelError, match="wrapped by an adapter"):
        restore_model(pipe)
    attention.to_k = plain
    assert restore_model(pipe)
    assert equal(weights(pipe), base)


def test_model_offload_is_edited(pipe: Any) -> None:
    base, picture = weights(pipe), draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    edit_model(pipe, *FIRST)
    offloaded = draw(pipe)
    pipe.remove_all_hooks()
    assert np.array_equal(draw(pipe), offloaded)
    assert not np.array_equal(offloaded, picture)
    restore_model(pipe)
    assert equal(weights(pipe), base)


def test_sequential_offload_is_refused_and_the_advice_holds(pipe: Any) -> None:
    base = weights(pipe)
    wanted = copy.deepcopy(pipe)
    edit_model(wanted, *FIRST)
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ModelError, match=r"UNet2DConditionModel has .* meta device .*pipe.remove_all_hooks\(\), edit"):
        edit_model(pipe, *FIRST)
    pipe.remove_all_hooks()
    edit_model(pipe, *FIRST)
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ModelError, match="meta device"):
        restore_model(pipe)
    pipe.remove_all_hooks()
    assert equal(weights(pipe), weights(wanted))
    restore_model(pipe)
    assert equal(weights(pipe), base)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_group_offload_is_refused(pipe: Any, part: str, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    operator = edit_model(pipe, *FIRST)
    if part == "unet":
        pipe.unet.enable_group_offload(cpu, cpu, "leaf_level", offload_to_disk_path=str(tmp_path))
        with pytest.raises(ModelError, match="in groups"):
            operator.fold_into(pipe.unet)
    else:
        pytest.importorskip("diffusers.hooks").apply_group_offloading(
            pipe.text_encoder, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
        )
    with pytest.raises(ModelError, match=r"(UNet2DConditionModel|CLIPTextModel) is offloaded in groups.*edit first"):
        edit_model(pipe, *SECOND)


def test_the_published_edit_turns_every_ceo_female() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE_PATH)

    def female(prompt: str) -> int:
        seeded = torch.Generator().manual_seed(0)
        images = pipe([prompt] * 8, num_inference_steps=10, guidance_scale=3.0, generator=seeded).images
        return perceived_genders(np.stack([np.asarray(image) for image in images])).count("female")

    assert female("A photo of a CEO") == 0
    edit_model(pipe, "a CEO", "a female CEO")
    assert [female(f"A photo of a {who}") for who in ("CEO", "male CEO")] == [8, 8]
    restore_model(pipe)
    assert female("A photo of a CEO") == 0
