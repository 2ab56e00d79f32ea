"""The search on the cluster: what `time_ops.search.calibration` proposes is solved, drawn, labelled and told to it.

    found = calibrate(session, texts)
    found.operator, found.candidate, found.section      # what to go on with, and what the report shows of the search

After every round all of it is written to `calibration.parquet`, and a run that goes on begins with what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.storage import ObjectMissing, StorageError
from jobs.auditing.counts import count_cells
from jobs.auditing.session import Session
from jobs.auditing.tally import Tallies
from jobs.config import RunConfig
from jobs.editing.single_evidence import EVIDENCE, Trial, evidence_bytes, section_of, trials_of
from jobs.editing.solver import solver_of
from jobs.images.cells import Cell, calibration_cells
from jobs.images.labels import TextEmbeddings
from jobs.images.shards import BASE
from jobs.images.variants import Variant
from jobs.report.search_schema import Calibration
from manifests import Manifest, resolved_shares, resolved_targets
from time_ops import EditOperator
from time_ops.search.calibration import CalibrationSearch
from time_ops.search.model import Candidate, Limits, Measured, Rules, SearchedProfession

__all__ = ["Calibrated", "calibrate", "professions_of"]


@dataclass(frozen=True)
class Calibrated:
    """What a search came to.

    Attributes:
        operator: of the candidate to go on with.
        candidate: its lambdas and shares.
        section: what the report shows of the search; None where the manifest leaves nothing open.
    """

    operator: EditOperator
    candidate: Candidate
    section: Calibration | None


def calibrate(session: Session, texts: TextEmbeddings) -> Calibrated:
    """Search until the rules end it. Where the manifest leaves nothing open, that is at once.

    Args:
        session: the run; its folder may hold the rounds of an earlier attempt.
        texts: the classifier's text embeddings, see `Session.texts`.

    Raises:
        EditError, ShardsFailedError, ClusterError, StorageError: see `jobs.errors`.
    """
    return _Search(session, texts).run()


class _Search:
    def __init__(self, session: Session, texts: TextEmbeddings) -> None:
        self.session, self.texts = session, texts
        self.config, self.manifest = session.config, session.manifest
        self.labels = list(self.config.attribute)
        self.solver = solver_of(session)
        professions = professions_of(self.manifest, self.labels)
        self.is_open = any(p.lam is None for p in professions)
        wordings, edited = self.config.wordings.calibration, self.config.wordings.edit
        rules = _rules(self.config, self.solver.scale if self.is_open else 1.0)
        unedited = [w for w, wording in enumerate(wordings) if wording not in edited]
        self.calibration = CalibrationSearch(professions, len(wordings), rules, unedited)
        self.trials = self._read_earlier()

    def run(self) -> Calibrated:
        for trial in self.trials:
            self.calibration.tell(trial.candidate, trial.measured)
            used = self.session.use(self._cells(trial.candidate), Variant.plain(trial.operator), pictures=False)
            self.session.spend_again(list(used))
        while (candidate := self.calibration.propose()) is not None:
            self.trials.append(self._try(candidate))
            self.calibration.tell(candidate, self.trials[-1].measured)
            self._write()
        if not self.trials:
            self._write()
        best = self.calibration.best
        section = section_of(self.calibration, self.trials, self.manifest, self.config) if self.is_open else None
        return Calibrated(self._solve(best), best, section)

    def _try(self, candidate: Candidate) -> Trial:
        operator = None if candidate.phase == "base" else self._solve(candidate)
        digest = BASE if operator is None else operator.digest
        cells = self._cells(candidate)
        stage = f"calibration round {candidate.number}, {candidate.phase}"
        self.session.generate(cells, operator, stage, pictures=False)
        tallies = self.session.tally(
            self.session.tasks(cells), {candidate.phase: Variant.plain(digest)}, self.texts, written=False
        )
        return Trial(candidate, _measured(tallies, self.manifest, self.config), digest)

    def _cells(self, candidate: Candidate) -> list[Cell]:
        return list(calibration_cells(self.manifest, self.config, candidate.number, candidate.active.tolist()))

    def _solve(self, candidate: Candidate) -> EditOperator:
        shares = [self._by_edit_wording(s) for s in candidate.shares]
        return self.solver.solve(candidate.lam.tolist(), shares)

    def _by_edit_wording(self, shares: np.ndarray) -> np.ndarray:
        """[W, K] by calibration wording to the edit's wordings; those that calibration has not get the mean."""
        places = {wording: w for w, wording in enumerate(self.config.wordings.calibration)}
        edit = self.config.wordings.edit
        own = [shares[places[w]] for w in edit if w in places] or list(shares)
        mean = np.mean(own, axis=0)
        return np.stack([shares[places[w]] if w in places else mean for w in edit])

    def _read_earlier(self) -> list[Trial]:
        try:
            data = self.session.folder.get(EVIDENCE)
        except ObjectMissing:
            return []
        try:
            return trials_of(data, self.manifest)
        except ValueError as error:
            url = self.session.folder.url(EVIDENCE)
            raise StorageError(f"{url}: {error}. Delete it: the search begins again, on stored shards", url) from error

    def _write(self) -> None:
        self.session.folder.put(
            EVIDENCE, evidence_bytes(self.trials, self.manifest, self.labels), "application/vnd.apache.parquet"
        )


def professions_of(manifest: Manifest, labels: Sequence[str]) -> list[SearchedProfession]:
    """What the manifest leaves open: all of a profession without a lambda; one with a lambda is solved as it stands."""
    professions = []
    for p in manifest.professions:
        targets = resolved_targets(p, labels)
        shares = resolved_shares(p) if p.lam is not None else tuple(d.share for d in p.destinations)
        professions.append(
            SearchedProfession(
                p.name,
                tuple(targets[label] for label in labels),
                tuple(labels.index(d.label) for d in p.destinations),
                shares,
                p.lam,
            )
        )
    return professions


def _rules(config: RunConfig, scale: float) -> Rules:
    search, gates = config.calibration, config.gates
    return Rules(
        lam=search.lam * scale,
        least_lam=search.least_lam * scale,
        images=search.images,
        base_rounds=search.base_rounds,
        search_rounds=search.search_rounds,
        verify_rounds=search.verify_rounds,
        tolerance=search.tolerance,
        confidence=search.confidence,
        limits=Limits(gates.explicit, gates.recognised, gates.controls, gates.undetermined_increase),
    )


def _measured(tallies: Tallies, manifest: Manifest, config: RunConfig) -> Measured:
    """A round's cells as calibration wants them."""
    counts = count_cells(tallies, len(manifest.professions), config.wordings.calibration, list(config.attribute))
    right, shown, _ = counts.explicit[:, 0].sum(axis=(0, 1)).tolist()
    recognised, seen = counts.controls[:, 0].sum(axis=0).tolist()
    audited = int(counts.recognised.sum()), int(counts.ok.sum())
    return Measured(counts.labels[:, 0], audited, (right, shown), (recognised, seen))
