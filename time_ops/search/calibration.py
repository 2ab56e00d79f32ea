"""Calibration: which blend of destinations, at which lambda, brings every profession to its target under one operator.

    search = CalibrationSearch(professions, wordings=15, rules=Rules(lam=0.2 * scale, least_lam=0.02 * scale))
    for trial in earlier:                      # from calibration.parquet: a resumed search goes on where it stopped
        search.tell(*trial)
    while (candidate := search.propose()) is not None:
        search.tell(candidate, audit(candidate))
    search.best, search.outcomes()

Pure: it draws nothing itself, and what it proposes follows from what it was told. Three phases:

*base*    The unedited model. A profession whose share is shown to be on target, and that is calm between wordings, is
          left alone: the edit preserves its prompts. Only professions that are not decided take more images.
*search*  All others move at once under one joint solve. `fit_response` reads all rounds together; shares are asked for
          each profession and wording, so that no wording is off in common to all. A profession that would need more
          than all of a destination gets a third of its lambda: edits start weak, and are strengthened where they must.
*verify*  What the whole search asks for, on images that it has not seen. Confidence sequences, which hold however
          often they are looked at, decide each profession; what is decided takes no more images. Where some are shown
          to be off, and rounds are left for it, a mended candidate is tried.

Of verified candidates the one with the smallest loss is gone on with, of equal ones that with the larger lambda; one
of the search only where it was much better than those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from time_ops.search.model import (
    Candidate,
    Floats,
    Ints,
    Measured,
    Phase,
    ProfessionOutcome,
    Rules,
    SearchedProfession,
    State,
)
from time_ops.search.objective import loss
from time_ops.search.response import Observed, fit_response
from time_ops.stats.deltas import rms_deviation
from time_ops.stats.sequences import confidence_sequence

__all__ = ["CalibrationSearch"]


_LAM_STEP = 3.0
_END = 0.02
"""Shares end this far from 0 and 1: nearer, an edit is one destination's alone, and says nothing of the other."""
_DAMPING = 0.9
_CALM = 0.4
"""A profession that deviates more than this within wordings, in Delta's units, is not left alone."""
_LUCK = 0.2
"""What a candidate of the search may owe to its few images: only by more is it better than what was verified."""
_SAME = 0.02
"""Losses this close are equal: the candidate with the larger lambda, the weaker edit, is taken."""


