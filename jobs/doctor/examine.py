"""The whole examination: input, model, storage, cluster."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator

from infra.storage import StorageError, StorageSettings
from jobs.config import RunConfig
from jobs.doctor.cluster import check_cluster
from jobs.doctor.models import UNGIVEN, check_edit_set, check_manifest, check_models
from jobs.doctor.schema import Diagnosis, Finding, of_error
from jobs.doctor.storage import check_storage
from jobs.models.staging import cache_folder

__all__ = ["examine"]


def examine(config: RunConfig, connect: Callable[[], None], job: str = "debias") -> Diagnosis:
    """Try what a job with this configuration will need. Nothing stays behind, but for what a hub's cache keeps.

    Args:
        config: the run; keys that are `UNGIVEN` are passed over.
        connect: joins the cluster, or starts one here.
        job: the command that it is for: of "evaluate", the manifest is an edit set.
    """
    token = f"doctor-{uuid.uuid4().hex[:12]}"
    try:
        return Diagnosis(findings=list(_findings(config, connect, token, job)))
    finally:
        cache = cache_folder()
        shutil.rmtree(cache / token, ignore_errors=True)


def _findings(config: RunConfig, connect: Callable[[], None], token: str, job: str) -> Iterator[Finding]:
    try:
        settings = StorageSettings.from_environment()
    except StorageError as error:
        yield of_error("storage", "settings", error)
        return
    models = list(check_models(config, settings, token))
    if config.manifest != UNGIVEN:
        has_model = any(finding.check == "tokenizer" and finding.outcome == "ok" for finding in models)
        check = check_edit_set if job == "evaluate" else check_manifest
        yield check(config, settings, token, has_model=has_model)
    yield from models
    if config.output != UNGIVEN:
        yield from check_storage(config.output, settings)
    yield from check_cluster(config, connect)
