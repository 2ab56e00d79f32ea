"""A model's weights, edited in place: all of them or none, and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from time_ops.errors import ModelError
from time_ops.surfaces import Projection

__all__ = ["ChangedWeight", "Fold", "check_loaded", "fold"]


@dataclass(frozen=True)
class ChangedWeight:
    """One edited projection.

    Attributes:
        name: its path in the model.
        shape: [out, d].
        dtype: "float16" and so on.
        relative_change: |W' - W| / |W|, Frobenius, as stored.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    relative_change: float


@dataclass(frozen=True)
class Fold:
    """What a fold changed.

    Attributes:
        weights: every projection that was visited, in the model's order.
    """

    weights: tuple[ChangedWeight, ...]

    @property
    def parameters(self) -> int:
        """Number of weights in these projections."""
        return sum(out * d for out, d in (w.shape for w in self.weights))


def fold(
    module: Any,
    entries: Callable[[Any], list[Projection]],
    edited: Callable[[Projection], torch.Tensor],
    *,
    is_identity: bool,
) -> Fold:
    """Put edited weights in the place of a model's; see `time_ops.transform.Transform.fold_into`.

    Args:
        module: the model.
        entries: which of its projections are edited; asked again for what the model holds afterwards.
        edited: gives the weight that goes in the place of one's.
        is_identity: whether no weight is to change.

    Raises:
        ModelError: see there.
    """
    places = entries(module)
    check_loaded(module)
    with torch.no_grad():
        wanted = [edited(p) for p in places]
        overflowing = [p.name for p, w in zip(places, wanted, strict=True) if not bool(torch.isfinite(w).all())]
        if overflowing:
            dtype = places[0].layer.weight.dtype
            raise ModelError(f"edited weights are not finite in {dtype}: {', '.join(overflowing[:4])}")
        before = [p.layer.weight.detach().clone() for p in places]
        for place, weight in zip(places, wanted, strict=True):
            place.layer.weight.copy_(weight)
    folded = _verified(entries(module), before, wanted)
    if not is_identity and all(torch.equal(old, new) for old, new in zip(before, wanted, strict=True)):
        raise ModelError(
            f"no weight changed: the edit is below the resolution of {folded.weights[0].dtype}. "
            "Lower lam, or fold in float32"
        )
    return folded


def _verified(places: list[Projection], before: list[torch.Tensor], edited: list[torch.Tensor]) -> Fold:
    """Read the weights back from the model: an edit that did not take is the fault of the published pipeline."""
    rows, unheld = [], []
    for projection, old, wanted in zip(places, before, edited, strict=True):
        now = projection.layer.weight.detach()
        if not torch.equal(now, wanted):
            unheld.append(projection.name)
        base, moved = old.double().cpu(), now.double().cpu()
        norm = float(torch.linalg.norm(base))
        change = float(torch.linalg.norm(moved - base)) / norm if norm > 0 else 0.0
        dtype = str(now.dtype).removeprefix("torch.")
        rows.append(ChangedWeight(projection.name, (now.shape[0], now.shape[1]), dtype, change))
    if unheld:
        raise ModelError(f"weights did not take the edit: {', '.join(unheld[:4])} ({len(unheld)} in all)")
    return Fold(tuple(rows))


def check_loaded(module: torch.nn.Module) -> None:
    """Refuse a model whose weights are elsewhere between its runs, where an edit would be lost without a word.

    Args:
        module: a UNet or a text encoder. `enable_model_cpu_offload` moves its weights whole, which does no harm.

    Raises:
        ModelError: sequential offload (weights on the meta device) or group offload; it says what to do.
    """
    name = type(module).__name__
    meta = [path for path, weight in module.named_parameters() if weight.is_meta]
    if meta:
        raise ModelError(
            f"{name} has {len(meta)} weights on the meta device ({', '.join(meta[:4])}): after enable_sequential_cpu_"
            "offload() call pipe.remove_all_hooks(), edit, and enable it again; with a device_map, load without one"
        )
    # Group offload keeps a second copy of the weights, pinned or on disk, and runs from that one.
    hooks = (getattr(child, "_diffusers_hook", None) for child in module.modules())
    if any(h is not None and any("group_offloading" in key for key in h.hooks) for h in hooks):
        raise ModelError(f"{name} is offloaded in groups, which keep weights of their own: edit first, then enable it")
