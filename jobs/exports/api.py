"""What exports, and their checks, ask of a worker. Prefixes are places in the run's store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobs.exports.forms.header import Provenance
from jobs.exports.schema import Exported, Form
from jobs.exports.task import ExportTask
from jobs.exports.verify.samples import Compared, Sample
from jobs.images.labels import TextEmbeddings
from jobs.models.staging import Origin
from time_ops import EditOperator, Mixture

__all__ = ["ExportWorker"]


class ExportWorker(Protocol):
    """A worker that writes the edit for other programs, and opens it again."""

    def origin(self) -> Origin:
        """Where the model comes from."""
        ...

    def write_checkpoint(
        self, operator: EditOperator, provenance: Provenance, title: str, card: str, prefix: str
    ) -> None:
        """The edited checkpoint, from this worker's copy of the model; see `jobs.exports.forms.diffusers_folder`."""
        ...

    def write_mixture(self, mixture: Mixture, provenance: Provenance, title: str, card: str, prefix: str) -> None:
        """The mixture's folder, from this worker's copy of the model; see `jobs.exports.mixture.folder`."""
        ...

    def write_export(self, task: ExportTask, beside: tuple[str, ...] = ()) -> Exported:
        """An export of the edited model in any form; see `jobs.exports.write`."""
        ...

    def export_precision(self, form: Form, prefix: str) -> tuple[str, bool]:
        """The dtype that an export is stored in, and whether half precision is in play when it is drawn with."""
        ...

    def compare_export(
        self, form: Form, prefix: str, operator: EditOperator, wanted: Sequence[Sample], texts: TextEmbeddings
    ) -> Compared:
        """An export opened from storage, its images beside those of the audited edit; see `exports.verify.opened`."""
        ...

    def mixture_precision(self, form: Form, prefix: str, label: str) -> tuple[str, bool]:
        """As `export_precision`, of a component of a mixture."""
        ...

    def check_route(self, prefix: str, mixture: Mixture, wanted: Sequence[Sample]) -> None:
        """Whether a stored mixture routes as the audit does; see `jobs.exports.verify.mixture`."""
        ...

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
        ...
