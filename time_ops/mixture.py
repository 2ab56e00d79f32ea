"""A mixture of saturated edits: one operator for each label, and a route that picks one of them per image.

    mixture = solve_mixture(pipe, {
        "female": {"a CEO": "a female CEO", "a nurse": "a female nurse"},
        "male": {"a CEO": "a male CEO", "a nurse": "a male nurse"},
    })
    embeds = mixture.transform(prompt_embeds, seeds, prompts)          # [B, n, d]; negative embeddings likewise
    pooled = mixture.transform_pooled(pooled, seeds, prompts)          # [B, p], where the model reads such
    mixture.save("mixture.safetensors"); Mixture.load("mixture.safetensors")

A balanced edit stands between two destinations, where a wording that shifts all professions by hundredths of a blend
moves a tenth of all images. A *component* sends every profession wholly to one label, where such a shift changes
nothing; the weights with which components are drawn carry the target. A component by itself is no debiased model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as safetensors_bytes

from time_ops.encoders import EncoderDigest
from time_ops.errors import EditError
from time_ops.files import header_of, json_of, write_beside
from time_ops.operator import EditOperator, operator_from_header, operator_header
from time_ops.route import ROUTE_VECTORS, ROUTE_VERSION, UNEDITED, Weights, WeightTable, route

__all__ = ["UNEDITED", "Component", "Mixture", "is_mixture"]

_FORMAT = "evenhand-mixture/1"
# With pooled operators beside: a reader that knows only the first would leave those out.
_FORMAT_POOLED = "evenhand-mixture/2"
_HEADER = "evenhand"
_TENSOR = "operators"
_TENSOR_POOLED = "pooled"


@dataclass(frozen=True, eq=False)
class Component:
    """One of a mixture's operators. By itself it is no debiased model: it sends every profession to one label.

    Attributes:
        label: the label that it sends professions to, or `UNEDITED`.
        operator: the edit; `EditOperator.identity` where it leaves the model as it is.
    """

    label: str
    operator: EditOperator

    @property
    def is_identity(self) -> bool:
        """Whether it leaves the model as it is, so that its images are the base model's."""
        return not self.operator.steps and self.operator.is_identity


