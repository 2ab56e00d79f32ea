"""From prompts to token pairs: source and destination embeddings, made exactly as the pipeline makes them.

    pairs = encode_edits(pipe, [PromptEdit("a CEO", {"a female CEO": 0.5, "a male CEO": 0.5})])
    kept = encode_preserved(pipe, ["a female CEO", "a male CEO", ""])

Prompts pass through the pipeline's own `encode_prompt`, so its layer, its padding and the join of two encoders are
right by construction; the text encoder runs in float32 whatever its dtype, and is put back bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from time_ops.alignment import Alignment, Positions, align_prompts
from time_ops.encoders import EncoderDigest, encoder_digest, text_encoders
from time_ops.errors import EditError, ModelError
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
    "TokenPairs",
    "augment",
    "check_prompts",
    "encode_checked",
    "encode_edits",
    "encode_preserved",
    "encode_prompts",
]


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """The token embeddings of one edit, all augmentations and positions below each other.

    Attributes:
        edit: What they were made from.
        source: [n, d] float32 (or float64), token embeddings c_i; n = augmentations x positions.
        destinations: [K, n, d], for each destination the embedding c*_i that corresponds to source token i.
        augmentations: Templates that were used.
        alignment: Rule that matched the tokens.
        encoder: The text encoder's digest; None for embeddings that did not come from `encode_edits`.

    Raises:
        EditError: Shapes or dtypes don't fit, or a value is not finite.

    """

    edit: PromptEdit
    source: torch.Tensor
    destinations: torch.Tensor
    augmentations: tuple[str, ...] = ("{source}",)
    alignment: Alignment = "published"
    encoder: EncoderDigest | None = None
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
            shares: By destination prompt, or in the destinations' order.

        Raises:
            EditError: A destination is missing or unknown, or the shares are invalid.

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
        return replace(self, edit=PromptEdit(self.edit.source, dict(zip(prompts, values, strict=True))))


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
        pipe: A Stable Diffusion 1.x, 2.x or XL pipeline (its UNet may be absent from memory, its text encoders not).
        edits: The edits.
        augmentations: Templates in which "{source}" stands for the edit's prompts, source and destinations alike.
        alignment: "published", or "lcs" to align also destinations that lack or reorder the source's words.
        batch_size: Prompts encoded at a time.

    Returns:
        One `TokenPairs` for each edit, float32 on the CPU, n = len(augmentations) x positions.

    Raises:
        EditError: A prompt is too long or can't be aligned; all of them are named.
        ModelError: The pipeline can't be edited or its encoder can't be run in float32.

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
        source = torch.cat([encoded.embeddings[encoded.places[s]] for s in sources])
        pairs.append(TokenPairs(edit, source, torch.stack(destinations), templates, alignment, encoded.encoder))
    return pairs


@dataclass(frozen=True, eq=False)
class Encoded:
    """All prompts of some edits, each distinct one encoded once.

    Attributes:
        embeddings: [P, n, d] float32.
        places: Index in `embeddings` of each rendered prompt.
        encoder: The text encoder's digest.

    """

    embeddings: torch.Tensor
    places: dict[str, int]
    encoder: EncoderDigest
    _tokenizers: Sequence[Any]
    _alignment: Alignment

    def positions(self, source: str, destination: str) -> torch.Tensor:
        """Destination position of each source position, [n] int64; both prompts as rendered."""
        index = _joint_alignment(self._tokenizers, source, destination, self.embeddings.shape[1], self._alignment)
        return torch.from_numpy(index)

    def aligned(self, source: str, destination: str) -> torch.Tensor:
        """The destination's embeddings at these positions, [n, d] float32."""
        return self.embeddings[self.places[destination]][self.positions(source, destination)]


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
    converted = [_Converted(pipe, tokenizer) for tokenizer in _agreeing_tokenizers(pipe)]
    faults = [
        fault.reason
        for tokenizer in converted
        for fault in check_prompts(tokenizer, edits, prompts=prompts, augmentations=templates, alignment=alignment)
    ]
    if faults:
        raise EditError.listing("these edits must be mended:", list(dict.fromkeys(faults)))
    rendered = [augment(t, p) for e in edits for t in templates for p in (e.source, *e.destinations)]
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys([*rendered, *prompts]))}
    embeddings = _encode(pipe, list(places), batch_size)
    return Encoded(embeddings, places, encoder_digest(pipe), converted, alignment)


