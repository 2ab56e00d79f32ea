"""The worker: one process with a resident pipeline and classifier. It makes shards, and reads and counts them.

`AuditWorker` is a plain class; `jobs.cluster.crew` runs it as Ray actors, two calls at a time.
"""

from __future__ import annotations

import json
import platform
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from infra.storage import ObjectMissing, ObjectStore, StorageSettings, open_store
from jobs.auditing.tally import Frame, PartTally, TallyTask, tally_part
from jobs.config import RunConfig
from jobs.editing.chunks import ChunkEncoder, ChunkStrengths, EditChunk
from jobs.evaluation.operators import EditSolver, SolvedEdit
from jobs.evaluation.tally import MeasureFrame, MeasureTask, PartMeasures, PromptTexts, measure_part
from jobs.exports.forms.diffusers_folder import write_checkpoint
from jobs.exports.forms.header import Provenance, file_header, spec_of
from jobs.exports.mixture.folder import write_mixture
from jobs.exports.model_card import licence_of
from jobs.exports.schema import Exported, Form
from jobs.exports.verify.mixture import Part, audited_operator, check_route, open_part
from jobs.exports.verify.opened import compare, is_half, open_export
from jobs.exports.verify.samples import Compared, Sample
from jobs.exports.write import ExportTask, write_export
from jobs.images.generator import Generator, auto_batch_size
from jobs.images.judging import digest_of_classifiers, digests_of, stage_classifiers
from jobs.images.labels import TextEmbeddings
from jobs.images.maker import ShardMaker
from jobs.images.panel import Panel, check_panel
from jobs.images.recipe import KEYED_LIBRARIES, Probe
from jobs.images.requests import EditRequest
from jobs.images.shards import BASE, Shard, ShardError, ShardOutcome, ShardSpec
from jobs.models.checksums import verify_folder
from jobs.models.digests import content_digest
from jobs.models.files import denoiser_folder
from jobs.models.pipelines import load_pipeline
from jobs.models.staging import Origin, age_out, cache_folder, origin_of, resolve_dtype, stage_model
from jobs.models.weights import check_pipeline
from time_ops import EditOperator, Mixture, ModelError, Statistics
from time_ops.surfaces import denoiser_of

__all__ = ["AuditWorker"]


def _keyed_versions() -> dict[str, str]:
    return {name: version(name) for name in KEYED_LIBRARIES}


