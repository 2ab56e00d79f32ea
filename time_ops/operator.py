"""The edit as one d x d matrix: apply it to prompt embeddings, fold it into weights, keep it in a file.

    operator.fold_into(pipe.unet)                                     # edited weight = weight @ operator.matrix
    embeds = operator.transform(embeds)                               # the same images, weights untouched
    operator.save("ceo.safetensors"); EditOperator.load("ceo.safetensors")

Weights and embeddings take the same matrix A from opposite sides: (W A) c = W (A c).
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
from time_ops.surfaces import text_projections

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

    Raises:
        EditError: The matrix is not square and finite, or steps mix encoders or values-only with other edits.

    """

    matrix: torch.Tensor
    steps: tuple[Inputs, ...] = ()
    condition: float | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    _placed: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        matrix = self.matrix.detach().to(device="cpu", dtype=torch.float64).contiguous()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise EditError(f"an operator's matrix is [d, d], not {list(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise EditError("the operator's matrix is not finite")
        if len({step.values_only for step in self.steps}) > 1:
            raise EditError("a values-only edit and one of keys and values do not compose into one operator")
        known = [step.encoder for step in self.steps if step.encoder is not None]
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
        canonical = {"d": self.d, "steps": [_canonical_step(step) for step in self.steps]}
        return hashlib.sha256(_json(canonical).encode()).hexdigest()

    @property
    def checksum(self) -> str:
        """sha256 in hex of the matrix's bytes (float64, little-endian, row by row); differs between machines."""
        return hashlib.sha256(self.matrix.numpy().astype("<f8").tobytes()).hexdigest()

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
        return EditOperator(
            self.matrix @ second.matrix, self.steps + second.steps, max(conditions, default=None), self.versions
        )

    def transform(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Compute A c for every token: what the unedited model must read to act as the edited one.

        Transform the conditional and the unconditional (or negative) embeddings alike. SDXL's pooled embedding enters
        the model by another way, which an edit does not touch: pass it as it is.

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

    @contextmanager
    def attached(self, module: Any) -> Iterator[None]:
        """Within the block, a UNet acts as if edited: its projections read A c. Weights stay untouched.

        The way to audit a values-only operator; for others `transform` does the same at less cost.

        Args:
            module: As for `fold_into`.

        Raises:
            ModelError: As for `fold_into`.

        """
        hooks = [
            projection.layer.register_forward_pre_hook(lambda _, inputs: (self._applied(inputs[0]), *inputs[1:]))
            for projection in text_projections(module, d=self.d, values_only=self.values_only)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def edited(self, weight: torch.Tensor) -> torch.Tensor:
        """Compute W A for one projection: bit for bit what `fold_into` puts in its place.

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

    def fold_into(self, module: Any) -> Fold:
        """Edit a UNet's key and value projections in place: W becomes W A, in float64, cast once.

        Nothing is changed unless everything can be. Fold once: folding again edits the edited weights.

        Args:
            module: A `UNet2DConditionModel`, in float16, bfloat16, float32 or float64.

        Returns:
            What was changed, and by how much.

        Raises:
            ModelError: The model can't be edited (all reasons named), its weights are not in memory, an edited weight
                overflows its dtype, or the weights did not change although the operator is not the identity.

        """
        projections = text_projections(module, d=self.d, values_only=self.values_only)
        check_loaded(module)
        with torch.no_grad():
            edited = [self.edited(p.layer.weight) for p in projections]
            overflowing = [
                p.name for p, w in zip(projections, edited, strict=True) if not bool(torch.isfinite(w).all())
            ]
            if overflowing:
                dtype = projections[0].layer.weight.dtype
                raise ModelError(f"edited weights are not finite in {dtype}: {', '.join(overflowing[:4])}")
            before = [p.layer.weight.detach().clone() for p in projections]
            for projection, weight in zip(projections, edited, strict=True):
                projection.layer.weight.copy_(weight)
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

        Args:
            path: The file; written beside and renamed.
            dtype: float64, or float32 for half the size.

        Raises:
            EditError: Another dtype.

        """
        return write_beside(path, self.to_bytes(dtype=dtype))

    def to_bytes(self, *, dtype: torch.dtype = torch.float64) -> bytes:
        """Give the file's bytes; see `save`."""
        header = {"format": _FORMAT, "d": self.d, **operator_header(self, dtype=dtype)}
        # One metadata key: safetensors keeps several in no fixed order, and the bytes shall be.
        return safetensors_bytes({"matrix": self.matrix.to(dtype)}, metadata={_HEADER: _json(header)})

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
                metadata, names = file.metadata() or {}, list(file.keys())
                matrix = file.get_tensor("matrix") if names == ["matrix"] else None
        except SafetensorError as error:
            raise EditError(f"{name} is not a safetensors file, or is cut short: {error}") from error
        if matrix is None or _HEADER not in metadata:
            raise EditError(f"{name} is not an operator: it has tensors {names} and header keys {sorted(metadata)}")
        try:
            header = json_of(metadata[_HEADER])
            if header["format"] != _FORMAT:
                raise EditError(f"{name} has format {header['format']!r}; this version reads {_FORMAT!r}")
            if header["d"] != matrix.shape[-1]:
                raise EditError(f"{name} is damaged: its matrix is {list(matrix.shape)}, the header says {header['d']}")
        except _UNREADABLE as error:
            if isinstance(error, EditError):
                raise
            raise EditError(f"{name} has a header that can't be read: {_said(error)}") from error
        return operator_from_header(matrix, header, str(name))

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

    def _verified(self, module: Any, before: Sequence[torch.Tensor], edited: Sequence[torch.Tensor]) -> Fold:
        """Read the weights back from the model: an edit that did not take is the fault of the published pipeline."""
        projections = text_projections(module, d=self.d, values_only=self.values_only)
        rows, unheld = [], []
        for projection, old, wanted in zip(projections, before, edited, strict=True):
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
        is_identity = bool(torch.equal(self.matrix, torch.eye(self.d, dtype=torch.float64)))
        if not is_identity and all(torch.equal(old, new) for old, new in zip(before, edited, strict=True)):
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
        "checksum": replace(operator, matrix=operator.matrix.to(dtype)).checksum,
        "condition": _number(operator.condition),
        "values_only": operator.values_only,
        "versions": dict(operator.versions),
        "steps": [_canonical_step(step) for step in operator.steps],
    }


def operator_from_header(matrix: torch.Tensor, header: Mapping[str, Any], name: str) -> EditOperator:
    """An operator from its stored matrix and what `operator_header` said of it.

    Args:
        matrix: [d, d].
        header: as stored.
        name: what to call it in messages.

    Raises:
        EditError: the header can't be read, or matrix and provenance are not those that it was written with.

    """
    try:
        steps = tuple(_step_from(step) for step in header["steps"])
        found = EditOperator(matrix, steps, _from_number(header["condition"]), header["versions"])
        checks = {"checksum": found.checksum, "digest": found.digest}
        wrong = [f"{k} is {v}, the header says {header[k]}" for k, v in checks.items() if header[k] != v]
    except _UNREADABLE as error:
        if isinstance(error, EditError):
            raise error if name in str(error) else EditError(f"{name} is damaged: {error}") from error
        raise EditError(f"{name} has a header that can't be read: {_said(error)}") from error
    if wrong:
        raise EditError.listing(f"{name} is damaged:", wrong)
    return found


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
