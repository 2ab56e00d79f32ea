"""The diffusers folder: bit for bit what `fold_into` makes, in the base model's own files."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infra.storage import LocalStore, StorageError
from jobs.exports.forms.diffusers_folder import write_checkpoint, write_edited_unet
from jobs.models.checksums import verify_folder
from jobs.models.digests import content_digest
from jobs.models.staging import fetch_model
from tests.time_ops.conftest import make_pipe, make_xl_pipe
from tests.wire import Wire
from time_ops import EditOperator, ModelError
from time_ops.records import SolveInputs

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "100KB"},
    "shards of a variant": {"variant": "fp16", "max_shard_size": "100KB"},
}


def operator_of(d: int, *, values_only: bool = False, size: float = 0.05, pooled: int | None = None) -> EditOperator:
    noise = torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = torch.eye(d, dtype=torch.float64) + size * noise
    second = None if pooled is None else operator_of(pooled, size=size)
    return EditOperator(matrix, (SolveInputs((), values_only=values_only),), pooled=second)


def saved(folder: Path, layout: str = "plain", dtype: torch.dtype = torch.float32, *, xl: bool = False) -> Path:
    pipe = (make_xl_pipe if xl else make_pipe)()
    pipe.to(dtype)
    pipe.save_pretrained(folder, **LAYOUTS[layout])
    return folder


def tensors_of(files: list[Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def folded(base: Path, operator: EditOperator, dtype: torch.dtype, **options: Any) -> dict[str, torch.Tensor]:
    unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=dtype, **options)
    operator.fold_into(unet)
    return dict(unet.state_dict())


@pytest.mark.parametrize(
    ("layout", "dtype", "xl"),
    [
        ("plain", torch.float32, False),
        ("variant", torch.float16, False),
        ("shards", torch.bfloat16, False),
        ("shards of a variant", torch.float16, True),
    ],
)
def test_files_stay_and_values_are_those_of_a_fold(tmp_path: Path, layout: str, dtype: torch.dtype, xl: bool) -> None:
    base, store = saved(tmp_path / "base", layout, dtype, xl=xl), LocalStore(tmp_path / "store")
    operator = operator_of(48, pooled=32) if xl else operator_of(32)
    write_checkpoint(base, content_digest(base), operator, "card", store, "c", header={"evenhand.run": "r"})
    store.download_folder("c", out := tmp_path / "out")
    verify_folder(out, "c")

    files = {p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()}
    added = {"README.md", "SHA256SUMS", "operator.safetensors"}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == files | added
    variant = LAYOUTS[layout].get("variant")
    wanted = folded(base, operator, dtype, variant=variant)
    found = tensors_of(sorted((out / "unet").glob("*.safetensors")))
    assert found.keys() == wanted.keys()
    before = tensors_of(sorted((base / "unet").glob("*.safetensors")))
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wanted[name]), name
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, before[name])}
    edits = ("attn2.to_k.weight", "attn2.to_v.weight", "add_embedding.linear_1.weight")
    assert changed == {name for name in before if name.endswith(edits)}
    for file in (base / "unet").glob("*.safetensors"):
        with safe_open(file, "pt") as old, safe_open(out / "unet" / file.name, "pt") as new:
            assert list(old.offset_keys()) == list(new.offset_keys())
        if not changed & load_file(file).keys():
            assert file.read_bytes() == (out / "unet" / file.name).read_bytes()
    for name in files:
        if not name.startswith("unet/") or not name.endswith(".safetensors"):
            assert (base / name).read_bytes() == (out / name).read_bytes(), name
    kind: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    pipe = kind.from_pretrained(out, dtype=dtype, variant=variant, local_files_only=True)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in pipe.unet.state_dict().items())


def test_every_variant_is_edited_in_its_own_dtype(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    make_pipe().to(torch.float16).save_pretrained(base, variant="fp16")
    operator = operator_of(32)
    files = write_edited_unet(base / "unet", operator, tmp_path / "out")
    assert [file.name for file in files] == [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
    ]
    for file, dtype, variant in zip(files, (torch.float16, torch.float32), ("fp16", None), strict=True):
        wanted = folded(base, operator, dtype, variant=variant)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_file(file).items())


def test_values_only_leaves_the_keys(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    (file,) = write_edited_unet(base / "unet", operator_of(32, values_only=True), tmp_path / "out")
    before = load_file(base / "unet" / file.name)
    changed = {name for name, tensor in load_file(file).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("attn2.to_v.weight")}


def test_the_same_export_twice_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    base, store = saved(tmp_path / "base", "shards"), LocalStore(tmp_path / "store")
    header = {f"evenhand.{i}": str(i) for i in range(9)}
    for name in ("one", "two"):
        write_checkpoint(base, content_digest(base), operator_of(32), "card", store, name, header=header)
    files = [key.partition("/")[2] for key in store.list("one")]
    assert all(store.get(f"one/{name}") == store.get(f"two/{name}") for name in files)


def test_only_the_unet(tmp_path: Path) -> None:
    base, store = saved(tmp_path / "base"), LocalStore(tmp_path / "store")
    operator = operator_of(32)
    write_checkpoint(base, content_digest(base), operator, "card", store, "c", only_unet=True)
    assert [key for key in store.list("c") if not key.startswith("c/unet/")] == [
        "c/README.md",
        "c/SHA256SUMS",
        "c/operator.safetensors",
    ]
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "store" / "c" / "unet", local_files_only=True)
    wanted = folded(base, operator, torch.float32)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in unet.state_dict().items())


def test_single_files_and_pickles_beside_the_components_stay_out(tmp_path: Path) -> None:
    base, store = saved(tmp_path / "base"), LocalStore(tmp_path / "store")
    save_file({"a": torch.zeros(1)}, base / "pruned.safetensors")
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (base / "unet" / "diffusion_pytorch_model.bin.index.json").write_text("{}")
    write_checkpoint(base, content_digest(base), operator_of(32), "card", store, "c")
    names = set(store.list("c"))
    assert not {name for name in names if "pruned" in name or ".bin" in name}


def _without_a_shard(folder: Path) -> None:
    sorted(folder.glob("*-00002-of-*"))[0].unlink()


def _without_a_projection(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        dropped = {n: t for n, t in tensors.items() if not n.startswith("up_blocks.1.attentions.1")}
        save_file(dropped, file)


def _cut_short(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-7])


def _without_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def _of_other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 40}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_a_shard, "shards are there"),
        (_without_a_projection, "attn2.to_k.weight is missing"),
        (_cut_short, "not a whole safetensors file"),
        (_without_weights, "safe_serialization=True"),
        (_of_other_width, "width 40"),
    ],
)
def test_folders_that_are_not_whole_are_refused(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    base = saved(tmp_path / "base", "shards")
    spoil(base / "unet")
    with pytest.raises(ModelError, match=words):
        write_edited_unet(base / "unet", operator_of(32), tmp_path / "out")


def test_an_edit_that_its_dtype_does_not_show_is_refused(tmp_path: Path) -> None:
    base, store = saved(tmp_path / "base", dtype=torch.float16), LocalStore(tmp_path / "store")
    with pytest.raises(ModelError, match="below the resolution"):
        write_checkpoint(base, content_digest(base), operator_of(32, size=1e-9), "card", store, "c")
    assert list(store.list()) == []


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    base, store = saved(tmp_path / "base"), LocalStore(tmp_path / "store")
    with pytest.raises(ModelError, match="changed since it was audited"):
        write_checkpoint(base, "0" * 64, operator_of(32), "card", store, "c")
    assert list(store.list()) == []


def test_a_full_disk_is_told_and_nothing_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, store = saved(tmp_path / "base"), LocalStore(tmp_path / "store")
    digest = content_digest(base)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_checkpoint(base, digest, operator_of(32), "card", store, "c", scratch=tmp_path / "scratch")
    monkeypatch.undo()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(store.list()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="EVENHAND_CACHE"):
        write_checkpoint(base, digest, operator_of(32), "card", store, "c", scratch=tmp_path / "file" / "below")


def test_a_model_of_the_same_server_is_copied_there(s3: Any, tmp_path: Path) -> None:
    store, model = s3.store(), s3.store()
    saved(tmp_path / "base", "shards")
    model.upload_folder(tmp_path / "base")
    base = fetch_model(model.url(), s3.settings, tmp_path / "cache", pipeline=True)
    wire = Wire(store)
    arguments = (base, content_digest(base), operator_of(32), "card", store)
    write_checkpoint(*arguments, "run/candidate", settings=s3.settings)
    edited = {p.name for p in (base / "unet").glob("*.safetensors") if _edits(p)}
    assert {Path(url).name for url in wire.written} == {*edited, "README.md", "SHA256SUMS", "operator.safetensors"}
    unedited = [p for p in base.rglob("*") if p.is_file() and p.name not in edited]
    assert wire.count("CopyObject") == len(unedited)
    store.download_folder("run/candidate", tmp_path / "out")
    verify_folder(tmp_path / "out", "c")

    wire.written.clear()
    write_checkpoint(*arguments, "run/checkpoint", settings=s3.settings, beside=("run/candidate",))
    assert [Path(url).name for url in wire.written] == ["SHA256SUMS"]
    assert store.get("run/checkpoint/SHA256SUMS") == store.get("run/candidate/SHA256SUMS")


def _edits(file: Path) -> bool:
    return any(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in load_file(file))
