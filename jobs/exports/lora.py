"""The edit as a LoRA file, which people add to their own copy of the base model.

One file serves all: its names are kohya's, which A1111 and ComfyUI read and diffusers' `load_lora_weights` converts.

Strength 1 is the edit, to the precision of the file's dtype and the rank's stated error. Another strength s gives
W + s W (A - I): 0 the base model, between them a weaker edit on a straight line (not the edit that a larger lam would
have given), above 1 and below 0 an extrapolation that nobody has audited. Only strength 1 was.

Few edits have low rank, at most one direction for each token of their wordings: with `error=0` they come exactly. Where
`A - I` has full rank, as with the 35 shipped professions, what the rank leaves out is in the header, before rounding:
`evenhand.lora_error` relative to the edit, `evenhand.lora_weight_error` relative to the weights. As the file gives it,
rounding included, it is `evenhand.lora_error_stored`. From rank 387 on, for SD 1.x, the edited tensors alone are the
smaller file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.exports.names import is_xl, kohya_names
from jobs.exports.sources import UnetSource, open_unet
from jobs.exports.writing import Written, entries_of, tensor_bytes, write_safetensors
from time_ops import EditError, EditOperator, ModelError
from time_ops.lora import LowRank, truncate

__all__ = ["LoraWritten", "write_lora"]

_SD2_WIDTH = 1024


@dataclass(frozen=True)
class LoraWritten(Written):
    """A LoRA file that was written.

    Attributes:
        rank: Directions that it keeps.
        error: What they leave out, Frobenius over all layers, relative to the edit.
        weight_error: The same relative to the unedited weights.
        stored_error: As `error`, of the numbers in the file, which are rounded to its dtype.

    """

    rank: int
    error: float
    weight_error: float
    stored_error: float


def write_lora(
    unet_folder: Path,
    operator: EditOperator,
    out: Path,
    header: Mapping[str, str],
    *,
    rank: int | None = None,
    error: float = 1e-3,
    dtype: torch.dtype | None = None,
) -> LoraWritten:
    """Write the best LoRA of its rank. Memory: all layers' up matrices, 50 KB per unit of rank for SD 1.x in float16.

    Args:
        unet_folder: `unet/` of the base model's diffusers folder.
        operator: The edit.
        out: Where.
        header: See `jobs.exports.header`.
        rank: Directions to keep; None: as few as keep to `error`.
        error: What may be left out, relative to the edit; 0: nothing above float64's resolution.
        dtype: float32, float16 or bfloat16; None: the base model's (float32 for float64).

    Raises:
        EditError: A bad rank, error or dtype, or an edit that changes nothing.
        ModelError: The base model can't be edited, or the factors overflow their dtype.
        StorageError: The disk is full, or the place can't be written to.

    """
    unet = open_unet(unet_folder, d=operator.d, values_only=operator.values_only)
    if dtype is None:
        dtype = torch.float32 if unet.dtype == torch.float64 else unet.dtype
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise EditError(f"a LoRA is written in float32, float16 or bfloat16, not {dtype}")
    low = truncate(operator, (unet.read(name) for name in unet.names), rank=rank, error=error)
    down, ups, stored = _factors(operator, unet, low, dtype)
    layers = kohya_names(unet.config, unet.names)
    tensors = {f"{layers[name]}.lora_up.weight": up for name, up in ups.items()}
    tensors |= {f"{layer}.lora_down.weight": down for layer in layers.values()}
    # Programs multiply by alpha / rank. In float32: bfloat16 has no 257.
    alpha = torch.tensor(float(low.rank))
    tensors |= {f"{layer}.alpha": alpha for layer in layers.values()}
    entries = entries_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())

    def pieces() -> Iterator[memoryview]:
        for entry in entries:
            yield tensor_bytes(tensors[entry.name])

    metadata = {**header, **_kohya_metadata(unet, low.rank), **_errors(low, stored)}
    size = write_safetensors(out, entries, pieces(), metadata)
    return LoraWritten(out, size, len(layers), low.rank, low.error, low.weight_error, stored)


def _factors(
    operator: EditOperator, unet: UnetSource, low: LowRank, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor], float]:
    """The shared down matrix, every layer's up matrix, both in `dtype`, and the error that they come to."""
    rows = sum(unet.entry(name).shape[0] for name in unet.names)
    # As large in both factors, by powers of two, which round nothing: a weak direction would underflow float16 in one.
    balance = torch.exp2((low.singular_values * (operator.d / rows) ** 0.5).log2().div(2).round())
    down = (low.down * balance[:, None]).to(dtype)
    shift = operator.matrix - torch.eye(operator.d, dtype=torch.float64)
    longest = max(unet.entry(name).shape[0] for name in unet.names)
    # Reused for every layer: made anew, they would leave the allocator with gigabytes that nobody uses.
    wide, changes = (torch.empty(longest, operator.d, dtype=torch.float64) for _ in range(2))
    wide_down = down.double()
    ups: dict[str, torch.Tensor] = {}
    lost = whole = 0.0
    for name in unet.names:
        weight = unet.read(name)
        base, change = wide[: len(weight)].copy_(weight), changes[: len(weight)]
        up = ups[name] = (low.up(base) / balance).to(dtype)
        torch.mm(base, shift, out=change)
        whole += float(torch.linalg.vector_norm(change)) ** 2
        lost += float(torch.linalg.vector_norm(change.addmm_(up.double(), wide_down, alpha=-1))) ** 2
    if not all(bool(torch.isfinite(factor).all()) for factor in (down, *ups.values())):
        raise ModelError(f"the LoRA's factors are not finite in {dtype}; write it in float32")
    return down, ups, (lost / whole) ** 0.5


def _kohya_metadata(unet: UnetSource, rank: int) -> dict[str, str]:
    """What A1111 tells the base model by: without it, it takes every LoRA for one of SD 1.x and hides it elsewhere."""
    second = unet.config.get("cross_attention_dim") == _SD2_WIDTH
    version = "sdxl_base_v1-0" if is_xl(unet.config) else "sd_v2" if second else "sd_v1"
    return {
        "ss_base_model_version": version,
        "ss_network_alpha": str(float(rank)),
        "ss_network_dim": str(rank),
        "ss_network_module": "networks.lora",
        "ss_v2": str(version == "sd_v2"),
    }


def _errors(low: LowRank, stored: float) -> dict[str, str]:
    return {
        "evenhand.lora_error": f"{low.error:.3e}",
        "evenhand.lora_error_stored": f"{stored:.3e}",
        "evenhand.lora_weight_error": f"{low.weight_error:.3e}",
    }
