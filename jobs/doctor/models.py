"""Trying the models: staged as a worker stages them, opened, and given a prompt. No image is drawn."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from infra.storage import ObjectStore, StorageError, StorageSettings, open_store
from jobs.cells import check_held_out
from jobs.config import RunConfig
from jobs.doctor.schema import Finding, tried
from jobs.inputs import read_bytes, read_inputs
from jobs.judging import models_of, stage_classifiers
from jobs.models import cache_folder, load_tokenizers, safetensors_header, stage, weight_files, weight_variant
from jobs.panel import Panel, check_panel
from jobs.weights import check_pipeline
from manifests import read_manifest
from time_ops import ModelError

__all__ = ["check_manifest", "check_models", "disk", "hub", "is_on_hub", "weights_of"]

UNGIVEN = "-"
"""In place of a key of the configuration that was not given: nothing of it is tried."""

_PROMPT = "A photo of a CEO"
_EDITED = ".attn2.to_v.weight"


def is_on_hub(reference: str) -> bool:
    """Whether a model is neither under an s3:// prefix nor in a folder of this machine."""
    return not reference.startswith("s3://") and not Path(reference).is_dir()


def check_models(config: RunConfig, settings: StorageSettings, token: str) -> Iterator[Finding]:
    """Try model and classifier, where they are given.

    Args:
        config: names them.
        settings: how to reach the object store.
        token: names the folder below `cache_folder` where they are staged to; the caller removes it.
    """
    given = [reference for reference in (config.model, *models_of(config)) if reference != UNGIVEN]
    if not given:
        return
    room = tried("storage", "cache folder", lambda: _room(given, settings))
    yield room
    yield hub(given, os.environ)
    if room.outcome == "fault":
        return
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    cache = cache_folder() / token
    if config.model != UNGIVEN:
        folders: list[Path] = []

        def model() -> str:
            folder = stage(config.model, settings, cache, pipeline=True)
            check_pipeline(folder, safety_checker=config.sampler.safety_checker)
            kinds = weights_of(folder, left_out=() if config.sampler.safety_checker else ("safety_checker",))
            folders.append(folder)
            return kinds

        yield tried("model", "model", model)
        if folders:
            yield tried("model", "tokenizer", lambda: _tokenizes(folders[0]))
            yield tried("model", "text encoder", lambda: _encodes(folders[0]))
    if config.classifier != UNGIVEN:
        yield tried("model", "classifier", lambda: _classifies(config, settings, cache))


def check_manifest(config: RunConfig, settings: StorageSettings, token: str, *, has_model: bool) -> Finding:
    """Read the manifest as a run would; with a model, also against its tokenizers."""

    def read() -> str:
        if has_model:
            found = read_inputs(config, settings, token)
        else:
            name = config.manifest.rpartition("/")[2]
            found = read_manifest(read_bytes(config.manifest, settings), name=name, labels=tuple(config.attribute))
        check_held_out(found, config)
        checked = "" if has_model else "; lengths of prompts not checked, for want of a model"
        return f"{len(found.professions)} professions{checked}"

    return tried("input", "manifest", read)


def disk(free: int, needed: int | None, where: Path) -> Finding:
    """Whether the cache folder's disk holds what is to be staged; `needed` bytes, None where that is nothing."""
    found = f"{where} has {free / 1e9:.1f} GB free"
    if needed is None:
        found += "; nothing of this run goes there"
    else:
        found += f"; the models in the store have {needed / 1e9:.1f} GB, once for each run on this node"
    fault = needed is not None and free < needed
    tight = not fault and needed is not None and free < 2 * needed
    return Finding.model_validate(
        {
            "area": "storage",
            "check": "cache folder",
            "outcome": "fault" if fault else "warning" if tight else "ok",
            "found": found,
            "mend": "Make room, or set EVENHAND_CACHE to a larger disk; on the workers' nodes likewise."
            if fault or tight
            else "",
        }
    )


