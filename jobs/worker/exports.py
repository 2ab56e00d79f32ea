"""The edit written in forms for other programs, and opened again; see `jobs.exports.api.ExportWorker`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.exports.forms.diffusers_folder import write_checkpoint
from jobs.exports.forms.header import Provenance, file_header, spec_of
from jobs.exports.mixture.folder import write_mixture
from jobs.exports.model_card import licence_of
from jobs.exports.schema import Exported, Form
from jobs.exports.task import ExportTask
from jobs.exports.verify.mixture import Part, audited_operator, check_route, open_part
from jobs.exports.verify.opened import compare, is_half, open_export
from jobs.exports.verify.samples import Compared, Sample
from jobs.exports.write import write_export
from jobs.images.generator import Generator
from jobs.images.labels import TextEmbeddings
from jobs.images.shards import BASE
from jobs.models.checksums import verify_folder
from jobs.models.files import denoiser_folder
from jobs.models.staging import Origin, origin_of
from jobs.worker.resident import Resident
from time_ops import EditOperator, Mixture
from time_ops.surfaces import denoiser_of

__all__ = ["ExportService"]


class ExportService:
    """Writes from this node's copy of the base model; what it opens stays open until something else is.

    Args:
        resident: the models.
    """

    def __init__(self, resident: Resident) -> None:
        self._resident = resident
        self._opened: tuple[str, tuple[Any, EditOperator | None, torch.dtype]] | None = None
        self._part: tuple[tuple[str, str | None], Part, tempfile.TemporaryDirectory[str]] | None = None

    def origin(self) -> Origin:
        """Where the model comes from."""
        return origin_of(self._resident.model_folder)

    def write_checkpoint(
        self, operator: EditOperator, provenance: Provenance, title: str, card: str, prefix: str
    ) -> None:
        """A checkpoint, of the run whose folder `prefix` is in."""
        here, run = self._resident, prefix.rpartition("/")[0]
        spec = spec_of(here.model_folder, title, license=licence_of(self.origin().card))
        write_checkpoint(
            here.model_folder,
            provenance.base_digest,
            operator,
            card,
            here.store,
            prefix,
            header=file_header("tensors", spec, provenance),
            operator_header=file_header("operator", spec, provenance),
            scratch=here.cache,
            settings=here.settings,
            beside=(f"{run}/candidate", f"{run}/checkpoint"),
        )

    def write_mixture(self, mixture: Mixture, provenance: Provenance, title: str, card: str, prefix: str) -> None:
        """A mixture's folder, of the run whose folder `prefix` is in."""
        here, run = self._resident, prefix.rpartition("/")[0]
        write_mixture(
            here.model_folder,
            mixture,
            provenance,
            title,
            card,
            here.store,
            prefix,
            licence=licence_of(self.origin().card),
            scratch=here.cache,
            settings=here.settings,
            beside=(f"{run}/candidate", f"{run}/checkpoint"),
        )

    def write_export(self, task: ExportTask, beside: tuple[str, ...]) -> Exported:
        """An export in any form."""
        here = self._resident
        return write_export(
            task, here.model_folder, here.store, scratch=here.cache, settings=here.settings, beside=beside
        )

    def export_precision(self, form: Form, prefix: str) -> tuple[str, bool]:
        """Stored dtype of an export, and whether half precision is in play."""
        with self._resident.models:
            _, _, dtype = self._open_export(form, prefix)
            return str(dtype).removeprefix("torch."), is_half(dtype, denoiser_of(self._resident.pipe).dtype)

    def compare_export(
        self, form: Form, prefix: str, operator: EditOperator, wanted: Sequence[Sample], texts: TextEmbeddings
    ) -> Compared:
        """Images of an export beside those of the audited edit."""
        here = self._resident
        with here.models:
            pipe, own, _ = self._open_export(form, prefix)
            drawn = Generator(pipe, here.config.sampler)
            if own is not None:
                drawn.add_operator(own)
            here.generator.add_operator(operator)
            return compare(
                (drawn, BASE if own is None else own.digest),
                (here.generator, operator.digest),
                wanted,
                here.panel,
                texts,
                here.config.undetermined_margin,
            )

    def mixture_precision(self, form: Form, prefix: str, label: str) -> tuple[str, bool]:
        """As `export_precision`, of a component."""
        with self._resident.models:
            dtype = self._open_part(form, prefix, label).dtype
            return str(dtype).removeprefix("torch."), is_half(dtype, denoiser_of(self._resident.pipe).dtype)

    def check_route(self, prefix: str, mixture: Mixture, wanted: Sequence[Sample]) -> None:
        """Whether a stored mixture routes as the audit does."""
        config = json.loads((denoiser_folder(self._resident.model_folder) / "config.json").read_text(encoding="utf-8"))
        check_route(self._resident.store.sub(prefix), mixture, wanted, config)

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
        here = self._resident
        with here.models:
            part = self._open_part(form, prefix, label)
            with here.generator.knowing([component.operator for component in mixture.components]):
                return compare(
                    (part.generator, part.operator),
                    (here.generator, audited_operator(mixture, label)),
                    wanted,
                    here.panel,
                    texts,
                    here.config.undetermined_margin,
                )

    def close(self) -> None:
        """Forget what is open, so that the next call fetches it again."""
        self._opened = self._part = None

    def _open_part(self, form: Form, prefix: str, label: str | None) -> Part:
        """A part of a mixture in the store, fetched and opened; the last one stays open, and its files lie here."""
        here = self._resident
        if self._part is None or self._part[0] != (prefix, label):
            self._part = None
            here.cache.mkdir(parents=True, exist_ok=True)
            # The object removes the folder once nobody holds it.
            scratch = tempfile.TemporaryDirectory(prefix="fetched-", dir=here.cache)
            folder = Path(scratch.name)
            sampler = here.config.sampler
            part = open_part(form, label, here.store.sub(prefix), folder, here.pipe, here.model_folder, sampler)
            self._part = (prefix, label), part, scratch
        return self._part[1]

    def _open_export(self, form: Form, prefix: str) -> tuple[Any, EditOperator | None, torch.dtype]:
        """A published folder of the store, checked against its SHA256SUMS and opened; the last one stays open."""
        here = self._resident
        if self._opened is None or self._opened[0] != prefix:
            self._opened = None
            here.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetched-", dir=here.cache) as name:
                folder = Path(name)
                here.store.download_folder(prefix, folder)
                verify_folder(folder, here.store.url(prefix))
                opened = open_export(form, folder, here.pipe, here.model_folder, here.config.sampler)
            self._opened = prefix, opened
        return self._opened[1]
