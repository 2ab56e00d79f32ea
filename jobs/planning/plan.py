"""What a run will do and cost, before it does it: images, shards, bytes, time, and what is stored already.

evenhand plan run.yaml --rate 3.5 --workers 8

Nothing is written, no weights are loaded, and neither Ray nor torch is needed: one process that stays small.
"""

from __future__ import annotations

import math
import platform
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import ObjectMissing, ObjectStore, StorageSettings, open_store
from jobs.config import RunConfig
from jobs.images.cells import Cell, calibration_cells, check_held_out, iter_audit_cells, saturation_cells, shards_of
from jobs.images.components import check_mixture, components_of, tried_wordings
from jobs.images.judging import check_labels, digest_of_classifiers, digests_of, fetch_classifiers, stored_width
from jobs.images.recipe import KEYED_LIBRARIES, Probe, Recipe, recipe_of
from jobs.images.shards import BASE, Shard, ShardSpec, stored_keys
from jobs.images.variants import Part, Variant
from jobs.models.digests import content_digest
from jobs.models.staging import cache_folder, fetch_run_model
from jobs.planning.costs import advice_of, compile_note, hours_of, timed, total_of
from jobs.planning.earlier import EarlierRun
from jobs.planning.memory import memory_of
from jobs.planning.schema import MemoryEstimate, Plan, RateEstimate, StagePlan, StorageEstimate
from jobs.planning.stages import Count, KnownBefore, Round, Stage
from jobs.runs.drawn_again import drawn_again
from jobs.runs.identity import identity_of
from jobs.runs.inputs import read_inputs
from manifests import Manifest
from time_ops.files import json_of
from time_ops.route import UNEDITED, WeightTable

__all__ = ["make_plan"]

_SAMPLED_SHARDS = 8
_READ_THREADS = 8
# Bytes per pixel. Lossless WebP of small images and PNG: measured on the demo model's. WebP at quality 90: photographs.
_LOSSLESS_BYTES_PER_PX, _PNG_BYTES_PER_PX, _WEBP_BYTES_PER_PX = 2.3, 2.3, 0.25
_LOSSLESS_UP_TO_PX = 128


def make_plan(config: RunConfig, *, rate: float | None = None, workers: int | None = None) -> Plan:
    """Plan `jobs.debias.debias` with the same configuration.

    Args:
        config: the run's configuration.
        rate: images/s of one worker; None: from shards of this recipe that are stored already, if any.
        workers: how many there will be; None: `workers.count`.

    Raises:
        ManifestError, ConfigError: the input must be mended, as `debias` would say.
        ModelError: the model or the classifier is missing or of the wrong kind.
        StorageError: the store can't be read.
    """
    token = uuid.uuid4().hex[:12]
    settings = StorageSettings.from_environment()
    store = open_store(config.output, settings)
    try:
        manifest = read_inputs(config, settings, token)
        check_held_out(manifest, config)
        check_mixture(manifest, config)
        cache = cache_folder() / token
        model = fetch_run_model(config, settings, cache)
        classifiers = fetch_classifiers(config, settings, cache)
        check_labels(config, classifiers)
        probe = _probe(config, model, classifiers)
        recipe = recipe_of(config, probe)
        width, checkpoint_bytes = stored_width(config, classifiers), _size(model)
        memory = memory_of(model, recipe.dtype, safety_checker=config.sampler.safety_checker)
    finally:
        shutil.rmtree(cache_folder() / token, ignore_errors=True)
    planner = _Planner(config, manifest, store, recipe, width, dict(probe.classifiers), memory)
    return planner.plan(rate, workers or config.workers.count, checkpoint_bytes * _folders(config, manifest))