class CalibrationSearch:
    """The search's state: all that was told, and what follows from it.

    Args:
        professions: P of them, in the manifest's order.
        wordings: W, the number of calibration wordings.
        rules: budget and stopping rule.
        unedited: places of wordings that the edit itself has not: they have no shares of their own, and follow the
            mean of the others'.
    """

    def __init__(
        self, professions: Sequence[SearchedProfession], wordings: int, rules: Rules, unedited: Sequence[int] = ()
    ) -> None:
        self.professions, self.wordings, self.rules = tuple(professions), wordings, rules
        self._unedited_wordings = list(unedited)
        self.targets = np.array([p.target for p in professions], dtype=np.float64)
        self.trials: list[tuple[Candidate, Measured]] = []
        # [P, L]: labels that some destination of the profession stands for.
        self._has = np.zeros(self.targets.shape, dtype=bool)
        for p, profession in enumerate(professions):
            self._has[p, list(profession.labels)] = True
        self._free = np.array([p.is_free for p in professions])
        self._open_lam = np.array([p.lam is None for p in professions])

    def tell(self, candidate: Candidate, measured: Measured) -> None:
        """Take in what the audit of a candidate found.

        Raises:
            ValueError: the tallies are of another shape.
        """
        shape = (len(self.professions), self.wordings, self.targets.shape[1] + 1)
        if measured.tallies.shape != shape:
            raise ValueError(f"tallies of shape {measured.tallies.shape}, where {shape} is needed")
        self.trials.append((candidate, measured))

    def propose(self) -> Candidate | None:
        """What to audit next; None when the search is over."""
        movable = self._free | self._open_lam
        base, search, verify = (self._phase(name) for name in ("base", "search", "verify"))
        if not search and not verify:
            if not movable.any():
                return None
            undecided = movable & self._undecided(self._sum(base))
            if len(base) < self.rules.base_rounds and (not base or undecided.any()):
                # What needs no decision is looked at once: the objective compares with it.
                return self._unedited(undecided if base else np.ones_like(movable))
        editable = movable & ~self.balanced()
        if not editable.any():
            return None
        if not verify and not self._found(search):
            return self._moved("search", editable)
        if not verify:
            return self._moved("verify", np.ones_like(editable))
        return self._verified(verify, editable)

    @property
    def best(self) -> Candidate:
        """The candidate to go on with. Where nothing was tried, as all is fixed or balanced, what there is to solve."""
        by_edit: dict[bytes, tuple[Candidate, Measured]] = {}
        for candidate, measured in self.trials:
            if candidate.phase != "base":
                key = _edit_key(candidate)
                by_edit[key] = (candidate, by_edit[key][1] + measured if key in by_edit else measured)
        if not by_edit:
            return self._moved("search", np.zeros(len(self.professions), dtype=bool))
        losses = [(self.loss(measured), candidate) for candidate, measured in by_edit.values()]
        verified = [item for item in losses if item[1].phase == "verify"]
        least = min(value for value, _ in losses)
        if verified and min(value for value, _ in verified) <= least + _LUCK:
            losses = verified
        least = min(value for value, _ in losses)
        equal = [candidate for value, candidate in losses if value <= least + _SAME]
        # The weakest; of equally weak ones the latest, which more evidence went into.
        return max(equal, key=lambda c: (round(float(np.log(c.lam[np.isfinite(c.lam)]).sum()), 6), c.number))

    def chosen_rounds(self) -> frozenset[int]:
        """Numbers of the rounds that tried the edit of `best`."""
        key = _edit_key(self.best)
        return frozenset(c.number for c, _ in self.trials if c.phase != "base" and _edit_key(c) == key)

    def loss(self, measured: Measured) -> float:
        """The objective of what was found, beside this search's first round, which had all professions."""
        return loss(measured, self._sum(self._phase("base")[:1]), self.targets, self.rules.limits)

    def balanced(self) -> NDArray[np.bool_]:
        """[P] professions that the base phase showed to be on target, pooled and within wordings."""
        base = self._sum(self._phase("base"))
        on, _ = self._decided(base)
        calm = np.array(
            [rms_deviation(base.tallies[[p], :, :-1], self.targets[[p]]) <= _CALM for p in range(len(on))],
            dtype=bool,
        )
        is_balanced: NDArray[np.bool_] = on & calm & (self._free | self._open_lam)
        return is_balanced

    def outcomes(self) -> list[ProfessionOutcome]:
        """How each profession ended."""
        spent = sum(
            (measured.tallies.sum(axis=(1, 2)) for _, measured in self.trials), np.zeros(len(self._free), np.int64)
        )
        best, balanced = self.best, self.balanced()
        chosen = self.chosen_rounds()
        final = self._sum([t for t in self.trials if t[0].number in chosen])
        on, off = self._decided(final)
        share, n = _shares(final)
        outcomes = []
        for p, profession in enumerate(self.professions):
            label = profession.labels[0]
            seen = (
                f"{share[p, label]:.0%} of {n[p]} where {profession.target[label]:.0%} is wanted"
                if n[p]
                else "no image"
            )
            if not (self._free[p] or self._open_lam[p]):
                state, reason = State.FIXED, "the manifest gives lambda and shares"
            elif balanced[p] and not off[p]:
                state, reason = State.BALANCED, "on target without an edit; its prompts are preserved"
            elif on[p]:
                state, reason = State.ON_TARGET, seen
            elif off[p] and self._at_its_end(best)[p]:
                state, reason = State.UNREACHABLE, f"{seen}, with shares and lambda at their ends"
            else:
                state, reason = State.UNDECIDED, f"{seen}{'; off target' if off[p] else ''}; the rounds have ended"
            outcomes.append(ProfessionOutcome(state, reason, int(spent[p])))
        return outcomes

    # Phases

    def _phase(self, name: Phase) -> list[tuple[Candidate, Measured]]:
        return [trial for trial in self.trials if trial[0].phase == name]

    def _sum(self, trials: Sequence[tuple[Candidate, Measured]]) -> Measured:
        shape = (len(self.professions), self.wordings, self.targets.shape[1] + 1)
        return sum((measured for _, measured in trials), Measured(np.zeros(shape, np.int64)))

    def _found(self, search: Sequence[tuple[Candidate, Measured]]) -> bool:
        """Whether the search may end: its rounds are used up, or the last was on target but for noise."""
        if len(search) >= self.rules.search_rounds:
            return True
        if len(search) < 2:
            return False
        candidate, measured = search[-1]
        counts = measured.tallies[candidate.active][..., :-1]
        return rms_deviation(counts, self.targets[candidate.active]) <= self.rules.tolerance

    def _verified(self, verify: Sequence[tuple[Candidate, Measured]], editable: NDArray[np.bool_]) -> Candidate | None:
        """Go on with the candidate under test, try a mended one, or end."""
        left = self.rules.verify_rounds - len(verify)
        if left <= 0:
            return None
        key = _edit_key(verify[-1][0])
        same = [trial for trial in verify if _edit_key(trial[0]) == key]
        on, off = self._decided(self._sum(same))
        undecided = ~on & ~off & editable
        mendable = off & editable & ~self._at_its_end(verify[-1][0])
        # Once: a mended candidate needs rounds of its own, and what is off must be known well enough to be mended.
        if len(same) == len(verify) and left > 1 and mendable.any() and (len(same) > 1 or not undecided.any()):
            return self._moved("verify", np.ones_like(editable))
        if not undecided.any():
            return None
        return self._round("verify", verify[-1][0].lam, verify[-1][0].shares, undecided)

    def _unedited(self, active: NDArray[np.bool_]) -> Candidate:
        shares = tuple(np.zeros((self.wordings, len(p.labels))) for p in self.professions)
        return self._round("base", np.full(len(self.professions), math.inf), shares, active)

    def _round(self, phase: Phase, lam: Floats, shares: tuple[Floats, ...], active: NDArray[np.bool_]) -> Candidate:
        return Candidate(len(self.trials) + 1, phase, lam, shares, active)

    def _moved(self, phase: Phase, active: NDArray[np.bool_]) -> Candidate:
        """The next step of all professions at once."""
        edited = [trial for trial in self.trials if trial[0].phase != "base"]
        if not edited:
            lam = np.array([self.rules.lam if p.lam is None else p.lam for p in self.professions])
            return self._round(phase, lam, self._blends(self._start()), active)
        last = edited[-1][0]
        measured = self._sum([trial for trial in edited if _edit_key(trial[0]) == _edit_key(last)])
        asked = self._asked(last)
        wanted = self._wanted([(self._asked(c), m) for c, m in edited])
        step = asked + _DAMPING * (wanted - asked)
        lam = self._strengthened(last, measured, step)
        return self._round(phase, lam, self._blends(self._tied(np.clip(step, _END, 1 - _END))), active)

    def _tied(self, asked: Floats) -> Floats:
        """Wordings that the edit has not follow the mean of those that it has; of all, where it has none."""
        edited = [w for w in range(self.wordings) if w not in self._unedited_wordings] or list(range(self.wordings))
        tied = asked.copy()
        tied[:, self._unedited_wordings] = asked[:, edited].mean(axis=1, keepdims=True)
        return tied

    # Shares: [P, W, L] by label here, by destination in candidates

    def _start(self) -> Floats:
        """Begin at the target shares, those of a lone destination at one half."""
        lone = self._has.sum(axis=1) == 1
        start = np.where(self._has, np.where(lone[:, None], 0.5, self.targets), 0.0)
        total = start.sum(axis=1, keepdims=True)
        start = np.where(lone[:, None] | (total <= 0), start, start / np.where(total > 0, total, 1.0))
        shares: Floats = np.clip(np.repeat(start[:, None, :], self.wordings, axis=1), 0.0, 1.0)
        return shares

    def _asked(self, candidate: Candidate) -> Floats:
        asked = np.zeros((len(self.professions), self.wordings, self.targets.shape[1]))
        for p, (profession, shares) in enumerate(zip(self.professions, candidate.shares, strict=True)):
            for k, label in enumerate(profession.labels):
                asked[p, :, label] += shares[:, k]
        return asked

    def _wanted(self, rounds: Sequence[tuple[Floats, Measured]]) -> Floats:
        """Shares that the fitted response asks for; those of several destinations add up to 1."""
        wanted, balanced = np.zeros(rounds[0][0].shape), self.balanced()
        for label in range(self.targets.shape[1]):
            takes_part = (self._has[:, label] & self._free & ~balanced)[:, None]
            seen = []
            for asked, measured in rounds:
                images = measured.tallies[..., :-1].sum(axis=-1) * takes_part
                seen.append(Observed(asked[..., label], measured.tallies[..., label] * takes_part, images))
            if takes_part.any():
                wanted[..., label] = fit_response(seen).share_for(self.targets[:, label]) * self._has[:, [label]]
        several = self._has.sum(axis=1) > 1
        excess = (wanted.sum(axis=2) - 1) / np.maximum(1, self._has.sum(axis=1))[:, None]
        return np.where(self._has[:, None, :] & several[:, None, None], wanted - excess[..., None], wanted)

    def _blends(self, asked: Floats) -> tuple[Floats, ...]:
        """By destination: fixed shares as they are, the others of one label alike; balanced professions keep all."""
        balanced = self.balanced()
        blends = []
        for p, profession in enumerate(self.professions):
            labels = np.array(profession.labels)
            fixed = np.array([math.nan if s is None else s for s in profession.shares])
            blend = asked[p][:, labels] / np.bincount(labels, minlength=asked.shape[2])[labels]
            given = np.isfinite(fixed)
            room = 1 - fixed[given].sum()
            open_part = blend[:, ~given].sum(axis=1, keepdims=True)
            if len(set(profession.labels)) == 1 and not given.all():
                # What they leave stays with the source.
                filled = np.clip(asked[p][:, [labels[0]]] - fixed[given].sum(), 0.0, room)
            else:
                filled = np.full_like(open_part, room)
            scale = np.where(open_part > 0, filled / np.where(open_part > 0, open_part, 1.0), 0.0)
            blend = np.where(given, fixed, blend * scale)
            blends.append(np.zeros_like(blend) if balanced[p] else blend)
        return tuple(blends)

    # Lambda

    def _strengthened(self, last: Candidate, measured: Measured, step: Floats) -> Floats:
        """Move lambda where shares can't do it.

        A third of it, where more than all of a destination is wanted, or where fixed shares fall short of the target by
        more than the tolerance; somewhat more of it, where fixed shares go beyond.
        """
        beyond = ((step.mean(axis=1) > 1 - _END) & self._has).any(axis=1)
        base, _ = _shares(self._sum(self._phase("base")))
        share, n = _shares(measured)
        rows, first = np.arange(len(self.professions)), np.array([p.labels[0] for p in self.professions])
        toward = np.sign(self.targets - base)[rows, first]
        missing = (toward * (self.targets - share)[rows, first]) * (n > 0)
        short = np.where(self._free, beyond, missing > self.rules.tolerance)
        over = ~self._free & (missing < -self.rules.tolerance)
        lam = np.where(short, last.lam / _LAM_STEP, np.where(over, last.lam * math.sqrt(_LAM_STEP), last.lam))
        lam = np.clip(lam, self.rules.least_lam, self.rules.lam)
        return np.asarray(np.where(self._open_lam, lam, last.lam), dtype=np.float64)

    def _at_its_end(self, candidate: Candidate) -> NDArray[np.bool_]:
        asked = self._asked(candidate).mean(axis=1)
        at_end = ((asked >= 1 - 2 * _END) & self._has).any(axis=1) | ~self._free
        weakest = ~self._open_lam | (candidate.lam <= self.rules.least_lam * (1 + 1e-9))
        ended: NDArray[np.bool_] = at_end & weakest
        return ended

    # Decisions

    def _decided(self, measured: Measured) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """[P] shown on target, [P] shown off: every label's confidence sequence inside its band, or one outside."""
        counts = measured.tallies.sum(axis=1)[:, :-1]
        labels = counts.shape[1]
        # Two labels are one question; more are one each.
        confidence = 1 - (1 - self.rules.confidence) / (1 if labels == 2 else labels)
        low, high = confidence_sequence(counts, counts.sum(axis=1, keepdims=True), confidence)
        least, most = self.targets - self.rules.tolerance, self.targets + self.rules.tolerance
        on: NDArray[np.bool_] = np.asarray(((low >= least) & (high <= most)).all(axis=1))
        off: NDArray[np.bool_] = np.asarray(((high < least) | (low > most)).any(axis=1))
        return on, off

    def _undecided(self, measured: Measured) -> NDArray[np.bool_]:
        on, off = self._decided(measured)
        undecided: NDArray[np.bool_] = ~on & ~off
        return undecided


def _edit_key(candidate: Candidate) -> bytes:
    """Identity of what is solved, whatever the round."""
    return b"".join(a.tobytes() for a in (candidate.lam, *candidate.shares))


def _shares(measured: Measured) -> tuple[Floats, Ints]:
    """[P, L] shares pooled over wordings, NaN without images; [P] determined images."""
    counts = measured.tallies.sum(axis=1)[:, :-1]
    n = counts.sum(axis=1)
    return np.divide(counts, n[:, None], out=np.full(counts.shape, np.nan), where=n[:, None] > 0), n
