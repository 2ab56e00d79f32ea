"""The edited checkpoint: a diffusers folder, its edited projections replaced and everything else as it was.

It appears whole or not at all: `model_index.json` is uploaded last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from infra.storage import ObjectStore
from jobs.models import content_digest
from time_ops import EditOperator, ModelError

__all__ = ["CHECKSUMS", "write_checkpoint"]

CHECKSUMS = "SHA256SUMS"
_KEPT = (".safetensors", ".json", ".txt", ".model")


def write_checkpoint(
    base: Path, expected: str, operator: EditOperator, card: str, store: ObjectStore, prefix: str
) -> str:
    """Write the edited checkpoint below `prefix`.

    Args:
        base: folder of the base model.
        expected: its content digest at the audit.
        operator: the edit.
        card: the model card's text.
        store: where to.
        prefix: where in it.

    Returns:
        The digest of SHA256SUMS.

    Raises:
        ModelError: the base model is not the one that was audited.
        StorageError: the store refuses.
    """
    if content_digest(base) != expected:
        raise ModelError("the model has changed since it was audited; run the job again")
    with tempfile.TemporaryDirectory(prefix="evenhand-") as scratch:
        folder = Path(scratch) / "checkpoint"
        _copy(base, folder)
        unet = UNet2DConditionModel.from_pretrained(  # type: ignore[no-untyped-call]
            base / "unet", torch_dtype=_stored_dtype(base / "unet"), use_safetensors=True, local_files_only=True
        )
        operator.fold_into(unet)
        unet.save_pretrained(folder / "unet", safe_serialization=True)
        operator.save(folder / "operator.safetensors")
        (folder / "README.md").write_text(card, encoding="utf-8")
        sums = _checksums(folder)
        (folder / CHECKSUMS).write_text(sums, encoding="utf-8")
        # A folder that is written again stops being one before its first file changes.
        for old in sorted(store.list(prefix), key=lambda key: not key.endswith("/model_index.json")):
            store.delete(old)
        store.upload_folder(folder, prefix, last=("model_index.json",))
    return hashlib.sha256(sums.encode()).hexdigest()


def _copy(base: Path, folder: Path) -> None:
    """The components that model_index.json names; single files beside them hold unedited weights, and stay out."""
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    components = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    for file in sorted(p for p in base.rglob("*") if p.is_file() and p.suffix in _KEPT):
        relative = file.relative_to(base)
        if relative.parts[0] in components - {"unet"} or relative.as_posix() == "model_index.json":
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / relative)


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that the weights are stored in, which the edited ones keep."""
    from safetensors import safe_open

    file = sorted(folder.glob("*.safetensors"))[0]
    with safe_open(file, "pt") as opened:
        dtype: torch.dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
    return dtype


def _checksums(folder: Path) -> str:
    """In the format of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks the folder."""
    lines = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            lines.append(
                f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {file.relative_to(folder).as_posix()}\n"
            )
    return "".join(lines)
