from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.models.sources import open_denoiser, open_safetensors
from tests.jobs.exports.conftest import Model
from time_ops import ModelError


def write(path: Path, header: dict[str, Any] | str, data: bytes) -> Path:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".CKPT"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02.")
    with pytest.raises(ModelError, match=r"pickled checkpoint.*never opened.*save_pretrained"):
        open_safetensors(path)


FAULTY: dict[str, tuple[dict[str, Any] | str, bytes]] = {
    "cut short": ({"a": entry(0, 8), "b": entry(8, 16)}, bytes(12)),
    "longer than its header says": ({"a": entry(0, 8)}, bytes(12)),
    "one tensor over another": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "one tensor twice": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "a gap": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "beyond the end": ({"a": entry(0, 1 << 40, (1 << 38,))}, bytes(8)),
    "another shape": ({"a": entry(0, 8, (3,))}, bytes(8)),
    "no JSON": ('{"a":', bytes(8)),
    "not an object": ("[1]", bytes(8)),
    "an unknown dtype": ({"a": entry(0, 8) | {"dtype": "Q"}}, bytes(8)),
    "one name twice": ('{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)),) * 2), bytes(8)),
}


@pytest.mark.parametrize("what", FAULTY)
def test_a_header_that_lies_is_refused(tmp_path: Path, what: str) -> None:
    path = write(tmp_path / "model.safetensors", *FAULTY[what])
    with pytest.raises(ModelError, match=r"^model\.safetensors is (not a whole safetensors file|tampered with)"):
        open_safetensors(path)


@pytest.mark.parametrize("data", [b"", b"\x10", (10**15).to_bytes(8, "little"), (500).to_bytes(8, "little") + b"{}"])
def test_a_file_without_its_header_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        open_safetensors(path)
    with pytest.raises(ModelError, match="no file nothing"):
        open_safetensors(tmp_path / "nothing.safetensors")


def test_a_sound_file_is_read_by_byte_ranges(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(4).half(), "c": torch.tensor(1.0), "e": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"k": "v"})
    source = open_safetensors(tmp_path / "m.safetensors")
    assert source.metadata == {"k": "v"}
    assert all(torch.equal(source.read(name), tensor) for name, tensor in tensors.items() if tensor.numel())


def test_shards_and_variants_of_a_unet_are_found(sd: Model, tmp_path: Path) -> None:
    unet = shutil.copytree(sd.folder / "unet", tmp_path / "unet")
    whole = open_denoiser(unet, d=32)
    kept = {name: whole.read(name) for name in whole.names}
    tensors = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({n: tensors[n] for n in part}, unet / f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors")
    sharded = open_denoiser(unet, d=32)
    assert whole.names == sharded.names
    assert len(whole.names) == 8
    assert all(torch.equal(sharded.read(name), weight) for name, weight in kept.items())
    save_file({names[0]: tensors[names[0]]}, unet / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(ModelError, match=r"several variants \(\.fp16, \.non_ema\) and no default"):
        open_denoiser(unet, d=32)


def test_a_unet_that_is_not_what_its_configuration_says_is_refused(sd: Model, tmp_path: Path) -> None:
    unet = shutil.copytree(sd.folder / "unet", tmp_path / "unet")
    path = unet / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    first, second, third = [n for n in tensors if "attn2.to_k" in n][:3]
    cut = {**tensors, second: tensors[second][:, :5].contiguous(), third: tensors[third].to(torch.float8_e4m3fn)}
    del cut[first]
    save_file(cut, path)
    with pytest.raises(ModelError) as caught:
        open_denoiser(unet, d=32)
    for reason in (f"{first} is missing", f"{second} has shape", f"{third} is stored as F8_E4M3"):
        assert reason in str(caught.value)
    path.unlink()
    with pytest.raises(ModelError, match="holds no safetensors"):
        open_denoiser(unet, d=32)
    config = json.loads((unet / "config.json").read_text())
    (unet / "config.json").write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(ModelError, match="holds a FluxTransformer2DModel"):
        open_denoiser(unet, d=32)
    (unet / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"unet/config\.json can't be read"):
        open_denoiser(unet, d=32)
