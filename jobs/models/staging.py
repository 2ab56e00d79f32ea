"""Models by hub id, local folder or `s3://` prefix: brought to this node and identified by their tensors.

Only safetensors are ever opened, and no code that comes with a model is run. Neither torch nor diffusers is imported
here: a plan reads models in a small process. Pipelines are loaded by `jobs.models.pipelines`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock
from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open

from infra.storage import ObjectStore, StorageError, StorageSettings, open_store
from infra.storage.patience import patiently
from jobs.models.checksums import verify_folder
from jobs.models.classifier_kinds import class_named
from time_ops.errors import ModelError
from time_ops.files import json_of

if TYPE_CHECKING:
    import torch

    from jobs.config import RunConfig

__all__ = [
    "UNMADE",
    "Origin",
    "Staged",
    "age_out",
    "cache_folder",
    "components_of",
    "content_digest",
    "from_hub",
    "is_pickled",
    "is_single_file",
    "load_tokenizers",
    "origin_of",
    "pickled_advice",
    "resolve_dtype",
    "safetensors_header",
    "stage",
    "stage_model",
    "staged_from",
    "variant_of",
    "weight_files",
    "weight_variant",
]

UNMADE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError),
    *(SafetensorError, StrictDataclassError),
)
"""What the libraries raise of a configuration that makes no model: a list too short, a width of zero, a null."""
_READ_BYTES = 1 << 20
_MOST_HEADER_BYTES = 100_000_000
"""As the format's own library has it."""
_TEXT_SUFFIXES = (".json", ".txt", ".model")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# What transformers and diffusers call a component's weights: model[.VARIANT][-00001-of-00002].safetensors. Earlier
# versions wrote the variant behind the shard's number.
_WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.(\w+))?(?:-\d{5}-of-\d{5})?(?:\.(\w+))?\.safetensors")
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_VARIANTS = (".fp16", ".bf16", ".non_ema", ".ema")
# Written by the library that saved the folder; they say nothing of the model.
_PROVENANCE_KEYS = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")


_CARD = "README.md"
# Of components, which are folders of the model, and of the libraries and classes that read them.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*", re.ASCII)


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
        card = (folder / _CARD).read_text(encoding="utf-8")
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
    """Where `stage` downloaded this folder from; None where it did not."""
    note = _note_of(folder)
    return Staged(**json.loads(note.read_text(encoding="utf-8"))) if note.is_file() else None


def _note_of(folder: Path) -> Path:
    """Beside the folder: in it, it would be part of the model."""
    return folder.with_suffix(".source.json")


def is_single_file(reference: str) -> bool:
    """Whether a model is named as one .safetensors file, here or in a store, and no folder."""
    return reference.lower().endswith(".safetensors") and not Path(reference).is_dir()


def stage_model(config: RunConfig, settings: StorageSettings, cache: Path) -> Path:
    """The folder of a run's model on this node; see `stage`."""
    return stage(config.model, settings, cache, pipeline=True, layout=config.model_layout)


def stage(reference: str, settings: StorageSettings, cache: Path, *, pipeline: bool, layout: str | None = None) -> Path:
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
        from jobs.models.staged_file import folder_from_file  # which needs this module

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


def _refuse_single_file(reference: str) -> None:
    """A model that is one file, with the way to a folder."""
    suffix = Path(reference).suffix.lower()
    if Path(reference).is_dir() or suffix not in (*_PICKLED, ".safetensors"):
        return
    never = ", and a pickled one: opening it can run code" if suffix in _PICKLED else ""
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


def from_hub(reference: str, *, pipeline: bool, patience_s: float, patterns: Sequence[str] = _HUB_FILES) -> Path:
    """A hub's model in its cache on this node.

    Args:
        reference: `name/model` or `name/model@revision`.
        pipeline: see `stage`.
        patience_s: how long to try again while the hub is away.
        patterns: what to fetch of what is no pipeline.

    Raises:
        ModelError: no such model, or it can't be reached.
        StorageError: the hub is away.
    """
    name, _, revision = reference.partition("@")

    def fetch() -> Any:
        try:
            if pipeline:
                # It knows which files a pipeline needs, and costs 200 MB: only who names a hub model pays.
                from diffusers import DiffusionPipeline

                folder = DiffusionPipeline.download(name, revision=revision or None, use_safetensors=True)
                # No file that a pipeline needs: a model without one, or a hub that is away by now, is no fault.
                with suppress(HfHubHTTPError, OSError, ValueError):
                    hf_hub_download(name, _CARD, revision=Path(folder).name)
                return folder
            return snapshot_download(name, revision=revision or None, allow_patterns=[*patterns])
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not is_offline_mode() and (status is None or status == 429 or status >= 500):
                raise StorageError(f"{type(error).__name__}: {error}", retriable=True) from error
            raise

    try:
        found = patiently(fetch, patience_s)
    except HFValidationError as error:
        raise ModelError(f"{reference!r} is neither a folder, nor an s3:// prefix, nor a hub id") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{reference}: there is no such folder here, and the model hub did not give it ({error}); "
            "correct the name, or stage the model in a folder or under an s3:// prefix"
        ) from error
    return Path(found)


