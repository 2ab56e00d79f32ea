"""A run's input, read and checked as a whole before anything is written or spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from infra.storage import ObjectMissing, StorageSettings, open_store
from jobs.config import RunConfig
from jobs.errors import ConfigError
from jobs.models.files import load_tokenizers
from jobs.models.kinds import check_kind
from jobs.models.sampling import check_sampler
from jobs.models.staging import cache_folder, fetch_run_model
from manifests import Fault, Manifest, manifest_bytes, read_manifest
from time_ops.prompts import PromptEdit, augment, check_prompts

__all__ = ["CHUNK_PROFESSIONS", "prompt_checker", "read_bytes", "read_inputs", "run_manifest_bytes"]

_ROWS_AT_ONCE = 256
_MOST_BYTES = 1 << 30
"""A mixture of eight components of SDXL's width has 270 MB."""


def read_bytes(url: str, settings: StorageSettings) -> bytes:
    """A file's content, local or from an object store.

    Raises:
        ConfigError: there is none.
    """
    if "://" not in url:
        try:
            with Path(url).expanduser().open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except (OSError, RuntimeError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"can't read {url}: {why}; give a file's path, or s3://bucket/key") from error
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{url} has more than the {_MOST_BYTES:,} bytes that are read at most")
        return data
    prefix, _, key = url.rpartition("/")
    try:
        return open_store(prefix, settings).get(key)
    except ObjectMissing as error:
        raise ConfigError(f"there is no {url}; correct the name, or upload the file") from error


class prompt_checker:  # noqa: N801 - a function with a memory
    """Checks (row, source, destination) against tokenizers: lengths, and whether the tokens can be aligned."""

    def __init__(self, tokenizers: Sequence[object], wordings: Sequence[str]) -> None:
        self._tokenizers = [_Tokenized(tokenizer) for tokenizer in tokenizers]
        self._wordings = tuple(wordings)

    def __call__(self, prompts: Sequence[tuple[int, str, str]]) -> Iterable[Fault]:
        """One fault per row and column, whichever wording shows it first."""
        seen: set[tuple[int, str]] = set()
        for tokenizer in self._tokenizers:
            for start in range(0, len(prompts), _ROWS_AT_ONCE):
                rows = prompts[start : start + _ROWS_AT_ONCE]
                tokenizer.prepare(augment(w, prompt) for _, *both in rows for prompt in both for w in self._wordings)
                edits = [PromptEdit(source, {destination: 1.0}) for _, source, destination in rows]
                for fault in check_prompts(tokenizer, edits, augmentations=self._wordings):
                    row = rows[fault.edit][0] if fault.edit is not None else None
                    column = "source" if fault.destination is None else "destination"
                    if row is not None and (row, column) not in seen:
                        seen.add((row, column))
                        yield Fault(row, column, fault.reason)


class _Tokenized:
    """A tokenizer that has tokenized a batch of prompts at once: one by one takes five times as long."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, Any] = {}
        self._decode = lru_cache(maxsize=4096)(tokenizer.decode)
        # The articles, which every alignment asks for, and whatever else was not prepared.
        self._tokenize = lru_cache(maxsize=256)(tokenizer)
        self.model_max_length = int(tokenizer.model_max_length)

    def prepare(self, prompts: Iterable[str]) -> None:
        """Tokenize these, and forget the ones before."""
        distinct = list(dict.fromkeys(prompts))
        ids = self._tokenizer(distinct, truncation=False, padding=False, verbose=False)["input_ids"]
        self._known = dict(zip(distinct, ids, strict=True))

    def __call__(self, prompt: str, **options: Any) -> Any:
        known = self._known.get(prompt)
        return self._tokenize(prompt, **options) if known is None else {"input_ids": known}

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._decode(tuple(ids)))


def read_inputs(config: RunConfig, settings: StorageSettings, token: str) -> Manifest:
    """The manifest, checked against its schema, the run's labels and the model's tokenizers.

    Raises:
        ManifestError: naming every bad row.
        ConfigError: the file is missing, or the sampler does not fit the model.
        ModelError: the model is missing, or of no family that jobs audit.
    """
    content = read_bytes(config.manifest, settings)
    folder = fetch_run_model(config, settings, cache_folder() / token)
    # Calibration and audit wordings are checked too: an audit that dies in its last hour on a long prompt is no use.
    wordings = dict.fromkeys((*config.wordings.edit, *config.wordings.calibration, *config.wordings.audit))
    check_kind(folder, safety_checker=config.sampler.safety_checker)
    check_sampler(folder, config.sampler)
    tokenizers = load_tokenizers(folder)
    others = [*config.controls, *config.preserve.prompts, config.sampler.negative_prompt]
    long = {f.reason: None for tokenizer in tokenizers for f in check_prompts(tokenizer, [], prompts=others)}
    if long:
        raise ConfigError(
            "controls, preserve.prompts or sampler.negative_prompt:\n" + "\n".join(f"  {r}" for r in long)
        )
    checker = prompt_checker(tokenizers, tuple(wordings))
    name = config.manifest.rpartition("/")[2]
    return read_manifest(content, name=name, labels=tuple(config.attribute), checker=checker)


# At SD 1.4's size, with four wordings and two destinations, at most 180 MB of tokens. Part of the result's rounding.
CHUNK_PROFESSIONS = 64


def run_manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as a run's folder keeps it: Parquet, a row group for each chunk."""
    return manifest_bytes(manifest, group_professions=CHUNK_PROFESSIONS)
