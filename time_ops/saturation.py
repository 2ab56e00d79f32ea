"""The strengths of a mixture's components, profession by profession, and the weights with which they are drawn.

    search = Saturation(subjects, components, labels=2, rules=Rules(lam=0.1 * scale, least_lam=0.01 * scale))
    for trial, seen in earlier:                # from calibration.parquet: a resumed search goes on where it stopped
        search.tell(trial, seen)
    while (trial := search.propose()) is not None:
        search.tell(trial, audit(trial))
    search.chosen, search.weights()

Pure: it draws nothing itself, and what it proposes follows from what it was told. A component's edit is solved without
the wordings that its images are drawn in, so that a round tells how an edit does where it was not fitted; the edit that
is gone on with is solved on all of them.

After each round, the weakest strength that suffices is sought for each profession and component:

- An image that does not show the component's label calls for a stronger edit: a third of its lambda; where that is at
  its least, more overshoot; where that is at its most, explicit prompts held less.
- An explicit prompt of another label that lost what it names calls for holding it more; where the profession saturates,
  for less overshoot too.
- Where the component as a whole is saturated, a profession that needs nothing stays as weak as it is.

A component is done once its round leaves nothing to wish for, and takes no more images. Of the rounds that were tried
the one that falls least short is taken; of equal ones the latest, as it is strengthened only where it had to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from time_ops.calibration import Limits
from time_ops.ratios import exact_interval

__all__ = ["Chosen", "Rules", "Saturation", "Seen", "Subject", "Trial", "mixing_weights"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LAM_STEP = 3.0
_OVERSHOOT_STEP = 0.1
_RATIO_STEP = 2.0
_SAME = 0.01
"""Shortfalls this close are equal: the later round is taken."""
_POOLED = 20.0
"""Images of a component as a whole that count beside a profession's own, where its weights are worked out."""
_OWN_WEIGHTS = 0.03
"""A profession has weights of its own where one of them is farther than this from the others'."""


@dataclass(frozen=True)
class Subject:
    """What may be moved for one profession.

    Attributes:
        name: for messages.
        target: [L] wanted share of each label.
        edited: [K] whether each component has a destination of this profession; else it is left alone there.
        lam: fixed strength, in every component; None: found.
        weights: [K] fixed weights; None: from the target.
    """

    name: str
    target: tuple[float, ...]
    edited: tuple[bool, ...]
    lam: float | None = None
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Rules:
    """The budget, and the range of each strength.

    Attributes:
        lam: where open lambdas start, and the largest.
        least_lam: the smallest that is tried.
        overshoot: where it starts; 1 is the destination itself.
        most_overshoot: the largest that is tried.
        ratio: lambda of other labels' explicit prompts, in units of the edit's; smaller holds them more.
        least_ratio: the smallest that is tried.
        most_ratio: the largest.
        rounds: most rounds of a component.
        own: share of images that show the component's label at which it is saturated.
        limits: what the edit may cost.
    """

    lam: float
    least_lam: float
    overshoot: float = 1.2
    most_overshoot: float = 1.6
    ratio: float = 1.0
    least_ratio: float = 0.1
    most_ratio: float = 10.0
    rounds: int = 3
    own: float = 0.98
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, eq=False)
class Trial:
    """What to audit in one round; K components, P professions.

    Attributes:
        number: of the round, from 1. No two rounds share an image.
        lam: [K, P].
        overshoot: [K, P].
        ratio: [K, P].
        active: [K] components that take images; the unedited one, and professions left alone, only in the first round.
    """

    number: int
    lam: Floats
    overshoot: Floats
    ratio: Floats
    active: Bools


@dataclass(frozen=True, eq=False)
class Seen:
    """What an audit of a trial found.

    Attributes:
        tallies: [K, P, L + 1] images of each label, undetermined last; zeros where nothing was drawn.
        explicit: [K, P, 2] explicit prompts' images: those that show what they name, and all.
        recognised: [K, 2] images of professions recognised as themselves, and all.
        controls: [K, 2] likewise of unrelated prompts.
    """

    tallies: Ints
    explicit: Ints
    recognised: Ints
    controls: Ints


@dataclass(frozen=True, eq=False)
class Chosen:
    """The strengths that the search ended with.

    Attributes:
        lam: [K, P].
        overshoot: [K, P].
        ratio: [K, P].
        rounds: [K] number of the round that tried them; 0: none did.
    """

    lam: Floats
    overshoot: Floats
    ratio: Floats
    rounds: tuple[int, ...]


