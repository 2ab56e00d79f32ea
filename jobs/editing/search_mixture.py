"""A mixture, found on the cluster: what `time_ops.search.saturation` proposes is solved, drawn, labelled, told to it.

    found = saturate(session, texts)
    found.mixture, found.section      # what to go on with, and what the report shows of the search

After every round all of it is written to `calibration.parquet`, and a run that goes on begins with what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infra.storage import ObjectMissing, StorageError
from jobs.auditing.counts import count_cells
from jobs.auditing.session import Session
from jobs.editing.chunk_encoding import ComponentStrengths
from jobs.editing.mixture_evidence import EVIDENCE, Tried, evidence_bytes, section_of, tried_of
from jobs.editing.solver import solver_of
from jobs.images.cells import Cell, saturation_cells
from jobs.images.components import components_of, tried_wordings
from jobs.images.labels import TextEmbeddings
from jobs.images.shards import BASE
from jobs.images.variants import Variant
from jobs.report.figure_schema import ComponentEdit
from jobs.report.search_schema import Saturation as Section
from manifests import Profession, resolved_shares, resolved_targets
from time_ops import EditOperator, Mixture
from time_ops.route import UNEDITED, WeightTable, source_words
from time_ops.search.model import Limits
from time_ops.search.saturation import Base, Chosen, Rules, Saturation, Seen, Subject, Trial

__all__ = ["Saturated", "saturate"]

_NEARLY_ALL = 0.98
"""A component's images that may show what they should, where few are looked at: less is a shortfall."""


@dataclass(frozen=True)
class Saturated:
    """What a search came to.

    Attributes:
        mixture: to go on with.
        edits: for each profession, what each component does with it.
        section: what the report shows of the search; None where nothing was tried.
    """

    mixture: Mixture
    edits: list[dict[str, ComponentEdit]]
    section: Section | None


def saturate(session: Session, base: Sequence[Cell], texts: TextEmbeddings) -> Saturated:
    """Search until the rules end it, and solve what was found on all wordings.

    Args:
        session: the run; its folder may hold the rounds of an earlier attempt.
        base: cells of the base audit, which is drawn: what an edit costs is relative to it.
        texts: the classifier's text embeddings, see `Session.texts`.

    Raises:
        EditError, ShardsFailedError, ClusterError, StorageError: see `jobs.errors`.
    """
    return _Search(session, base, texts).run()


