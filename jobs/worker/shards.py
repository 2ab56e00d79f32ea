"""Shards, made with the resident models or found in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from infra.storage import ObjectMissing
from jobs.evaluation.operators import EditSolver
from jobs.images.generator import auto_batch_size
from jobs.images.requests import EditRequest
from jobs.images.shard_maker import ShardMaker
from jobs.images.shards import Shard, ShardError, ShardOutcome, ShardSpec
from jobs.worker.resident import Resident, installed_versions
from time_ops import EditOperator

__all__ = ["ShardService"]


class ShardService:
    """Makes shards; `run` is `jobs.cluster.api.ShardWorker.run`.

    Args:
        resident: the models.
        edits: solves the operators that shards name by a request.
    """

    def __init__(self, resident: Resident, edits: EditSolver) -> None:
        self._resident, self._edits = resident, edits

    @cached_property
    def maker(self) -> ShardMaker:
        """What draws, labels and stores; it loads all models."""
        resident, sampler = self._resident, self._resident.config.sampler
        panel = resident.panel
        auto = sampler.batch_size == "auto"
        size: int | str = sampler.batch_size
        if isinstance(size, str):
            # With the classifiers in place, which needs memory too; several workers may share the device.
            share = min(1.0, resident.config.workers.num_gpus or 1.0)
            size = auto_batch_size(resident.pipe, sampler, resident.device, resident.config.shard_images, share)
        where = {
            "device": resident.device_name,
            "threads": torch.get_num_threads(),
            "compiled": resident.compiled,
            "versions": installed_versions(),
        }
        return ShardMaker(resident.generator, panel, resident.store, resident.models, size, auto=auto, provenance=where)

    def run(
        self, specs: Sequence[ShardSpec], operators: Sequence[EditOperator], edits: Mapping[str, EditRequest] | None
    ) -> list[ShardOutcome]:
        """A shard that is already stored is read and verified; one that is damaged is made again."""
        outcomes, missing = [], []
        for spec in specs:
            done = self._read_stored(spec)
            if done is None:
                missing.append(spec)
            else:
                outcomes.append(done)
        if missing:
            named = {spec.operator for spec in missing}
            with self._resident.models:
                maker, generator = self.maker, self._resident.generator
                for operator in operators:
                    if operator.digest in named and not generator.knows(operator.digest):
                        operator.check_encoder(self._resident.pipe)
                        generator.add_operator(operator)
            solved = [self._edits.solved(d, request) for d, request in (edits or {}).items() if d in named]
            with generator.knowing(solved):
                outcomes += maker.make(missing)
        return outcomes

    def _read_stored(self, spec: ShardSpec) -> ShardOutcome | None:
        try:
            shard = Shard.from_bytes(self._resident.store.get(spec.object_key), spec)
        except (ObjectMissing, ShardError):
            return None
        failed = int((shard.statuses != 0).sum())
        return ShardOutcome(spec.digest, spec.count, failed, True, float(shard.provenance.get("seconds", 0.0)))
