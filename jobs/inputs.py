"""A run's input, read and checked as a whole before anything is written or spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from infra.storage import ObjectMissing, StorageSettings, open_store
from jobs.config import RunConfig
from jobs.errors import ConfigError
from jobs.models import cache_folder, check_kind, load_tokenizers, stage
from manifests import Fault, Manifest, read_manifest
from time_ops import PromptEdit, check_prompts

__all__ = ["prompt_checker", "read_bytes", "read_inputs"]


def read_bytes(url: str, settings: StorageSettings) -> bytes:
    """A file's content, local or from an object store.

    Raises:
        ConfigError: there is none.
    """
    if "://" not in url:
        try:
            return Path(url).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(f"can't read {url}: {error.strerror}; give a file's path, or s3://bucket/key") from error
    prefix, _, key = url.rpartition("/")
    try:
        return open_store(prefix, settings).get(key)
    except ObjectMissing as error:
        raise ConfigError(f"there is no {url}; correct the name, or upload the file") from error


class prompt_checker:  # noqa: N801 - a function with a memory
    """Checks (row, source, destination) against tokenizers: lengths, and whether the tokens can be aligned."""

    def __init__(self, tokenizers: Sequence[object], wordings: Sequence[str]) -> None:
        self._tokenizers = tokenizers
        self._wordings = tuple(wordings)

    def __call__(self, prompts: Sequence[tuple[int, str, str]]) -> Iterable[Fault]:
        """One fault per row and column, whichever wording shows it first."""
        edits = [PromptEdit(source, {destination: 1.0}) for _, source, destination in prompts]
        seen: set[tuple[int, str]] = set()
        for tokenizer in self._tokenizers:
            for fault in check_prompts(tokenizer, edits, augmentations=self._wordings):
                row = prompts[fault.edit][0] if fault.edit is not None else None
                column = "source" if fault.destination is None else "destination"
                if row is not None and (row, column) not in seen:
                    seen.add((row, column))
                    yield Fault(row, column, fault.reason)


def read_inputs(config: RunConfig, settings: StorageSettings, token: str) -> Manifest:
    """The manifest, checked against its schema, the run's labels and the model's tokenizers.

    Raises:
        ManifestError: naming every bad row.
        ConfigError: the file is missing.
        ModelError: the model is missing, or no Stable Diffusion pipeline.
    """
    content = read_bytes(config.manifest, settings)
    folder = stage(config.model, settings, cache_folder() / token, pipeline=True)
    # Calibration and audit wordings are checked too: an audit that dies in its last hour on a long prompt is no use.
    wordings = dict.fromkeys((*config.wordings.edit, *config.wordings.calibration, *config.wordings.audit))
    check_kind(folder)
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
