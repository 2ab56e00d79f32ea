"""From prompts to token pairs: source and destination embeddings, made exactly as the pipeline makes them.

    pairs = encode_edits(pipe, [PromptEdit("a CEO", {"a female CEO": 0.5, "a male CEO": 0.5})])
    kept = encode_preserved(pipe, ["a female CEO", "a male CEO", ""])

Prompts pass through the pipeline's own `encode_prompt`, so its layers, its padding and the join of its encoders are
right by construction; the text encoder runs in float32 whatever its dtype, and is put back bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from time_ops.alignment import Alignment
from time_ops.encoders import EncoderDigest, encoder_digest, text_encoders
from time_ops.errors import EditError, ModelError
from time_ops.families import (
    Span,
    TextEmbeddings,
    aligned_spans,
    check_masks,
    pipeline_embeddings,
    text_readers,
    token_spans,
)
from time_ops.prompts import (
    DEFAULT_AUGMENTATIONS,
    PromptEdit,
    PromptFault,
    augment,
    check_prompts,
    checked_templates,
)
from time_ops.surfaces import check_pipeline

__all__ = [
    "DEFAULT_AUGMENTATIONS",
    "Encoded",
    "PromptEdit",
    "PromptFault",
    "TextEmbeddings",
    "TokenPairs",
    "augment",
    "check_prompts",
    "encode_checked",
    "encode_edits",
    "encode_preserved",
    "encode_prompts",
    "encode_texts",
]


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """The token embeddings of one edit, all augmentations and positions below each other.

    Attributes:
        edit: what they were made from.
        source: [n, d] float32 (or float64), token embeddings c_i; n = augmentations x positions, but for those that
            the model does not attend to.
        destinations: [K, n, d], for each destination the embedding c*_i that corresponds to source token i.
        augmentations: templates that were used.
        alignment: rule that matched the tokens.
        encoder: the text encoder's digest; None for embeddings that did not come from `encode_edits`.
        pooled: the same edit's pooled embeddings, one vector for each augmentation in place of a token: source [W, p],
            destinations [K, W, p]. None where the model reads none.

    Raises:
        EditError: shapes or dtypes don't fit, or a value is not finite.
    """

    edit: PromptEdit
    source: torch.Tensor
    destinations: torch.Tensor
    augmentations: tuple[str, ...] = ("{source}",)
    alignment: Alignment = "published"
    encoder: EncoderDigest | None = None
    pooled: TokenPairs | None = None
    _tokens_digest: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        name = f"token pairs of {self.edit.source!r}"
        for tensor in (self.source, self.destinations):
            if tensor.dtype not in (torch.float32, torch.float64):
                raise EditError(f"{name}: embeddings are {tensor.dtype}; float32 or float64 is needed")
        expected = (len(self.edit.destinations), *self.source.shape)
        if self.source.ndim != 2 or tuple(self.destinations.shape) != expected:
            raise EditError(
                f"{name}: source has shape {list(self.source.shape)}, destinations {list(self.destinations.shape)}; "
                "needed are [n, d] and [K, n, d] with one K for each destination prompt"
            )
        if not bool(torch.isfinite(self.source).all() and torch.isfinite(self.destinations).all()):
            raise EditError(f"{name}: embeddings are not finite")

    @property
    def shares(self) -> torch.Tensor:
        """Share of each destination, [K] float64."""
        return torch.tensor(list(self.edit.destinations.values()), dtype=torch.float64)

    @property
    def destination(self) -> torch.Tensor:
        """The blend of the destinations, sum_k a_k c*_k, [n, d] float64."""
        return torch.einsum("k,knd->nd", self.shares.to(self.source.device), self.destinations.double())

    @property
    def is_preserved(self) -> bool:
        """Whether every destination embedding is its source embedding, c* = c."""
        return bool((self.destinations == self.source).all())

    @property
    def tokens_digest(self) -> str:
        """sha256 in hex of the embeddings themselves: identity of pairs that no known encoder made."""
        if not self._tokens_digest:
            sha = hashlib.sha256(repr((tuple(self.destinations.shape), self.source.dtype)).encode())
            for tensor in (self.source, self.destinations):
                sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self._tokens_digest.append(sha.hexdigest())
        return self._tokens_digest[0]

    def with_shares(self, shares: Mapping[str, float] | Sequence[float]) -> TokenPairs:
        """Blend the same tokens by other shares.

        Args:
            shares: by destination prompt, or in the destinations' order.

        Raises:
            EditError: a destination is missing or unknown, or the shares are invalid.
        """
        prompts = list(self.edit.destinations)
        if isinstance(shares, Mapping):
            if set(shares) != set(prompts):
                raise EditError(f"edit of {self.edit.source!r} has destinations {prompts}, shares name {list(shares)}")
            values = [shares[p] for p in prompts]
        else:
            values = [float(s) for s in shares]
            if len(values) != len(prompts):
                raise EditError(f"edit of {self.edit.source!r} has {len(prompts)} destinations, not {len(values)}")
        edit = PromptEdit(self.edit.source, dict(zip(prompts, values, strict=True)))
        return replace(self, edit=edit, pooled=None if self.pooled is None else replace(self.pooled, edit=edit))


def encode_edits(
    pipe: Any,
    edits: Sequence[PromptEdit],
    *,
    augmentations: Sequence[str] = DEFAULT_AUGMENTATIONS,
    alignment: Alignment = "published",
    batch_size: int = 32,
) -> list[TokenPairs]:
    """Token pairs of edits, in order.

    Args:
        pipe: a Stable Diffusion 1.x, 2.x, XL or 3.x, a FLUX.1, PixArt or Sana pipeline. Of the first three the UNet
            may be absent from memory; the text encoders may not.
        edits: the edits.
        augmentations: templates in which "{source}" stands for the edit's prompts, source and destinations alike.
        alignment: "published", or "lcs" to align also destinations that lack or reorder the source's words.
        batch_size: prompts encoded at a time.

    Returns:
        One `TokenPairs` for each edit, float32 on the CPU, n = len(augmentations) x positions. Where the pipeline masks
        padding, each augmentation has as many as its source has tokens.

    Raises:
        EditError: a prompt is too long or can't be aligned; all of them are named.
        ModelError: the pipeline can't be edited or its encoder can't be run in float32.
    """
    edits, templates = list(edits), checked_templates(augmentations)
    encoded = encode_checked(pipe, edits, (), augmentations=templates, alignment=alignment, batch_size=batch_size)
    pairs = []
    for edit in edits:
        sources = [augment(t, edit.source) for t in templates]
        destinations = [
            torch.cat([encoded.aligned(s, augment(t, name)) for s, t in zip(sources, templates, strict=True)])
            for name in edit.destinations
        ]
        source = torch.cat([encoded.tokens(s) for s in sources])
        pooled = None
        if encoded.pooled is not None:
            ends = [[encoded.places[augment(t, name)] for t in templates] for name in edit.destinations]
            starts = encoded.pooled[[encoded.places[s] for s in sources]]
            pooled = TokenPairs(edit, starts, encoded.pooled[torch.tensor(ends)], templates, alignment, encoded.encoder)
        pairs.append(TokenPairs(edit, source, torch.stack(destinations), templates, alignment, encoded.encoder, pooled))
    return pairs


@dataclass(frozen=True, eq=False)
class Encoded:
    """All prompts of some edits, each distinct one encoded once.

    Attributes:
        embeddings: [P, n, d] float32.
        pooled: [P, p] float32; None where the model reads none.
        places: index in both of each rendered prompt.
        mask: [P, n] bool, which positions count: those that the model attends to. None: all of them.
        encoder: the text encoder's digest.
    """

    embeddings: torch.Tensor
    pooled: torch.Tensor | None
    mask: torch.Tensor | None
    places: dict[str, int]
    encoder: EncoderDigest
    _spans: Sequence[Span]
    _alignment: Alignment

    def tokens(self, prompt: str) -> torch.Tensor:
        """A rendered prompt's embeddings that count, [n, d] float32."""
        return self._counted(self.embeddings[self.places[prompt]], prompt)

    def positions(self, source: str, destination: str) -> torch.Tensor:
        """Destination position of each source position, [n] int64; both prompts as rendered.

        Raises:
            EditError: a position that counts would correspond to one that does not.
        """
        found = torch.from_numpy(aligned_spans(self._spans, source, destination, self._alignment))
        if self.mask is not None:
            unread = self.mask[self.places[source]] & ~self.mask[self.places[destination]][found]
            if bool(unread.any()):
                raise EditError(
                    f"source {source!r} can't be aligned with destination {destination!r}: its positions "
                    f"{unread.nonzero().flatten().tolist()} would correspond to padding, which the model does not read"
                )
        return found

    def aligned(self, source: str, destination: str) -> torch.Tensor:
        """The destination's embeddings that correspond to those of the source that count, [n, d] float32."""
        return self.embeddings[self.places[destination]][self._counted(self.positions(source, destination), source)]

    def _counted(self, rows: torch.Tensor, prompt: str) -> torch.Tensor:
        return rows if self.mask is None else rows[self.mask[self.places[prompt]]]