@dataclass(frozen=True, eq=False)
class Mixture:
    """Components, the weights with which their images are drawn, and the route between them (`time_ops.route`).

    Attributes:
        components: in the order in which their weights add up.
        table: the weights: of all prompts, and of professions that have their own.

    Raises:
        EditError: fewer than two components, equal labels, other widths, encoders or numbers of weights, or an operator
            of values only, which is no transform.
    """

    components: tuple[Component, ...]
    table: WeightTable

    def __post_init__(self) -> None:
        labels, operators = self.labels, [c.operator for c in self.components]
        faults = []
        if len(labels) < 2:
            faults.append(f"{len(labels)} component: a mixture has two at least")
        if len(set(labels)) < len(labels):
            faults.append(f"labels are repeated: {list(labels)}")
        if len({o.d for o in operators}) > 1:
            faults.append(f"components are of different widths: {sorted({o.d for o in operators})}")
        second = {o.pooled.d for o in operators if o.pooled is not None}
        if len(second) > 1:
            faults.append(f"components are of different pooled widths: {sorted(second)}")
        if any(o.values_only for o in operators):
            faults.append("a component edits values only, which is no transform of the embeddings")
        known = [o.encoder for o in operators if o.encoder is not None]
        faults += [f"components are of two text encoders, {known[0].exact} and {e.exact}" for e in known[1:]
                   if not e.matches(known[0])][:1]  # fmt: skip
        if len(self.table.default) != len(labels):
            faults.append(f"{len(self.table.default)} weights for {len(labels)} components")
        if faults:
            raise EditError.listing("these components are no mixture:", faults)

    @classmethod
    def of(
        cls,
        operators: Mapping[str, EditOperator],
        weights: Sequence[float] | None = None,
        professions: Mapping[str, Sequence[float]] | None = None,
    ) -> Mixture:
        """Put a mixture together.

        Args:
            operators: by label, in their order.
            weights: of the components; None: equal ones.
            professions: weights by source prompt, of those that have their own.

        Raises:
            EditError: see the class.
        """
        given = [1 / len(operators)] * len(operators) if weights is None else weights
        components = tuple(Component(label, operator) for label, operator in operators.items())
        return cls(components, WeightTable(given, professions))

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of each component, in order."""
        return tuple(component.label for component in self.components)

    @property
    def d(self) -> int:
        """Width of the embeddings."""
        return self.components[0].operator.d

    @property
    def pooled_d(self) -> int | None:
        """Width of the pooled embeddings that its components edit; None: they leave those alone."""
        return next((c.operator.pooled.d for c in self.components if c.operator.pooled is not None), None)

    @property
    def encoder(self) -> EncoderDigest | None:
        """The text encoder that it was solved for, where known."""
        return next((c.operator.encoder for c in self.components if c.operator.encoder is not None), None)

    @property
    def condition(self) -> float | None:
        """The largest estimated condition number of its solves."""
        return max((c.operator.condition for c in self.components if c.operator.condition is not None), default=None)

    @property
    def digest(self) -> str:
        """sha256 in hex of all that decides what it draws: components, weights and the route's version."""
        content = {
            "components": [[c.label, c.operator.digest] for c in self.components],
            **_weights_content(self.table),
        }
        return hashlib.sha256(_json(content).encode()).hexdigest()

    @property
    def checksum(self) -> str:
        """sha256 in hex of all matrices' bytes; differs between machines."""
        sums = [c.operator.checksum for c in self.components]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def weights_of(self, prompt: str) -> Weights:
        """The components' weights for a prompt's images."""
        return self.table.of(prompt)

    def component_of(self, seed: int, prompt: str = "", place: int = 0) -> int:
        """Index of the component that draws an image; see `time_ops.route.route`."""
        return route(seed, self.weights_of(prompt), place)

    def transform(
        self,
        prompt_embeds: torch.Tensor,
        seeds: Sequence[int] | int,
        prompts: Sequence[str] | str | None = None,
    ) -> torch.Tensor:
        """Embeddings of a batch, each through the component that its image's seed picks.

        Transform conditional and negative (or empty) embeddings alike, with the same seeds and with the image's own
        prompts: the component is the image's, not the embedding's.

        Args:
            prompt_embeds: [B, n, d], floating point.
            seeds: of each image's own generator; or one, of the generator that draws the batch.
            prompts: of each image, or one for all, by which professions with weights of their own are found; None: no
                profession is known, and the default weights count.

        Returns:
            [B, n, d], same dtype and device; multiplied in float64, cast once.

        Raises:
            EditError: not one seed or prompt for each image.
            ModelError: width or dtype do not fit.
        """
        if prompt_embeds.ndim != 3:
            raise EditError(f"embeddings of a batch are [B, n, d], not {list(prompt_embeds.shape)}")
        return self._routed(EditOperator.transform, prompt_embeds, seeds, prompts)

    def transform_pooled(
        self,
        pooled_prompt_embeds: torch.Tensor,
        seeds: Sequence[int] | int,
        prompts: Sequence[str] | str | None = None,
    ) -> torch.Tensor:
        """Pooled embeddings of a batch, each through the component that draws its image.

        Args:
            pooled_prompt_embeds: [B, p], floating point; those of the negative prompts likewise.
            seeds: as for `transform`, and the same ones.
            prompts: likewise.

        Returns:
            [B, p], same dtype and device.

        Raises:
            EditError: not one seed or prompt for each image.
            ModelError: width or dtype do not fit.
        """
        if pooled_prompt_embeds.ndim != 2:
            raise EditError(f"pooled embeddings of a batch are [B, p], not {list(pooled_prompt_embeds.shape)}")
        return self._routed(EditOperator.transform_pooled, pooled_prompt_embeds, seeds, prompts)

    def _routed(
        self,
        transform: Callable[[EditOperator, torch.Tensor], torch.Tensor],
        embeds: torch.Tensor,
        seeds: Sequence[int] | int,
        prompts: Sequence[str] | str | None,
    ) -> torch.Tensor:
        count = len(embeds)
        of_images = (
            [(int(seeds), place) for place in range(count)]
            if isinstance(seeds, int | Integral)
            else [(int(seed), 0) for seed in seeds]
        )
        texts = [prompts or ""] * count if prompts is None or isinstance(prompts, str) else list(prompts)
        if len(of_images) != count or len(texts) != count:
            raise EditError(f"{count} images, but {len(of_images)} seeds and {len(texts)} prompts: give one for each")
        out = torch.empty_like(embeds)
        chosen = [self.component_of(seed, text, place) for (seed, place), text in zip(of_images, texts, strict=True)]
        for k, component in enumerate(self.components):
            rows = [i for i, c in enumerate(chosen) if c == k]
            if rows:
                out[rows] = transform(component.operator, embeds[rows])
        return out

    def check_encoder(self, pipe: Any) -> None:
        """Refuse a pipeline whose text encoder is not the one that the components were solved for.

        Raises:
            ModelError: another text encoder or tokenizer.
        """
        for component in self.components:
            component.operator.check_encoder(pipe)

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float64) -> Path:
        """Write a safetensors file: tensor "operators" [K, d, d], all else in the header. Equal mixtures, equal bytes.

        Pooled operators are a second tensor, "pooled" [K, p, p], and the format is then version 2.

        Args:
            path: the file; written beside and renamed.
            dtype: float64, or float32 for half the size.
        """
        return write_beside(path, self.to_bytes(dtype=dtype))

    def to_bytes(self, *, dtype: torch.dtype = torch.float64) -> bytes:
        """Give the file's bytes; see `save`.

        Raises:
            EditError: another dtype.
        """
        p = self.pooled_d
        header = {
            "format": _FORMAT if p is None else _FORMAT_POOLED,
            "is": "a mixture: one operator for each label, and weights by which each image's seed picks one",
            "d": self.d,
            "digest": self.digest,
            "components": [{"label": c.label, **operator_header(c.operator, dtype=dtype)} for c in self.components],
            **_weights_content(self.table),
        }
        tensors = {_TENSOR: torch.stack([c.operator.matrix for c in self.components]).to(dtype)}
        if p is not None:
            seconds = (c.operator.pooled or EditOperator.identity(p) for c in self.components)
            tensors[_TENSOR_POOLED] = torch.stack([second.matrix for second in seconds]).to(dtype)
        # One metadata key: safetensors keeps several in no fixed order, and the bytes shall be.
        return safetensors_bytes(tensors, metadata={_HEADER: _json(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mixture:
        """Read a mixture back, and check it.

        Raises:
            EditError: no mixture's file, or one that was damaged.
            FileNotFoundError: no file.
        """
        name = Path(path)
        if not name.is_file():
            raise FileNotFoundError(f"no mixture at {name}")
        return cls.from_bytes(name.read_bytes(), str(name))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "these bytes") -> Mixture:
        """Read what `to_bytes` gave; `name` is for messages.

        Raises:
            EditError: see `load`.
        """
        try:
            tensors = load_tensors(data)
            metadata = header_of(data)
        except (SafetensorError, ValueError) as error:
            raise EditError(f"{name} is not a safetensors file, or is cut short: {error}") from error
        if sorted(tensors) not in ([_TENSOR], [_TENSOR, _TENSOR_POOLED]) or _HEADER not in metadata:
            raise EditError(
                f"{name} is not a mixture: it has tensors {sorted(tensors)} and header keys {sorted(metadata)}"
            )
        matrices, pooled = tensors[_TENSOR], tensors.get(_TENSOR_POOLED)
        try:
            header = json_of(metadata[_HEADER])
            expected = _FORMAT if pooled is None else _FORMAT_POOLED
            if header["format"] != expected:
                raise EditError(f"{name} has format {header['format']!r}; with these tensors it would be {expected!r}")
            if header["route"] != ROUTE_VERSION:
                raise EditError(f"{name} is routed by version {header['route']!r}; this one routes by {ROUTE_VERSION}")
            stored = header["components"]
            if matrices.ndim != 3 or len(matrices) != len(stored):
                raise EditError(f"{name} has operators {list(matrices.shape)} for {len(stored)} components")
            # A component that leaves pooled embeddings alone says nothing of them, and has the unit matrix there.
            seconds = [None if pooled is None or "pooled" not in each else pooled[k] for k, each in enumerate(stored)]
            components = tuple(
                Component(str(each["label"]), operator_from_header(matrix, each, f"{name}, {each['label']}", second))
                for matrix, each, second in zip(matrices, stored, seconds, strict=True)
            )
            table = WeightTable(header["weights"], dict(header["professions"]))
            mixture = cls(components, table)
            digest, said = mixture.digest, header["digest"]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, EditError):
                raise error if name in str(error) else EditError(f"{name} is damaged: {error}") from error
            what = f"{type(error).__name__}: {str(error)[:200]}"
            raise EditError(f"{name} has a header that can't be read: {what}") from error
        if said != digest:
            raise EditError(f"{name} is damaged: its digest is {digest}, the header says {str(said)[:80]}")
        return mixture


def is_mixture(data: bytes) -> bool:
    """Whether a file's bytes say that they are a mixture's; what else they may be is told by whoever reads them."""
    try:
        content = json_of(header_of(data).get(_HEADER, "{}"))
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("format") in (_FORMAT, _FORMAT_POOLED)


def _weights_content(table: WeightTable) -> dict[str, Any]:
    """What of the weights and the route a file holds, and a digest covers."""
    return {
        "weights": list(table.default),
        "professions": [[source, list(weights)] for source, weights in sorted(table.professions.items())],
        "route": ROUTE_VERSION,
        "route_vectors": [list(vector) for vector in ROUTE_VECTORS],
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
