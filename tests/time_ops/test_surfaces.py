from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from time_ops import EditOperator, ModelError
from time_ops.surfaces import check_pipeline, expected_layers, pooled_width, text_entries, text_projections

FULL_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
FULL_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SD1 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": FULL_DOWN,
    "up_block_types": FULL_UP,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD2 = {
    **SD1,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("config", "d", "count", "parameters"),
    [(SD1, 768, 32, 19_169_280), (SD2, 1024, 32, None), (SDXL, 2048, 140, None)],
    ids=["sd1", "sd2", "sdxl"],
)
def test_real_layouts(config: dict[str, Any], d: int, count: int, parameters: int | None) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    found = text_projections(unet, d=d)
    assert len(found) == count == 2 * expected_layers(unet.config)
    assert [p.role for p in found[:2]] == ["key", "value"]
    assert {p.layer.in_features for p in found} == {d}
    assert len(text_projections(unet, values_only=True)) == count // 2
    if parameters is not None:
        assert sum(p.layer.weight.numel() for p in found) == parameters
        with pytest.raises(ModelError, match="meta device"):
            EditOperator.identity(d).fold_into(unet)


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({}, 1280),
        (
            {
                "block_out_channels": (384, 768, 1536, 1536),
                "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
                "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
                "transformer_layers_per_block": 4,
                "attention_head_dim": (6, 12, 24, 24),
                "cross_attention_dim": 1280,
                "projection_class_embeddings_input_dim": 2560,
            },
            1280,
        ),
    ],
    ids=["base", "refiner"],
)
def test_the_pooled_entry_of_real_layouts(changes: dict[str, Any], width: int) -> None:
    """Six sizes beside the pooled embedding in SDXL's base model, five in its refiner."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**SDXL, **changes})
    *_, last = text_entries(unet)
    assert (last.name, last.role, last.width) == ("add_embedding.linear_1", "pooled", width)
    assert pooled_width(unet) == width
    assert text_entries(unet, pooled=width)[-1] == last
    with pytest.raises(ModelError, match="the edit has 768"):
        text_entries(unet, pooled=768)


@pytest.mark.parametrize(
    "config",
    [
        {"layers_per_block": (2, 1)},
        {"transformer_layers_per_block": (2, 1)},
        {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "mid_block_type": "UNetMidBlock2D"},
        {"transformer_layers_per_block": (2, 3), "reverse_transformer_layers_per_block": (3, 1)},
        {"transformer_layers_per_block": [[2], 1], "reverse_transformer_layers_per_block": [1, [1, 2]]},
        {"mid_block_type": None},
    ],
)
def test_the_promised_count_follows_the_configuration(make_unet: Callable[..., Any], config: dict[str, Any]) -> None:
    with torch.device("meta"):
        unet = make_unet(16, **config)
    assert len(text_projections(unet)) == 2 * expected_layers(unet.config)


def replaced(change: Callable[[Any], None]) -> Callable[[Any], Any]:
    def apply(unet: Any) -> Any:
        change(unet.down_blocks[0].attentions[0].transformer_blocks[0])
        return unet

    return apply


class LoraLinear(nn.Linear):
    lora_A = None  # noqa: N815


class Linear4bit(nn.Linear):
    quant_state = None


def add_kv(block: Any) -> None:
    block.attn2.add_k_proj = nn.Linear(16, 16)


def ip_adapter(block: Any) -> None:
    block.attn2.processor.to_k_ip = nn.ModuleList()


def lora(block: Any) -> None:
    block.attn2.to_k = LoraLinear(16, 16, bias=False)


def quantised(block: Any) -> None:
    block.attn2.to_v = Linear4bit(16, 16, bias=False)


def eight_bit(block: Any) -> None:
    block.attn2.to_v.weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)


def no_layer(block: Any) -> None:
    block.attn2 = None


def parametrised(block: Any) -> None:
    nn.utils.parametrizations.weight_norm(block.attn2.to_k)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replaced(add_kv), "added key and value projections"),
        (replaced(ip_adapter), "IP-Adapter"),
        (replaced(lora), r"attn2.to_k is wrapped by an adapter \(LoraLinear\)"),
        (replaced(quantised), "attn2.to_v is quantised"),
        (replaced(eight_bit), "attn2.to_v is quantised .*int8"),
        (replaced(parametrised), "not a plain linear layer"),
        (replaced(no_layer), "configuration promises 4"),
    ],
)
def test_refusals_of_changed_layers(make_unet: Callable[..., Any], change: Callable[[Any], Any], reason: str) -> None:
    unet = change(make_unet(16))
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    operator = EditOperator(2 * torch.eye(16, dtype=torch.float64))
    with pytest.raises(ModelError, match=reason) as caught:
        operator.fold_into(unet)
    assert "UNet2DConditionModel can't be edited" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    assert all(torch.equal(before[name], weight) for name, weight in unet.state_dict().items())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"}, "projected context"),
        ({"only_cross_attention": (True, False)}, "attn1 layers read the text"),
        ({"mid_block_only_cross_attention": True}, "attn1 layers read the text"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"addition_embed_type": "text", "encoder_hid_dim": 64, "encoder_hid_dim_type": "text_proj"}, "'text' reads"),
    ],
)
def test_refusals_by_configuration(make_unet: Callable[..., Any], config: dict[str, Any], reason: str) -> None:
    with torch.device("meta"):
        unet = make_unet(16, **config)
    with pytest.raises(ModelError, match=reason):
        text_projections(unet)


def test_added_kv_blocks_and_their_norm_are_refused(make_unet: Callable[..., Any]) -> None:
    unet = make_unet(
        16,
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_norm="layer_norm",
        resnet_time_scale_shift="scale_shift",
    )
    with pytest.raises(ModelError, match="no cross-attention"):
        text_projections(unet)


def test_a_norm_of_the_text_is_refused(make_unet: Callable[..., Any]) -> None:
    unet = make_unet(16)
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.norm_cross = nn.LayerNorm(16)
    with pytest.raises(ModelError, match="cross_attention_norm"):
        text_projections(unet)


def test_fused_projections_are_refused(make_unet: Callable[..., Any]) -> None:
    unet = make_unet(16)
    unet.fuse_qkv_projections()
    with pytest.raises(ModelError, match="fused QKV"):
        text_projections(unet)


def test_another_width_is_refused(make_unet: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="width 16, the edit has 768"):
        EditOperator.identity(768).fold_into(make_unet(16))


def test_every_reason_is_given_and_repetition_is_counted(make_unet: Callable[..., Any]) -> None:
    unet = make_unet(16, layers_per_block=2, transformer_layers_per_block=2, encoder_hid_dim=8)
    with pytest.raises(ModelError, match=r"(?s)encoder_hid_proj.*width 16.*and \d+ more"):
        text_projections(unet, d=99)


def test_other_models_are_refused_with_the_reason(make_pipe: Callable[..., Any]) -> None:
    with torch.device("meta"):
        sd3 = SD3Transformer2DModel(
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
        )
        flux = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16, axes_dims_rope=(4, 6, 6)
        )
        video = LTXVideoTransformer3DModel(
            num_layers=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, caption_channels=12
        )
        aura = AuraFlowTransformer2DModel(
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=16,
            caption_projection_dim=16,
        )
        dit = DiTTransformer2DModel(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8)
        unconditional = UNet2DModel(
            block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
        )
    for model in (sd3, flux):
        assert [e.kind for e in text_entries(model)] == ["tokens", "pooled"]
        assert [e.role for e in text_projections(model)] == ["context"]
    # It has a projection of PixArt's kind, yet nobody has looked at what else in it reads the text.
    assert type(video.caption_projection.linear_1) is nn.Linear
    with pytest.raises(ModelError, match=r"only PixArt's and Sana's are known"):
        text_projections(video)
    for model in (dit, unconditional):
        with pytest.raises(ModelError, match="can't be edited"):
            text_projections(model)
    pipe = make_pipe()
    with pytest.raises(ModelError, match="pass its unet"):
        text_projections(pipe)

    class Joint:
        transformer = aura

    with pytest.raises(ModelError, match="only SD3's and FLUX's are known"):
        check_pipeline(Joint())
    pipe.text_encoder = None
    with pytest.raises(ModelError, match="text encoder is not loaded"):
        check_pipeline(pipe)


def small_pixart(**changes: Any) -> Any:
    config: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8}
    return PixArtTransformer2DModel(**{**config, "cross_attention_dim": 16, "caption_channels": 12, **changes})


def small_sana(**changes: Any) -> Any:
    config: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8}
    crossing = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    return SanaTransformer2DModel(**{**config, **crossing, "caption_channels": 12, **changes})


@pytest.mark.parametrize(
    ("make", "d"),
    [
        (lambda: PixArtTransformer2DModel(caption_channels=4096, num_layers=2), 4096),
        (lambda: PixArtTransformer2DModel(caption_channels=4096, num_layers=1, use_additional_conditions=False), 4096),
        (lambda: SanaTransformer2DModel(num_layers=2), 2304),
        (lambda: SanaTransformer2DModel(num_layers=1, guidance_embeds=True), 2304),
    ],
    ids=["pixart with sizes", "pixart", "sana", "sana told its guidance"],
)
def test_the_one_entry_of_captions(make: Callable[[], Any], d: int) -> None:
    with torch.device("meta"):
        model = make()
    (entry,) = text_entries(model, d=d)
    assert (entry.name, entry.role, entry.kind) == ("caption_projection.linear_1", "context", "tokens")
    assert entry.width == entry.layer.in_features == d
    assert entry.layer is model.caption_projection.linear_1
    assert pooled_width(model) is None
    with pytest.raises(ModelError, match="linear_1 feeds keys and values alike"):
        text_entries(model, values_only=True)
    with pytest.raises(ModelError, match=f"linear_1 reads embeddings of width {d}, the edit has 768"):
        text_entries(model, d=768)
    with pytest.raises(ModelError, match="reads no pooled embedding"):
        text_entries(model, pooled=768)


class NormedProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear_1 = nn.LayerNorm(12), nn.Linear(12, 16)


def wrapped_caption(layer: nn.Module) -> Callable[[Any], None]:
    return lambda model: setattr(model.caption_projection, "linear_1", layer)


@pytest.mark.parametrize("make", [small_pixart, small_sana])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (wrapped_caption(LoraLinear(12, 16)), r"linear_1 is wrapped by an adapter \(LoraLinear\)"),
        (wrapped_caption(Linear4bit(12, 16)), "linear_1 is quantised"),
        (wrapped_caption(nn.Linear(13, 16)), "of width 13, the edit has 12"),
        (lambda model: setattr(model, "caption_projection", None), "caption_projection.linear_1 is missing"),
        (lambda model: setattr(model, "caption_projection", NormedProjection()), "is a NormedProjection, which may"),
        (lambda model: setattr(model, "encoder_hid_proj", nn.Linear(2, 2)), "IP-Adapter is loaded"),
    ],
    ids=["lora", "quantised", "another width", "missing", "a norm before", "an image beside"],
)
def test_refusals_of_a_changed_caption_projection(
    make: Callable[[], Any], change: Callable[[Any], None], reason: str
) -> None:
    model = make()
    assert len(text_entries(model)) == 1
    change(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ModelError, match=reason):
        EditOperator(2 * torch.eye(12, dtype=torch.float64)).fold_into(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_a_projection_that_its_configuration_does_not_promise_is_refused() -> None:
    with pytest.raises(ModelError, match="linear_1 is missing"):
        text_entries(small_pixart(caption_channels=None))
    other = small_sana()
    wrapped_caption(nn.Linear(13, 16))(other)
    with pytest.raises(ModelError, match="of width 13, its configuration promises 12"):
        text_entries(other)
