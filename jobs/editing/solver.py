"""The solve, spread: workers encode chunks of the manifest, their statistics merge in a tree, one task solves.

    solver = Solver(pool, manifest, config, f"{folder.prefix}/manifest.parquet")     # written with `run_manifest_bytes`
    operator = solver.solve(lam)                                                      # lam: one for each profession

A chunk is one row group of the run's manifest: some professions with all their destinations, and the preserved prompts
that come with them. The driver holds prompts, lams and the solved [d, d] operator, never a token or an edit's sums.

How strongly prompts are preserved where no lam is given for it, measured in docs/decisions/0008: destination prompts
weaker than their edit, the unconditional prompt twice as heavily as all edits together, others at the smallest lam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
import numpy.typing as npt
import torch

from jobs.auditing.session import Session
from jobs.cluster.pool import Pool
from jobs.config import RunConfig
from jobs.editing.api import ChunkWorker
from jobs.editing.chunk_encoding import (
    ChunkStrengths,
    ComponentStrengths,
    EditChunk,
    PreserveLams,
    edit_chunks,
    named_prompts,
)
from jobs.runs.inputs import CHUNK_PROFESSIONS
from manifests import Manifest, resolved_shares
from time_ops import EditError, EditOperator, Statistics, solve_statistics
from time_ops.lams import check_lams, pooled_ratio, scale_of
from time_ops.prompts import MOST_OVERSHOOT
from time_ops.strengths import checked_blends

__all__ = ["Solver", "solver_of"]


class Solver:
    """The driver's part: operators of the run's edits, solved again and again with other lams and shares.

    Repeated solves give the same bits: chunks, and the order in which they are added, are fixed.

    Args:
        pool: workers that are `ChunkWorker`s.
        manifest: the run's.
        config: its configuration.
        manifest_key: where `run_manifest_bytes(manifest)` lies in the run's store.
    """

    def __init__(self, pool: Pool, manifest: Manifest, config: RunConfig, manifest_key: str) -> None:
        self._pool = pool
        self._preserve, self._named = config.preserve, named_prompts(config)
        self._pooled = config.mixture.pooled_ratio
        self._unconditional = {"", config.sampler.negative_prompt}
        self._wordings = len(config.wordings.edit)
        self._chunks = edit_chunks(manifest, config, manifest_key)
        self._sources = [p.source for p in manifest.professions]
        self._shares = [resolved_shares(p) for p in manifest.professions]
        self._counts = [len(shares) for shares in self._shares]
        self._labels = [[d.label for d in p.destinations] for p in manifest.professions]

    @cached_property
    def scale(self) -> float:
        """The lambda at which edits begin to bite, see `time_ops.lams.scale_of`. Raises as `solve`."""
        return scale_of([norm for norms, _ in self._norms for norm in norms])

    @cached_property
    def _norms(self) -> list[tuple[list[float], list[float]]]:
        """Norms of each chunk's edits: of their token states, and of their pooled embeddings where there are any."""
        return [norms for _, norms in self._pool.map(ChunkWorker.chunk_norms, ((chunk,) for chunk in self._chunks))]

    @property
    def _ratio(self) -> float:
        """Lam of pooled embeddings in units of the token states', see `time_ops.lams.pooled_ratio`."""
        pooled = [norm for _, norms in self._norms for norm in norms]
        return pooled_ratio(scale_of(pooled), self.scale) if pooled else 1.0

    def solve_components(
        self, components: Sequence[ComponentStrengths], wordings: Sequence[bool] | None = None
    ) -> list[EditOperator]:
        """The operators of a mixture, one for each label, from one pass over the tokens.

        A component holds the *other* labels' destination prompts, never its own: gender is one direction g, and a map
        that adds g to neutral prompts can leave both +g and -g alone only by doing nothing. A profession without a
        destination of the component's label is preserved at its lam.

        Args:
            components: their strengths.
            wordings: which of the edit's wordings take part; None: all.

        Raises:
            EditError, StorageError, ClusterError: as `solve`.
        """
        used = None if wordings is None or all(wordings) else tuple(bool(w) for w in wordings)
        return self._solve([self._component(one, used) for one in components], used, self._pooled)

    def _component(self, strengths: ComponentStrengths, wordings: tuple[bool, ...] | None) -> _Operator:
        lams = [float(s) for s in strengths.lam]
        check_lams(lams, "lam", self._sources)
        blends, explicit, push = [], [], []
        for labels, own, overshoot, lam, ratio in zip(
            self._labels, self._shares, strengths.overshoot, lams, strengths.ratio, strict=True
        ):
            mine = np.array([label == strengths.label for label in labels])
            # Several destinations of one label are blended as the manifest has them; none of it: the source is kept.
            given = np.where(mine, own, 0.0) if np.where(mine, own, 0.0).any() else mine.astype(float)
            blends.append(overshoot * given / given.sum() if mine.any() else np.zeros(len(labels)))
            held = self._preserve.lam or ratio * lam
            explicit.append(tuple(math.inf if is_own else held for is_own in mine))
            push.append(tuple(0.0 if is_own else strengths.push for is_own in mine))
        used = self._wordings if wordings is None else sum(wordings)
        kept = self._preserve_lams(lams, self._preserve.lam, used)
        return _Operator(
            lams,
            checked_blends(self._sources, self._counts, self._wordings, blends, MOST_OVERSHOOT),
            PreserveLams(kept.named, tuple(explicit)),
            tuple(push) if strengths.push else None,
        )

    def solve(
        self,
        lam: Sequence[float] | npt.NDArray[np.float64],
        shares: Sequence[npt.ArrayLike] | None = None,
        preserve_lam: float | None = None,
    ) -> EditOperator:
        """The operator at these lams and shares.

        Args:
            lam: strength of each profession's edit, in the manifest's order; inf leaves it out.
            shares: of each profession's destinations, in their order: [K], or [W, K] with those of each edit wording;
                what they leave of 1 stays with the source. None: the manifest's.
            preserve_lam: strength of all preserved prompts. None: the configuration's; where that gives none either,
                - a profession's destination prompts: `preserve.explicit_ratio` times its own lam. Where that is inf,
                  times the smallest finite one; of several professions in one chunk, times the smallest of theirs.
                - the empty prompt and `sampler.negative_prompt`, where they are named in `preserve.prompts`: as heavily
                  as all W wordings of all edits, and as many of explicit prompts, together: 1 / (2 W sum_p 1 / lam_p).
                  Held like any other, they are moved half-way between the labels, and guidance pulls against images.
                - other named prompts: the smallest lam.

        Raises:
            EditError: bad lams or shares, prompts that can't be encoded, or sums that can't be factored.
            StorageError: the manifest can't be read.
            ClusterError: workers or nodes are lost again and again.
        """
        given = self._shares if shares is None else shares
        if not len(lam) == len(given) == len(self._shares):
            raise EditError(f"{len(self._shares)} professions, but {len(lam)} lams and {len(given)} shares")
        lams = [float(s) for s in lam]
        check_lams(lams, "lam", self._sources)
        blends = checked_blends(self._sources, self._counts, self._wordings, given)
        kept = self._preserve_lams(lams, self._preserve.lam if preserve_lam is None else preserve_lam, self._wordings)
        return self._solve([_Operator(lams, blends, kept)], None)[0]

    def _solve(
        self, operators: Sequence[_Operator], wordings: tuple[bool, ...] | None, pooled: float = 1.0
    ) -> list[EditOperator]:
        """Solve them from one pass over the chunks' tokens; lams of pooled embeddings are so many times the others'."""
        ratio = pooled * self._ratio

        def calls() -> Iterator[tuple[EditChunk, tuple[ChunkStrengths, ...], tuple[bool, ...] | None]]:
            for i, chunk in enumerate(self._chunks):
                part = slice(i * CHUNK_PROFESSIONS, (i + 1) * CHUNK_PROFESSIONS)
                parts = (one.of_chunk(part, named=bool(chunk.preserved)) for one in operators)
                yield chunk, tuple(replace(one, ratio=ratio) for one in parts), wordings

        return self._pool.reduce(ChunkWorker.chunk_statistics, calls, len(self._chunks), _sum, _solved)

    def _preserve_lams(self, lams: Sequence[float], for_all: float | None, wordings: int) -> PreserveLams:
        """Of all named prompts and all professions; see `solve`."""
        prompts = self._named
        if for_all is not None:
            check_lams([for_all], "preserve_lam", of="prompt")
            return PreserveLams(
                (float(for_all),) * len(prompts), tuple((float(for_all),) * count for count in self._counts)
            )
        finite = [s for s in lams if math.isfinite(s)]
        smallest = min(finite, default=math.inf)
        # In units of the smallest lam, as the sum of reciprocals may overflow.
        pull = 2 * wordings * math.fsum(smallest / s for s in finite)
        unconditional = smallest / pull if finite else math.inf
        ratio = self._preserve.explicit_ratio
        return PreserveLams(
            tuple(unconditional if p in self._unconditional else smallest for p in prompts),
            tuple(
                (ratio * (s if math.isfinite(s) else smallest),) * count
                for s, count in zip(lams, self._counts, strict=True)
            ),
        )


