"""The edited model as a diffusers folder: the base model's files, its layers' values replaced in place.

Nothing is loaded and saved again. Every file keeps its name (variant, shards and their index with it); a file of the
UNet or transformer that holds edited layers is written with the same tensors in the same order, all others are the base
model's very bytes, which a server that has them copies by itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.exports.forms.operator_file import write_operator
from jobs.exports.forms.writing import Edits, edited_pieces, scratch_folder, tensor_bytes, write_safetensors
from jobs.models.digests import content_digest
from jobs.models.files import denoiser_folder
from jobs.models.publishing import MODEL_INDEX, Stored, publish
from jobs.models.sources import SafetensorsSource, open_edited, open_safetensors
from jobs.models.staging import staged_from
from time_ops import EditOperator, ModelError

__all__ = ["kept_files", "stored_files", "write_checkpoint", "write_edited_unet"]

_KEPT = (".safetensors", ".json", ".txt", ".model")
_PICKLED_INDEX = ".bin.index"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


def write_checkpoint(
    base: Path,
    expected: str,
    operator: EditOperator,
    card: str,
    store: ObjectStore,
    prefix: str,
    *,
    only_unet: bool = False,
    header: Mapping[str, str] | None = None,
    operator_header: Mapping[str, str] | None = None,
    scratch: Path | None = None,
    settings: StorageSettings | None = None,
    beside: Sequence[str] = (),
) -> dict[str, int]:
    """Write the edited checkpoint below `prefix`; see `publish`. Memory: one weight and the parts under way.

    Args:
        base: folder of the base model.
        expected: its content digest at the audit.
        operator: the edit.
        card: the model card's text.
        store: where to.
        prefix: where in it.
        only_unet: leave the other components out; the folder is then opened by its class, `UNet2DConditionModel` or a
            transformer's.
        header: metadata for the edited files, added to their own; see `jobs.exports.forms.header`.
        operator_header: likewise for the operator's file beside them.
        scratch: where the edited files (5.1 GB for SDXL in half precision) lie meanwhile; None: the usual place.
        settings: how to reach the store that the base model was staged from; None reads the environment.
        beside: published folders in `store` that may hold some of the same files.

    Returns:
        Bytes of each file but SHA256SUMS, by its name.

    Raises:
        ModelError: the base model is not the one that was audited, or can't be edited.
        StorageError: the store refuses, or there is no space left for the edited files.
    """
    if content_digest(base) != expected:
        raise ModelError("the model has changed since it was audited; run the job again")
    kept = kept_files(base, only_unet=only_unet)
    part = denoiser_folder(base)
    with scratch_folder(scratch) as folder:
        edited = write_edited_unet(part, operator, folder / part.name, header)
        write_operator(operator, folder / "operator.safetensors", operator_header or {})
        (folder / "README.md").write_text(card, encoding="utf-8")
        made = {name: folder / name for name in ("operator.safetensors", "README.md")}
        made |= {f"{part.name}/{path.name}": path for path in edited}
        files = kept | made
        publish(
            files,
            store,
            prefix,
            main=f"{part.name}/config.json" if only_unet else MODEL_INDEX,
            stored=stored_files(base, kept.keys() - made.keys(), settings),
            beside=beside,
        )
        return {name: path.stat().st_size for name, path in files.items()}


def write_edited_unet(
    folder: Path, operator: EditOperator, out: Path, header: Mapping[str, str] | None = None
) -> list[Path]:
    """Write the files of a UNet or transformer that an edit changes, under their own names, and read them back.

    Each variant in the folder is edited from its own values, in its own dtype: W A in float64, cast once.

    Args:
        folder: `unet/` or `transformer/` of a diffusers folder.
        operator: the edit.
        out: where to.
        header: metadata, added to each file's own.

    Returns:
        The files written.

    Raises:
        ModelError: it can't be edited, its files are not whole or lack layers that its configuration promises (32 in
            all for SD 1.x and 2.x, 141 for SDXL, 2 for SD3 and FLUX), or the weights did not take the edit.
        StorageError: there is no space left.
    """
    written = []
    for files in _variants(folder):
        unet = open_edited(folder, operator, files)
        edits = Edits(operator)
        for source in {id(opened): opened for opened in unet.files.values()}.values():
            touched = [name for name in unet.names if unet.files[name] is source]
            written.append(_write_file(source, touched, edits, out / source.path.name, header or {}))
        edits.check()
    return written


def _write_file(
    source: SafetensorsSource, touched: Sequence[str], edits: Edits, out: Path, header: Mapping[str, str]
) -> Path:
    digests: dict[str, str] = {}

    def edit(name: str, weight: torch.Tensor) -> torch.Tensor:
        edited = edits(name, weight)
        digests[name] = _digest(edited)
        return edited

    pieces = edited_pieces(source, touched, edit)
    write_safetensors(out, list(source.entries.values()), pieces, {**source.metadata, **header})
    back = open_safetensors(out)
    wrong = [name for name in touched if _digest(back.read(name)) != digests[name]]
    if wrong or [*back.entries.values()] != [*source.entries.values()]:
        raise ModelError(f"{out.name} did not come back as it was written; check the disk ({', '.join(wrong[:4])})")
    return out


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def _variants(folder: Path) -> list[list[Path]]:
    """The weights in a folder, the shards of one variant together.

    Raises:
        ModelError: there are none, or a shard is missing.
    """
    groups: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        groups.setdefault(_SHARD.sub("", file.name), []).append(file)
    if not groups:
        raise ModelError(f"{folder.name}/ holds no safetensors; save the model with safe_serialization=True")
    for name, files in groups.items():
        shards = [match for file in files if (match := _SHARD.search(file.name))]
        count = int(shards[0][2]) if shards else 0
        if shards and [int(shard[1]) for shard in shards] != list(range(1, count + 1)):
            raise ModelError(f"{folder.name}/{name}: {len(files)} of {count} shards are there; fetch the model again")
    return list(groups.values())


def kept_files(base: Path, *, only_unet: bool) -> dict[str, Path]:
    """The base model's files that an edited folder has, by their names in it, those that the edit changes among them.

    They are those of the components that model_index.json names: single files beside them hold unedited weights.
    """
    index = json.loads((base / MODEL_INDEX).read_text(encoding="utf-8"))
    components = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    own = denoiser_folder(base).name
    wanted = {own} if only_unet else components | {own, MODEL_INDEX}
    files = {path.relative_to(base).as_posix(): path for path in base.rglob("*") if path.is_file()}
    return {
        name: path
        for name, path in sorted(files.items())
        if path.suffix in _KEPT and _PICKLED_INDEX not in name and name.partition("/")[0] in wanted
    }


def stored_files(base: Path, names: set[str], settings: StorageSettings | None) -> dict[str, Stored]:
    """The objects that a staged model's files of these names were downloaded from."""
    staged = staged_from(base)
    if staged is None:
        return {}
    source = open_store(staged.url, settings)
    return {name: Stored(source, name, staged.tags[name]) for name in names if name in staged.tags}
