"""A model that is one .safetensors file: fetched, and made into a diffusers folder once for each run and node.

After that it is a folder like any other: it is digested, checked, loaded and exported as such.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock

from infra.storage import ObjectMissing, StorageSettings, open_store
from jobs.errors import ConfigError
from jobs.models.files import is_single_file
from jobs.models.hub import from_hub
from time_ops.errors import ModelError

__all__ = ["folder_from_file"]

_TEXTS = (".json", ".txt", ".model")


def folder_from_file(reference: str, layout: str | None, settings: StorageSettings, cache: Path) -> Path:
    """The folder of a single file.

    Args:
        reference: the file, a path or `s3://bucket/key`.
        layout: hub id, folder or s3:// prefix of a diffusers pipeline of the same kind: its configuration and tokenizer
            are the model's.
        settings: how to reach the object store.
        cache: where it is made, see `jobs.models.staging.fetch_model`.

    Raises:
        ConfigError: no layout.
        ModelError: no such file or layout, or the file is not a model of it; see `jobs.models.single_file.folder_of`.
        StorageError: the object store can't be read.
    """
    if layout is None:
        raise ConfigError(
            f"{reference} is a single file, which says neither its configuration nor its tokenizer: set model_layout "
            "to the hub id, folder or s3:// prefix of a diffusers model of the same kind, as "
            "model_layout: stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    folder = cache / hashlib.sha256(f"{reference}\0{layout}".encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial, fetched = folder.with_suffix(".partial"), folder.with_suffix(".fetched")
            try:
                _make(reference, layout, settings, fetched, partial)
                partial.rename(folder)
            finally:
                for left in (partial, fetched):
                    shutil.rmtree(left, ignore_errors=True)
    return folder


def _make(reference: str, layout: str, settings: StorageSettings, fetched: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(fetched, ignore_errors=True)
    file, texts = _file(reference, settings, fetched), _layout(layout, settings, fetched / "layout")
    # It brings torch and diffusers, which a model in a folder need not.
    from jobs.models.single_file import folder_of

    folder_of(file, texts, out, reference, layout)


def _file(reference: str, settings: StorageSettings, fetched: Path) -> Path:
    if not reference.startswith("s3://"):
        file = Path(reference).expanduser()
        if not file.is_file():
            raise ModelError(f"there is no file {reference}; correct the path, or put it under an s3:// prefix")
        return file
    place, _, name = reference.rpartition("/")
    store = open_store(place, settings)
    try:
        tag = store.stat(name).tag
        store.download(name, fetched / name)
        if store.stat(name).tag != tag:
            raise ModelError(f"{reference} changes while it is read; try again once it is whole")
    except ObjectMissing as error:
        raise ModelError(f"there is no file {reference}; correct the name, or upload it") from error
    return fetched / name


def _layout(layout: str, settings: StorageSettings, fetched: Path) -> Path:
    if is_single_file(layout):
        raise ModelError(f"model_layout {layout} is a single file too; give the folder of a diffusers model")
    if layout.startswith("s3://"):
        store = open_store(layout, settings)
        for name in store.list():
            if name.endswith(_TEXTS):
                store.download(name, fetched / name)
        return fetched
    if Path(layout).expanduser().is_dir():
        return Path(layout).expanduser()
    patterns = [f"*{suffix}" for suffix in _TEXTS]
    return from_hub(layout, pipeline=False, patience_s=settings.patience_s, patterns=patterns)