class _Search:
    def __init__(self, session: Session, base: Sequence[Cell], texts: TextEmbeddings) -> None:
        self.session, self.texts = session, texts
        self.config, self.manifest = session.config, session.manifest
        self.labels = list(self.config.attribute)
        self.components = components_of(self.manifest, self.labels)
        self.solver = solver_of(session)
        self.used, self.wordings = tried_wordings(self.config)
        subjects = [_subject(p, self.components, self.labels) for p in self.manifest.professions]
        own = [self.labels.index(c) if c in self.labels else None for c in self.components]
        self.search = Saturation(subjects, own, len(self.labels), self._rules(base))
        self.tried: list[Tried] = []

    def _rules(self, base: Sequence[Cell]) -> Rules:
        search, gates = self.config.mixture, self.config.gates
        is_open = any(p.lam is None for p in self.manifest.professions)
        scale = self.solver.scale if is_open else 1.0
        return Rules(
            lam=search.lam * scale,
            least_lam=search.least_lam * scale,
            overshoot=search.overshoot,
            most_overshoot=search.most_overshoot,
            ratio=search.ratio_of(len(self.manifest.professions)),
            rounds=search.rounds_of(len(self.components)),
            own=search.own,
            # Nearer to perfect than the gates ask, as those read intervals.
            limits=Limits(
                max(gates.explicit, _NEARLY_ALL),
                max(gates.recognised, _NEARLY_ALL),
                max(gates.controls, _NEARLY_ALL),
                min(gates.undetermined_increase, 1 - _NEARLY_ALL),
            ),
            base=self._base(base) if search.rounds_of(len(self.components)) else Base(),
        )

    def _base(self, cells: Sequence[Cell]) -> Base:
        """Rates of the base audit. Professions' shares there are not for the search to see."""
        wanted = [cell for cell in cells if cell.kind != "explicit"]
        tallies = self.session.tally(self.session.tasks(wanted), {"base": Variant.plain()}, self.texts, written=False)
        counts = count_cells(tallies, len(self.manifest.professions), self.config.wordings.audit, self.labels)
        recognised, undetermined, n = (
            int(each.sum()) for each in (counts.recognised, counts.labels[..., -1], counts.ok)
        )
        controls, of_controls = counts.controls[:, 0].sum(axis=0).tolist()
        return Base(
            recognised / n if n else 1.0, controls / of_controls if of_controls else 1.0, undetermined / max(1, n)
        )

    def run(self) -> Saturated:
        for tried in self._read_earlier():
            self._take(tried)
            for k, digest in enumerate(tried.operators):
                if tried.trial.active[k]:
                    cells = self._cells(tried.trial, k)
                    used = self.session.use(cells, Variant.plain(digest), pictures=False)
                    self.session.spend_again(list(used))
        while (trial := self.search.propose()) is not None:
            self._take(self._try(trial))
            self._write()
        if not self.tried:
            self._write()
        return self._conclude(self.search.chosen)

    def _take(self, tried: Tried) -> None:
        self.tried.append(tried)
        self.search.tell(tried.trial, tried.seen)

    def _try(self, trial: Trial) -> Tried:
        """Solve, draw, label and count one round."""
        operators = self._solve(trial, self.used)
        drawn = [(k, self._cells(trial, k)) for k in np.flatnonzero(trial.active).tolist()]
        stage = f"strengths, round {trial.number}"
        self.session.draw([(cells, operators[k]) for k, cells in drawn], stage, pictures=False)
        seen = Seen(*(np.zeros(shape, np.int64) for shape in self._shapes))
        digests = [BASE if operator is None else operator.digest for operator in operators]
        for k, cells in drawn:
            self._count(seen, k, cells, digests[k])
        return Tried(trial, seen, tuple(digests))

    @cached_property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the arrays of `Seen`."""
        K, P, L = len(self.components), len(self.manifest.professions), len(self.labels)
        return (K, P, L + 1), (K, P, 2), (K, 2), (K, 2)

    def _count(self, seen: Seen, k: int, cells: Sequence[Cell], digest: str) -> None:
        variant = {self.components[k]: Variant.plain(digest)}
        tallies = self.session.tally(self.session.tasks(cells), variant, self.texts, written=False)
        counts = count_cells(tallies, len(self.manifest.professions), self.wordings, self.labels)
        edited = np.asarray(self.search.edited[k], bool)
        seen.tallies[k] += counts.labels[:, 0].sum(axis=1)
        seen.recognised[k] += (counts.recognised[edited].sum(), counts.ok[edited].sum())
        seen.explicit[k] += counts.explicit[:, 0, :, :2].sum(axis=1)
        seen.controls[k] += counts.controls[:, 0].sum(axis=0)

    def _cells(self, trial: Trial, k: int) -> list[Cell]:
        edited = self.search.edited[k].tolist()
        cells = saturation_cells(self.manifest, self.config, self.wordings, trial.number, self.components[k], edited)
        return list(cells)

    def _solve(self, strengths: Trial | Chosen, wordings: Sequence[bool] | None) -> list[EditOperator | None]:
        """The operator of each component, all from one pass; None of the unedited model."""
        asked = [
            ComponentStrengths(
                label,
                tuple(strengths.lam[k].tolist()),
                tuple(strengths.overshoot[k].tolist()),
                tuple(strengths.ratio[k].tolist()),
                self.config.mixture.explicit_push,
            )
            for k, label in enumerate(self.components)
            if label != UNEDITED
        ]
        solved = iter(self.solver.solve_components(asked, wordings))
        return [None if label == UNEDITED else next(solved) for label in self.components]

    def _conclude(self, chosen: Chosen) -> Saturated:
        operators = self._solve(chosen, None)
        d = next(operator.d for operator in operators if operator is not None)
        default, own = self.search.weights()
        sources = {p.name: p.source for p in self.manifest.professions}
        mixture = Mixture.of(
            {
                label: operator or EditOperator.identity(d)
                for label, operator in zip(self.components, operators, strict=True)
            },
            default,
            _looked_up({sources[name]: weights for name, weights in own.items()}, list(sources.values()), default),
        )
        section = None
        if self.tried:
            section = section_of(self.search, self.tried, self.manifest, self.config, self.components, self.wordings)
        return Saturated(mixture, self._edits(chosen), section)

    def _edits(self, chosen: Chosen) -> list[dict[str, ComponentEdit]]:
        return [
            {
                label: ComponentEdit(
                    lam=float(chosen.lam[k, p]) if self.search.edited[k, p] else None,
                    overshoot=float(chosen.overshoot[k, p]) if self.search.edited[k, p] else None,
                    left_alone=not self.search.edited[k, p],
                )
                for k, label in enumerate(self.components)
            }
            for p in range(len(self.manifest.professions))
        ]

    def _read_earlier(self) -> list[Tried]:
        try:
            data = self.session.folder.get(EVIDENCE)
        except ObjectMissing:
            return []
        try:
            return tried_of(data, self.manifest, self.components)
        except ValueError as error:
            url = self.session.folder.url(EVIDENCE)
            raise StorageError(f"{url}: {error}. Delete it: the search begins again, on stored shards", url) from error

    def _write(self) -> None:
        data = evidence_bytes(self.tried, self.manifest, self.components)
        self.session.folder.put(EVIDENCE, data, "application/vnd.apache.parquet")


def _subject(profession: Profession, components: Sequence[str], labels: Sequence[str]) -> Subject:
    """What the manifest leaves open of a profession: fixed shares become its weights."""
    targets = resolved_targets(profession, labels)
    weights = None
    if any(d.share is not None for d in profession.destinations) and len(profession.labels) > 1:
        of_label = dict.fromkeys(components, 0.0)
        for destination, share in zip(profession.destinations, resolved_shares(profession), strict=True):
            of_label[destination.label] += share
        weights = tuple(of_label.values())
    return Subject(
        profession.name,
        tuple(targets[label] for label in labels),
        tuple(label in profession.labels for label in components),
        profession.lam,
        weights,
    )


def _looked_up(
    own: dict[str, tuple[float, ...]], sources: Sequence[str], default: tuple[float, ...]
) -> dict[str, tuple[float, ...]]:
    """The table by source prompt; also those whose words hold another's of the table, so that each finds its own."""
    # Sources of the same words share the weights of the first; `check_mixture` has seen that they want the same.
    by_words = {source_words(source): source for source in reversed(sources)}
    table = {source: weights for source, weights in own.items() if by_words[source_words(source)] == source}
    lookup = WeightTable(default, table)
    others = (source for source in by_words.values() if source not in table)
    return {**{source: default for source in others if lookup.of(source) != default}, **table}
