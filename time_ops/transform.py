"""A matrix applied: to the embeddings that a model reads, or to the weights that read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from time_ops.errors import EditError, ModelError
from time_ops.folding import Fold, fold
from time_ops.surfaces import Projection, text_entries

__all__ = ["Transform"]


class Transform:
    """What `time_ops.operator.EditOperator` does to embeddings and models.

    Attributes:
        matrix: A, [d, d] float64 on the CPU; edited weight = weight @ A.
        pooled: the same of the model's pooled embedding, [p, p]; None: what reads that stays as it is.
    """

    matrix: torch.Tensor
    pooled: Transform | None
    _placed: dict[torch.device, torch.Tensor]

    @property
    def values_only(self) -> bool:
        """Whether keys are left alone; then it is no plain transform of the embeddings."""
        raise NotImplementedError

    @property
    def d(self) -> int:
        """Width of the embeddings."""
        return self.matrix.shape[0]

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every embedding as it is."""
        own = bool(torch.equal(self.matrix, torch.eye(self.d, dtype=torch.float64)))
        return own and (self.pooled is None or self.pooled.is_identity)

    def transform(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Compute A c for every token: what the unedited model must read to act as the edited one.

        Transform the conditional and the unconditional (or negative) embeddings alike. The pooled embedding of SDXL,
        SD3 and FLUX enters the model elsewhere, and has an operator of its own: see `transform_pooled`.

        Args:
            prompt_embeds: [..., d], floating point, on any device.

        Returns:
            [..., d], same dtype and device. Multiplied in float64 (float32 on MPS, which has no float64), cast once.

        Raises:
            EditError: the operator is values-only: keys would read A c as well. Use `attached` or fold it.
            ModelError: the embeddings' width or dtype does not fit.
        """
        if self.values_only:
            raise EditError(
                "a values-only operator is no transform of the embeddings, as keys read them unchanged: "
                "use operator.attached(unet) or operator.fold_into(unet)"
            )
        return self._applied(prompt_embeds)

    def transform_pooled(self, pooled_prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Compute A c for pooled embeddings, those of the negative prompt alike; without a pooled operator they stay.

        Args:
            pooled_prompt_embeds: [..., p], floating point, on any device.

        Returns:
            [..., p], same dtype and device; see `transform`.

        Raises:
            ModelError: the embeddings' width or dtype does not fit.
        """
        return pooled_prompt_embeds if self.pooled is None else self.pooled._applied(pooled_prompt_embeds)

    def entries(self, module: Any) -> list[Projection]:
        """What of a model this edit changes, in the model's order.

        Args:
            module: a UNet, or the transformer of SD3, FLUX, PixArt or Sana.

        Raises:
            ModelError: the model can't be edited, or by an operator of other widths; all reasons are named.
        """
        pooled = None if self.pooled is None else self.pooled.d
        projections = text_entries(module, d=self.d, pooled=pooled, values_only=self.values_only)
        return [p for p in projections if p.kind == "tokens" or self.pooled is not None]

    @contextmanager
    def attached(self, module: Any) -> Iterator[None]:
        """Within the block, a model acts as if edited: its entries read A c. Weights stay untouched.

        The way to audit a values-only operator; for others `transform` does the same at less cost.

        Args:
            module: as for `fold_into`.

        Raises:
            ModelError: as for `fold_into`.
        """
        hooks = [
            entry.layer.register_forward_pre_hook(partial(_read_edited, self._of(entry), entry.width))
            for entry in self.entries(module)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def edited(self, weight: torch.Tensor) -> torch.Tensor:
        """Compute W A for one projection of token states: bit for bit what `fold_into` puts in its place.

        Args:
            weight: [out, d], of any dtype and device.

        Returns:
            [out, d], same dtype and device; multiplied in float64, cast once. It may overflow its dtype.

        Raises:
            ModelError: it reads embeddings of another width.
        """
        if weight.ndim != 2 or weight.shape[1] != self.d:
            raise ModelError(f"a projection of shape {list(weight.shape)} does not fit an operator of width {self.d}")
        device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        wide = weight.to(device=device, dtype=torch.float64)
        return torch.addmm(wide, wide, self._shift(device)).to(device=weight.device, dtype=weight.dtype)

    def edited_pooled(self, weight: torch.Tensor) -> torch.Tensor:
        """Compute the same for a layer that reads the pooled embedding by its first p inputs; all others stay.

        Args:
            weight: [out, in] with in at least p, of any dtype and device.

        Returns:
            [out, in]; see `edited`.

        Raises:
            ModelError: it has fewer inputs than the pooled embedding.
        """
        if self.pooled is None:
            return weight.clone()
        p = self.pooled.d
        if weight.ndim != 2 or weight.shape[1] < p:
            raise ModelError(f"a layer of shape {list(weight.shape)} does not read pooled embeddings of width {p}")
        return torch.cat([self.pooled.edited(weight[:, :p]), weight[:, p:]], dim=1)

    def edited_entry(self, entry: Projection) -> torch.Tensor:
        """Give an entry's edited weight, [out, in]; see `edited` and `edited_pooled`."""
        return (self.edited_pooled if entry.kind == "pooled" else self.edited)(entry.layer.weight)

    def fold_into(self, module: Any) -> Fold:
        """Edit a model's entries in place: W becomes W A, in float64, cast once.

        Nothing is changed unless everything can be. Fold once: folding again edits the edited weights.

        Args:
            module: a `UNet2DConditionModel`, or the transformer of SD3, FLUX, PixArt or Sana, in float16, bfloat16,
                float32 or float64.

        Returns:
            What was changed, and by how much.

        Raises:
            ModelError: the model can't be edited (all reasons named), its weights are not in memory, an edited weight
                overflows its dtype, or the weights did not change although the operator is not the identity.
        """
        return fold(module, self.entries, self.edited_entry, is_identity=self.is_identity)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed": {}}

    def _applied(self, embeds: torch.Tensor) -> torch.Tensor:
        if embeds.shape[-1] != self.d:
            raise ModelError(f"embeddings have width {embeds.shape[-1]}, the operator {self.d}")
        if not embeds.dtype.is_floating_point:
            raise ModelError(f"embeddings are {embeds.dtype}, not floating point")
        shift = self._shift(embeds.device)
        wide = embeds.to(shift.dtype)
        # c + (A - I) c: a weak edit loses no digits, and the identity gives back the very bits.
        return (wide + wide @ shift.T).to(embeds.dtype)

    def _shift(self, device: torch.device) -> torch.Tensor:
        """Place A - I on a device, in its widest dtype; kept, as every denoising batch asks for it."""
        if device not in self._placed:
            shift = self.matrix - torch.eye(self.d, dtype=torch.float64)
            self._placed[device] = shift.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self._placed[device]

    def _of(self, entry: Projection) -> Transform:
        """Choose the operator of what an entry reads."""
        return self.pooled if entry.kind == "pooled" and self.pooled is not None else self


def _read_edited(
    operator: Transform, width: int, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Give a layer A c for c, its first `width` inputs; those behind are no text."""
    states, *others = inputs
    text = operator._applied(states[..., :width])
    return (torch.cat([text, states[..., width:]], dim=-1), *others)
