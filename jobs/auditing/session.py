"""A run over a manifest's professions, under way: its images made, or found, and then labelled and counted.

A job's own steps then are few: generate, tally, whatever it exists for, publish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from rich.console import Console

from infra.storage import StorageSettings
from jobs.auditing.api import TallyWorker
from jobs.auditing.tally import PartTally, Tallies, TallyFrame, TallyTask, part_name, parts_of
from jobs.cluster.pool import Pool
from jobs.config import RunConfig
from jobs.images.cells import Cell, check_held_out, shards_of
from jobs.images.components import check_mixture
from jobs.images.edits import Edit, operators_of, variant_of
from jobs.images.labels import TextEmbeddings
from jobs.images.recipe import Recipe
from jobs.images.shards import ShardOutcome, ShardSpec, stored_keys
from jobs.images.variants import Variant
from jobs.runs.drawn_again import drawn_again
from jobs.runs.identity import identity_of
from jobs.runs.inputs import read_inputs, run_manifest_bytes
from jobs.runs.run import Kind, Run, open_run
from manifests import Manifest

__all__ = ["DEBIAS", "RunKind", "Session", "open_session", "tally_tasks", "text_embeddings"]


@dataclass(frozen=True)
class RunKind:
    """What a session is opened for.

    Attributes:
        kind: the first word of a derived run's name, `run` for `debias`.
        content: what decides the result beside configuration, manifest and models, as digests; None for `debias`.
        check: told the manifest and the recipe before anything is written; raises ConfigError.
        again: go through a finished run of the same identity again; else `RunFinished` is raised.
    """

    kind: Kind
    content: Mapping[str, Any] | None = None
    check: Callable[[Manifest, Recipe], None] = lambda *_: None
    again: bool = True


DEBIAS = RunKind("run")


@dataclass(kw_only=True)
class Session(Run):
    """A run over a manifest's professions, under way."""

    manifest: Manifest

    def generate(self, cells: Sequence[Cell], edit: Edit | None, stage: str, *, pictures: bool = True) -> None:
        """Make, or find, all shards of these cells under an edit, or of the base model."""
        self.draw([(cells, edit)], stage, pictures=pictures)

    def draw(self, wanted: Sequence[tuple[Sequence[Cell], Edit | None]], stage: str, *, pictures: bool = True) -> None:
        """The same of several edits at once: their shards share batches."""
        counts = [spec.count for cells, edit in wanted for spec in self._specs(cells, variant_of(edit), pictures)]
        used = chain.from_iterable(self.use(cells, variant_of(edit), pictures=pictures) for cells, edit in wanted)
        operators = {o.digest: o for _, edit in wanted for o in operators_of(edit)}
        with self.reporter.stage(stage, sum(counts)) as advance:
            self.spent += self.pool.run(used, tuple(operators.values()), advance, len(counts))

    def say_what_is_drawn_again(self, cells: Sequence[Cell], variant: Variant) -> None:
        """In the terminal, before anything is drawn: see `jobs.runs.drawn_again`."""
        digests = dict(self.probe.classifiers)
        if not digests:
            return
        specs = self._specs(cells, variant, pictures=False)
        if text := drawn_again(self.config, self.store, self.recipe, digests, specs):
            self.reporter.say(f"{text}.")

    def _specs(self, cells: Sequence[Cell], variant: Variant, pictures: bool) -> Iterator[ShardSpec]:
        return shards_of(cells, self.recipe, variant, self.config, pictures=pictures)

    def use(self, cells: Sequence[Cell], variant: Variant, *, pictures: bool = True) -> Iterator[ShardSpec]:
        """The shards of these cells; the run rests on those that are taken from here."""
        for spec in self._specs(cells, variant, pictures):
            self.used.append(spec.digest)
            yield spec

    def spend_again(self, specs: Sequence[ShardSpec]) -> None:
        """Count the shards of a round that an earlier attempt made; those that it gave up are not there."""
        stored = stored_keys(self.store, (spec.object_key for spec in specs))
        for spec in specs:
            if spec.object_key in stored:
                self.spent.add(ShardOutcome(spec.digest, spec.count, 0, True, 0.0))
            else:
                self.spent.failed[spec.digest] = "given up by an earlier attempt"

    def texts(self) -> TextEmbeddings:
        """The classifier's text embeddings, shared with the pool."""
        return text_embeddings(self.pool, self.manifest, self.config)

    def tasks(self, cells: Sequence[Cell]) -> list[TallyTask]:
        """The cells with their rows in the text embeddings: professions first, then controls."""
        return tally_tasks(cells, self.manifest, self.config)

    def tally(
        self,
        tasks: Sequence[TallyTask],
        variants: dict[str, Variant],
        texts: TextEmbeddings,
        *,
        written: bool,
        first_part: int = 0,
    ) -> Tallies:
        """Label and count, part by part in the workers, which also write a row for each image where that is asked.

        Args:
            tasks: the cells.
            variants: by name, see `TallyFrame`.
            texts: see `texts`.
            written: whether `images/part-*.parquet` is wanted.
            first_part: number of the first of them.
        """
        self.lease.check()
        frame = TallyFrame(self.recipe, variants, frozenset(self.spent.failed))
        parts = list(parts_of(tasks, len(variants)))
        names = [part_name(first_part + i) for i in range(len(parts))]
        calls = (
            (part, frame, texts, f"{self.folder.prefix}/{name}" if written else None)
            for part, name in zip(parts, names, strict=True)
        )
        part_tallies: dict[int, PartTally] = {}
        for i, part_tally in self.pool.map(TallyWorker.tally, calls):
            part_tallies[i] = part_tally
            if (digest := part_tally.sha256) is not None:
                self.folder.note(names[i], digest)
        return Tallies(tasks, [part_tallies[i] for i in range(len(parts))])


