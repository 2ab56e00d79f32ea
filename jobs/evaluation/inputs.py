"""An evaluation's input: an edit set, checked against the model's tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from infra.storage import StorageSettings
from jobs.config import RunConfig
from jobs.images.recipe import Recipe
from jobs.models.files import load_tokenizers
from jobs.models.kinds import check_kind
from jobs.models.sampling import check_sampler
from jobs.models.staging import cache_folder, fetch_run_model
from jobs.runs.identity import evaluation_identity, last_name
from jobs.runs.inputs import prompt_checker, read_bytes
from manifests import EditSet, Fault, ManifestError, read_edit_set
from time_ops.prompts import check_prompts

__all__ = ["EditInputs", "read_edits"]


@dataclass(frozen=True)
class EditInputs:
    """An edit set, checked against the model's tokenizers; see `jobs.runs.run.Inputs`."""

    config: RunConfig
    edit_set: EditSet

    @property
    def summary(self) -> str:
        """How many edits."""
        edits, rows = len(self.edit_set.edits), self.edit_set.rows
        return f"{edits} edits" if edits == rows else f"{edits} of {rows} edits (the report says why)"

    @property
    def images(self) -> int:
        """Of the edited variant's source prompts; positives, negatives and the other variants come on top."""
        return len(self.edit_set.edits) * self.config.evaluate.images * len(self.config.evaluate.lam)

    def check(self, recipe: Recipe) -> None:
        """Everything is checked as it is read."""

    def identity(self, recipe: Recipe) -> str:
        """See `evaluation_identity`."""
        return evaluation_identity(self.config, self.edit_set.digest, recipe)

    def files(self) -> Mapping[str, bytes]:
        """The edit set as used."""
        return {"edits.parquet": self.edit_set.to_bytes()}


def read_edits(config: RunConfig, settings: StorageSettings, token: str) -> EditInputs:
    """The edit set that `manifest` names, without what the model's tokenizers can't align or read.

    Raises:
        ManifestError: it is no edit set, or none of its edits can be used; with every fault.
        ConfigError: the file is missing, or the sampler does not fit the model.
        ModelError: the model is missing, or of no family that jobs audit.
    """
    content = read_bytes(config.manifest, settings)
    folder = fetch_run_model(config, settings, cache_folder() / token)
    check_kind(folder, safety_checker=config.sampler.safety_checker)
    check_sampler(folder, config.sampler)
    tokenizers = load_tokenizers(folder)
    aligned = prompt_checker(tokenizers, config.evaluate.wordings)
    columns = {"source": "old", "destination": "new"}

    def check(prompts: Sequence[tuple[int, str, str]]) -> Iterator[Fault]:
        for fault in aligned(prompts):
            yield replace(fault, column=columns.get(fault.column or "", fault.column))

    edit_set = read_edit_set(content, name=last_name(config.manifest), checker=check)
    tested = [
        p for e in edit_set.edits for pair in (*e.positives, *e.negatives) for p in (pair.source, pair.destination)
    ]
    others = [*config.controls, config.sampler.negative_prompt]
    long = {f.prompt: f.reason for t in tokenizers for f in check_prompts(t, [], prompts=[*tested, *others])}
    refused = [Fault(None, None, f"controls or sampler.negative_prompt: {long[p]}") for p in others if p in long]
    if refused:
        raise ManifestError(edit_set.name, refused)
    return EditInputs(config, edit_set.without(long) if long else edit_set)