def encode_checked(
    pipe: Any,
    edits: Sequence[PromptEdit],
    prompts: Sequence[str],
    *,
    augmentations: Sequence[str],
    alignment: Alignment,
    batch_size: int,
) -> Encoded:
    """Check edits and further prompts, and encode what they render to; the parameters and errors of `encode_edits`."""
    check_pipeline(pipe)
    templates = checked_templates(augmentations)
    readers = text_readers(pipe)
    spans = token_spans(pipe, readers)
    # Only what token states are made from has to align; a pooled embedding is one vector.
    aligning = [reader for span in spans for reader in span.readers]
    faults = [
        fault.reason
        for reader in aligning
        for fault in check_prompts(reader, edits, prompts=prompts, augmentations=templates, alignment=alignment)
    ]
    rendered_once = dict.fromkeys(augment(t, p) for e in edits for t in templates for p in (e.source, *e.destinations))
    others = [reader for reader in readers if all(reader is not a for a in aligning)]
    faults += [f.reason for r in others for f in check_prompts(r, [], prompts=[*rendered_once, *prompts])]
    if faults:
        raise EditError.listing("these edits must be mended:", list(dict.fromkeys(faults)))
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys([*rendered_once, *prompts]))}
    made = _encode(pipe, list(places), batch_size)
    if made.mask is not None:
        check_masks(spans, list(places), made.mask)
    return Encoded(made.tokens, made.pooled, made.mask, places, encoder_digest(pipe), spans, alignment)


