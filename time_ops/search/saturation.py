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
- Where professions or unrelated prompts are recognised less than on the base, or more images are undetermined, and the
  component is saturated, all of it overshoots less.

A component is done once its round leaves nothing to wish for, and takes no more images. Of the rounds that were tried
the one that falls least short is taken; of equal ones the latest, as it is strengthened only where it had to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from time_ops.search.model import Limits
from time_ops.stats.intervals import exact_interval

__all__ = ["Base", "Chosen", "Rules", "Saturation", "Seen", "Subject", "Trial", "mixing_weights"]

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
class Base:
    """Rates of the unedited model: professions and unrelated prompts recognised, images undetermined."""

    recognised: float = 1.0
    controls: float = 1.0
    undetermined: float = 0.0


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
        limits: what the edit may cost, relative to the base.
        base: what the unedited model shows.
    """

    lam: float
    least_lam: float
    overshoot: float = 1.5
    most_overshoot: float = 1.9
    ratio: float = 3.0
    least_ratio: float = 0.1
    most_ratio: float = 10.0
    rounds: int = 3
    own: float = 0.98
    limits: Limits = field(default_factory=Limits)
    base: Base = field(default_factory=lambda: Base())


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
        trial = self._moved(last, seen, going)
        # A component whose strengths can't be moved any further would only be drawn again.
        strengths = ((trial.lam, last.lam), (trial.overshoot, last.overshoot), (trial.ratio, last.ratio))
        changed = np.any([(new != old).any(axis=1) for new, old in strengths], axis=0)
        return replace(trial, active=going & changed) if (going & changed).any() else None

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
        if label is not None and not determined.any():
            return math.inf
        own = float(determined[:, label].sum() / determined.sum()) if label is not None else 1.0
        explicit = _rate(*(int(n) for n in seen.explicit[k].sum(axis=0)))
        return max(0.0, self.rules.own - own) + max(0.0, limits.explicit - explicit) + self._cost(seen, k)

    def _cost(self, seen: Seen, k: int) -> float:
        """What a component's round costs beyond the limits, beside the base: recognition, controls, undetermined."""
        limits, base = self.rules.limits, self.rules.base
        recognised, controls = (_rate(*(int(n) for n in of[k])) for of in (seen.recognised, seen.controls))
        undetermined = int(seen.tallies[k, :, self.labels].sum()) / max(1, int(seen.tallies[k].sum()))
        return (
            max(0.0, limits.recognised - recognised / (base.recognised or 1.0))
            + max(0.0, limits.controls - controls / (base.controls or 1.0))
            + max(0.0, undetermined - base.undetermined - limits.undetermined_increase)
        )

    def drawn(self) -> tuple[Floats, Floats]:
        """[K, L] share of each label among what a component draws, and [K, P, L] of each profession, as chosen.

        A component that is not shown to fall short of saturation counts as saturated. A profession's own images count
        beside `_POOLED` of the whole component's, but alone where it is left alone, as it is unedited there.
        """
        chosen = self.chosen
        pooled, each = np.empty((len(self.own), self.labels)), np.empty((*self.edited.shape, self.labels))
        for k, (label, number) in enumerate(zip(self.own, chosen.rounds, strict=True)):
            edited, counts = self.edited[k], np.zeros((len(self.subjects), self.labels))
            for trial, seen in self.trials:
                # What is left alone is the same in all rounds.
                same = ~edited | (trial.number == number)
                counts += np.where(same[:, None], seen.tallies[k, :, : self.labels], 0)
            n = counts.sum(axis=1)
            alone = (counts + 1 / self.labels) / (n[:, None] + 1)
            pooled[k] = self._pooled(counts[edited].sum(axis=0), label) if label is not None else alone.mean(axis=0)
            follows = (counts + _POOLED * pooled[k]) / (n[:, None] + _POOLED)
            if label is not None:
                # A few stray images are no reason for weights of one's own.
                follows[counts[:, label] >= self._least_hits(n)] = pooled[k]
            each[k] = np.where(edited[:, None], follows, alone)
        return pooled, each

    def weights(self) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
        """The default weights, and those of professions that need their own, by name."""
        pooled, each = self.drawn()
        default = mixing_weights(pooled, self._usual())
        own = {}
        for p, subject in enumerate(self.subjects):
            weights = subject.weights or mixing_weights(each[:, p], self.targets[p])
            if max(abs(a - b) for a, b in zip(weights, default, strict=True)) > _OWN_WEIGHTS or subject.weights:
                own[subject.name] = tuple(weights)
        return default, own

    def _usual(self) -> Floats:
        """The target that most professions have."""
        values, counts = np.unique(self.targets.round(9), axis=0, return_counts=True)
        return np.asarray(values[counts.argmax()], dtype=np.float64)

    def _pooled(self, counts: Floats, label: int) -> Floats:
        """Shares of a component over its edited professions; all its own label's unless shown to fall short.

        Where it does, its own share counts as the upper end of an interval that holds half of the time: few images may
        not throw the weights about.
        """
        n = counts.sum()
        if n == 0 or exact_interval(counts[label], n)[1] >= self.rules.own:
            return np.asarray(np.eye(self.labels)[label], dtype=np.float64)
        own = float(exact_interval(counts[label], n, 0.5)[1])
        others = np.delete(counts, label)
        return np.insert(others / others.sum() * (1 - own), label, own)

    @staticmethod
    def _least_hits(n: Floats) -> Floats:
        """Fewer hits than this are no accident: more than one image in four, and two at least, are astray."""
        return np.asarray(n - np.maximum(1.0, np.floor(n / 4)), dtype=np.float64)

    def _first(self) -> Trial:
        shape = self.edited.shape
        fixed = np.array([self.rules.lam if s.lam is None else s.lam for s in self.subjects])
        lam = np.broadcast_to(fixed, shape).astype(np.float64)
        overshoot = np.where(self.edited, self.rules.overshoot, 1.0)
        return Trial(1, lam, overshoot, np.full(shape, self.rules.ratio), np.ones(shape[0], dtype=bool))

    def _done(self, seen: Seen, k: int) -> bool:
        """Whether a component's round left nothing to wish for, of the whole and of each profession."""
        label = self.own[k]
        if label is None:
            return True
        n = seen.tallies[k, :, : self.labels].sum(axis=1)
        astray = self.open[k] & (seen.tallies[k, :, label] < self._least_hits(n.astype(np.float64)))
        return self.shortfall(seen, k) == 0.0 and not astray.any()

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
            if not short.any() and self._cost(seen, k) > 0:
                eased = np.where(self.open[k], overshoot[k] - _OVERSHOOT_STEP, overshoot[k])
                overshoot[k] = np.maximum(1.0, eased)
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
    weights, _ = nnls(system, np.append(target, heavy))
    total = float(weights.sum())
    rounded = [round(float(w) / total, 6) for w in weights]
    largest = max(range(len(rounded)), key=rounded.__getitem__)
    rounded[largest] += 1.0 - math.fsum(rounded)
    return tuple(rounded)


def _rate(hits: int, n: int) -> float:
    return hits / n if n else 1.0