def encode_preserved(pipe: Any, prompts: Sequence[str], *, batch_size: int = 32) -> list[TokenPairs]:
    """Token pairs of prompts that must keep their embeddings: c* = c. No augmentation; [n, d] with n the positions.

    Args:
        pipe: As for `encode_edits`.
        prompts: Prompts as they will be drawn; "" is the empty prompt. Repeated ones are taken once.
        batch_size: Prompts encoded at a time.

    Raises:
        EditError: Prompts are too long; all are named.
        ModelError: As for `encode_edits`.

    """
    distinct = list(dict.fromkeys(prompts))
    embeddings = encode_prompts(pipe, distinct, batch_size=batch_size)
    encoder = encoder_digest(pipe)
    return [
        TokenPairs(PromptEdit(prompt, {prompt: 1.0}), tokens, tokens[None], encoder=encoder)
        # Each with memory of its own: a view would carry the embeddings of all prompts along wherever it is sent.
        for prompt, tokens in zip(distinct, (e.clone() for e in embeddings), strict=True)
    ]


def encode_prompts(pipe: Any, prompts: Sequence[str], *, batch_size: int = 32) -> torch.Tensor:
    """Prompt embeddings as the pipeline makes them, in float32.

    Args:
        pipe: As for `encode_edits`.
        prompts: The prompts; each distinct one is encoded once.
        batch_size: Prompts encoded at a time.

    Returns:
        [P, n, d] float32 on the CPU, in the prompts' order.

    Raises:
        EditError: Prompts are too long; all are named.
        ModelError: As for `encode_edits`.

    """
    check_pipeline(pipe)
    faults: list[str] = []
    for tokenizer in _agreeing_tokenizers(pipe):
        faults.extend(f.reason for f in check_prompts(_Converted(pipe, tokenizer), [], prompts=prompts))
    if faults:
        raise EditError.listing("these prompts must be mended:", list(dict.fromkeys(faults)))
    rows = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    if not rows:
        raise EditError("no prompts to encode")
    embeddings = _encode(pipe, list(rows), batch_size)
    return embeddings if len(rows) == len(prompts) else embeddings[[rows[p] for p in prompts]]


def _encode(pipe: Any, prompts: list[str], batch_size: int) -> torch.Tensor:
    """Distinct, checked prompts through the pipeline's own encoding; [P, n, d] float32."""
    if not prompts:
        return torch.zeros(0, 0, 0)
    found = []
    # Looked up once: diffusers walks through all modules for it, 8 ms each time.
    device = pipe._execution_device
    with _float32_encoders(pipe), torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            made = pipe.encode_prompt(
                prompt=prompts[start : start + batch_size],
                device=device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            found.append(made[0].to(device="cpu", dtype=torch.float32))
    embeddings = torch.cat(found)
    if not bool(torch.isfinite(embeddings).all()):
        raise ModelError("the text encoder gives embeddings that are not finite: are its weights whole?")
    return embeddings


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


class _Converted:
    """A tokenizer that sees prompts as the pipeline does: with textual inversion's placeholders spelled out.

    It remembers what `token_ids` and the alignment ask of it, each prompt many times: asked anew, tokenizing takes
    longer than a small encoder's forward pass.
    """

    def __init__(self, pipe: Any, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._convert = getattr(pipe, "maybe_convert_prompt", None)
        self._tokenized: dict[str, Any] = {}
        self._decoded: dict[tuple[int, ...], str] = {}
        self.model_max_length = int(tokenizer.model_max_length)

    def __call__(self, prompt: str, **kwargs: Any) -> Any:
        if prompt not in self._tokenized:
            text = self._convert(prompt, self._tokenizer) if self._convert is not None else prompt
            self._tokenized[prompt] = self._tokenizer(text, **kwargs)
        return self._tokenized[prompt]

    def decode(self, ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in self._decoded:
            self._decoded[key] = str(self._tokenizer.decode(ids))
        return self._decoded[key]


def _agreeing_tokenizers(pipe: Any) -> list[Any]:
    """Check that the tokenizers' padded length is the encoder's and the same for all, and return them."""
    lengths = {}
    for tokenizer, encoder in text_encoders(pipe):
        n = int(tokenizer.model_max_length)
        limit = getattr(encoder.config, "max_position_embeddings", None)
        if limit is not None and n > int(limit):
            raise ModelError(f"the tokenizer pads to {n} tokens, but the text encoder has {limit} positions")
        lengths[id(tokenizer)] = n
    if len(set(lengths.values())) > 1:
        raise ModelError(f"the pipeline's tokenizers pad to different lengths: {sorted(lengths.values())}")
    return [tokenizer for tokenizer, _ in text_encoders(pipe)]


def _joint_alignment(
    tokenizers: Sequence[Any], source: str, destination: str, positions: int, alignment: Alignment
) -> Positions:
    """Align for all encoders at once: their embeddings are joined, so they must agree."""
    found = [align_prompts(t, source, destination, positions=positions, alignment=alignment) for t in tokenizers]
    if any((index != found[0]).any() for index in found[1:]):
        raise ModelError(f"the pipeline's tokenizers align {source!r} with {destination!r} differently")
    return found[0]
