"""A model kept in the object store, for clusters that reach no model hub: published once, whole, with checksums.

Workers load it from there (`jobs.models.stage`), each node once per run, behind a lock, checked against SHA256SUMS.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from infra.storage import StorageSettings, open_store
from jobs.errors import ConfigError
from jobs.exports.publishing import publish
from jobs.models import check_kind, content_digest, stage
from time_ops import ModelError

__all__ = ["Kept", "is_pickled", "stage_to"]

# What loading opens, and the model's own card with its licence.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".md")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Kept:
    """What was kept.

    Attributes:
        url: where.
        files: how many.
        size: of all of them, in bytes.
        digest: of the model's content, as reports name it; see `content_digest`.
    """

    url: str
    files: int
    size: int
    digest: str


def stage_to(reference: str, target: str, *, pipeline: bool) -> Kept:
    """Publish a model under a prefix. Pickled weights and other files that are never opened stay behind.

    Args:
        reference: hub id, local folder or s3:// prefix.
        target: s3:// prefix or folder, of this model alone: what else is in it is deleted.
        pipeline: a diffusers pipeline, not a CLIP model.

    Raises:
        ConfigError: the target is a bucket without a prefix, or holds something that is no model.
        ModelError: no such model, or one without safetensors.
        StorageError: the store refuses or fails.
    """
    settings = StorageSettings.from_environment()
    main = "model_index.json" if pipeline else "config.json"
    above, _, name = target.rstrip("/").rpartition("/")
    if not name or above.endswith(("/", ":")):
        raise ConfigError(f"{target}: give a prefix of the model's own, s3://bucket/models/NAME")
    store = open_store(above, settings)
    there = set(store.list(name))
    if there and f"{name}/{main}" not in there and f"{name}/SHA256SUMS" not in there:
        raise ConfigError(f"{target} holds {len(there)} objects and is no model; give a prefix that is empty")
    with tempfile.TemporaryDirectory(prefix="evenhand-") as cache:
        folder = stage(reference, settings, Path(cache), pipeline=pipeline)
        if pipeline:
            check_kind(folder)
        files = {
            file.relative_to(folder).as_posix(): file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.suffix in _SUFFIXES and not _is_hidden(file.relative_to(folder))
        }
        unread = [part.name for part in folder.iterdir() if part.is_dir() and is_pickled(part)]
        if unread:
            raise ModelError(
                f"{reference}: {', '.join(sorted(unread))} has pickled weights alone, which are never opened. Save the "
                "model again with safe_serialization=True on a machine that you trust with it."
            )
        publish(files, store, name, main=main)
        size = sum(file.stat().st_size for file in files.values())
        return Kept(store.url(name), len(files), size, content_digest(folder))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_pickled(part: Path) -> bool:
    """Whether a component's folder has pickled weights and no safetensors."""
    return not any(part.glob("*.safetensors")) and any(file.suffix in _PICKLED for file in part.iterdir())
