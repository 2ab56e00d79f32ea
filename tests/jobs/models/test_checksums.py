"""What readers of a published folder find wrong with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.storage import ObjectStore, StorageSettings
from jobs.models.checksums import CHECKSUMS, checksums_text, parse_checksums, sha256_of, verify_folder
from jobs.models.staging import fetch_model, staged_from
from time_ops import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder of three files."""
    there = tmp_path / "folder"
    for name in ("model_index.json", "unet/weights.safetensors", "unet/é ü.json"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(name)
    files = [path for path in there.rglob("*") if path.is_file()]
    digests = {path.relative_to(there).as_posix(): sha256_of(path) for path in files}
    (there / CHECKSUMS).write_text(checksums_text(digests))
    return there


def test_an_untouched_folder_passes_here_and_with_sha256sum(folder: Path) -> None:
    verify_folder(folder, "x")
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0
    (folder / "README").write_text("a note of its owner's")
    verify_folder(folder, "x")
    (folder / CHECKSUMS).unlink()
    (folder / "model_index.json").unlink()
    verify_folder(folder, "x")


def test_every_fault_is_named(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    with (folder / "unet" / "weights.safetensors").open("ab") as stream:
        stream.write(b"x")
    (folder / "unet" / "other.safetensors").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        verify_folder(folder, "s3://bucket/model")
    for words in (
        "s3://bucket/model",
        "model_index.json is missing",
        "unet/weights.safetensors differs",
        "unet/other.safetensors is not among",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "text", ["nonsense", f"{'0' * 63}  a", f"{'0' * 64}  ../a", f"{'0' * 64}  /etc/passwd", f"{'g' * 64}  a"]
)
def test_lines_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="line 2"):
        parse_checksums(f"{'0' * 64}  fine\n{text}\n")


def test_a_folder_of_this_machine_is_checked_too(folder: Path, tmp_path: Path) -> None:
    assert fetch_model(str(folder), StorageSettings(), tmp_path, pipeline=True) == folder.resolve()
    (folder / "unet" / "weights.safetensors").write_bytes(b"other bytes")
    with pytest.raises(ModelError, match=r"unet/weights\.safetensors differs"):
        fetch_model(str(folder), StorageSettings(), tmp_path, pipeline=True)


def test_staging_checks_and_remembers_where_from(folder: Path, tmp_path: Path, s3: object) -> None:
    store: ObjectStore = s3.store()  # type: ignore[attr-defined]
    store.upload_folder(folder)
    settings: StorageSettings = s3.settings  # type: ignore[attr-defined]
    staged = fetch_model(store.url(), settings, tmp_path / "one", pipeline=True)
    found = staged_from(staged)
    assert found is not None
    assert (found.url, set(found.tags)) == (store.url(), set(store.list()))
    assert found.tags["model_index.json"] == store.stat("model_index.json").tag
    assert staged_from(folder) is None

    store.put("unet/weights.safetensors", b"other bytes")
    with pytest.raises(ModelError, match=r"unet/weights\.safetensors differs"):
        fetch_model(store.url(), settings, tmp_path / "two", pipeline=True)
    with pytest.raises(ModelError, match=r"unet/weights\.safetensors differs"):
        fetch_model(store.url(), settings, tmp_path / "two", pipeline=True)  # nothing bad was kept
