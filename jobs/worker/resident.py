"""What stays in a worker's process: the models, each loaded on first need, and where they and the results lie."""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.config import RunConfig
from jobs.images.compiling import compiles
from jobs.images.generator import Generator
from jobs.images.judging import digest_of_classifiers, digests_of, fetch_classifiers
from jobs.images.panel import Panel, check_panel
from jobs.images.recipe import KEYED_LIBRARIES, Probe
from jobs.models.digests import content_digest
from jobs.models.pipelines import compile_unet, load_pipeline
from jobs.models.staging import age_out, cache_folder, fetch_run_model, resolve_dtype
from jobs.models.weights import check_pipeline
from time_ops import ModelError

__all__ = ["Resident", "installed_versions"]


def installed_versions() -> dict[str, str]:
    """Versions here of the libraries that a shard's key names."""
    return {name: version(name) for name in KEYED_LIBRARIES}


class Resident:
    """The models of one process. A run that finds all its shards done loads none.

    Args:
        config: the run's configuration.
        settings: how to reach object storage from this node.
        token: names this run's staging folder, so that models of an earlier run are never taken for this one's.
        threads: CPU threads, of a worker without a GPU; None: it has one, and torch's own choice of threads.
        expected: what the plan was made with, or None for the worker that says it.

    Attributes:
        cache: folder on this node for what the run stages and fetches.
        store: of the run's output.
        models: lock; models load once, and the text encoder runs for one call at a time.
        device: that the models are on.
    """

    def __init__(
        self, config: RunConfig, settings: StorageSettings, token: str, threads: int | None, expected: Probe | None
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.config, self.settings = config, settings
        self.cache = cache_folder() / token
        self._expected = expected
        age_out(self.cache)
        self.store: ObjectStore = open_store(config.output, settings)
        self.models = threading.RLock()
        # Threads are given where no GPU is asked for. Ray hides no GPU from such a worker, so it has to look away.
        self.device = torch.device("cuda" if threads is None and torch.cuda.is_available() else "cpu")

    @cached_property
    def model_folder(self) -> Path:
        """The base model on this node."""
        return fetch_run_model(self.config, self.settings, self.cache)

    @cached_property
    def _classifier_folders(self) -> Mapping[str, Path]:
        return fetch_classifiers(self.config, self.settings, self.cache)

    @cached_property
    def _classifier_digests(self) -> Mapping[str, str]:
        return digests_of(self._classifier_folders)

    @cached_property
    def digests(self) -> tuple[str, str]:
        """Of the model's tensors, and of the classifiers'."""
        return content_digest(self.model_folder), digest_of_classifiers(self.config, self._classifier_digests)

    @property
    def dtype(self) -> str:
        """That the pipeline runs in, as "float32"."""
        return str(resolve_dtype(self.config.sampler.dtype, self.device)).removeprefix("torch.")

    @property
    def device_name(self) -> str:
        """Kind and name of the device, as "cpu x86_64"."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine()
        return f"{self.device.type} {name}"

    @cached_property
    def pipe(self) -> Any:
        """The pipeline. Load it, and use its text encoder, under `models`.

        Raises:
            ModelError: it is not what the plan was made with.
        """
        self._check_plan()
        dtype = resolve_dtype(self.config.sampler.dtype, self.device)
        pipe = load_pipeline(self.model_folder, self.config.sampler, self.device, dtype)
        if self.compiled:
            compile_unet(pipe)
        return pipe

    @property
    def compiled(self) -> bool:
        """Whether the pipeline's UNet is compiled."""
        return compiles(self.config.sampler, self.device.type, self.dtype)

    @cached_property
    def generator(self) -> Generator:
        """What draws with the pipeline."""
        return Generator(self.pipe, self.config.sampler)

    @cached_property
    def panel(self) -> Panel:
        """The classifiers."""
        return Panel(self.config, self._classifier_folders, self.device)

    def probe(self) -> Probe:
        """See `jobs.cluster.api.ShardWorker.probe`."""
        check_pipeline(self.model_folder, safety_checker=self.config.sampler.safety_checker)
        check_panel(self.config, self._classifier_folders)
        model, classifier = self.digests
        return Probe(
            model,
            classifier,
            self.dtype,
            self.device_name,
            torch.get_num_threads(),
            platform.node(),
            {name: version(name) for name in (*KEYED_LIBRARIES, "ray", "evenhand")},
            tuple(self._classifier_digests.items()) if len(self._classifier_digests) > 1 else (),
        )

    def _check_plan(self) -> None:
        """Refuse to store under the plan's key what other tensors, another dtype or other libraries made."""
        if self._expected is None:
            return
        planned = self._expected
        mine = {"model": self.digests[0], "classifier": self.digests[1], "dtype": self.dtype, **installed_versions()}
        wanted = {"model": planned.model, "classifier": planned.classifier, "dtype": planned.dtype}
        wanted |= {name: planned.versions[name] for name in KEYED_LIBRARIES}
        other = [f"{name} is {mine[name]}, planned {wanted[name]}" for name in wanted if mine[name] != wanted[name]]
        if other:
            raise ModelError(
                f"the worker on {platform.node()} differs from the plan: {'; '.join(other)}. Every node must reach the "
                "same model and have the same versions; with mixed devices set sampler.dtype"
            )