class AuditWorker:
    """Makes shards. The models load on first need: a run that finds all its shards done loads none.

    Args:
        config: the run's configuration.
        settings: how to reach object storage from this node.
        token: names this run's staging folder, so that models of an earlier run are never taken for this one's.
        threads: CPU threads, of a worker without a GPU; None: it has one, and torch's own choice of threads.
        expected: what the plan was made with, or None for the worker that says it.
    """

    def __init__(
        self,
        config: RunConfig,
        settings: StorageSettings,
        token: str,
        threads: int | None = None,
        expected: Probe | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._config = config
        self._settings = settings
        self._cache = cache_folder() / token
        self._expected = expected
        age_out(self._cache)
        self._store: ObjectStore = open_store(config.output, settings)
        # Models load once, and the text encoder runs for one call at a time.
        self._models = threading.RLock()
        self._opened: tuple[str, tuple[Any, EditOperator | None, torch.dtype]] | None = None
        self._part: tuple[tuple[str, str | None], Part, tempfile.TemporaryDirectory[str]] | None = None
        # Threads are given where no GPU is asked for. Ray hides no GPU from such a worker, so it has to look away.
        self._device = torch.device("cuda" if threads is None and torch.cuda.is_available() else "cpu")

    @cached_property
    def _model_folder(self) -> Path:
        return stage_model(self._config, self._settings, self._cache)

    @cached_property
    def _classifier_folders(self) -> Mapping[str, Path]:
        return stage_classifiers(self._config, self._settings, self._cache)

    @cached_property
    def _classifier_digests(self) -> Mapping[str, str]:
        return digests_of(self._classifier_folders)

    @cached_property
    def _digests(self) -> tuple[str, str]:
        return content_digest(self._model_folder), digest_of_classifiers(self._config, self._classifier_digests)

    def _dtype(self) -> str:
        return str(resolve_dtype(self._config.sampler.dtype, self._device)).removeprefix("torch.")

    def _check_plan(self) -> None:
        """Refuse to store under the plan's key what other tensors, another dtype or other libraries made."""
        if self._expected is None:
            return
        planned = self._expected
        mine = {"model": self._digests[0], "classifier": self._digests[1], "dtype": self._dtype(), **_keyed_versions()}
        wanted = {"model": planned.model, "classifier": planned.classifier, "dtype": planned.dtype}
        wanted |= {name: planned.versions[name] for name in KEYED_LIBRARIES}
        other = [f"{name} is {mine[name]}, planned {wanted[name]}" for name in wanted if mine[name] != wanted[name]]
        if other:
            raise ModelError(
                f"the worker on {platform.node()} differs from the plan: {'; '.join(other)}. Every node must reach the "
                "same model and have the same versions; with mixed devices set sampler.dtype"
            )

    @cached_property
    def _pipe(self) -> Any:
        self._check_plan()
        dtype = resolve_dtype(self._config.sampler.dtype, self._device)
        return load_pipeline(self._model_folder, self._config.sampler, self._device, dtype)

    @cached_property
    def _chunks(self) -> ChunkEncoder:
        return ChunkEncoder(self._store, lambda: self._pipe, self._models, self._cache, self._device)

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self._pipe, self._config.sampler)

    @cached_property
    def _panel(self) -> Panel:
        return Panel(self._config, self._classifier_folders, self._device)

    @cached_property
    def _maker(self) -> ShardMaker:
        sampler, panel = self._config.sampler, self._panel
        auto = sampler.batch_size == "auto"
        size: int | str = sampler.batch_size
        if isinstance(size, str):
            # With the classifiers in place, which needs memory too; several workers may share the device.
            share = min(1.0, self._config.workers.num_gpus or 1.0)
            size = auto_batch_size(self._pipe, sampler, self._device, self._config.shard_images, share)
        where = {
            "device": self._device_name(),
            "threads": torch.get_num_threads(),
            "compiled": sampler.compile,
            "versions": _keyed_versions(),
        }
        return ShardMaker(self._generator, panel, self._store, self._models, size, auto=auto, provenance=where)

    def _device_name(self) -> str:
        name = torch.cuda.get_device_name() if self._device.type == "cuda" else platform.machine()
        return f"{self._device.type} {name}"

    def probe(self) -> Probe:
        """Identity of the models, once they are found to be whole, and of this machine; keeps no weights in memory.

        Raises:
            ModelError: files are not what their configuration says; nothing of the run is written yet.
            ConfigError: a classifier lacks labels that the configuration names.
        """
        check_pipeline(self._model_folder, safety_checker=self._config.sampler.safety_checker)
        check_panel(self._config, self._classifier_folders)
        model, classifier = self._digests
        return Probe(
            model,
            classifier,
            self._dtype(),
            self._device_name(),
            torch.get_num_threads(),
            platform.node(),
            {name: version(name) for name in (*KEYED_LIBRARIES, "ray", "evenhand")},
            tuple(self._classifier_digests.items()) if len(self._classifier_digests) > 1 else (),
        )

    def chunk_statistics(
        self, chunk: EditChunk, operators: Sequence[ChunkStrengths], wordings: Sequence[bool] | None = None
    ) -> tuple[Statistics, ...]:
        """Weighted statistics of a chunk of the manifest; see `ChunkEncoder.statistics`."""
        return self._chunks.statistics(chunk, operators, wordings)

    def chunk_norms(self, chunk: EditChunk) -> tuple[list[float], list[float]]:
        """Norms of each edit of a chunk; see `ChunkEncoder.norms` and `ChunkEncoder.pooled_norms`."""
        return self._chunks.norms(chunk), self._chunks.pooled_norms(chunk)

    def texts(self, professions: Sequence[tuple[str, str]], controls: Sequence[str]) -> TextEmbeddings:
        """Embeddings of the zero-shot prompts."""
        with self._models:
            return self._panel.texts(professions, controls)

    def check_operator(self, operator: EditOperator | Mixture) -> None:
        """Refuse an operator that was solved for another text encoder."""
        with self._models:
            operator.check_encoder(self._pipe)

    def origin(self) -> Origin:
        """Where the model comes from."""
        return origin_of(self._model_folder)

    def write_checkpoint(
        self, operator: EditOperator, provenance: Provenance, title: str, card: str, prefix: str
    ) -> None:
        """The edited checkpoint, from this worker's copy of the model; see `jobs.exports.forms.diffusers_folder`."""
        run = prefix.rpartition("/")[0]
        spec = spec_of(self._model_folder, title, license=licence_of(self.origin().card))
        write_checkpoint(
            self._model_folder,
            provenance.base_digest,
            operator,
            card,
            self._store,
            prefix,
            header=file_header("tensors", spec, provenance),
            operator_header=file_header("operator", spec, provenance),
            scratch=self._cache,
            settings=self._settings,
            beside=(f"{run}/candidate", f"{run}/checkpoint"),
        )

    def write_mixture(self, mixture: Mixture, provenance: Provenance, title: str, card: str, prefix: str) -> None:
        """The mixture's folder, from this worker's copy of the model; see `jobs.exports.mixture.folder`."""
        run = prefix.rpartition("/")[0]
        write_mixture(
            self._model_folder,
            mixture,
            provenance,
            title,
            card,
            self._store,
            prefix,
            licence=licence_of(self.origin().card),
            scratch=self._cache,
            settings=self._settings,
            beside=(f"{run}/candidate", f"{run}/checkpoint"),
        )

    def write_export(self, task: ExportTask, beside: tuple[str, ...] = ()) -> Exported:
        """An export of the edited model in any form; see `jobs.exports.write`."""
        return write_export(
            task, self._model_folder, self._store, scratch=self._cache, settings=self._settings, beside=beside
        )

    def export_precision(self, form: Form, prefix: str) -> tuple[str, bool]:
        """The dtype that an export is stored in, and whether half precision is in play when it is drawn with."""
        with self._models:
            _, _, dtype = self._open_export(form, prefix)
            return str(dtype).removeprefix("torch."), is_half(dtype, denoiser_of(self._pipe).dtype)

    def compare_export(
        self, form: Form, prefix: str, operator: EditOperator, wanted: Sequence[Sample], texts: TextEmbeddings
    ) -> Compared:
        """An export opened from storage, its images beside those of the audited edit; see `exports.verify.opened`."""
        with self._models:
            pipe, own, _ = self._open_export(form, prefix)
            drawn = Generator(pipe, self._config.sampler)
            if own is not None:
                drawn.add_operator(own)
            self._generator.add_operator(operator)
            return compare(
                (drawn, BASE if own is None else own.digest),
                (self._generator, operator.digest),
                wanted,
                self._panel,
                texts,
                self._config.undetermined_margin,
            )

    def mixture_precision(self, form: Form, prefix: str, label: str) -> tuple[str, bool]:
        """As `export_precision`, of a component of a mixture."""
        with self._models:
            dtype = self._open_part(form, prefix, label).dtype
            return str(dtype).removeprefix("torch."), is_half(dtype, denoiser_of(self._pipe).dtype)

    def check_route(self, prefix: str, mixture: Mixture, wanted: Sequence[Sample]) -> None:
        """Whether a stored mixture routes as the audit does; see `jobs.exports.verify.mixture`."""
        config = json.loads((denoiser_folder(self._model_folder) / "config.json").read_text(encoding="utf-8"))
        check_route(self._store.sub(prefix), mixture, wanted, config)

    def compare_mixture(
        self,
        form: Form,
        prefix: str,
        label: str | None,
        mixture: Mixture,
        wanted: Sequence[Sample],
        texts: TextEmbeddings,
    ) -> Compared:
        """As `compare_export`, of a component of a mixture by its label; None: of the whole, by its route."""
        with self._models:
            part = self._open_part(form, prefix, label)
            with self._generator.knowing([component.operator for component in mixture.components]):
                return compare(
                    (part.generator, part.operator),
                    (self._generator, audited_operator(mixture, label)),
                    wanted,
                    self._panel,
                    texts,
                    self._config.undetermined_margin,
                )

    def _open_part(self, form: Form, prefix: str, label: str | None) -> Part:
        """A part of a mixture in the store, fetched and opened; the last one stays open, and its files lie here."""
        if self._part is None or self._part[0] != (prefix, label):
            self._part = None
            self._cache.mkdir(parents=True, exist_ok=True)
            # The object removes the folder once nobody holds it.
            scratch = tempfile.TemporaryDirectory(prefix="fetched-", dir=self._cache)
            folder = Path(scratch.name)
            sampler = self._config.sampler
            part = open_part(form, label, self._store.sub(prefix), folder, self._pipe, self._model_folder, sampler)
            self._part = (prefix, label), part, scratch
        return self._part[1]

    def _open_export(self, form: Form, prefix: str) -> tuple[Any, EditOperator | None, torch.dtype]:
        """A published folder of the store, checked against its SHA256SUMS and opened; the last one stays open."""
        if self._opened is None or self._opened[0] != prefix:
            self._opened = None
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetched-", dir=self._cache) as name:
                folder = Path(name)
                self._store.download_folder(prefix, folder)
                verify_folder(folder, self._store.url(prefix))
                found = open_export(form, folder, self._pipe, self._model_folder, self._config.sampler)
            self._opened = prefix, found
        return self._opened[1]

    def run(
        self,
        specs: Sequence[ShardSpec],
        operators: Sequence[EditOperator] = (),
        edits: Mapping[str, EditRequest] | None = None,
    ) -> list[ShardOutcome]:
        """Make these shards, or find them done. Returns when all of them are committed.

        A shard that is already stored is read and verified; one that is damaged or was made under another key is
        made again.

        Args:
            specs: the shards.
            operators: those that they name, the base aside.
            edits: digest -> edit, of those that they name where they name several; solved here.
        """
        outcomes, missing = [], []
        for spec in specs:
            done = self._stored(spec)
            if done is None:
                missing.append(spec)
            else:
                outcomes.append(done)
        if missing:
            named = {spec.operator for spec in missing}
            with self._models:
                maker = self._maker
                for operator in operators:
                    if operator.digest in named and not self._generator.knows(operator.digest):
                        operator.check_encoder(self._pipe)
                        self._generator.add_operator(operator)
            solved = [self._edits.solved(d, request) for d, request in (edits or {}).items() if d in named]
            with self._generator.knowing(solved):
                outcomes += maker.make(missing)
        return outcomes

    @cached_property
    def _edits(self) -> EditSolver:
        return EditSolver(lambda: self._pipe, self._models)

    def solve_edits(self, requests: Sequence[EditRequest]) -> list[SolvedEdit]:
        """What these edits' operators are called, and what is wrong with those that can't be solved."""
        return [self._edits.describe(request) for request in requests]

    def prompt_texts(self, prompts: Sequence[str]) -> PromptTexts:
        """The recognising classifier's embeddings of prompts."""
        with self._models:
            return PromptTexts(self._panel.encoder.texts(prompts), self._panel.encoder.scale)

    def measure(
        self, tasks: Sequence[MeasureTask], frame: MeasureFrame, texts: PromptTexts, key: str | None = None
    ) -> PartMeasures:
        """Decide on these prompts' images; see `measure_part`."""
        return measure_part(tasks, frame, texts, self._config, self._store, key)

    def _stored(self, spec: ShardSpec) -> ShardOutcome | None:
        try:
            shard = Shard.from_bytes(self._store.get(spec.object_key), spec)
        except (ObjectMissing, ShardError):
            return None
        failed = int((shard.statuses != 0).sum())
        return ShardOutcome(spec.digest, spec.count, failed, True, float(shard.provenance.get("seconds", 0.0)))

    def tally(
        self, tasks: Sequence[TallyTask], frame: Frame, texts: TextEmbeddings, key: str | None = None
    ) -> PartTally:
        """Label and count these cells; see `tally_part`."""
        return tally_part(tasks, frame, texts, self._config, self._store, key)
