"""The worker: one process with resident models, and a service for each feature that needs them.

`Worker` is a plain class; `jobs.cluster.crew` runs it as Ray actors, two calls at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from infra.storage import StorageSettings
from jobs.auditing.tally import PartTally, TallyFrame, TallyTask
from jobs.auditing.tally_part import tally_part
from jobs.config import RunConfig
from jobs.editing.chunk_encoding import ChunkEncoder, ChunkStrengths, EditChunk
from jobs.evaluation.operators import EditSolver, SolvedEdit
from jobs.evaluation.tally import MeasureFrame, MeasureTask, PartMeasures, PromptTexts, measure_part
from jobs.exports.forms.header import Provenance
from jobs.exports.schema import Exported, Form
from jobs.exports.task import ExportTask
from jobs.exports.verify.samples import Compared, Sample
from jobs.images.labels import TextEmbeddings
from jobs.images.recipe import Probe
from jobs.images.requests import EditRequest
from jobs.images.shards import ShardOutcome, ShardSpec
from jobs.models.staging import Origin
from jobs.worker.exports import ExportService
from jobs.worker.resident import Resident
from jobs.worker.shards import ShardService
from time_ops import EditOperator, Mixture, Statistics

__all__ = ["Worker"]


class Worker:
    """Answers `jobs.worker.api.WorkerApi`, each call by the service of its feature. Args as of `Resident`."""

    def __init__(
        self,
        config: RunConfig,
        settings: StorageSettings,
        token: str,
        threads: int | None = None,
        expected: Probe | None = None,
    ) -> None:
        self.resident = Resident(config, settings, token, threads, expected)
        self._edits = EditSolver(lambda: self.resident.pipe, self.resident.models)
        self.shards = ShardService(self.resident, self._edits)
        self.exports = ExportService(self.resident)

    @cached_property
    def _chunks(self) -> ChunkEncoder:
        here = self.resident
        return ChunkEncoder(here.store, lambda: here.pipe, here.models, here.cache, here.device)

    def probe(self) -> Probe:
        """See `ShardWorker`."""
        return self.resident.probe()

    def run(
        self,
        specs: Sequence[ShardSpec],
        operators: Sequence[EditOperator] = (),
        edits: Mapping[str, EditRequest] | None = None,
    ) -> list[ShardOutcome]:
        """See `ShardWorker`."""
        return self.shards.run(specs, operators, edits)

    def texts(self, professions: Sequence[tuple[str, str]], controls: Sequence[str]) -> TextEmbeddings:
        """See `TallyWorker`."""
        with self.resident.models:
            return self.resident.panel.texts(professions, controls)

    def tally(
        self, tasks: Sequence[TallyTask], frame: TallyFrame, texts: TextEmbeddings, key: str | None = None
    ) -> PartTally:
        """See `TallyWorker`."""
        return tally_part(tasks, frame, texts, self.resident.config, self.resident.store, key)

    def check_operator(self, operator: EditOperator | Mixture) -> None:
        """See `TallyWorker`."""
        with self.resident.models:
            operator.check_encoder(self.resident.pipe)

    def chunk_statistics(
        self, chunk: EditChunk, operators: Sequence[ChunkStrengths], wordings: Sequence[bool] | None = None
    ) -> tuple[Statistics, ...]:
        """See `ChunkWorker`."""
        return self._chunks.statistics(chunk, operators, wordings)

    def chunk_norms(self, chunk: EditChunk) -> tuple[list[float], list[float]]:
        """See `ChunkWorker`."""
        return self._chunks.norms(chunk), self._chunks.pooled_norms(chunk)

    def solve_edits(self, requests: Sequence[EditRequest]) -> list[SolvedEdit]:
        """See `EditSetWorker`."""
        return [self._edits.describe(request) for request in requests]

    def prompt_texts(self, prompts: Sequence[str]) -> PromptTexts:
        """See `EditSetWorker`."""
        with self.resident.models:
            encoder = self.resident.panel.encoder
            return PromptTexts(encoder.texts(prompts), encoder.scale)

    def measure(
        self, tasks: Sequence[MeasureTask], frame: MeasureFrame, texts: PromptTexts, key: str | None = None
    ) -> PartMeasures:
        """See `EditSetWorker`."""
        return measure_part(tasks, frame, texts, self.resident.config, self.resident.store, key)

    def origin(self) -> Origin:
        """See `ExportWorker`, as all below."""
        return self.exports.origin()

    def write_checkpoint(
        self, operator: EditOperator, provenance: Provenance, title: str, card: str, prefix: str
    ) -> None:
        """A checkpoint."""
        self.exports.write_checkpoint(operator, provenance, title, card, prefix)

    def write_mixture(self, mixture: Mixture, provenance: Provenance, title: str, card: str, prefix: str) -> None:
        """A mixture's folder."""
        self.exports.write_mixture(mixture, provenance, title, card, prefix)

    def write_export(self, task: ExportTask, beside: tuple[str, ...] = ()) -> Exported:
        """An export in any form."""
        return self.exports.write_export(task, beside)

    def export_precision(self, form: Form, prefix: str) -> tuple[str, bool]:
        """The dtype that an export is stored in, and whether half precision is in play."""
        return self.exports.export_precision(form, prefix)

    def compare_export(
        self, form: Form, prefix: str, operator: EditOperator, wanted: Sequence[Sample], texts: TextEmbeddings
    ) -> Compared:
        """Images of an export beside those of the audited edit."""
        return self.exports.compare_export(form, prefix, operator, wanted, texts)

    def mixture_precision(self, form: Form, prefix: str, label: str) -> tuple[str, bool]:
        """As `export_precision`, of a component."""
        return self.exports.mixture_precision(form, prefix, label)

    def check_route(self, prefix: str, mixture: Mixture, wanted: Sequence[Sample]) -> None:
        """Whether a stored mixture routes as the audit does."""
        self.exports.check_route(prefix, mixture, wanted)

    def compare_mixture(
        self,
        form: Form,
        prefix: str,
        label: str | None,
        mixture: Mixture,
        wanted: Sequence[Sample],
        texts: TextEmbeddings,
    ) -> Compared:
        """As `compare_export`, of a component, or of the whole."""
        return self.exports.compare_mixture(form, prefix, label, mixture, wanted, texts)
