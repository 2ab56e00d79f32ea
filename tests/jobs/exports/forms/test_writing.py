from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from infra.storage import StorageError
from jobs.exports.forms.lora import write_lora
from jobs.exports.forms.operator_file import write_operator
from jobs.exports.forms.single_file import write_single_file
from jobs.exports.forms.tensors import write_tensors
from jobs.exports.forms.writing import Written, entries_of, tensor_bytes, write_safetensors
from jobs.models.sources import open_safetensors
from tests.jobs.exports.conftest import Model

HEADER = {f"evenhand.{letter}": letter for letter in "abcdefghij"}

WRITERS: dict[str, Callable[[Model, Path], Written]] = {
    "single file": lambda m, out: write_single_file(m.file, m.operator(), out, HEADER, expected=m.projections),
    "lora": lambda m, out: write_lora(m.folder / "unet", m.operator(), out, HEADER),
    "tensors": lambda m, out: write_tensors(m.folder / "unet", m.operator(), out, HEADER),
    "operator": lambda m, out: write_operator(m.operator(), out, HEADER),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_export_twice_is_byte_for_byte_the_same(xl: Model, tmp_path: Path, name: str) -> None:
    first, second = (WRITERS[name](xl, tmp_path / which / "model.safetensors").path for which in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    with safe_open(first, "pt") as file:
        metadata = file.metadata()
    assert metadata.items() >= HEADER.items()
    source = open_safetensors(first)
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(first.read_bytes()[source.data_at :]).hexdigest()
    assert source.data_at % 8 == 0
    assert list(source.metadata) == sorted(source.metadata)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_part(xl: Model, tmp_path: Path, name: str) -> None:
    """A limit on the size of files stands for the disk's end: the kernel refuses the same write in the same way."""
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"the old one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match=r"the disk is full.*Nothing was left behind"):
            WRITERS[name](xl, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert out.read_bytes() == b"the old one"


def test_a_fault_half_way_leaves_nothing(tmp_path: Path) -> None:
    entries = entries_of([("a", torch.float32, (2,))])

    def pieces() -> Iterator[bytes]:
        yield bytes(4)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_safetensors(tmp_path / "m.safetensors", entries, pieces(), {})
    with pytest.raises(ValueError, match="4 bytes were given for tensors of 8"):
        write_safetensors(tmp_path / "m.safetensors", entries, [bytes(4)], {})
    assert not list(tmp_path.iterdir())


def test_a_place_that_can_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"m\.safetensors can't be written: File exists"):
        write_safetensors(tmp_path / "file" / "m.safetensors", [], [], {})


def test_what_was_written_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).half(),
        "brain": torch.randn(2).bfloat16(),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "turned": torch.randn(3, 4).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    entries = entries_of((n, t.dtype, tuple(t.shape)) for n, t in tensors.items())
    path = tmp_path / "m.safetensors"
    size = write_safetensors(path, entries, (tensor_bytes(tensors[e.name]) for e in entries), {"ü": "é\n"})
    assert size == path.stat().st_size
    with safe_open(path, "pt") as file:
        assert file.metadata()["ü"] == "é\n"
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype
