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
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from time_ops.records import SolveInputs, canonical_json, canonical_step, from_json_number, json_number, step_from
from time_ops.transform import Transform

__all__ = ["EditOperator", "operator_from_header", "operator_header"]

_FORMAT = "evenhand-operator/1"
# With a pooled operator beside: a reader that knows only the first would leave that one out.
_FORMAT_POOLED = "evenhand-operator/2"
_HEADER = "evenhand"
_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
"""What a header raises that says other things than an operator's does."""


@dataclass(frozen=True, eq=False)
class EditOperator(Transform):
    """A solved edit.

    Attributes:
        matrix: A, [d, d] float64 on the CPU; edited weight = weight @ A.
        steps: the inputs of each solve that it composes, in the order in which the edits were made; empty: identity.
        condition: estimated condition number (1-norm) of the matrix that was factored; the largest where composed.
        versions: versions of the libraries it was solved with.
        pooled: the edit of the model's pooled embedding, [p, p]; None: what reads that stays as it is.

    Raises:
        EditError: the matrix is not square and finite, steps mix encoders or values-only with other edits, or the
            pooled operator has a pooled one itself.
    """

    matrix: torch.Tensor
    steps: tuple[SolveInputs, ...] = ()
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
        canonical: dict[str, Any] = {"d": self.d, "steps": [canonical_step(step) for step in self.steps]}
        if self.pooled is not None:
            canonical["pooled"] = self.pooled.digest
        return hashlib.sha256(canonical_json(canonical).encode()).hexdigest()

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
            EditError: other width, another text encoder, or only one is values-only.
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

    def check_encoder(self, pipe: Any) -> None:
        """Refuse a pipeline whose text encoder is not the one that the operator was solved for.

        The same encoder loaded in half precision is the same encoder. An operator of unknown encoder passes.

        Raises:
            ModelError: another text encoder or tokenizer; both digests are named.
        """
        expected = self.encoder
        if expected is None:
            return
        digest = encoder_digest(pipe)
        if not expected.matches(digest):
            raise ModelError(
                f"the operator was solved for the text encoder {expected.exact} ({expected.dtype}), but "
                f"{type(pipe).__name__} has {digest.exact} ({digest.dtype}): solve it again for this model"
            )

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float64) -> Path:
        """Write a safetensors file: tensor "matrix", provenance in the header. Equal operators give equal bytes.

        A pooled operator is a second tensor, "pooled", and the format is then version 2.

        Args:
            path: the file; written beside and renamed.
            dtype: float64, or float32 for half the size.

        Raises:
            EditError: another dtype.
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
        return safetensors_bytes(tensors, metadata={_HEADER: canonical_json(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EditOperator:
        """Read an operator back, and check it.

        Raises:
            EditError: no operator's file, or one that was damaged: matrix not square and finite, or not the checksum's;
                provenance not the digest's.
            FileNotFoundError: no file.
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
        "condition": json_number(operator.condition),
        "values_only": operator.values_only,
        "versions": dict(operator.versions),
        "steps": [canonical_step(step) for step in operator.steps],
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
        steps = tuple(step_from(step) for step in header["steps"])
        second = None if pooled is None else operator_from_header(pooled, header["pooled"], f"{name}, pooled")
        operator = EditOperator(matrix, steps, from_json_number(header["condition"]), header["versions"], second)
        checks = {"checksum": operator.checksum, "digest": operator.digest}
        wrong = [f"{k} is {v}, the header says {header[k]}" for k, v in checks.items() if header[k] != v]
    except _UNREADABLE as error:
        if isinstance(error, EditError):
            raise error if name in str(error) else EditError(f"{name} is damaged: {error}") from error
        raise EditError(f"{name} has a header that can't be read: {_said(error)}") from error
    if wrong:
        raise EditError.listing(f"{name} is damaged:", wrong)
    return operator


def _stored(operator: EditOperator, dtype: torch.dtype) -> EditOperator:
    """Round an operator as a file of this dtype does."""
    pooled = None if operator.pooled is None else _stored(operator.pooled, dtype)
    return replace(operator, matrix=operator.matrix.to(dtype), pooled=pooled)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    for name in ("evenhand", "diffusers", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