class _Planner:
    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        store: ObjectStore,
        recipe: Recipe,
        width: int | None,
        classifiers: Mapping[str, str],
        memory: MemoryEstimate,
    ) -> None:
        self.classifiers, self.memory = classifiers, memory
        self.config, self.manifest, self.store, self.recipe = config, manifest, store, recipe
        self.identity = identity_of(config, manifest, recipe)
        self.run = config.run or f"run-{self.identity[:16]}"
        self.width = width or 512
        self.shard_bytes = cache(self._shard_bytes)
        self.samples: list[str] = []
        self.counts: dict[tuple[Round | None, bool, int], Count] = {}
        self.bytes = 0

    def plan(self, rate: float | None, workers: int | None, checkpoint_bytes: int) -> Plan:
        earlier = EarlierRun(self.store, self.run, self.identity, is_single=self.config.form == "single").read()
        stages = [self._stage_plan(stage) for stage in self._stages(earlier)]
        found_rate = RateEstimate(images_per_s=rate, source="given") if rate else self._measured_rate()
        if found_rate.images_per_s:
            stages = [timed(stage, found_rate.images_per_s, workers) for stage in stages]
        worker_s = total_of(stage.worker_s for stage in stages)
        return Plan(
            run=self.run,
            url=self.store.url(f"runs/{self.run}"),
            identity=self.identity,
            professions=len(self.manifest.professions),
            stages=stages,
            images=sum(s.images for s in stages),
            shards=sum(s.shards for s in stages),
            images_to_make=sum(s.images_to_make for s in stages),
            shards_to_make=sum(s.shards_to_make for s in stages),
            storage=self._storage(stages, checkpoint_bytes),
            memory=self.memory,
            rate=found_rate,
            workers=workers,
            worker_hours=None if worker_s is None else worker_s / 3600,
            gpu_hours=None if worker_s is None else self._gpu_hours(worker_s / 3600, found_rate.device),
            wall_hours=hours_of(total_of(stage.wall_s for stage in stages)),
            dtype=self.recipe.dtype,
            dtype_asked=self.config.sampler.dtype,
            versions=dict(self.recipe.versions),
            host=platform.node(),
            advice=advice_of(self.config, found_rate.images_per_s),
            notes=[note for note in (earlier.note, self._drawn_again(), self._compiled(workers)) if note],
        )

    def _compiled(self, workers: int | None) -> str | None:
        """As a run decides it: by the base audit's open prompts."""
        cells = len(self.manifest.professions) * len(self.config.wordings.audit)
        return compile_note(self.config, cells * self.config.images_per_cell, workers, self.recipe.dtype)

    def _drawn_again(self) -> str | None:
        specs = self._specs(Stage("base audit", Variant.plain()))
        return drawn_again(self.config, self.store, self.recipe, self.classifiers, specs)

    # Cells and shards

    def _specs(self, stage: Stage) -> Iterator[ShardSpec]:
        """Its shards, those of one round where there are several."""
        if stage.made is None and stage.rounds is None:
            variant = stage.variant or self._unsolved()
            yield from shards_of(iter_audit_cells(self.manifest, self.config), self.recipe, variant, self.config)
            return
        made = stage.made or Round(1, "", (), ())
        for cells, operator in self._round_cells(made):
            yield from shards_of(cells, self.recipe, Variant.plain(operator), self.config, pictures=False)

    def _round_cells(self, made: Round) -> Iterator[tuple[Iterable[Cell], str]]:
        """Cells of a round, and the operator they are drawn under."""
        if self.config.form == "single":
            cells = calibration_cells(self.manifest, self.config, made.number, made.active or None)
            yield cells, made.operators[0] if made.operators else BASE
            return
        components = components_of(self.manifest, list(self.config.attribute))
        _, wordings = tried_wordings(self.config)
        for k, component in enumerate(components):
            if not made.active or made.active[k]:
                edited = [component in p.labels for p in self.manifest.professions]
                cells = saturation_cells(self.manifest, self.config, wordings, made.number, component, edited)
                yield cells, made.operators[k] if made.operators else f"component {k}"

    def _unsolved(self) -> Variant:
        """What stands for an edit that is not known yet: as many shards, under no digest."""
        if self.config.form == "single":
            return Variant.plain()
        components = components_of(self.manifest, list(self.config.attribute))
        parts = tuple(Part(label, f"component {k}") for k, label in enumerate(components))
        return Variant("", parts, WeightTable([1 / len(parts)] * len(parts)))

    def _stages(self, earlier: KnownBefore) -> Iterator[Stage]:
        yield Stage("base audit", Variant.plain())
        for made in earlier.rounds:
            yield Stage(f"calibration round {made.number}", Variant.plain(), made)
        # A mixture whose lambdas are all given is still looked at once, for its weights.
        is_open = any(p.lam is None for p in self.manifest.professions)
        if earlier.variant is None and (is_open or self.config.form == "mixture"):
            left = self._rounds_left(earlier.rounds)
            more = "more " if earlier.rounds else ""
            if left > 0:
                yield Stage(f"calibration, at most {left} {more}rounds", None, rounds=left)
        yield Stage("edited audit", earlier.variant)

    def _rounds_left(self, rounds: Sequence[Round]) -> int:
        if self.config.form == "mixture":
            components = components_of(self.manifest, list(self.config.attribute))
            most = self.config.mixture.rounds_of(len(components))
            is_open = any(p.lam is None for p in self.manifest.professions)
            return (most if is_open else min(most, 1)) - len(rounds)
        search = self.config.calibration
        limits = {"base": search.base_rounds, "search": search.search_rounds, "verify": search.verify_rounds}
        begun = max((list(limits).index(made.phase) for made in rounds), default=0)
        return sum(most - sum(made.phase == phase for made in rounds) for phase, most in list(limits.items())[begun:])

    def _count(self, stage: Stage) -> Count:
        """Of one round; audits under one operator, or none, are the same, one of a mixture has more shards."""
        place = stage.made, stage.rounds is None, len((stage.variant or self._unsolved()).parts)
        if place not in self.counts:
            count = self.counts[place] = Count()
            for spec in self._specs(stage):
                count.add(spec.count, self.shard_bytes(spec.count, spec.pictures))
        return self.counts[place]

    def _stage_plan(self, stage: Stage) -> StagePlan:
        rounds = 1 if stage.rounds is None else stage.rounds
        count = self._count(stage)
        self.bytes += rounds * count.bytes
        plan = StagePlan(
            name=stage.name,
            rounds_at_most=rounds,
            images=rounds * count.images,
            shards=rounds * count.shards,
            images_to_make=rounds * count.images,
            shards_to_make=rounds * count.shards,
            shards_stored=None,
            images_stored=None,
        )
        if stage.variant is None:
            return plan
        wanted = {spec.object_key: spec.count for spec in self._specs(stage)}
        stored = stored_keys(self.store, wanted)
        if len(self.samples) < _SAMPLED_SHARDS:
            # In the order of their digests, which is no order at all: a fair sample of prompts and of workers.
            self.samples += sorted(stored)[: _SAMPLED_SHARDS - len(self.samples)]
        images = sum(wanted[key] for key in stored)
        return plan.model_copy(
            update={
                "shards_stored": len(stored),
                "images_stored": images,
                "shards_to_make": count.shards - len(stored),
                "images_to_make": count.images - images,
            }
        )

    # Estimates

    def _shard_bytes(self, count: int, pictures: int) -> int:
        """Bytes of one stored shard: written here, with random embeddings, which compress as little as real ones."""
        rng = np.random.default_rng(0)
        embeddings = rng.standard_normal((count, self.width), dtype=np.float32) / math.sqrt(self.width)
        spec = ShardSpec(self.recipe, BASE, "audit", "A photo of a prompt of usual length", 0, count)
        provenance = {"seconds": 12.3456, "device": "cuda", "versions": dict(self.recipe.versions)}
        shard = Shard(spec, embeddings, np.zeros(count, np.uint8), [None] * count, provenance)
        return len(shard.to_bytes()) + pictures * self._picture_bytes()

    def _picture_bytes(self) -> int:
        sampler = self.config.sampler
        if self.config.pictures.format == "png":
            per_px = _PNG_BYTES_PER_PX
        else:
            lossless = max(sampler.height, sampler.width) <= _LOSSLESS_UP_TO_PX
            per_px = _LOSSLESS_BYTES_PER_PX if lossless else _WEBP_BYTES_PER_PX
        return round(per_px * sampler.height * sampler.width)

    def _storage(self, stages: Sequence[StagePlan], checkpoint_bytes: int) -> StorageEstimate:
        total = self.bytes
        images = sum(s.images for s in stages)
        to_make = sum(s.images_to_make for s in stages)
        pictures = 2 * sum(spec.pictures for spec in self._specs(Stage("base audit", Variant.plain())))
        per_picture = self._picture_bytes()
        return StorageEstimate(
            shards_bytes=total,
            shards_bytes_to_write=round(total * to_make / images),
            checkpoint_bytes=checkpoint_bytes,
            basis=f"embeddings or probabilities of {self.width} x 4 bytes and a row for each image, as shards of this "
            f"shape written in memory take; {pictures:,} pictures at about {per_picture:,} bytes; a checkpoint as "
            "large as the model's folder, of a mixture once for each component; the run's own tables and report are "
            "not counted",
        )

    def _measured_rate(self) -> RateEstimate:
        rates, devices = [], set()
        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="evenhand-plan") as pool:
            for measured in pool.map(self._rate_of, self.samples):
                if measured is not None:
                    rates.append(measured[0])
                    devices.add(measured[1])
        if not rates:
            return RateEstimate(images_per_s=None, source=None)
        device = devices.pop() if len(devices) == 1 else None
        return RateEstimate(
            images_per_s=statistics.median(rates), source="measured", sampled_shards=len(rates), device=device
        )

    def _rate_of(self, key: str) -> tuple[float, str] | None:
        """Images/s and device of one stored shard, from its footer."""
        try:
            footer = pq.read_metadata(pa.BufferReader(self.store.get(key)))
            provenance = json_of((footer.metadata or {})[b"evenhand.provenance"])
            rate = footer.num_rows / float(provenance["seconds"])
            return (rate, str(provenance.get("device", ""))) if 0 < rate < math.inf else None
        except (ObjectMissing, pa.ArrowException, OSError, LookupError, AttributeError, ValueError, TypeError):
            return None
        except ArithmeticError:
            return None

    def _gpu_hours(self, worker_hours: float, device: str | None) -> float | None:
        """None where nobody can say yet whether workers have GPUs."""
        each = self.config.workers.num_gpus
        if each is None:
            if not device:
                return None
            each = 1.0 if device.startswith("cuda") else 0.0
        return worker_hours * each


def _probe(config: RunConfig, model: Path, classifiers: Mapping[str, Path]) -> Probe:
    """What a worker on this machine would say of itself, as far as shards' keys need it."""
    versions = {name: version(name) for name in KEYED_LIBRARIES}
    dtype = config.sampler.dtype if config.sampler.dtype != "auto" else _automatic_dtype()
    digests = digests_of(classifiers)
    classifier = digest_of_classifiers(config, digests)
    several = tuple(digests.items())
    return Probe(content_digest(model), classifier, dtype, "", 0, platform.node(), versions, several)


def _automatic_dtype() -> str:
    """`auto` on this machine, asked of a process of its own: torch is most of what this one would hold in memory."""
    code = (
        "import torch; from jobs.models.staging import resolve_dtype; "
        "print(resolve_dtype('auto', torch.device('cuda' if torch.cuda.is_available() else 'cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()[-1].removeprefix("torch.")


def _folders(config: RunConfig, manifest: Manifest) -> int:
    """How many edited folders a checkpoint has: a mixture's one for each component that edits."""
    if config.form == "single":
        return 1
    return sum(component != UNEDITED for component in components_of(manifest, list(config.attribute)))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