def solver_of(session: Session) -> Solver:
    """What solves the edits of a session's manifest, as its run's folder holds it."""
    return Solver(session.pool, session.manifest, session.config, f"{session.folder.prefix}/manifest.parquet")


@dataclass(frozen=True)
class _Operator:
    """What one operator of a solve is asked to be: lam and blend of each profession, lam of all preserved prompts."""

    lams: Sequence[float]
    blends: Sequence[npt.NDArray[np.float64]]
    kept: PreserveLams
    push: tuple[tuple[float, ...], ...] | None = None

    def of_chunk(self, part: slice, *, named: bool) -> ChunkStrengths:
        """What of it is a chunk's; `named`: whether the named prompts are in it."""
        kept = PreserveLams(self.kept.named if named else (), self.kept.explicit[part])
        push = None if self.push is None else self.push[part]
        return ChunkStrengths(tuple(self.lams[part]), tuple(self.blends[part]), kept, push)


def _sum(parts: Sequence[tuple[Statistics, ...]]) -> tuple[Statistics, ...]:
    return tuple(reduce(add, of_operator) for of_operator in zip(*parts, strict=True))


def _solved(totals: Sequence[Statistics]) -> list[EditOperator]:
    # A process that Ray reuses may have been started with more threads, and another number of them gives other bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [solve_statistics(total) for total in totals]
    finally:
        torch.set_num_threads(threads)