def hub(references: list[str], environment: Any) -> Finding:
    """Whether workers will ask a model hub.

    Args:
        references: models.
        environment: variables, of which those of the hub's client are read; a token is never shown.
    """
    asked = [reference for reference in references if is_on_hub(reference)]
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found, mend = "not needed", ""
    if asked:
        token = "with" if environment.get("HF_TOKEN") else "without"
        source = "the cache alone (HF_HUB_OFFLINE)" if offline else f"the hub, {token} a token"
        found = f"{', '.join(asked)} from {source}, on every node"
        mend = (
            "See that the cache of every node has them, or keep them under an s3:// prefix (`evenhand stage`)."
            if offline
            else "Keep them under an s3:// prefix (`evenhand stage`): then no worker depends on the hub."
        )
    return Finding.model_validate(
        {
            "area": "model",
            "check": "model hub",
            "outcome": "warning" if asked else "ok",
            "found": found,
            "mend": mend,
        }
    )


def weights_of(folder: Path, left_out: tuple[str, ...] = ()) -> str:
    """What a pipeline's folder holds: dtypes of the UNet and how many projections of it an edit would change.

    Args:
        folder: the pipeline.
        left_out: components that are not loaded.

    Raises:
        ModelError: a file can't be read, or there is nothing to edit.
    """
    dtypes: Counter[str] = Counter()
    edited = size = 0
    for part in sorted(each for each in folder.iterdir() if each.is_dir() and each.name not in left_out):
        for file in weight_files(part):
            size += file.stat().st_size
            try:
                # Opened by the library first: it refuses headers that lie about the file.
                with safe_open(file, "np"), file.open("rb") as stream:
                    header, _ = safetensors_header(stream)
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{part.name}/{file.name} can't be read: {error}. Fetch the model again.") from error
            if part.name == "unet":
                dtypes.update(entry["dtype"] for name, entry in header.items() if name != "__metadata__")
                edited += sum(name.endswith(_EDITED) for name in header)
    if not edited:
        raise ModelError("the UNet has no cross-attention projections, so nothing to edit. Give another model.")
    kinds = ", ".join(sorted(dtypes))
    return f"opens: {size / 1e9:.2f} GB, UNet in {kinds}, {edited} layers of cross-attention"


def _room(references: list[str], settings: StorageSettings) -> Finding:
    stores = [open_store(reference, settings) for reference in references if reference.startswith("s3://")]
    where = cache_folder()
    there = next(each for each in (where, *where.parents) if each.exists())
    needed = sum(map(_size, stores)) if stores else None
    return disk(shutil.disk_usage(there).free, needed, where)


def _size(store: ObjectStore) -> int:
    names = list(store.list())
    if not names:
        raise StorageError(f"{store.url()}: no object is below it. Correct the URL.", store.url())
    return sum(store.stat(name).size for name in names)


def _tokenizes(folder: Path) -> str:
    found = load_tokenizers(folder)
    lengths = [len(tokenizer(_PROMPT)["input_ids"]) for tokenizer in found]
    return f"reads {lengths[0]} tokens of {found[0].model_max_length} in {_PROMPT!r}"


def _encodes(folder: Path) -> str:
    (tokenizer, *_) = load_tokenizers(folder)
    try:
        encoder: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            variant=weight_variant(folder / "text_encoder"),
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(f"the text encoder can't be loaded: {error}") from error
    length = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
    inputs = tokenizer(_PROMPT, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        embeddings = encoder(inputs["input_ids"])[0]
    if not bool(torch.isfinite(embeddings).all()):
        raise ModelError("the text encoder's embeddings are not finite. Fetch the model again.")
    return f"encodes it into {length} x {embeddings.shape[-1]}, all finite"


def _classifies(config: RunConfig, settings: StorageSettings, cache: Path) -> str:
    folders = stage_classifiers(config, settings, cache)
    check_panel(config, folders)
    panel = Panel(config, folders, torch.device("cpu"))
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    if not (np.isfinite(panel.encoder.texts([_PROMPT])).all() and np.isfinite(panel.images(grey)).all()):
        raise ModelError("the classifier's embeddings are not finite. Fetch it again.")
    others = len(folders) - 1
    also = f"; {panel.width} numbers an image with {others} more model{'s'[: others != 1]}" if others else ""
    return f"opens: embeds texts and images into {panel.encoder.width} dimensions{also}"