class Saturation:
    """The search's state: all that was told, and what follows from it.

    Args:
        subjects: P professions, in the manifest's order.
        own: [K] the label that each component sends professions to, by index; None: the unedited model.
        labels: L.
        rules: budget and ranges.
    """

    def __init__(self, subjects: Sequence[Subject], own: Sequence[int | None], labels: int, rules: Rules) -> None:
        self.subjects, self.own, self.labels, self.rules = tuple(subjects), tuple(own), labels, rules
        self.targets = np.array([s.target for s in subjects], dtype=np.float64)
        self.trials: list[tuple[Trial, Seen]] = []
        edits = [label is not None for label in own]
        # [K, P]: where there is an edit at all, and where its strength is open.
        self.edited: Bools = np.array([s.edited for s in subjects], dtype=bool).T & np.array(edits)[:, None]
        self.open: Bools = self.edited & np.array([s.lam is None for s in subjects])

    def tell(self, trial: Trial, seen: Seen) -> None:
        """Take in what the audit of a trial found.

        Raises:
            ValueError: tallies of another shape.
        """
        shape = (len(self.own), len(self.subjects), self.labels + 1)
        if seen.tallies.shape != shape:
            raise ValueError(f"tallies of shape {seen.tallies.shape}, where {shape} is needed")
        self.trials.append((trial, seen))

    def propose(self) -> Trial | None:
        """What to audit next; None when the search is over."""
        if not self.trials:
            return self._first() if self.rules.rounds else None
        if len(self.trials) >= self.rules.rounds:
            return None
        last, seen = self.trials[-1]
        going = last.active & self.open.any(axis=1) & np.array([not self._done(seen, k) for k in range(len(self.own))])
        if not going.any():
            return None
        return self._moved(last, seen, going)

    @property
    def chosen(self) -> Chosen:
        """Of each component the strengths of the round that falls least short, of equal ones the latest."""
        start = self._first()
        lam, overshoot, ratio = start.lam.copy(), start.overshoot.copy(), start.ratio.copy()
        rounds = []
        for k in range(len(self.own)):
            tried = [(self.shortfall(seen, k), trial) for trial, seen in self.trials if trial.active[k]]
            if not tried or not self.open[k].any():
                rounds.append(tried[-1][1].number if tried else 0)
                continue
            least = min(shortfall for shortfall, _ in tried)
            best = max((t for shortfall, t in tried if shortfall <= least + _SAME), key=lambda t: t.number)
            lam[k], overshoot[k], ratio[k] = best.lam[k], best.overshoot[k], best.ratio[k]
            rounds.append(best.number)
        return Chosen(lam, overshoot, ratio, tuple(rounds))

    def shortfall(self, seen: Seen, k: int) -> float:
        """By how much a component's round falls short of saturation and of the limits, all added up; 0: nowhere."""
        label, limits = self.own[k], self.rules.limits
        determined = seen.tallies[k][self.edited[k]][:, : self.labels]
        own = _rate(int(determined[:, label].sum()), int(determined.sum())) if label is not None else 1.0
        undetermined = int(seen.tallies[k, :, self.labels].sum()) / max(1, int(seen.tallies[k].sum()))
        return (
            max(0.0, self.rules.own - own)
            + max(0.0, limits.explicit - _rate(*(int(n) for n in seen.explicit[k].sum(axis=0))))
            + max(0.0, limits.recognised - _rate(*(int(n) for n in seen.recognised[k])))
            + max(0.0, limits.controls - _rate(*(int(n) for n in seen.controls[k])))
            + max(0.0, undetermined - self.rules.limits.undetermined_increase - 0.1)
        )

    def drawn(self) -> Floats:
        """[K, P, L] share of each label among what a component draws of a profession, at the chosen strengths.

        A component that is not shown to fall short of saturation counts as saturated. A profession's own images count
        beside `_POOLED` of the whole component's, but alone where it is left alone, as it is unedited there.
        """
        chosen = self.chosen
        counts = np.zeros((len(self.own), len(self.subjects), self.labels))
        for k, number in enumerate(chosen.rounds):
            for trial, seen in self.trials:
                # What is left alone is the same in all rounds.
                same = ~self.edited[k] | (trial.number == number)
                counts[k] += np.where(same[:, None], seen.tallies[k, :, : self.labels], 0)
        found = np.empty_like(counts)
        for k, label in enumerate(self.own):
            edited = self.edited[k]
            pooled = self._pooled(counts[k][edited].sum(axis=0), label)
            n = counts[k].sum(axis=1, keepdims=True)
            found[k] = (counts[k] + _POOLED * pooled) / (n + _POOLED)
            if label is not None and pooled[label] == 1.0:
                short = counts[k, :, label] < self._least_hits(n[:, 0])
                found[k] = np.where(short[:, None], found[k], pooled)
            alone = (counts[k] + 1 / self.labels) / (n + 1)
            found[k] = np.where(edited[:, None], found[k], alone)
        return found

    def weights(self) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
        """The default weights, and those of professions that need their own, by name."""
        drawn = self.drawn()
        usual = self._usual()
        pooled = np.stack([self._mean(drawn[k], self.edited[k]) for k in range(len(self.own))])
        default = mixing_weights(pooled, usual)
        own = {}
        for p, subject in enumerate(self.subjects):
            weights = subject.weights or mixing_weights(drawn[:, p], self.targets[p])
            if max(abs(a - b) for a, b in zip(weights, default, strict=True)) > _OWN_WEIGHTS or subject.weights:
                own[subject.name] = tuple(weights)
        return default, own

    def _usual(self) -> Floats:
        """The target that most professions have."""
        values, counts = np.unique(self.targets.round(9), axis=0, return_counts=True)
        return np.asarray(values[counts.argmax()], dtype=np.float64)

    @staticmethod
    def _mean(drawn: Floats, edited: Bools) -> Floats:
        return np.asarray((drawn[edited] if edited.any() else drawn).mean(axis=0), dtype=np.float64)

    def _pooled(self, counts: Floats, label: int | None) -> Floats:
        """Shares of a component over its edited professions; all its own label's unless shown to fall short."""
        n = counts.sum()
        if label is None:
            return np.full(self.labels, 1 / self.labels)
        saturated: Floats = np.asarray(np.eye(self.labels)[label], dtype=np.float64)
        if n == 0 or exact_interval(counts[label], n)[1] >= self.rules.own:
            return saturated
        return np.asarray(counts / n, dtype=np.float64)

    @staticmethod
    def _least_hits(n: Floats) -> Floats:
        """Fewer hits than this are no accident of a saturated component: more than one in four, and two at least."""
        return np.asarray(n - np.maximum(1.0, np.floor(n / 4)), dtype=np.float64)

    def _first(self) -> Trial:
        shape = self.edited.shape
        fixed = np.array([self.rules.lam if s.lam is None else s.lam for s in self.subjects])
        lam = np.broadcast_to(fixed, shape).astype(np.float64)
        overshoot = np.where(self.edited, self.rules.overshoot, 1.0)
        return Trial(1, lam, overshoot, np.full(shape, self.rules.ratio), np.ones(shape[0], dtype=bool))

    def _done(self, seen: Seen, k: int) -> bool:
        """Whether a component's round left nothing to wish for."""
        return self.shortfall(seen, k) == 0.0

    def _moved(self, last: Trial, seen: Seen, going: Bools) -> Trial:
        """The next strengths, of the components that go on."""
        rules = self.rules
        lam, overshoot, ratio = last.lam.copy(), last.overshoot.copy(), last.ratio.copy()
        for k in np.flatnonzero(going).tolist():
            label = self.own[k]
            determined = seen.tallies[k, :, : self.labels]
            hits = determined[:, label] if label is not None else determined.sum(axis=1)
            short = self.open[k] & (hits < seen.tallies[k].sum(axis=1))
            lost = self.open[k] & (seen.explicit[k, :, 0] < seen.explicit[k, :, 1])
            at_least, at_most = lam[k] <= rules.least_lam * (1 + 1e-9), overshoot[k] >= rules.most_overshoot - 1e-9
            ease = short & at_least & at_most & ~lost
            lam[k] = np.where(short & ~at_least, np.maximum(rules.least_lam, lam[k] / _LAM_STEP), lam[k])
            further = np.where(short & at_least & ~at_most, _OVERSHOOT_STEP, 0.0)
            overshoot[k] = np.minimum(rules.most_overshoot, overshoot[k] + further)
            overshoot[k] = np.where(lost & ~short, np.maximum(1.0, overshoot[k] - _OVERSHOOT_STEP), overshoot[k])
            ratio[k] = np.where(lost, np.maximum(rules.least_ratio, ratio[k] / _RATIO_STEP), ratio[k])
            ratio[k] = np.where(ease, np.minimum(rules.most_ratio, ratio[k] * _RATIO_STEP), ratio[k])
        return Trial(last.number + 1, lam, overshoot, ratio, going)


def mixing_weights(drawn: Floats, target: Floats) -> tuple[float, ...]:
    """Weights of components, whose mixture comes nearest to a target.

    Args:
        drawn: [K, L] share of each label among what each component draws.
        target: [L] wanted shares.

    Returns:
        [K], none negative, sum 1: the least squares solution.
    """
    heavy = 1e3
    system = np.vstack([np.asarray(drawn, dtype=np.float64).T, np.full(len(drawn), heavy)])
    found, _ = nnls(system, np.append(target, heavy))
    total = float(found.sum())
    rounded = [round(float(w) / total, 6) for w in found]
    largest = max(range(len(rounded)), key=rounded.__getitem__)
    rounded[largest] += 1.0 - math.fsum(rounded)
    return tuple(rounded)


def _rate(hits: int, n: int) -> float:
    return hits / n if n else 1.0
