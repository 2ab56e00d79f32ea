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
from transformers.utils import logging as transformers_logging

from infra.storage import StorageError, StorageSettings, open_store
from jobs.config import RunConfig
from jobs.doctor.schema import Finding, run_check
from jobs.evaluation.inputs import read_edits
from jobs.images.cells import check_held_out
from jobs.images.judging import fetch_classifiers, models_of
from jobs.images.panel import Panel, check_panel
from jobs.models.files import (
    components_of,
    denoiser_folder,
    is_single_file,
    load_tokenizers,
    safetensors_header,
    weight_files,
    weight_variant,
)
from jobs.models.names import JOINT, POOLED
from jobs.models.sampling import check_sampler
from jobs.models.staging import cache_folder, fetch_run_model
from jobs.models.weights import check_pipeline, component_class
from jobs.runs.inputs import read_bytes, read_inputs
from manifests import read_edit_set, read_manifest
from time_ops import ModelError

__all__ = ["check_edit_set", "check_manifest", "check_models", "disk", "hub", "is_on_hub", "weights_of"]

UNGIVEN = "-"
"""In place of a key of the configuration that was not given: nothing of it is tried."""

_PROMPT = "A photo of a CEO"
_EDITED = ".attn2.to_v.weight"
_UNMEASURED = "; lengths of prompts not checked, for want of a model"
_CONTEXT = "one layer of the token states"


def is_on_hub(reference: str) -> bool:
    """Whether a model is neither in an object store nor on this machine."""
    return not reference.startswith("s3://") and not Path(reference).is_dir() and not is_single_file(reference)


def check_models(config: RunConfig, settings: StorageSettings, token: str) -> Iterator[Finding]:
    """Try model and classifier, where they are given.

    Args:
        config: names them.
        settings: how to reach the object store.
        token: names the folder below `cache_folder` where they are staged to; the caller removes it.
    """
    layout = config.model_layout if is_single_file(config.model) else None
    named = (config.model, layout, *models_of(config))
    given = [each for each in named if each is not None and each != UNGIVEN]
    if not given:
        return
    room = run_check("storage", "cache folder", lambda: _room(given, settings))
    yield room
    yield hub(given, os.environ)
    if room.outcome == "fault":
        return
    transformers_logging.disable_progress_bar()
    cache = cache_folder() / token
    if config.model != UNGIVEN:
        folders: list[Path] = []

        def model() -> str:
            folder = fetch_run_model(config, settings, cache)
            check_pipeline(folder, safety_checker=config.sampler.safety_checker)
            check_sampler(folder, config.sampler)
            kinds = weights_of(folder, left_out=() if config.sampler.safety_checker else ("safety_checker",))
            folders.append(folder)
            return kinds

        yield run_check("model", "model", model)
        if folders:
            yield run_check("model", "tokenizer", lambda: _tokenizes(folders[0]))
            yield run_check("model", "text encoder", lambda: _encodes(folders[0]))
    if config.classifier != UNGIVEN:
        yield run_check("model", "classifier", lambda: _classifies(config, settings, cache))


def check_manifest(config: RunConfig, settings: StorageSettings, token: str, *, has_model: bool) -> Finding:
    """Read the manifest as a run would; with a model, also against its tokenizers."""

    def read() -> str:
        if has_model:
            manifest = read_inputs(config, settings, token)
        else:
            name = config.manifest.rpartition("/")[2]
            manifest = read_manifest(read_bytes(config.manifest, settings), name=name, labels=tuple(config.attribute))
        check_held_out(manifest, config)
        return f"{len(manifest.professions)} professions{'' if has_model else _UNMEASURED}"

    return run_check("input", "manifest", read)


