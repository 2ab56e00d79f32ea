"""The edit as one d x d matrix: apply it to prompt embeddings, fold it into weights, keep it in a file.

    operator.fold_into(pipe.unet)                                     # edited weight = weight @ operator.matrix
    embeds = operator.transform(embeds)                               # the same images, weights untouched
    pooled = operator.transform_pooled(pooled)                        # where the model reads a pooled embedding too
    operator.save("ceo.safetensors"); EditOperator.load("ceo.safetensors")

Weights and embeddings take the same matrix A from opposite sides: (W A) c = W (A c). Each kind of embedding has an
operator of its own: `matrix` is that of the token states, `pooled` an operator of the pooled embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from time_ops.encoders import EncoderDigest, encoder_digest
from time_ops.errors import EditError, ModelError
from time_ops.files import json_of, write_beside
from time_ops.surfaces import Projection, text_entries

__all__ = [
    "ChangedWeight",
    "EditOperator",
    "EditRecord",
    "Fold",
    "Inputs",
    "check_loaded",
    "operator_from_header",
    "operator_header",
]

_FORMAT = "evenhand-operator/1"
# With a pooled operator beside: a reader that knows only the first would leave that one out.
_FORMAT_POOLED = "evenhand-operator/2"
_HEADER = "evenhand"
_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
"""What a header raises that says other things than an operator's does."""


@dataclass(frozen=True)
class EditRecord:
    """What of one edit decides the operator.

    Attributes:
        source: Source prompt.
        destinations: (prompt, share), sorted by prompt; the source itself is one where it keeps a share.
        lam: Its strength; inf: left out of the solve. None in statistics that have no lam yet.
        augmentations: Templates, sorted: their order is of no account. Those that blend otherwise have a record apart.
        alignment: Rule of the token correspondence.
        tokens: sha256 of the embeddings where no known encoder made them, else "".

    """

    source: str
    destinations: tuple[tuple[str, float], ...]
    lam: float | None
    augmentations: tuple[str, ...] = ("{source}",)
    alignment: str = "published"
    tokens: str = ""


@dataclass(frozen=True)
class Inputs:
    """All that decides one solve, in canonical order.

    Attributes:
        edits: Sorted records of the edits.
        preserved: Sorted records of the preserved prompts, each with its lam.
        encoder: The text encoder; None where embeddings were made by hand.
        values_only: Only the value projections are edited.
        rank: Of a step without edits: directions of what came before that were kept (`time_ops.lora`), chosen by the
            weights of the model that it is for.

    """

    edits: tuple[EditRecord, ...]
    preserved: tuple[EditRecord, ...] = ()
    encoder: EncoderDigest | None = None
    values_only: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(sorted(self.edits, key=_sort_key)))
        object.__setattr__(self, "preserved", tuple(sorted(self.preserved, key=_sort_key)))


@dataclass(frozen=True)
class ChangedWeight:
    """One edited projection.

    Attributes:
        name: Its path in the model.
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
        weights: Every projection that was visited, in the model's order.

    """

    weights: tuple[ChangedWeight, ...]

    @property
    def parameters(self) -> int:
        """Number of weights in these projections."""
        return sum(out * d for out, d in (w.shape for w in self.weights))