def encode_preserved(pipe: Any, prompts: Sequence[str], *, batch_size: int = 32) -> list[TokenPairs]:
    """Token pairs of prompts that must keep their embeddings: c* = c. No augmentation; [n, d] with n the positions.

    Where the pipeline masks padding, n is the number of the prompt's own tokens.

    Args:
        pipe: as for `encode_edits`.
        prompts: prompts as they will be drawn; "" is the empty prompt. Repeated ones are taken once.
        batch_size: prompts encoded at a time.

    Raises:
        EditError: prompts are too long; all are named.
        ModelError: as for `encode_edits`.
    """
    distinct = list(dict.fromkeys(prompts))
    made = encode_texts(pipe, distinct, batch_size=batch_size)
    encoder = encoder_digest(pipe)
    pairs = []
    for i, prompt in enumerate(distinct):
        edit = PromptEdit(prompt, {prompt: 1.0})
        # Each with memory of its own: a view would carry the embeddings of all prompts along wherever it is sent.
        tokens, pooled = made.tokens[i].clone() if made.mask is None else made.tokens[i][made.mask[i]], None
        if made.pooled is not None:
            vector = made.pooled[i : i + 1].clone()
            pooled = TokenPairs(edit, vector, vector[None], encoder=encoder)
        pairs.append(TokenPairs(edit, tokens, tokens[None], encoder=encoder, pooled=pooled))
    return pairs


