from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.exports.forms.single_file import write_single_file
from jobs.models.sources import open_safetensors
from tests.jobs.exports.conftest import HEADER, Model, image_of
from time_ops import ModelError
from time_ops.records import SolveInputs


def raw(path: Path) -> dict[str, bytes]:
    source, data = open_safetensors(path), path.read_bytes()
    return {n: data[source.data_at + e.begin : source.data_at + e.end] for n, e in source.entries.items()}


def test_diffusers_reads_it_back_as_the_folded_pipeline(model: Model, tmp_path: Path) -> None:
    operator = model.operator()
    written = write_single_file(
        model.file, operator, tmp_path / "edited.safetensors", HEADER, unet_folder=model.folder / "unet"
    )
    opened = model.kind.from_single_file(str(written.path), config=str(model.folder), local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    folded = model.pipe()
    before = image_of(folded)
    operator.fold_into(folded.unet)
    for part in ("unet", "vae", "text_encoder"):
        wanted, found = getattr(folded, part).state_dict(), getattr(opened, part).state_dict()
        assert list(wanted) == list(found)
        assert all(torch.equal(wanted[name], found[name]) for name in wanted), part
    assert torch.equal(image_of(opened), image_of(folded))
    assert not torch.equal(before, image_of(folded))


def test_all_else_keeps_its_bytes_its_place_and_its_header(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "edited.safetensors"
    written = write_single_file(model.file, model.operator(), out, HEADER, expected=model.projections)
    base, edited = open_safetensors(model.file), open_safetensors(out)
    assert list(base.entries.values()) == list(edited.entries.values())
    kept = {key: value for key, value in base.metadata.items() if not key.startswith("sshs_")}
    assert edited.metadata == kept | HEADER | {
        "format": "pt",
        "modelspec.hash_sha256": edited.metadata["modelspec.hash_sha256"],
    }
    before, after = raw(model.file), raw(out)
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == written.tensors
    edits = (".attn2.to_k.weight", ".attn2.to_v.weight", ".label_emb.0.0.weight", "attn2to_kweight", "attn2to_vweight")
    assert all(name.endswith(edits) for name in changed)
    assert ("model.diffusion_model.label_emb.0.0.weight" in changed) == (model.pooled is not None)
    assert written.size_bytes == out.stat().st_size


def test_the_running_average_is_edited_from_its_own_values(sd: Model, tmp_path: Path) -> None:
    operator = sd.operator()
    written = write_single_file(sd.file, operator, tmp_path / "e.safetensors", HEADER, expected=8)
    assert (written.tensors, written.averages) == (16, 8)
    name = "model_ema.diffusion_modelmiddle_block1transformer_blocks0attn2to_kweight"
    assert torch.equal(load_file(written.path)[name], operator.edited(load_file(sd.file)[name]))


def test_half_of_an_average_is_refused(sd: Model, tmp_path: Path) -> None:
    tensors = load_file(sd.file)
    del tensors["model_ema.diffusion_modelmiddle_block1transformer_blocks0attn2to_kweight"]
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(ModelError, match="running average of 7 of 8"):
        write_single_file(tmp_path / "base.safetensors", sd.operator(), tmp_path / "e.safetensors", {}, expected=8)


def test_values_only_leaves_the_keys(sd: Model, tmp_path: Path) -> None:
    operator = replace(sd.operator(), steps=(SolveInputs((), values_only=True),))
    out = tmp_path / "e.safetensors"
    written = write_single_file(sd.file, operator, out, HEADER, unet_folder=sd.folder / "unet")
    before, after = raw(sd.file), raw(out)
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == written.tensors == 8
    assert all("to_v" in name for name in changed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_file_of_the_same_model_is_taken(sd: Model, tmp_path: Path, dtype: torch.dtype) -> None:
    base, out = tmp_path / "half.safetensors", tmp_path / "e.safetensors"
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(sd.file).items()}, base)
    operator = sd.operator()
    write_single_file(base, operator, out, HEADER, unet_folder=sd.folder / "unet")
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    found = load_file(out)[name]
    assert found.dtype == dtype
    assert torch.equal(found, operator.edited(load_file(base)[name]))


def test_a_folder_made_from_the_average_is_the_same_model(sd: Model, tmp_path: Path) -> None:
    tensors = load_file(sd.file)
    for name in [n for n in tensors if n.startswith("model.diffusion_model.")]:
        twin = "model_ema." + name.removeprefix("model.").replace(".", "")
        tensors[name], tensors[twin] = tensors[name] * 2, tensors[name]
    base = tmp_path / "base.safetensors"
    save_file(tensors, base)
    assert write_single_file(base, sd.operator(), tmp_path / "e", {}, unet_folder=sd.folder / "unet").averages == 8


def test_another_models_file_is_refused(sd: Model, xl: Model, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    tensors = load_file(sd.file)
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    for key in (name, "model_ema." + name.removeprefix("model.").replace(".", "")):
        tensors[key][0, 0] = torch.nextafter(tensors[key][0, 0], torch.tensor(9.0))
    other = tmp_path / "fine-tuned.safetensors"
    save_file(tensors, other)
    with pytest.raises(ModelError, match=r"not the base model of this edit: 1 of 8 projections differ.*mid_block"):
        write_single_file(other, sd.operator(), out, HEADER, unet_folder=sd.folder / "unet")
    with pytest.raises(ModelError, match="has 16 projections that read the text, not 8"):
        write_single_file(xl.file, sd.operator(), out, HEADER, unet_folder=sd.folder / "unet")
    with pytest.raises(ModelError, match=r"8 projections that read the text, not 32 \(SD 1.x and 2.x\) or 140 \(SDXL"):
        write_single_file(sd.file, sd.operator(), out, HEADER)
    with pytest.raises(ModelError, match=r"has shape \[\d+, 48\], the operator width 32"):
        write_single_file(xl.file, sd.operator(), out, HEADER, expected=16)
    odd = tmp_path / "odd.safetensors"
    save_file({n: w for n, w in load_file(xl.file).items() if "label_emb.0.0" not in n}, odd)
    with pytest.raises(ModelError, match=r"label_emb\.0\.0\.weight is missing, and the edit changes pooled"):
        write_single_file(odd, xl.operator(), out, HEADER, expected=16)
    odd.unlink()
    weights = sd.folder / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ModelError, match="no cross-attention under its original names"):
        write_single_file(weights, sd.operator(), out, HEADER, expected=8)
    assert list(tmp_path.iterdir()) == [other]


def test_the_base_itself_is_never_written_over(sd: Model) -> None:
    with pytest.raises(ModelError, match="is the base file itself"):
        write_single_file(sd.file, sd.operator(), sd.file, HEADER, expected=8)


def test_quantised_weights_and_edits_that_take_no_effect_are_refused(sd: Model, tmp_path: Path) -> None:
    tensors = {n: t for n, t in load_file(sd.file).items() if not n.startswith("model_ema")}
    quantised, half = tmp_path / "q.safetensors", tmp_path / "h.safetensors"
    save_file({n: t.to(torch.float8_e4m3fn) if "attn2" in n else t for n, t in tensors.items()}, quantised)
    save_file({n: t.half() for n, t in tensors.items()}, half)
    out = tmp_path / "e.safetensors"
    with pytest.raises(ModelError, match="stored as F8_E4M3, a format of quantised weights"):
        write_single_file(quantised, sd.operator(), out, HEADER, expected=8)
    with pytest.raises(ModelError, match="no weight changed"):
        write_single_file(half, sd.operator(size=1e-9), out, HEADER, expected=8)
    with pytest.raises(ModelError, match=r"not finite in torch\.float16"):
        write_single_file(half, sd.operator(size=1e7), out, HEADER, expected=8)
    assert sorted(tmp_path.iterdir()) == [half, quantised]