@dataclass(frozen=True, eq=False)
class EditOperator:
    """A solved edit.

    Attributes:
        matrix: A, [d, d] float64 on the CPU; edited weight = weight @ A.
        steps: The inputs of each solve that it composes, in the order in which the edits were made; empty: identity.
        condition: Estimated condition number (1-norm) of the matrix that was factored; the largest where composed.
        versions: Versions of the libraries it was solved with.
        pooled: The edit of the model's pooled embedding, [p, p]; None: what reads that stays as it is.

    Raises:
        EditError: The matrix is not square and finite, steps mix encoders or values-only with other edits, or the
            pooled operator has a pooled one itself.

    """

    matrix: torch.Tensor
    steps: tuple[Inputs, ...] = ()
    condition: float | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    pooled: EditOperator | None = None
    _placed: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        matrix = self.matrix.detach().to(device="cpu", dtype=torch.float64).contiguous()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise EditError(f"an operator's matrix is [d, d], not {list(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise EditError("the operator's matrix is not finite")
        if len({step.values_only for step in self.steps}) > 1:
            raise EditError("a values-only edit and one of keys and values do not compose into one operator")
        if self.pooled is not None and self.pooled.pooled is not None:
            raise EditError("a pooled operator has no pooled operator of its own")
        steps = (*self.steps, *(self.pooled.steps if self.pooled is not None else ()))
        known = [step.encoder for step in steps if step.encoder is not None]
        differing = [e for e in known[1:] if not e.matches(known[0])]
        if differing:
            raise EditError(f"the edits are of two text encoders, {known[0].exact} and {differing[0].exact}")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls, d: int) -> EditOperator:
        """Make the edit that changes nothing, for embeddings of width d."""
        return cls(torch.eye(d, dtype=torch.float64), condition=1.0)

    @property
    def d(self) -> int:
        """Width of the embeddings."""
        return self.matrix.shape[0]

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every embedding as it is."""
        own = bool(torch.equal(self.matrix, torch.eye(self.d, dtype=torch.float64)))
        return own and (self.pooled is None or self.pooled.is_identity)

    @property
    def values_only(self) -> bool:
        """Whether keys are left alone; then it is no plain transform of the embeddings."""
        return any(step.values_only for step in self.steps)

    @property
    def encoder(self) -> EncoderDigest | None:
        """The text encoder that it was solved for, where known."""
        return next((step.encoder for step in self.steps if step.encoder is not None), None)

    @property
    def digest(self) -> str:
        """sha256 in hex of the canonical inputs: equal on every machine and for every order of rows."""
        canonical: dict[str, Any] = {"d": self.d, "steps": [_canonical_step(step) for step in self.steps]}
        if self.pooled is not None:
            canonical["pooled"] = self.pooled.digest
        return hashlib.sha256(_json(canonical).encode()).hexdigest()

    @property
    def checksum(self) -> str:
        """sha256 in hex of the matrix's bytes (float64, little-endian, row by row); differs between machines.

        With a pooled operator, of both matrices' bytes.
        """
        sha = hashlib.sha256(self.matrix.numpy().astype("<f8").tobytes())
        if self.pooled is not None:
            sha.update(self.pooled.matrix.numpy().astype("<f8").tobytes())
        return sha.hexdigest()

    def __matmul__(self, second: EditOperator) -> EditOperator:
        """`first @ second`: first was made first, second on the weights that it left.

        Folding in turn gives (W A_1) A_2, so the matrix is A_1 A_2; embeddings take A_1 (A_2 c), second first.

        Raises:
            EditError: Other width, another text encoder, or only one is values-only.

        """
        if not isinstance(second, EditOperator):
            return NotImplemented
        if self.d != second.d:
            raise EditError(f"operators of width {self.d} and {second.d} do not compose")
        conditions = [c for c in (self.condition, second.condition) if c is not None]
        # Without a pooled operator the pooled embedding is left alone, so the other's is that of both.
        pooled = second.pooled if self.pooled is None else self.pooled
        if self.pooled is not None and second.pooled is not None:
            pooled = self.pooled @ second.pooled
        return EditOperator(
            self.matrix @ second.matrix, self.steps + second.steps, max(conditions, default=None), self.versions, pooled
        )

    def transform(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Compute A c for every token: what the unedited model must read to act as the edited one.

        Transform the conditional and the unconditional (or negative) embeddings alike. The pooled embedding of SDXL,
        SD3 and FLUX enters the model elsewhere, and has an operator of its own: see `transform_pooled`.

        Args:
            prompt_embeds: [..., d], floating point, on any device.

        Returns:
            [..., d], same dtype and device. Multiplied in float64 (float32 on MPS, which has no float64), cast once.

        Raises:
            EditError: The operator is values-only: keys would read A c as well. Use `attached` or fold it.
            ModelError: The embeddings' width or dtype does not fit.

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
            ModelError: The embeddings' width or dtype does not fit.

        """
        return pooled_prompt_embeds if self.pooled is None else self.pooled._applied(pooled_prompt_embeds)

    def entries(self, module: Any) -> list[Projection]:
        """What of a model this edit changes, in the model's order.

        Args:
            module: A UNet, or SD3's or FLUX's transformer.

        Raises:
            ModelError: The model can't be edited, or by an operator of other widths; all reasons are named.

        """
        pooled = None if self.pooled is None else self.pooled.d
        found = text_entries(module, d=self.d, pooled=pooled, values_only=self.values_only)
        return [p for p in found if p.kind == "tokens" or self.pooled is not None]

    @contextmanager
    def attached(self, module: Any) -> Iterator[None]:
        """Within the block, a model acts as if edited: its entries read A c. Weights stay untouched.

        The way to audit a values-only operator; for others `transform` does the same at less cost.

        Args:
            module: As for `fold_into`.

        Raises:
            ModelError: As for `fold_into`.

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
            ModelError: It reads embeddings of another width.

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
            ModelError: It has fewer inputs than the pooled embedding.

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
            module: A `UNet2DConditionModel`, or SD3's or FLUX's transformer, in float16, bfloat16, float32 or float64.

        Returns:
            What was changed, and by how much.

        Raises:
            ModelError: The model can't be edited (all reasons named), its weights are not in memory, an edited weight
                overflows its dtype, or the weights did not change although the operator is not the identity.

        """
        entries = self.entries(module)
        check_loaded(module)
        with torch.no_grad():
            edited = [self.edited_entry(p) for p in entries]
            overflowing = [p.name for p, w in zip(entries, edited, strict=True) if not bool(torch.isfinite(w).all())]
            if overflowing:
                dtype = entries[0].layer.weight.dtype
                raise ModelError(f"edited weights are not finite in {dtype}: {', '.join(overflowing[:4])}")
            before = [p.layer.weight.detach().clone() for p in entries]
            for entry, weight in zip(entries, edited, strict=True):
                entry.layer.weight.copy_(weight)
        return self._verified(module, before, edited)

    def check_encoder(self, pipe: Any) -> None:
        """Refuse a pipeline whose text encoder is not the one that the operator was solved for.

        The same encoder loaded in half precision is the same encoder. An operator of unknown encoder passes.

        Raises:
            ModelError: Another text encoder or tokenizer; both digests are named.

        """
        expected = self.encoder
        if expected is None:
            return
        found = encoder_digest(pipe)
        if not expected.matches(found):
            raise ModelError(
                f"the operator was solved for the text encoder {expected.exact} ({expected.dtype}), but "
                f"{type(pipe).__name__} has {found.exact} ({found.dtype}): solve it again for this model"
            )

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float64) -> Path:
        """Write a safetensors file: tensor "matrix", provenance in the header. Equal operators give equal bytes.

        A pooled operator is a second tensor, "pooled", and the format is then version 2.

        Args:
            path: The file; written beside and renamed.
            dtype: float64, or float32 for half the size.

        Raises:
            EditError: Another dtype.

        """
        return write_beside(path, self.to_bytes(dtype=dtype))

    def to_bytes(self, *, dtype: torch.dtype = torch.float64) -> bytes:
        """Give the file's bytes; see `save`."""
        tensors = {"matrix": self.matrix.to(dtype)}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled.matrix.to(dtype)
        form = _FORMAT if self.pooled is None else _FORMAT_POOLED
        header = {"format": form, "d": self.d, **operator_header(self, dtype=dtype)}
        # One metadata key: safetensors keeps several in no fixed order, and the bytes shall be.
        return safetensors_bytes(tensors, metadata={_HEADER: _json(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EditOperator:
        """Read an operator back, and check it.

        Raises:
            EditError: No operator's file, or one that was damaged: matrix not square and finite, or not the checksum's;
                provenance not the digest's.
            FileNotFoundError: No file.

        """
        name = Path(path)
        if not name.is_file():
            raise FileNotFoundError(f"no operator at {name}")
        try:
            with safe_open(name, framework="pt") as file:
                metadata, names = file.metadata() or {}, sorted(file.keys())
                known = names in (["matrix"], ["matrix", "pooled"])
                matrix = file.get_tensor("matrix") if known else None
                pooled = file.get_tensor("pooled") if known and len(names) == 2 else None
        except SafetensorError as error:
            raise EditError(f"{name} is not a safetensors file, or is cut short: {error}") from error
        if matrix is None or _HEADER not in metadata:
            raise EditError(f"{name} is not an operator: it has tensors {names} and header keys {sorted(metadata)}")
        try:
            header = json_of(metadata[_HEADER])
            expected = _FORMAT if pooled is None else _FORMAT_POOLED
            if header["format"] != expected:
                raise EditError(f"{name} has format {header['format']!r}; with these tensors it would be {expected!r}")
            if header["d"] != matrix.shape[-1]:
                raise EditError(f"{name} is damaged: its matrix is {list(matrix.shape)}, the header says {header['d']}")
        except _UNREADABLE as error:
            if isinstance(error, EditError):
                raise
            raise EditError(f"{name} has a header that can't be read: {_said(error)}") from error
        return operator_from_header(matrix, header, str(name), pooled)

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

    def _of(self, entry: Projection) -> EditOperator:
        """Choose the operator of what an entry reads."""
        return self.pooled if entry.kind == "pooled" and self.pooled is not None else self

    def _verified(self, module: Any, before: Sequence[torch.Tensor], edited: Sequence[torch.Tensor]) -> Fold:
        """Read the weights back from the model: an edit that did not take is the fault of the published pipeline."""
        rows, unheld = [], []
        for projection, old, wanted in zip(self.entries(module), before, edited, strict=True):
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
        if not self.is_identity and all(torch.equal(old, new) for old, new in zip(before, edited, strict=True)):
            raise ModelError(
                f"no weight changed: the edit is below the resolution of {rows[0].dtype}. Lower lam, or fold in float32"
            )
        return Fold(tuple(rows))


def operator_header(operator: EditOperator, *, dtype: torch.dtype) -> dict[str, Any]:
    """What a file says of an operator that it holds in this dtype: provenance and checksums.

    Raises:
        EditError: another dtype than float64 or float32.

    """
    if dtype not in (torch.float64, torch.float32):
        raise EditError(f"an operator is saved as float64 or float32, not {dtype}")
    return {
        "digest": operator.digest,
        "checksum": _stored(operator, dtype).checksum,
        "condition": _number(operator.condition),
        "values_only": operator.values_only,
        "versions": dict(operator.versions),
        "steps": [_canonical_step(step) for step in operator.steps],
        **({} if operator.pooled is None else {"pooled": operator_header(operator.pooled, dtype=dtype)}),
    }


def operator_from_header(
    matrix: torch.Tensor, header: Mapping[str, Any], name: str, pooled: torch.Tensor | None = None
) -> EditOperator:
    """An operator from its stored matrix and what `operator_header` said of it.

    Args:
        matrix: [d, d].
        header: as stored.
        name: what to call it in messages.
        pooled: [p, p]; None: it has no pooled operator.

    Raises:
        EditError: the header can't be read, or matrix and provenance are not those that it was written with.

    """
    try:
        steps = tuple(_step_from(step) for step in header["steps"])
        second = None if pooled is None else operator_from_header(pooled, header["pooled"], f"{name}, pooled")
        found = EditOperator(matrix, steps, _from_number(header["condition"]), header["versions"], second)
        checks = {"checksum": found.checksum, "digest": found.digest}
        wrong = [f"{k} is {v}, the header says {header[k]}" for k, v in checks.items() if header[k] != v]
    except _UNREADABLE as error:
        if isinstance(error, EditError):
            raise error if name in str(error) else EditError(f"{name} is damaged: {error}") from error
        raise EditError(f"{name} has a header that can't be read: {_said(error)}") from error
    if wrong:
        raise EditError.listing(f"{name} is damaged:", wrong)
    return found


def _stored(operator: EditOperator, dtype: torch.dtype) -> EditOperator:
    """Round an operator as a file of this dtype does."""
    pooled = None if operator.pooled is None else _stored(operator.pooled, dtype)
    return replace(operator, matrix=operator.matrix.to(dtype), pooled=pooled)


def _read_edited(
    operator: EditOperator, width: int, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Give a layer A c for c, its first `width` inputs; those behind are no text."""
    states, *others = inputs
    text = operator._applied(states[..., :width])
    return (torch.cat([text, states[..., width:]], dim=-1), *others)


def check_loaded(module: torch.nn.Module) -> None:
    """Refuse a model whose weights are elsewhere between its runs, where an edit would be lost without a word.

    Args:
        module: A UNet or a text encoder. `enable_model_cpu_offload` moves its weights whole, which does no harm.

    Raises:
        ModelError: Sequential offload (weights on the meta device) or group offload; it says what to do.

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


def _sort_key(record: EditRecord) -> str:
    return _json(_canonical_record(record))


def _canonical_record(record: EditRecord) -> dict[str, Any]:
    return {
        **asdict(record),
        "lam": _number(record.lam),
        "destinations": sorted([prompt, share] for prompt, share in record.destinations),
        "augmentations": sorted(record.augmentations),
    }


def _canonical_step(step: Inputs) -> dict[str, Any]:
    return {
        "edits": [_canonical_record(r) for r in step.edits],
        "preserved": [_canonical_record(r) for r in step.preserved],
        "encoder": None if step.encoder is None else asdict(step.encoder),
        "values_only": step.values_only,
        **({} if step.rank is None else {"rank": step.rank}),
    }


def _step_from(stored: Mapping[str, Any]) -> Inputs:
    encoder = stored["encoder"]
    return Inputs(
        tuple(_record_from(r) for r in stored["edits"]),
        tuple(_record_from(r) for r in stored["preserved"]),
        None if encoder is None else EncoderDigest(**encoder),
        bool(stored["values_only"]),
        stored.get("rank"),
    )


def _record_from(stored: Mapping[str, Any]) -> EditRecord:
    return EditRecord(
        source=stored["source"],
        destinations=tuple((prompt, float(share)) for prompt, share in stored["destinations"]),
        lam=_from_number(stored["lam"]),
        augmentations=tuple(stored["augmentations"]),
        alignment=stored["alignment"],
        tokens=stored["tokens"],
    )


def _number(value: float | None) -> float | str | None:
    """JSON has no infinity; shortest round-trip digits otherwise, the same on every machine."""
    return value if value is None or math.isfinite(value) else str(value)


def _from_number(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    for name in ("evenhand", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
