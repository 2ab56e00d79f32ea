from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from jobs.models.names import ema_twin, lora_layers, original_names
from tests.time_ops.test_surfaces import SD1, SD2, SDXL
from time_ops import ModelError
from time_ops.surfaces import text_entries


def names_of(config: dict[str, Any]) -> list[str]:
    with torch.device("meta"):
        return [f"{p.name}.weight" for p in text_entries(UNet2DConditionModel(**config))]


@pytest.mark.parametrize(
    ("config", "count", "places"),
    [
        (SD1, 32, {"input_blocks": {1, 2, 4, 5, 7, 8}, "middle_block": {1}, "output_blocks": set(range(3, 12))}),
        (SD2, 32, {"input_blocks": {1, 2, 4, 5, 7, 8}, "middle_block": {1}, "output_blocks": set(range(3, 12))}),
        (
            SDXL,
            141,
            {"input_blocks": {4, 5, 7, 8}, "middle_block": {1}, "output_blocks": set(range(6)), "label_emb": {0}},
        ),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_the_real_layouts(config: dict[str, Any], count: int, places: dict[str, set[int]]) -> None:
    """The blocks of the published configurations' `attention_resolutions`."""
    names = names_of(config)
    found = original_names(config, names)
    assert list(found) == names
    assert len(set(found.values())) == count
    at: dict[str, set[int]] = {}
    for name in found.values():
        block, place = name.removeprefix("model.diffusion_model.").split(".")[:2]
        at.setdefault(block, set()).add(int(place))
    assert at == places


def test_kohyas_names() -> None:
    sd, xl = (lora_layers(config, names_of(config)) for config in (SD1, SDXL))
    assert sd["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    )
    assert xl["down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v.weight"] == (
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v"
    )
    assert xl["up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight"] == (
        "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_k"
    )
    assert xl["add_embedding.linear_1.weight"] == "lora_unet_label_emb_0_0"
    assert len(set(xl.values())) == 141


def test_a_running_averages_name() -> None:
    """As the published SD 1.4 checkpoint has it."""
    assert ema_twin("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight") == (
        "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn2to_kweight"
    )


def test_a_layout_that_the_original_code_has_not_is_refused() -> None:
    with pytest.raises(ModelError, match="layers_per_block differs"):
        original_names({**SD1, "layers_per_block": (1, 2, 2, 2)}, names_of(SD1))
    with pytest.raises(ModelError, match="no original names are known for"):
        original_names(SD1, ["down_blocks.0.attentions.7.transformer_blocks.0.attn2.to_k.weight"])
