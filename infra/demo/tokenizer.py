"""A small byte-pair tokenizer in CLIP's format, trained on the demo model's captions."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

__all__ = ["MAX_TOKENS", "train_tokenizer"]

MAX_TOKENS = 32
"""Context length. The longest wording of "a female construction worker" takes far less; CLIP's 77 would cost time."""

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def train_tokenizer(captions: Iterable[str], merges: int = 400) -> CLIPTokenizer:
    """Learn the merges and return them as a `CLIPTokenizer` that pads with the end marker, as in Stable Diffusion.

    The vocabulary is laid out as CLIP's: all bytes, all bytes at a word's end, the merges, the two markers. So any text
    can be tokenized, words outside the captions too.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * 2 + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        min_frequency=2,
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    learnt = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    tokens += dict.fromkeys(left + right for left, right in learnt)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, _BOS, _EOS]))}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in learnt)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
            folder, model_max_length=MAX_TOKENS, pad_token=_EOS, bos_token=_BOS, eos_token=_EOS, unk_token=_EOS
        )
    return tokenizer
