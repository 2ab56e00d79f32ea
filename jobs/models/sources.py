"""Reading what an export is made from: safetensors files, checked before a byte of them is believed.

Pickled checkpoints are refused. A header is believed once the library has found that it describes the file to its last
byte: no tensor beyond the end, none over another, no gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from jobs.models.files import UNMADE, safetensors_header
from jobs.models.names import is_pooled
from time_ops.errors import ModelError
from time_ops.files import json_of

if TYPE_CHECKING:
    from time_ops import EditOperator

__all__ = [
    "DTYPES",
    "DenoiserSource",
    "Entry",
    "SafetensorsSource",
    "open_denoiser",
    "open_edited",
    "open_safetensors",
    "refuse_pickled",
]

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""The dtypes whose weights can be edited, by their names in a header."""

_PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_METADATA = "__metadata__"
_VARIANTS = (".fp16", ".bf16", ".non_ema", ".ema")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "transformer": ("SD3Transformer2DModel", "FluxTransformer2DModel"),
}
"""What may be edited, by its folder."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: its name.
        dtype: in the format's spelling, "F16" and so on.
        shape: its shape.
        begin: first byte, counted from where the tensors begin.
        end: byte after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsSource:
    """A checked safetensors file.

    Attributes:
        path: the file.
        entries: its tensors by name, in the header's order.
        metadata: the header's own metadata.
        data_at: where the tensors' bytes begin.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_at: int

    def read(self, name: str) -> torch.Tensor:
        """Read one weight.

        Raises:
            ModelError: it is stored in a dtype that can't be edited, or the file has changed since it was opened.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ModelError(
                f"{self.path.name}: {name} is stored as {entry.dtype}, a format of quantised weights; "
                f"take a file with the weights in {', '.join(DTYPES)}"
            )
        with self.path.open("rb") as stream:
            stream.seek(self.data_at + entry.begin)
            data = bytearray(stream.read(entry.end - entry.begin))
        if len(data) != entry.end - entry.begin:
            raise ModelError(f"{self.path.name}: it has become shorter since it was opened")
        return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def refuse_pickled(name: str) -> None:
    """Refuse a checkpoint by its name, before it is opened or fetched.

    Raises:
        ModelError: it is a pickled one.
    """
    file = Path(name)
    if file.suffix.lower() in _PICKLED:
        raise ModelError(
            f"{file.name} is a pickled checkpoint: opening it can run code, so it is never opened. Convert it to "
            "safetensors, on a machine that may be lost, with diffusers' StableDiffusionPipeline.from_single_file(...)"
            ".save_pretrained(folder, safe_serialization=True), or take the .safetensors file of the same model"
        )


def open_safetensors(path: Path) -> SafetensorsSource:
    """Open a file and check its header.

    Raises:
        ModelError: a pickled checkpoint, no file, or one that is cut short or tampered with.
    """
    refuse_pickled(path.name)
    if not path.is_file():
        raise ModelError(f"there is no file {path.name}")
    try:
        # Opened by the library first: it refuses headers that lie about the file.
        with safe_open(path, "np"), path.open("rb") as stream:
            header, data_at = safetensors_header(stream)
        # The library takes the last of two tensors of one name, other readers the first.
        with path.open("rb") as stream:
            names = [key for key, _ in json.loads(stream.read(data_at)[8:], object_pairs_hook=list)]
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path.name} is not a whole safetensors file ({error}): cut short in copying, or tampered with; "
            "fetch it again and compare its checksum"
        ) from error
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ModelError.listing(f"{path.name} is tampered with: its header has these names twice:", twice)
    entries = {
        name: Entry(name, value["dtype"], tuple(value["shape"]), *value["data_offsets"])
        for name, value in header.items()
        if name != _METADATA
    }
    return SafetensorsSource(path, entries, header.get(_METADATA) or {}, data_at)


@dataclass(frozen=True)
class DenoiserSource:
    """The entries that read the text, in a diffusers folder's `unet/` or `transformer/`; weights stay on the disk.

    Attributes:
        config: the UNet's or transformer's configuration.
        names: weights that the operator edits, "down_blocks...attn2.to_k.weight" and so on, in the model's order; the
            one that reads the pooled embedding is the last, where that is edited.
        files: the file that holds each.
    """

    config: Mapping[str, Any]
    names: tuple[str, ...]
    files: Mapping[str, SafetensorsSource]

    @property
    def token_names(self) -> tuple[str, ...]:
        """Those of `names` that read token states, [out, d]."""
        return tuple(name for name in self.names if not is_pooled(name))

    @property
    def pooled_name(self) -> str | None:
        """That of `names` which reads the pooled embedding, [out, at least p]; None: it is not edited."""
        return next((name for name in self.names if is_pooled(name)), None)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return DTYPES[self.entry(self.names[0]).dtype]

    def entry(self, name: str) -> Entry:
        """Shape and dtype of one weight."""
        return self.files[name].entries[name]

    def read(self, name: str) -> torch.Tensor:
        """One weight, [out, d]."""
        return self.files[name].read(name)


def open_edited(folder: Path, operator: EditOperator, files: Sequence[Path] | None = None) -> DenoiserSource:
    """Find the weights that an operator edits; the other parameters and the errors are those of `open_denoiser`."""
    pooled = None if operator.pooled is None else operator.pooled.d
    return open_denoiser(folder, d=operator.d, pooled=pooled, values_only=operator.values_only, files=files)


def open_denoiser(
    folder: Path,
    *,
    d: int,
    pooled: int | None = None,
    values_only: bool = False,
    files: Sequence[Path] | None = None,
) -> DenoiserSource:
    """Find the weights that an operator of these widths edits.

    Args:
        folder: `unet/` or `transformer/` of a diffusers folder, sharded or not.
        d: width of the operator.
        pooled: width of its pooled operator; None: it has none, and leaves what reads that embedding alone.
        values_only: whether it leaves the keys alone.
        files: weights of one variant; None: those of the default, or of the only one.

    Raises:
        ModelError: it can't be edited (see `time_ops.surfaces`), or its files are not whole.
    """
    # Only who exports pays for importing it.
    from time_ops.surfaces import text_entries

    config, model = _on_meta(folder)
    entries = text_entries(model, d=d, pooled=pooled, values_only=values_only)
    names = tuple(f"{p.name}.weight" for p in entries if p.kind == "tokens" or pooled is not None)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters() if name in set(names)}
    held: dict[str, SafetensorsSource] = {}
    for path in _weight_files(folder) if files is None else files:
        source = open_safetensors(path)
        held |= dict.fromkeys(source.entries, source)
    faults = [f"{name} is missing" for name in names if name not in held]
    for name in names:
        entry = held[name].entries[name] if name in held else None
        if entry is not None and entry.shape != shapes[name]:
            faults.append(f"{name} has shape {list(entry.shape)}, the configuration promises {list(shapes[name])}")
        if entry is not None and entry.dtype not in DTYPES:
            faults.append(f"{name} is stored as {entry.dtype}, a format of quantised weights")
    if faults:
        raise ModelError.listing(f"the weights in {folder.name}/ do not fit its configuration:", faults[:8])
    return DenoiserSource(config, names, {name: held[name] for name in names})


def _on_meta(folder: Path) -> tuple[Mapping[str, Any], Any]:
    """A configuration and the model that it makes: its layers and their shapes, and no weights (SDXL's take 5 GB)."""
    import diffusers

    try:
        config = json_of((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder.name}/config.json can't be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder.name}/config.json can't be read: it holds no JSON object")
    known = _CLASSES.get(folder.name, _CLASSES["unet"])
    kind = config.get("_class_name", known[0])
    if kind not in known:
        raise ModelError(f"{folder.name}/ holds a {kind}, not a {' or '.join(known)}")
    try:
        with torch.device("meta"):
            return config, getattr(diffusers, kind).from_config(config)
    except UNMADE as error:
        raise ModelError(f"{folder.name}/config.json makes no {kind}: {str(error)[:200]}") from error


def _weight_files(folder: Path) -> list[Path]:
    """The files without a variant's name where there are such, else those of the only variant."""
    files = sorted(folder.glob("*.safetensors"))
    variants = {name: [f for f in files if name in f.name] for name in _VARIANTS}
    plain = [f for f in files if not any(f in parts for parts in variants.values())]
    held = {name: parts for name, parts in variants.items() if parts}
    if plain or len(held) == 1:
        return plain or next(iter(held.values()))
    if not held:
        raise ModelError(f"{folder.name}/ holds no safetensors; save the model with safe_serialization=True")
    raise ModelError(f"{folder.name}/ holds several variants ({', '.join(held)}) and no default: keep one")
