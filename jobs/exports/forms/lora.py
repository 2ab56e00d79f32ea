"""The edit as a LoRA file, which people add to their own copy of the base model.

One file serves all: its names are kohya's, which A1111 and ComfyUI read and diffusers' `load_lora_weights` converts. Of
SD3 and FLUX they are diffusers' own, which ComfyUI reads too.

Strength 1 is the edit, to the precision of the file's dtype and the rank's stated error. Another strength s gives
W + s W (A - I): 0 the base model, between them a weaker edit on a straight line (not the edit that a larger lam would
have given), above 1 and below 0 an extrapolation that nobody has audited. Only strength 1 was.

Few edits have low rank, at most one direction for each token of their wordings: with `error=0` they come exactly. Where
`A - I` has full rank, as with the 35 shipped professions, what the rank leaves out is in the header, before rounding:
`evenhand.lora_error` relative to the edit, `evenhand.lora_weight_error` relative to the weights. As the file gives it,
rounding included, it is `evenhand.lora_error_stored`. From rank 387 on, for SD 1.x, the edited tensors alone are the
smaller file.

SDXL's layer of the pooled embedding has factors of its own, for the pooled operator (`lora_unet_label_emb_0_0`): its
down matrix is 0 where the layer reads sizes. So has that of SD3 and FLUX. Both parts keep to `error`, and the stated
errors are the larger ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jobs.exports.forms.writing import Written, entries_of, tensor_bytes, write_safetensors
from jobs.models.names import family_of, lora_layers, lora_parts
from jobs.models.sources import DenoiserSource, open_edited
from time_ops import EditError, EditOperator, ModelError
from time_ops.lora import LowRank, truncate

__all__ = ["LoraWritten", "low_rank_operator", "write_lora"]

_SD2_WIDTH = 1024


@dataclass(frozen=True)
class LoraWritten(Written):
    """A LoRA file that was written.

    Attributes:
        rank: directions that it keeps.
        error: what they leave out, Frobenius over all layers, relative to the edit.
        weight_error: the same relative to the unedited weights.
        stored_error: as `error`, of the numbers in the file, which are rounded to its dtype.
        pooled_rank: directions that the layer of the pooled embedding keeps; None: it is not edited.
    """

    rank: int
    error: float
    weight_error: float
    stored_error: float
    pooled_rank: int | None = None


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
        unet_folder: `unet/` or `transformer/` of the base model's diffusers folder.
        operator: the edit.
        out: where.
        header: see `jobs.exports.forms.header`.
        rank: directions to keep; None: as few as keep to `error`.
        error: what may be left out, relative to the edit; 0: nothing above float64's resolution.
        dtype: float32, float16 or bfloat16; None: the base model's (float32 for float64).

    Raises:
        EditError: a bad rank, error or dtype, or an edit that changes nothing.
        ModelError: the base model can't be edited, or the factors overflow their dtype.
        StorageError: the disk is full, or the place can't be written to.
    """
    unet = open_edited(unet_folder, operator)
    if dtype is None:
        dtype = torch.float32 if unet.dtype == torch.float64 else unet.dtype
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise EditError(f"a LoRA is written in float32, float16 or bfloat16, not {dtype}")
    low = truncate(operator, (unet.read(name) for name in unet.token_names), rank=rank, error=error)
    down, ups, stored = _factors(operator, unet.token_names, unet, low, dtype)
    parts = {name: (up, down, low.rank) for name, up in ups.items()}
    written = LoraWritten(out, 0, len(unet.names), low.rank, low.error, low.weight_error, stored)
    second = _pooled_low(operator, unet, rank, error)
    if second is not None and operator.pooled is not None and unet.pooled_name is not None:
        down, ups, stored = _factors(operator.pooled, (unet.pooled_name,), unet, second, dtype)
        # What the layer reads behind the pooled embedding is no text.
        behind = unet.entry(unet.pooled_name).shape[1] - operator.pooled.d
        down = torch.nn.functional.pad(down, (0, behind))
        parts[unet.pooled_name] = (ups[unet.pooled_name], down, second.rank)
        written = replace(
            written,
            error=max(written.error, second.error),
            weight_error=max(written.weight_error, second.weight_error),
            stored_error=max(written.stored_error, stored),
            pooled_rank=second.rank,
        )
    tensors = _named(unet, parts)
    entries = entries_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    pieces = (tensor_bytes(tensors[entry.name]) for entry in entries)
    own = _kohya_metadata(unet, low.rank) if _is_kohya(unet) else {}
    return replace(written, size_bytes=write_safetensors(out, entries, pieces, {**header, **own, **_errors(written)}))


def _is_kohya(unet: DenoiserSource) -> bool:
    """Whether programs know the family's layers by kohya's names."""
    return family_of(unet.config) in ("sd", "xl")


