"""Which text encoder made the embeddings: a digest that an operator carries, so that it is not used on another."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from time_ops.errors import ModelError

__all__ = ["EncoderDigest", "encoder_digest", "text_encoders"]

# What of a text encoder's configuration decides its embeddings, beside the weights.
_CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "use_attention_mask",
)
# What else decides those of one kind; CLIP's digests are older than these, and stay as they are.
_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "t5": ("d_kv", "d_ff", "feed_forward_proj", "relative_attention_num_buckets", "relative_attention_max_distance"),
    # Sana's. What caps its logits decides no embedding.
    "gemma2": (
        "num_key_value_heads",
        "head_dim",
        "hidden_activation",
        "rms_norm_eps",
        "rope_parameters",
        "query_pre_attn_scalar",
        "layer_types",
        "sliding_window",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ),
}


@dataclass(frozen=True)
class EncoderDigest:
    """Identity of a pipeline's text encoders and tokenizers.

    A model loaded in half precision has other weights than in float32, yet is the same model. So the digests of the
    weights cast to each half precision are kept too, and two encoders also match if one of them *is* in such a
    precision and the other gives the same weights when cast to it.

    Attributes:
        exact: sha256 in hex over the weights' values, the configuration and the tokenizers.
        dtype: the weights' dtype, "float32".
        float16: the same digest with weights cast to float16.
        bfloat16: the same digest with weights cast to bfloat16.
    """

    exact: str
    dtype: str
    float16: str
    bfloat16: str

    def matches(self, other: EncoderDigest) -> bool:
        """Whether both are of the same encoder, a cast to half precision aside."""
        if self.exact == other.exact:
            return True
        dtypes = (self.dtype, other.dtype)
        return ("float16" in dtypes and self.float16 == other.float16) or (
            "bfloat16" in dtypes and self.bfloat16 == other.bfloat16
        )


def text_encoders(pipe: Any) -> list[tuple[Any, Any]]:
    """List the pipeline's (tokenizer, text encoder) pairs, in the order in which their embeddings are joined.

    Raises:
        ModelError: a tokenizer is missing, or there are more than three text encoders.
    """
    if getattr(pipe, "text_encoder_4", None) is not None:
        raise ModelError(f"{type(pipe).__name__} has four text encoders; at most three are known")
    pairs = []
    for suffix in ("", "_2", "_3"):
        encoder, tokenizer = getattr(pipe, "text_encoder" + suffix, None), getattr(pipe, "tokenizer" + suffix, None)
        if encoder is None:
            continue
        if tokenizer is None:
            raise ModelError(f"{type(pipe).__name__} has text_encoder{suffix} but no tokenizer{suffix}")
        pairs.append((tokenizer, encoder))
    if not pairs:
        raise ModelError(f"{type(pipe).__name__} has no text encoder loaded")
    return pairs


def encoder_digest(pipe: Any) -> EncoderDigest:
    """Digest of a pipeline's text encoders; cached until a weight changes.

    Args:
        pipe: a pipeline with `text_encoder` and `tokenizer`, and up to `text_encoder_3` and `tokenizer_3`.

    Raises:
        ModelError: an encoder's weights are not in memory.
    """
    parts = [(_weights_digest(encoder), _tokenizer_digest(tokenizer)) for tokenizer, encoder in text_encoders(pipe)]
    dtypes = {w["dtype"] for w, _ in parts}

    def joined(kind: str) -> str:
        return hashlib.sha256("\n".join(line for w, t in parts for line in (w[kind], t)).encode()).hexdigest()

    dtype = dtypes.pop() if len(dtypes) == 1 else "mixed"
    return EncoderDigest(joined("exact"), dtype, joined("float16"), joined("bfloat16"))


_weights_cache: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], dict[str, str]]] = WeakKeyDictionary()


def _weights_digest(encoder: nn.Module) -> dict[str, str]:
    state = tuple((name, p.dtype, p.data_ptr(), p._version, _sum(p)) for name, p in _weights(encoder))
    cached = _weights_cache.get(encoder)
    if cached is not None and cached[0] == state:
        return cached[1]
    own: Any = encoder.config
    fields = (*_CONFIG_FIELDS, *_OWN_FIELDS.get(own.model_type, ()))
    config = {field: getattr(own, field, None) for field in fields}
    head = json.dumps(config, sort_keys=True, default=str).encode()
    hashes = {kind: hashlib.sha256(head) for kind in ("exact", "float16", "bfloat16")}
    dtypes = set()
    for name, weight in _weights(encoder):
        if weight.is_meta:
            raise ModelError(
                f"text encoder weight {name} is on the meta device (offloaded): load it or remove the hooks"
            )
        dtypes.add(str(weight.dtype).removeprefix("torch."))
        value = weight.detach().to("cpu")
        for kind, cast in (("exact", torch.float64), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            # The exact digest is of values: half precision weights and the same held in float32 are equal.
            wide = cast if kind != "exact" or value.dtype == torch.float64 else torch.float32
            hashes[kind].update(f"\n{name} {tuple(value.shape)}\n".encode())
            hashes[kind].update(_little_endian(value.to(wide)))
    result = {kind: h.hexdigest() for kind, h in hashes.items()}
    result["dtype"] = dtypes.pop() if len(dtypes) == 1 else "mixed"
    _weights_cache[encoder] = (state, result)
    return result


def _sum(weight: torch.Tensor) -> float:
    """Add up a weight, as a change through `.data` raises no version; a twentieth of the digests' cost."""
    if weight.is_meta:
        return 0.0
    return float(weight.detach().sum(dtype=torch.promote_types(weight.dtype, torch.float32)))


def _weights(encoder: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    # Parameters only: buffers here are position ids and attention masks that some versions keep and others don't.
    return iter(sorted(encoder.named_parameters()))


def _little_endian(value: torch.Tensor) -> bytes:
    raw = value.contiguous().view(torch.uint8) if value.ndim else value.reshape(1).view(torch.uint8)
    array = raw.numpy()
    if sys.byteorder == "big":
        array = array.reshape(-1, value.element_size())[:, ::-1]
    return array.tobytes()


def _tokenizer_digest(tokenizer: Any) -> str:
    merges: list[str] = []
    pieces: dict[str, Any] = {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Only the model: the rest of this JSON holds padding and truncation state, which change from call to call.
        model = json.loads(backend.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
        if model.get("type") == "Unigram":
            # SentencePiece splits a text by its pieces' scores.
            pieces = {"scores": model["vocab"]}
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "merges": merges,
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "positions": int(tokenizer.model_max_length),
        **pieces,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
