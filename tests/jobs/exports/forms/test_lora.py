from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jobs.exports.forms.lora import low_rank_operator, write_lora
from tests.jobs.exports.conftest import HEADER, Model, edited, image_of
from tests.time_ops.conftest import make_unet
from time_ops import EditError, EditOperator, ModelError
from time_ops.records import SolveInputs
from time_ops.surfaces import text_entries


def base_weights(model: Model) -> dict[str, torch.Tensor]:
    return load_file(model.folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_diffusers_loads_and_fuses_it(model: Model, tmp_path: Path, strength: float) -> None:
    operator = model.operator()
    written = write_lora(model.folder / "unet", operator, tmp_path / "lora.safetensors", HEADER, error=0)
    assert (written.rank, written.tensors) == (4, model.edited)
    assert written.pooled_rank == (None if model.pooled is None else 4)
    pipe, base = model.pipe(), base_weights(model)
    pipe.load_lora_weights(written.path)
    pipe.fuse_lora(lora_scale=strength)
    pipe.unload_lora_weights()
    entries = {f"{p.name}.weight" for p in text_entries(pipe.unet)}
    for name, weight in pipe.unet.state_dict().items():
        if name in entries:
            plain = base[name].double()
            wanted = plain + strength * (edited(operator, name, plain) - plain)
            torch.testing.assert_close(weight.double(), wanted, rtol=2e-6, atol=1e-7)
            assert not torch.allclose(weight, base[name], rtol=1e-3)
        else:
            assert torch.equal(weight, base[name])


def test_at_strength_1_it_draws_the_edits_image(model: Model, tmp_path: Path) -> None:
    operator = model.operator()
    written = write_lora(model.folder / "unet", operator, tmp_path / "lora.safetensors", HEADER, error=0)
    pipe = model.pipe()
    base = image_of(pipe)
    pipe.load_lora_weights(written.path)
    found = image_of(pipe)
    pipe.unload_lora_weights()
    assert torch.equal(image_of(pipe), base)
    operator.fold_into(pipe.unet)
    wanted = image_of(pipe)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (wanted - base).abs().max() > 1e-2


def test_other_programs_find_every_layer_by_name(model: Model, tmp_path: Path) -> None:
    """As they do it: a layer's name with underscores, diffusers' for SD, the single file's for SDXL."""
    operator = model.operator()
    path = write_lora(model.folder / "unet", operator, tmp_path / "lora.safetensors", HEADER, error=0).path
    lora, base = load_file(path), base_weights(model)
    if model.d == 48:
        base = {n.removeprefix("model.diffusion_model."): w for n, w in load_file(model.file).items()}
    read = {n: w for n, w in base.items() if "attn2" in n or n == "label_emb.0.0.weight"}
    layers = {"lora_unet_" + n.removesuffix(".weight").replace(".", "_"): w for n, w in read.items()}
    for layer in {name.partition(".")[0] for name in lora}:
        up, down = lora[f"{layer}.lora_up.weight"], lora[f"{layer}.lora_down.weight"]
        change = float(lora[f"{layer}.alpha"]) / len(down) * (up @ down)
        wanted = edited(operator, layer, layers[layer])
        torch.testing.assert_close(layers[layer] + change, wanted, rtol=2e-6, atol=1e-6)
    assert len(lora) == 3 * model.edited
    if model.pooled is not None:  # nothing is added where the layer reads sizes
        assert not lora["lora_unet_label_emb_0_0.lora_down.weight"][:, model.pooled :].any()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == ("sdxl_base_v1-0" if model.d == 48 else "sd_v1")
    assert metadata.items() >= (HEADER | {"ss_network_dim": "4", "ss_network_alpha": "4.0", "ss_v2": "False"}).items()
    assert float(metadata["evenhand.lora_error"]) < 1e-12
    assert float(metadata["evenhand.lora_error_stored"]) < 1e-6


def test_a_truncated_one_states_what_the_weights_show(sd: Model, tmp_path: Path) -> None:
    operator, base = sd.operator(rank=32), base_weights(sd)
    out = tmp_path / "lora.safetensors"
    by_error = write_lora(sd.folder / "unet", operator, out, HEADER, error=0.1)
    assert by_error.error <= 0.1 < write_lora(sd.folder / "unet", operator, out, HEADER, rank=by_error.rank - 1).error
    written = write_lora(sd.folder / "unet", operator, out, HEADER, rank=8)
    assert written.rank == 8
    lora = load_file(out)
    lost = whole = weights = 0.0
    for layer in {name.partition(".")[0] for name in lora}:
        weight = next(w for n, w in base.items() if "lora_unet_" + n.replace(".", "_") == f"{layer}_weight").double()
        change = operator.edited(weight) - weight
        found = lora[f"{layer}.lora_up.weight"].double() @ lora[f"{layer}.lora_down.weight"].double()
        lost += float((change - found).square().sum())
        whole += float(change.square().sum())
        weights += float(weight.square().sum())
    assert written.stored_error == pytest.approx((lost / whole) ** 0.5, rel=1e-6)
    assert written.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert written.weight_error == pytest.approx((lost / weights) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_a_half_precision_base_gets_its_own_dtype(
    sd: Model, tmp_path: Path, dtype: torch.dtype, precision: float
) -> None:
    unet = tmp_path / "unet"
    shutil.copytree(sd.folder / "unet", unet)
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    save_file({n: w.to(dtype) for n, w in base_weights(sd).items()}, unet / "diffusion_pytorch_model.fp16.safetensors")
    # Directions over six decades: in one factor alone the weak ones would fall below float16's smallest number.
    basis = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    sizes = torch.logspace(0, -6, 32, dtype=torch.float64)
    operator = EditOperator(torch.eye(32, dtype=torch.float64) + (basis * sizes) @ basis.flip(1).T)
    written = write_lora(unet, operator, tmp_path / "lora.safetensors", HEADER, error=0)
    assert written.rank == 32
    assert written.stored_error < precision
    lora = load_file(written.path)
    assert {t.dtype for n, t in lora.items() if not n.endswith("alpha")} == {dtype}
    weakest = lora["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight"][:, -1]
    assert weakest.abs().min() > 0


def test_values_only_has_no_keys(sd: Model, tmp_path: Path) -> None:
    operator = replace(sd.operator(), steps=(SolveInputs((), values_only=True),))
    written = write_lora(sd.folder / "unet", operator, tmp_path / "lora.safetensors", HEADER)
    assert written.tensors == 4
    assert not [name for name in load_file(written.path) if "to_k" in name]


def test_other_programs_are_told_of_sd_2(tmp_path: Path) -> None:
    make_unet(1024).save_pretrained(tmp_path / "unet")
    shift = torch.zeros(1024, 1024, dtype=torch.float64)
    shift[3, 5] = 1
    operator = EditOperator(torch.eye(1024, dtype=torch.float64) + shift)
    written = write_lora(tmp_path / "unet", operator, tmp_path / "lora.safetensors", HEADER)
    assert written.rank == 1
    with safe_open(written.path, "pt") as file:
        assert file.metadata().items() >= {"ss_base_model_version": "sd_v2", "ss_v2": "True"}.items()


def test_what_makes_no_lora_is_refused(sd: Model, tmp_path: Path) -> None:
    unet, out = sd.folder / "unet", tmp_path / "lora.safetensors"
    with pytest.raises(EditError, match="changes none"):
        write_lora(unet, EditOperator.identity(32), out, HEADER)
    with pytest.raises(EditError, match=r"not torch\.float64"):
        write_lora(unet, sd.operator(), out, HEADER, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"not finite in torch\.float16"):
        write_lora(unet, sd.operator(size=1e12), out, HEADER, dtype=torch.float16)
    with pytest.raises(ModelError, match="width 32, the edit has 16"):
        write_lora(unet, EditOperator.identity(16), out, HEADER)
    assert not list(tmp_path.iterdir())


def test_at_a_rank_both_parts_are_what_its_operator_says(xl: Model, tmp_path: Path) -> None:
    operator = xl.operator(rank=16)
    written = write_lora(xl.folder / "unet", operator, tmp_path / "lora.safetensors", HEADER, rank=5)
    cut = low_rank_operator(xl.folder / "unet", operator, written)
    assert cut.pooled is not None
    assert (written.rank, written.pooled_rank) == (5, 5)
    assert [step.rank for step in (cut.steps[-1], cut.pooled.steps[-1])] == [5, 5]
    lora, base = load_file(written.path), base_weights(xl)
    for layer, name in (("label_emb_0_0", "add_embedding.linear_1.weight"), MIDDLE):
        up, down = (lora[f"lora_unet_{layer}.lora_{part}.weight"] for part in ("up", "down"))
        found = base[name] + up @ down
        torch.testing.assert_close(found, edited(cut, name, base[name]), rtol=1e-5, atol=1e-6)
    with safe_open(written.path, "pt") as file:
        assert file.metadata()["evenhand.lora_pooled_rank"] == "5"


MIDDLE = (
    "middle_block_1_transformer_blocks_0_attn2_to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