def _named(
    unet: DenoiserSource, parts: Mapping[str, tuple[torch.Tensor, torch.Tensor, int]]
) -> dict[str, torch.Tensor]:
    """Up and down factors and ranks, by weight, under the names that programs know."""
    layers, (named_down, named_up) = lora_layers(unet.config, unet.names), lora_parts(unet.config)
    tensors: dict[str, torch.Tensor] = {}
    for name, (up, down, kept) in parts.items():
        tensors |= {f"{layers[name]}.{named_up}": up, f"{layers[name]}.{named_down}": down}
        if _is_kohya(unet):
            # Programs multiply by alpha / rank, by 1 where there is none. In float32: bfloat16 has no 257.
            tensors[f"{layers[name]}.alpha"] = torch.tensor(float(kept))
    return tensors


def low_rank_operator(unet_folder: Path, operator: EditOperator, lora: LoraWritten) -> EditOperator:
    """Give the edit at a LoRA's ranks as an operator: what an audit of the LoRA takes.

    Raises:
        ModelError: the base model is not the one that the LoRA was made of.
    """
    unet = open_edited(unet_folder, operator)
    low = truncate(operator, (unet.read(name) for name in unet.token_names), rank=lora.rank)
    second = None if lora.pooled_rank is None else _pooled_low(operator, unet, lora.pooled_rank, 0.0)
    cut = low.operator(operator)
    if second is None or operator.pooled is None:
        return cut
    return replace(cut, pooled=second.operator(operator.pooled))


def _pooled_low(operator: EditOperator, unet: DenoiserSource, rank: int | None, error: float) -> LowRank | None:
    """Truncate the pooled operator, for the columns of its layer that read the pooled embedding; None: no edit."""
    if operator.pooled is None or unet.pooled_name is None or operator.pooled.is_identity:
        return None
    weight = unet.read(unet.pooled_name)[:, : operator.pooled.d]
    return truncate(operator.pooled, [weight], rank=rank, error=error)


def _factors(
    operator: EditOperator, names: Sequence[str], unet: DenoiserSource, low: LowRank, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor], float]:
    """The shared down matrix, every layer's up matrix, both in `dtype`, and the error that they come to."""
    rows = sum(unet.entry(name).shape[0] for name in names)
    # As large in both factors, by powers of two, which round nothing: a weak direction would underflow float16 in one.
    balance = torch.exp2((low.singular_values * (operator.d / rows) ** 0.5).log2().div(2).round())
    down = (low.down * balance[:, None]).to(dtype)
    shift = operator.matrix - torch.eye(operator.d, dtype=torch.float64)
    longest = max(unet.entry(name).shape[0] for name in names)
    # Reused for every layer: made anew, they would leave the allocator with gigabytes that nobody uses.
    wide, changes = (torch.empty(longest, operator.d, dtype=torch.float64) for _ in range(2))
    wide_down = down.double()
    ups: dict[str, torch.Tensor] = {}
    lost = whole = 0.0
    for name in names:
        weight = unet.read(name)[:, : operator.d]
        base, change = wide[: len(weight)].copy_(weight), changes[: len(weight)]
        up = ups[name] = (low.up(base) / balance).to(dtype)
        torch.mm(base, shift, out=change)
        whole += float(torch.linalg.vector_norm(change)) ** 2
        lost += float(torch.linalg.vector_norm(change.addmm_(up.double(), wide_down, alpha=-1))) ** 2
    if not all(bool(torch.isfinite(factor).all()) for factor in (down, *ups.values())):
        raise ModelError(f"the LoRA's factors are not finite in {dtype}; write it in float32")
    return down, ups, (lost / whole) ** 0.5


def _kohya_metadata(unet: DenoiserSource, rank: int) -> dict[str, str]:
    """What A1111 tells the base model by: without it, it takes every LoRA for one of SD 1.x and hides it elsewhere."""
    second = unet.config.get("cross_attention_dim") == _SD2_WIDTH
    version = "sdxl_base_v1-0" if family_of(unet.config) == "xl" else "sd_v2" if second else "sd_v1"
    return {
        "ss_base_model_version": version,
        "ss_network_alpha": str(float(rank)),
        "ss_network_dim": str(rank),
        "ss_network_module": "networks.lora",
        "ss_v2": str(version == "sd_v2"),
    }


def _errors(written: LoraWritten) -> dict[str, str]:
    pooled = {} if written.pooled_rank is None else {"evenhand.lora_pooled_rank": str(written.pooled_rank)}
    return {
        "evenhand.lora_error": f"{written.error:.3e}",
        "evenhand.lora_error_stored": f"{written.stored_error:.3e}",
        "evenhand.lora_weight_error": f"{written.weight_error:.3e}",
        **pooled,
    }
