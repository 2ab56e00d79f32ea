"""A chunk of a run's professions in a worker: its manifest rows, tokens, and the statistics of their edits."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from infra.storage import LocalStore, ObjectMissing, ObjectStore, StorageError
from jobs.config import RunConfig
from jobs.runs.inputs import CHUNK_PROFESSIONS
from manifests import Manifest, ManifestRow, resolved_shares
from manifests.write import manifest_groups
from time_ops import EditError, PromptEdit, Statistics
from time_ops.prompts import augment
from time_ops.row_encoding import encode_rows
from time_ops.rows import TokenRows
from time_ops.strengths import Strengths

__all__ = [
    "ChunkEncoder",
    "ChunkStrengths",
    "ComponentStrengths",
    "EditChunk",
    "PreserveLams",
    "edit_chunks",
    "named_prompts",
]

_log = logging.getLogger(__name__)

_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True)
class EditChunk:
    """One row group of a run's manifest, and the preserved prompts that are counted with it.

    Attributes:
        manifest: object key of the run's manifest.
        row_group: which of its row groups.
        digest: of that group's rows, in their order.
        wordings: templates of the edit's prompts.
        explicit: preserve the destination prompts of these professions, in all wordings.
        skip: those of them that an earlier chunk preserves.
        preserved: further prompts to preserve.
    """

    manifest: str
    row_group: int
    digest: str
    wordings: tuple[str, ...]
    explicit: bool
    skip: frozenset[str] = frozenset()
    preserved: tuple[str, ...] = ()

    def kept(self, manifest: Manifest) -> list[str]:
        """The preserved prompts, of this group's rows."""
        explicit = _explicit(manifest, self.wordings) if self.explicit else ()
        return list(dict.fromkeys([*self.preserved, *(p for p in explicit if p not in self.skip)]))

    @property
    def key(self) -> str:
        """Digest of all that decides its tokens, the text encoder aside."""
        facts = {**asdict(self), "manifest": None, "skip": sorted(self.skip)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PreserveLams:
    """How strongly a chunk's preserved prompts are held; a smaller lam holds more, inf leaves a prompt out.

    Attributes:
        named: lam of each of the chunk's `preserved`.
        explicit: for each profession, of each of its destination prompts, in all wordings; what several have in common
            takes the smallest, and a prompt that is named too takes that.
    """

    named: tuple[float, ...]
    explicit: tuple[tuple[float, ...], ...]

    def of(self, chunk: EditChunk, rows: TokenRows) -> list[float]:
        """Lam of each of `TokenRows.preserved`."""
        lams: dict[str, float] = {}
        for edit, of_edit in zip(rows.edits, self.explicit, strict=True):
            for destination, lam in zip(edit.destinations, of_edit, strict=True):
                for wording in rows.augmentations:
                    prompt = augment(wording, destination)
                    lams[prompt] = min(lam, lams.get(prompt, lam))
        lams.update(zip(chunk.preserved, self.named, strict=True))
        # Explicit prompts of wordings that do not take part are left out with them.
        return [lams.get(prompt, math.inf) for prompt in rows.preserved]


@dataclass(frozen=True)
class ChunkStrengths:
    """How one operator is solved from a chunk; what `ChunkEncoder.statistics` takes, one for each operator."""

    lam: tuple[float, ...]
    shares: tuple[npt.NDArray[np.float64], ...]
    preserve: PreserveLams
    push: tuple[tuple[float, ...], ...] | None = None
    ratio: float = 1.0


@dataclass(frozen=True)
class ComponentStrengths:
    """How one component of a mixture is solved, profession by profession, in the manifest's order.

    Attributes:
        label: where it sends them.
        lam: strength; smaller is stronger.
        overshoot: how far the edit goes, 1 is the destination.
        ratio: lambda of the other labels' destination prompts, in units of the profession's own lam.
        push: how far those are pushed away from the source, see `time_ops.strengths.Strengths`.
    """

    label: str
    lam: tuple[float, ...]
    overshoot: tuple[float, ...]
    ratio: tuple[float, ...]
    push: float = 0.0


def _explicit(manifest: Manifest, wordings: Sequence[str]) -> Iterator[str]:
    for profession in manifest.professions:
        for destination in profession.destinations:
            for wording in wordings:
                yield augment(wording, destination.prompt)


def _digest(group: Manifest) -> str:
    # `Manifest.digest` has no regard to the order of rows; lams and shares are given in that order.
    rows = [list(row.model_dump().values()) for row in group.rows]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def named_prompts(config: RunConfig) -> tuple[str, ...]:
    """Prompts to preserve by name. Whoever names the empty prompt means what guidance subtracts.

    A mixture keeps its neutral prompts too.
    """
    neutral = config.mixture.neutral if config.form == "mixture" else ()
    prompts, negative = tuple(dict.fromkeys((*config.preserve.prompts, *neutral))), config.sampler.negative_prompt
    return (*prompts, negative) if "" in prompts and negative not in prompts else prompts


def edit_chunks(manifest: Manifest, config: RunConfig, key: str) -> list[EditChunk]:
    """The chunks of a run, in order; each preserved prompt is in one of them.

    Args:
        manifest: the run's.
        config: its wordings and preserved prompts.
        key: where `run_manifest_bytes` lies in the run's store.
    """
    named, wordings = named_prompts(config), config.wordings.edit
    seen = set(named)
    chunks = []
    for number, group in enumerate(manifest_groups(manifest, CHUNK_PROFESSIONS)):
        explicit = set(_explicit(group, wordings)) if config.preserve.explicit else set()
        skip = frozenset(explicit & seen)
        seen |= explicit
        preserved = named if number == 0 else ()
        chunks.append(EditChunk(key, number, _digest(group), wordings, config.preserve.explicit, skip, preserved))
    return chunks


class ChunkEncoder:
    """A worker's part: encodes chunks and sums over their tokens. Calls may come from several threads.

    A chunk's tokens are encoded once on a node: the last few stay in memory, all are kept in the node's cache.

    Args:
        store: where the run's manifest lies.
        pipe: gives the pipeline; called under `models`.
        models: lock of whatever else runs the pipeline's text encoder.
        cache: this run's folder on this node.
        device: where sums are made; needs float64.
        memory_bytes: most bytes of tokens kept in memory.
    """

    def __init__(
        self,
        store: ObjectStore,
        pipe: Callable[[], Any],
        models: AbstractContextManager[Any],
        cache: Path,
        device: torch.device | str = "cpu",
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self._store, self._pipe, self._models, self._device = store, pipe, models, device
        self._spilled = LocalStore(cache / "pairs")
        self._kept: OrderedDict[str, TokenRows] = OrderedDict()
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()

    def statistics(
        self, chunk: EditChunk, operators: Sequence[ChunkStrengths], wordings: Sequence[bool] | None = None
    ) -> tuple[Statistics, ...]:
        """Weighted statistics of all edits and preserved prompts of a chunk, for each operator.

        Args:
            chunk: which part of the manifest.
            operators: how each is solved; see `TokenRows.component_statistics`.
            wordings: which of the chunk's take part; None: all.
        """
        rows = self._rows(chunk)
        if wordings is not None:
            rows = rows.of_augmentations(wordings)
        strengths = [
            Strengths(one.lam, _of_wordings(one.shares, wordings), one.preserve.of(chunk, rows), one.push, one.ratio)
            for one in operators
        ]
        return tuple(rows.component_statistics(strengths, device=self._device))

    def norms(self, chunk: EditChunk) -> list[float]:
        """Spectral norm of each edit's B_p, at the manifest's shares; see `TokenRows.norms`."""
        return self._rows(chunk).norms()

    def pooled_norms(self, chunk: EditChunk) -> list[float]:
        """The same of its pooled embeddings; empty where the model reads none."""
        pooled = self._rows(chunk).pooled
        return [] if pooled is None else pooled.norms()

    def _rows(self, chunk: EditChunk) -> TokenRows:
        key = chunk.key
        with self._lock:
            rows = self._kept.get(key)
            if rows is not None:
                self._kept.move_to_end(key)
                return rows
        rows = self._read(key) or self._encoded(chunk)
        with self._lock:
            self._kept[key] = rows
            while len(self._kept) > 1 and sum(r.nbytes for r in self._kept.values()) > self._memory_bytes:
                self._kept.popitem(last=False)
        return rows

    def _read(self, key: str) -> TokenRows | None:
        try:
            return TokenRows.from_bytes(self._spilled.get(_file(key)))
        except ObjectMissing:
            return None
        except (StorageError, EditError) as error:
            _log.warning("encoding a chunk again, as its tokens in the cache can't be read: %s", error)
            return None

    def _encoded(self, chunk: EditChunk) -> TokenRows:
        group = self._group(chunk)
        edits = [
            PromptEdit(p.source, dict(zip((d.prompt for d in p.destinations), resolved_shares(p), strict=True)))
            for p in group.professions
        ]
        with self._models:
            rows = encode_rows(self._pipe(), edits, chunk.kept(group), augmentations=chunk.wordings)
        try:
            self._spilled.put(_file(chunk.key), rows.to_bytes())
        except StorageError as error:
            _log.warning("a chunk's tokens stay in memory only, as the cache can't be written: %s", error)
        return rows

    def _group(self, chunk: EditChunk) -> Manifest:
        file = pq.ParquetFile(io.BytesIO(self._store.get(chunk.manifest)))
        rows = file.read_row_group(chunk.row_group).to_pylist() if chunk.row_group < file.num_row_groups else []
        group = Manifest(tuple(ManifestRow(**row) for row in rows), chunk.manifest)
        if _digest(group) != chunk.digest:
            url = self._store.url(chunk.manifest)
            raise StorageError(
                f"{url}: row group {chunk.row_group} does not hold the rows that the run began with; "
                "something else writes to this run's folder. Start the run again",
                url,
            )
        return group


def _of_wordings(
    shares: Sequence[npt.NDArray[np.float64]], wordings: Sequence[bool] | None
) -> Sequence[npt.NDArray[np.float64]]:
    """Blends [W, K] of those wordings alone."""
    return shares if wordings is None else [blend[np.asarray(wordings)] for blend in shares]


def _file(key: str) -> str:
    return f"{key}.safetensors"