def age_out(used: Path, days: float = 7.0) -> None:
    """Remove what earlier runs have left beside this run's folder on this node, once nobody has used it for days."""
    used.mkdir(parents=True, exist_ok=True)
    os.utime(used)
    for folder in used.parent.iterdir():
        with suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > days * 86_400:
                shutil.rmtree(folder, ignore_errors=True)


def content_digest(folder: Path) -> str:
    """sha256 over a model's tensors and configuration: the same wherever and under whatever name the model lies.

    Hashed are tensor names, dtypes, shapes and bytes in the order of their names, however the files are split, and
    configuration and tokenizer files without the lines that the saving library adds.

    Raises:
        ModelError: a file is truncated or not safetensors.
    """
    sha = hashlib.sha256()
    for part in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
        name = part.relative_to(folder).as_posix()
        if any(piece.startswith(".") for piece in part.relative_to(folder).parts):
            continue
        for file in sorted(p for p in part.iterdir() if p.suffix in _TEXT_SUFFIXES):
            if not file.name.endswith(".index.json"):
                sha.update(f"{name}/{file.name}\0".encode() + _text_content(file) + b"\0")
        _hash_tensors(name, sorted(part.glob("*.safetensors")), sha)
    return sha.hexdigest()


def _text_content(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".json":
        try:
            content = json_of(data)
        except ValueError as error:
            raise ModelError(f"{file.name} is not JSON: {error}") from error
        if isinstance(content, dict):
            content = {k: v for k, v in content.items() if k not in _PROVENANCE_KEYS}
        return json.dumps(content, sort_keys=True).encode()
    return data


def _hash_tensors(component: str, files: list[Path], sha: Any) -> None:
    default = [f for f in files if not any(v in f.name for v in _VARIANTS)]
    where: dict[str, tuple[Path, dict[str, Any], int]] = {}
    for file in default or files:
        try:
            # Opened by the library first: it refuses headers that lie about the file.
            with safe_open(file, "np"), file.open("rb") as stream:
                header, data_at = safetensors_header(stream)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{component}/{file.name} can't be read: {error}; fetch the model again") from error
        where |= {name: (file, entry, data_at) for name, entry in header.items() if name != "__metadata__"}
    for name in sorted(where):
        file, entry, data_at = where[name]
        sha.update(f"{component}:{name}:{entry['dtype']}:{tuple(entry['shape'])}\0".encode())
        begin, end = entry["data_offsets"]
        with file.open("rb") as stream:
            stream.seek(data_at + begin)
            left = end - begin
            while left:
                piece = stream.read(min(left, _READ_BYTES))
                if not piece:
                    raise ModelError(f"{component}/{file.name} can't be read: it ends early; fetch the model again")
                sha.update(piece)
                left -= len(piece)


def safetensors_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, `__metadata__` among its entries, and where its tensors' bytes begin.

    Raises:
        ValueError: there is none.
    """
    size = int.from_bytes(stream.read(8), "little")
    if size > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {size:,} bytes, {_MOST_HEADER_BYTES:,} are read at most")
    header = json_of(stream.read(size))
    if not isinstance(header, dict):
        raise ValueError("the header is no mapping")
    return header, 8 + size


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, float16 on one that has not, float32 on a CPU."""
    import torch

    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def is_pickled(part: Path) -> bool:
    """Whether a component's folder has pickled weights and no safetensors."""
    return not any(part.glob("*.safetensors")) and any(file.suffix in _PICKLED for file in part.iterdir())


def pickled_advice(*, pipeline: bool, model: str | None = None) -> str:
    """The way out, for who has pickled weights alone.

    Args:
        pipeline: of a pipeline; else of a classifier.
        model: the classifier's class in transformers; None: a CLIP model.
    """
    load = "('OLD', use_safetensors=False).save_pretrained('NEW', safe_serialization=True)"
    kind = model or "CLIPModel"
    reader = "CLIPProcessor" if kind == "CLIPModel" else "AutoProcessor"
    if kind.endswith(("ForImageClassification", "ForObjectDetection")):
        reader = "AutoImageProcessor"
    code = (
        f"from diffusers import StableDiffusionPipeline as P; P.from_pretrained{load}"
        if pipeline
        else f"from transformers import {kind} as M, {reader} as P; M.from_pretrained{load}; "
        "P.from_pretrained('OLD').save_pretrained('NEW')"
    )
    return (
        "Opening them can run code: convert them on a machine that may be lost, and give the new folder. "
        f'python -c "{code}"'
    )


def _variants(names: Iterable[str]) -> dict[str | None, list[str]]:
    """A component's weights by their variant, None for those without; other files are no weights that would load."""
    found: dict[str | None, list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name)
        if match:
            found.setdefault(match[1] or match[2], []).append(name)
    return found


def _names(part: Path) -> list[str]:
    return [file.name for file in part.glob("*.safetensors")]


def variant_of(names: Iterable[str], where: str) -> str | None:
    """Which variant of a component's weights is loaded: None, the plain ones, where there are such; else the only one.

    Args:
        names: the component's files.
        where: its name, for a message.

    Raises:
        ModelError: there are several variants, and no plain weights.
    """
    found = _variants(names)
    if None in found or not found:
        return None
    if len(found) > 1:
        held = ", ".join(str(variant) for variant in found)
        raise ModelError(f"{where}/ holds several variants ({held}) and no default: keep one")
    return next(iter(found))


def weight_variant(part: Path) -> str | None:
    """Which variant of the weights in a component's folder is loaded; see `variant_of`."""
    return variant_of(_names(part), part.name)


def weight_files(part: Path) -> list[Path]:
    """The safetensors files that a component is loaded from, shards in their order; none where there are none.

    Raises:
        ModelError: see `weight_variant`.
    """
    return [part / name for name in _variants(_names(part)).get(weight_variant(part), [])]


def components_of(folder: Path, *, safety_checker: bool = True) -> dict[str, tuple[str, str]]:
    """What a pipeline's `model_index.json` has loaded: library and class of each component, by its name.

    Args:
        folder: the pipeline.
        safety_checker: whether that is loaded as well.

    Raises:
        ModelError: the file can't be read.
    """
    try:
        index = json_of((folder / "model_index.json").read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"model_index.json can't be read: {error}") from error
    found = {
        name: (str(value[0]), str(value[1]))
        for name, value in index
        if isinstance(value, list) and len(value) == 2 and None not in value
        if safety_checker or name != "safety_checker"
    }
    odd = [text for name, both in found.items() for text in (name, *both) if not _NAME.fullmatch(text)]
    if odd:
        said = ", ".join(repr(text)[:80] for text in odd[:4])
        raise ModelError(f"model_index.json can't be read: no component, library or class is called {said}")
    return found


def load_tokenizers(folder: Path) -> list[Any]:
    """The pipeline's tokenizers alone, of the classes it names, for checking prompts without loading weights.

    Raises:
        ModelError: the folder has none that can be loaded.
    """
    import transformers

    found = []
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).is_dir():
            kind = _component_class(folder, name)
            # AutoTokenizer imports torch; the named class, which the pipeline itself would load, does not.
            named = kind if kind.endswith(("Tokenizer", "TokenizerFast")) else "AutoTokenizer"
            try:
                loader = getattr(transformers, named)
                found.append(loader.from_pretrained(folder / name, local_files_only=True))
            except UNMADE as error:
                raise ModelError(f"the model's {name} can't be loaded: {error}") from error
    if not found:
        raise ModelError("the model has no tokenizer folder; it is no Stable Diffusion pipeline")
    return found


def _component_class(folder: Path, name: str) -> str:
    """The transformers class of one of the pipeline's components, "" where model_index.json names none."""
    try:
        library, kind = components_of(folder)[name]
    except (ModelError, KeyError):
        return ""
    return kind if library == "transformers" else ""


def cache_folder() -> Path:
    """Where a node keeps models that came from an object store: `EVENHAND_CACHE`, or the user's cache folder."""
    given = os.environ.get("EVENHAND_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenhand"
