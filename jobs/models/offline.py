"""A model kept in the object store, for clusters that reach no model hub: published once, whole, with checksums.

Workers load it from there (`jobs.models.staging`), each node once per run, behind a lock, checked against SHA256SUMS.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from infra.storage import StorageSettings, open_store
from jobs.errors import ConfigError
from jobs.models.classifier_kinds import image_ending
from jobs.models.digests import content_digest
from jobs.models.publishing import publish
from jobs.models.staging import fetch_model

__all__ = ["Kept", "publish_model"]

# What loading opens, and the model's own card with its licence.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".md")


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


def publish_model(reference: str, target: str, *, pipeline: bool, layout: str | None = None) -> Kept:
    """Publish a model under a prefix. Pickled weights and other files that are never opened stay behind.

    Args:
        reference: hub id, local folder or s3:// prefix.
        target: s3:// prefix or folder, of this model alone: what else is in it is deleted.
        pipeline: a diffusers pipeline, not a classifier.
        layout: of a single file, see `jobs.models.staging.fetch_model`.

    Raises:
        ConfigError: the target is a bucket without a prefix, or holds something that is no model.
        ModelError: no such model, one without safetensors, or one whose files are not what its configuration says.
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
        folder = fetch_model(reference, settings, Path(cache), pipeline=pipeline, layout=layout)
        # It brings torch and diffusers, which importing this module need not.
        from jobs.models.weights import check_classifier, check_image_model, check_pipeline

        if not pipeline and (ending := image_ending(folder)) is not None:
            check_image_model(folder, ending)
        else:
            (check_pipeline if pipeline else check_classifier)(folder)
        files = {
            file.relative_to(folder).as_posix(): file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.suffix in _SUFFIXES and not _is_hidden(file.relative_to(folder))
        }
        publish(files, store, name, main=main)
        size = sum(file.stat().st_size for file in files.values())
        return Kept(store.url(name), len(files), size, content_digest(folder))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