@dataclass(frozen=True)
class _ManifestInputs:
    """A manifest, checked, and the job that reads it."""

    config: RunConfig
    manifest: Manifest
    job: RunKind

    @property
    def summary(self) -> str:
        return f"{len(self.manifest.professions)} professions"

    @property
    def images(self) -> int:
        """Of the base audit's open prompts; explicit prompts, controls and the edit's come on top."""
        return len(self.manifest.professions) * len(self.config.wordings.audit) * self.config.images_per_cell

    def check(self, recipe: Recipe) -> None:
        self.job.check(self.manifest, recipe)

    def identity(self, recipe: Recipe) -> str:
        return identity_of(self.config, self.manifest, recipe, self.job.content)

    def files(self) -> Mapping[str, bytes]:
        return {"manifest.parquet": run_manifest_bytes(self.manifest)}


def text_embeddings(pool: Pool, manifest: Manifest, config: RunConfig) -> TextEmbeddings:
    """The classifier's text embeddings, shared with the pool: calls that are given them send a reference."""
    subjects = [(p.name, p.source) for p in manifest.professions]
    return pool.share(pool.call(TallyWorker.texts, subjects, config.controls))


def tally_tasks(cells: Sequence[Cell], manifest: Manifest, config: RunConfig) -> list[TallyTask]:
    """The cells with their rows in the text embeddings: professions first, then controls."""
    names = [p.name for p in manifest.professions]
    subjects = {name: i for i, name in enumerate(names)}
    controls = {prompt: len(names) + i for i, prompt in enumerate(config.controls)}
    return [
        TallyTask(cell, None, controls[cell.subject])
        if cell.kind == "control"
        else TallyTask(cell, subjects[cell.subject], subjects[cell.subject])
        for cell in cells
    ]


@contextmanager
def open_session(
    config: RunConfig, console: Console, worker: Callable[..., object], job: RunKind = DEBIAS
) -> Iterator[Session]:
    """Check a manifest and what goes with it, and open a run over its professions; see `open_run`.

    Args:
        config: the run.
        console: for people.
        worker: makes a worker, in its process.
        job: what it is for.

    Raises:
        ManifestError, ConfigError, EditError: the input must be mended; nothing was written.
        RunFinished, ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: see `open_run`.
    """

    def read(settings: StorageSettings, token: str) -> _ManifestInputs:
        manifest = read_inputs(config, settings, token)
        check_held_out(manifest, config)
        if job.kind == "run":
            check_mixture(manifest, config)
        return _ManifestInputs(config, manifest, job)

    with open_run(config, console, read, kind=job.kind, worker=worker, again=job.again) as (run, inputs):
        yield Session(**{f.name: getattr(run, f.name) for f in fields(run)}, manifest=inputs.manifest)