def encode_prompts(pipe: Any, prompts: Sequence[str], *, batch_size: int = 32) -> torch.Tensor:
    """Token states as the pipeline makes them, in float32; `encode_texts` gives the pooled embeddings too.

    Args:
        pipe: as for `encode_edits`.
        prompts: the prompts; each distinct one is encoded once.
        batch_size: prompts encoded at a time.

    Returns:
        [P, n, d] float32 on the CPU, in the prompts' order.

    Raises:
        EditError: prompts are too long; all are named.
        ModelError: as for `encode_edits`.
    """
    return encode_texts(pipe, prompts, batch_size=batch_size).tokens


def encode_texts(pipe: Any, prompts: Sequence[str], *, batch_size: int = 32) -> TextEmbeddings:
    """All embeddings that the pipeline makes of prompts, in float32; parameters and errors of `encode_prompts`."""
    check_pipeline(pipe)
    faults = [f.reason for reader in text_readers(pipe) for f in check_prompts(reader, [], prompts=prompts)]
    if faults:
        raise EditError.listing("these prompts must be mended:", list(dict.fromkeys(faults)))
    rows = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    if not rows:
        raise EditError("no prompts to encode")
    made = _encode(pipe, list(rows), batch_size)
    if len(rows) == len(prompts):
        return made
    order = [rows[p] for p in prompts]
    pooled, mask = (None if each is None else each[order] for each in (made.pooled, made.mask))
    return TextEmbeddings(made.tokens[order], pooled, mask)


def _encode(pipe: Any, prompts: list[str], batch_size: int) -> TextEmbeddings:
    """Distinct, checked prompts through the pipeline's own encoding, in float32."""
    if not prompts:
        return TextEmbeddings(torch.zeros(0, 0, 0), None)
    tokens, pooled, masks = [], [], []
    # Looked up once: diffusers walks through all modules for it, 8 ms each time.
    device = pipe._execution_device
    with _float32_encoders(pipe), torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            part = pipeline_embeddings(pipe, prompts[start : start + batch_size], device)
            tokens.append(part.tokens.to(device="cpu", dtype=torch.float32))
            pooled += [] if part.pooled is None else [part.pooled.to(device="cpu", dtype=torch.float32)]
            masks += [] if part.mask is None else [part.mask.cpu()]
    made = TextEmbeddings(torch.cat(tokens), torch.cat(pooled) if pooled else None, torch.cat(masks) if masks else None)
    if not all(bool(torch.isfinite(e).all()) for e in (made.tokens, made.pooled) if e is not None):
        raise ModelError("the text encoder gives embeddings that are not finite: are its weights whole?")
    return made


@contextmanager
def _float32_encoders(pipe: Any) -> Iterator[None]:
    """Text encoders in float32 and in evaluation mode, and afterwards as they were, bit for bit."""
    restore: list[tuple[torch.Tensor, torch.Tensor]] = []
    modes: list[tuple[torch.nn.Module, bool]] = []
    device = torch.device(pipe._execution_device)
    try:
        for _, encoder in text_encoders(pipe):
            modes.extend((module, module.training) for module in encoder.modules())
            encoder.eval()
            for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
                if tensor.is_meta:
                    raise ModelError(f"text encoder weight {name} is on the meta device (offloaded): load it first")
                if not tensor.dtype.is_floating_point or tensor.dtype == torch.float32:
                    continue
                restore.append((tensor, tensor.data))
                tensor.data = tensor.data.float()
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for tensor, data in restore:
            tensor.data = data
        for module, training in modes:
            module.training = training