def check_edit_set(config: RunConfig, settings: StorageSettings, token: str, *, has_model: bool) -> Finding:
    """As `check_manifest`, of what an evaluation reads in its place."""

    def read() -> str:
        if has_model:
            return read_edits(config, settings, token).summary
        edit_set = read_edit_set(read_bytes(config.manifest, settings), name=config.manifest.rpartition("/")[2])
        return f"{len(edit_set.edits)} edits{_UNMEASURED}"

    return run_check("input", "edit set", read)


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
    """What a pipeline's folder holds: dtypes of the UNet or transformer and how many layers of it an edit would change.

    Args:
        folder: the pipeline.
        left_out: components that are not loaded.

    Raises:
        ModelError: a file can't be read, or there is nothing to edit.
    """
    dtypes: Counter[str] = Counter()
    edited = size = pooled = 0
    denoiser = denoiser_folder(folder).name
    for part in sorted(each for each in folder.iterdir() if each.is_dir() and each.name not in left_out):
        for file in weight_files(part):
            size += file.stat().st_size
            try:
                # Opened by the library first: it refuses headers that lie about the file.
                with safe_open(file, "np"), file.open("rb") as stream:
                    header, _ = safetensors_header(stream)
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{part.name}/{file.name} can't be read: {error}. Fetch the model again.") from error
            if part.name == denoiser:
                dtypes.update(entry["dtype"] for name, entry in header.items() if name != "__metadata__")
                edited += sum(name.endswith(_EDITED) or name == JOINT[0] for name in header)
                pooled += sum(name in (POOLED, JOINT[1]) for name in header)
    if not edited:
        raise ModelError(f"the {denoiser} has no layers that read the text, so nothing to edit. Give another model.")
    kinds = ", ".join(sorted(dtypes))
    also = " and one of the pooled embedding" if pooled else ""
    name, layers = ("UNet", f"{edited} layers of cross-attention") if denoiser == "unet" else (denoiser, _CONTEXT)
    return f"opens: {size / 1e9:.2f} GB, {name} in {kinds}, {layers}{also}"


def _room(references: list[str], settings: StorageSettings) -> Finding:
    stored = [reference for reference in references if reference.startswith("s3://")]
    where = cache_folder()
    there = next(each for each in (where, *where.parents) if each.exists())
    needed = sum(_size(reference, settings) for reference in stored) if stored else None
    return disk(shutil.disk_usage(there).free, needed, where)


def _size(reference: str, settings: StorageSettings) -> int:
    if is_single_file(reference):
        # It is there as a file and as the folder that is made of it, for a while.
        place, _, name = reference.rpartition("/")
        return 2 * open_store(place, settings).stat(name).size
    store = open_store(reference, settings)
    names = list(store.list())
    if not names:
        raise StorageError(f"{store.url()}: no object is below it. Correct the URL.", store.url())
    return sum(store.stat(name).size for name in names)


def _tokenizes(folder: Path) -> str:
    tokenizers = load_tokenizers(folder)
    lengths = [len(tokenizer(_PROMPT)["input_ids"]) for tokenizer in tokenizers]
    return f"reads {lengths[0]} tokens of {tokenizers[0].model_max_length} in {_PROMPT!r}"


def _encodes(folder: Path) -> str:
    sizes, parts = [], components_of(folder)
    encoders = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if name in parts]
    for name, tokenizer in zip(encoders, load_tokenizers(folder), strict=False):
        # CLIP with a projection gives a pooled embedding too.
        kind = component_class(*parts[name])
        part, said = folder / name, name.replace("_", " ")
        try:
            encoder = kind.from_pretrained(
                part, variant=weight_variant(part), use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ModelError(f"the {said} can't be loaded: {error}") from error
        length = int(tokenizer.model_max_length)
        length = min(length, int(getattr(encoder.config, "max_position_embeddings", length)))
        inputs = tokenizer(_PROMPT, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            made = encoder(inputs["input_ids"])
        pooled = getattr(made, "text_embeds", None)
        if not all(bool(torch.isfinite(each).all()) for each in (made.last_hidden_state, pooled) if each is not None):
            raise ModelError(f"the {said}'s embeddings are not finite. Fetch the model again.")
        also = "" if pooled is None else f" and one pooled vector of {pooled.shape[-1]}"
        sizes.append(f"{length} x {made.last_hidden_state.shape[-1]}{also}")
    return f"encodes it into {', '.join(sizes)}, all finite"


def _classifies(config: RunConfig, settings: StorageSettings, cache: Path) -> str:
    folders = fetch_classifiers(config, settings, cache)
    check_panel(config, folders)
    panel = Panel(config, folders, torch.device("cpu"))
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    if not (np.isfinite(panel.encoder.texts([_PROMPT])).all() and np.isfinite(panel.images(grey)).all()):
        raise ModelError("the classifier's embeddings are not finite. Fetch it again.")
    others = len(folders) - 1
    also = f"; {panel.width} numbers an image with {others} more model{'s'[: others != 1]}" if others else ""
    return f"opens: embeds texts and images into {panel.encoder.width} dimensions{also}"
