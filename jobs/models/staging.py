"""Models by hub id, local folder or `s3://` prefix: brought to this node.

Only safetensors are ever opened, and no code that comes with a model is run. Neither torch nor diffusers is imported
here: a plan reads models in a small process. Pipelines are loaded by `jobs.models.pipelines`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from infra.storage import ObjectStore, StorageError, StorageSettings, open_store
from jobs.models.checksums import verify_folder
from jobs.models.classifier_kinds import class_named
from jobs.models.files import PICKLED, is_single_file, pickled_advice
from jobs.models.hub import CARD, from_hub
from jobs.models.publishing import MIXTURE_INDEX
from jobs.models.staged_file import folder_from_file
from time_ops.errors import ModelError

if TYPE_CHECKING:
    import torch

    from jobs.config import RunConfig

__all__ = [
    "Origin",
    "Staged",
    "age_out",
    "cache_folder",
    "fetch_model",
    "fetch_run_model",
    "origin_of",
    "resolve_dtype",
    "staged_from",
]


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as its folder says.

    Attributes:
        hub_id: `owner/name`, of a hub's model.
        revision: the commit, likewise.
        card: text of its own card, which names its licence.
    """

    hub_id: str | None
    revision: str | None
    card: str | None


def origin_of(folder: Path) -> Origin:
    """Read it from where the hub's cache keeps a model, `models--OWNER--NAME/snapshots/COMMIT`, and from its card."""
    hub_id = revision = card = None
    place = folder.parent.parent.name
    if folder.parent.name == "snapshots" and place.startswith("models--"):
        hub_id, revision = place.removeprefix("models--").replace("--", "/"), folder.name
    with suppress(OSError, UnicodeDecodeError):
        card = (folder / CARD).read_text(encoding="utf-8")
    return Origin(hub_id, revision, card)


@dataclass(frozen=True)
class Staged:
    """Where in an object store a staged folder comes from.

    Attributes:
        url: the prefix.
        tags: entity tag of each object as it was downloaded, by its name below the prefix.
    """

    url: str
    tags: Mapping[str, str]


def staged_from(folder: Path) -> Staged | None:
    """Where `fetch_model` downloaded this folder from; None where it did not."""
    note = _note_of(folder)
    return Staged(**json.loads(note.read_text(encoding="utf-8"))) if note.is_file() else None


def _note_of(folder: Path) -> Path:
    """Beside the folder: in it, it would be part of the model."""
    return folder.with_suffix(".source.json")


def fetch_run_model(config: RunConfig, settings: StorageSettings, cache: Path) -> Path:
    """The folder of a run's model on this node; see `fetch_model`."""
    return fetch_model(config.model, settings, cache, pipeline=True, layout=config.model_layout)


def fetch_model(
    reference: str, settings: StorageSettings, cache: Path, *, pipeline: bool, layout: str | None = None
) -> Path:
    """The model's folder on this node.

    Args:
        reference: hub id (`name/model` or `name/model@revision`), local folder, or `s3://bucket/prefix`; a pipeline
            also as one .safetensors file, a path or `s3://bucket/key`.
        settings: how to reach the object store.
        cache: where downloads from an object store go; one folder per run, so that a changed prefix is seen.
        pipeline: a diffusers pipeline (only the files it loads are fetched) or a single transformers model.
        layout: of a single file, see `jobs.models.staged_file`; of a folder it has no effect.

    Raises:
        ConfigError: a single file without a layout.
        ModelError: no such model, one without safetensors, or one that differs from its SHA256SUMS; a single file that
            is not a model of its layout.
        StorageError: the object store can't be read.
    """
    if pipeline and is_single_file(reference):
        return folder_from_file(reference, layout, settings, cache)
    _refuse_single_file(reference)
    if reference.startswith("s3://"):
        folder = _download(reference, settings, cache)
    elif Path(reference).is_dir():
        folder = Path(reference).resolve()
        verify_folder(folder, reference)
    else:
        folder = from_hub(reference, pipeline=pipeline, patience_s=settings.patience_s)
    marker = "model_index.json" if pipeline else "config.json"
    if not (folder / marker).is_file():
        if (folder / MIXTURE_INDEX).is_file():
            _refuse_mixture(reference, folder)
        raise ModelError(
            f"{reference}: no {marker} there; give the folder, prefix or hub id of a "
            f"{'diffusers pipeline' if pipeline else 'transformers classifier'}"
        )
    if not any(folder.rglob("*.safetensors")):
        raise ModelError(
            f"{reference}: holds no safetensors, and pickled weights (.bin, .ckpt) are never opened. "
            f"{pickled_advice(pipeline=pipeline, model=None if pipeline else class_named(folder))}"
        )
    return folder


def _refuse_mixture(reference: str, folder: Path) -> None:
    """A mixture where one model is asked for, with the ways to what it holds."""
    parts = sorted(file.parent.relative_to(folder).as_posix() for file in folder.glob("components/*/model_index.json"))
    where = reference.rstrip("/")
    one = f"; to audit one of them, give {' or '.join(f'{where}/{part}' for part in parts)}" if parts else ""
    raise ModelError(
        f"{reference} is a mixture: several models, and a route between them. To audit all of it, give its base model, "
        f"and {where}/mixture.safetensors as audit.operator{one}"
    )


def _refuse_single_file(reference: str) -> None:
    """A model that is one file, with the way to a folder."""
    suffix = Path(reference).suffix.lower()
    if Path(reference).is_dir() or suffix not in (*PICKLED, ".safetensors"):
        return
    never = ", and a pickled one: opening it can run code" if suffix in PICKLED else ""
    raise ModelError(
        f"{reference} is a single file{never}. Jobs take folders; make one"
        f"{' on a machine that may be lost' if never else ''}: "
        "python -c \"import diffusers; diffusers.StableDiffusionPipeline.from_single_file('FILE')"
        ".save_pretrained('FOLDER', safe_serialization=True)\""
    )


def _download(url: str, settings: StorageSettings, cache: Path) -> Path:
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            store = open_store(url, settings)
            tags = _tags(store)
            store.download_folder("", partial)
            if _tags(store) != tags:
                raise StorageError(f"{url} changes while it is read; try again once it is whole", url, retriable=True)
            verify_folder(partial, url)
            _note_of(folder).write_text(json.dumps({"url": url, "tags": tags}), encoding="utf-8")
            partial.rename(folder)
    return folder


def _tags(store: ObjectStore) -> dict[str, str]:
    return {name: store.stat(name).tag for name in store.list()}


def age_out(used: Path, days: float = 7.0) -> None:
    """Remove what earlier runs have left beside this run's folder on this node, once nobody has used it for days."""
    used.mkdir(parents=True, exist_ok=True)
    os.utime(used)
    for folder in used.parent.iterdir():
        with suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > days * 86_400:
                shutil.rmtree(folder, ignore_errors=True)


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, float16 on one that has not, float32 on a CPU."""
    import torch

    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def cache_folder() -> Path:
    """Where a node keeps models that came from an object store: `EVENHAND_CACHE`, or the user's cache folder."""
    given = os.environ.get("EVENHAND_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenhand"
