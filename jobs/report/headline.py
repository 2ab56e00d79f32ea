"""What a run found, in words that need no formula: shares before and after, who is off target, and what the gates say.

    headline_of(report)     # "Women are 51 % of 8,612 images over 35 professions, where 50 % is wanted; before, 48 %."

Shares are of the images with a decidable label, all professions and wordings together. A share of all hides opposite
errors of professions, so the number of professions off target always stands beside it where it is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.report.formatting import count, finite
from jobs.report.naming import variant_names
from jobs.report.schema import LabelCounts, ProfessionReport, Report

__all__ = ["headline_of"]

_PEOPLE = {"female": "Women are", "male": "Men are"}
"""Said of a report whose labels are these two; every other label is quoted as it is."""


def headline_of(report: Report) -> str:
    """The run in two or three short sentences; of `report.headline` nothing is read."""
    edited = report.summary.edited is not None
    pairs = [(item, item.edited if edited else item.base) for item in report.professions]
    last = [(item, counts) for item, counts in pairs if counts is not None and counts.n]
    if not last:
        said = ["No image showed a decidable label, so there is no share to tell.", _checks(report)]
        return " ".join(filter(None, said))
    shares = _shares(report, last)
    if edited:
        before = "before" if report.reference is None else f"in the {variant_names(report).one_full}"
        shares += f"; {before}, {_before(report)}"
    return " ".join(filter(None, [f"{shares}.", _off_now(report), _checks(report)]))


def _shares(report: Report, last: Sequence[tuple[ProfessionReport, LabelCounts]]) -> str:
    """The shares of the last variant and what is wanted, with the number of images and professions."""
    counts = [each for _, each in last]
    n = sum(each.n for each in counts)
    over = f"{_many(n, 'image')} over {_many(len(last), 'profession')}"
    wanted = _wanted(report.labels, last)
    first_target = last[0][0].target
    average = "" if all(item.target == first_target for item, _ in last) else " on average"
    if len(report.labels) == 2:
        first = report.labels[0]
        led = _PEOPLE[first] if set(report.labels) == set(_PEOPLE) else f"“{first}” is"
        goal = "" if wanted is None else f", where {_percent(wanted[0])} is wanted{average}"
        return f"{led} {_percent(_share(counts, first))} of {over}{goal}"
    told = ", ".join(f"“{label}” {_percent(_share(counts, label))}" for label in report.labels)
    if wanted is None:
        return f"Of {over}, {told}"
    goals = [_percent(each) for each in wanted]
    goal = f"{goals[0]} each" if len(set(goals)) == 1 else _listed(goals)
    return f"Of {over}, {told}, where {goal} is wanted{average}"


def _wanted(labels: Sequence[str], last: Sequence[tuple[ProfessionReport, LabelCounts]]) -> list[float] | None:
    """The wanted share of each label of these images, each profession's by its number; None where one is missing."""
    total = sum(counts.n for _, counts in last)
    shares = []
    for label in labels:
        known = [(target, c.n) for item, c in last if (target := finite(item.target.get(label))) is not None]
        if len(known) < len(last):
            return None
        shares.append(sum(target * n for target, n in known) / total)
    return shares


def _before(report: Report) -> str:
    """The same shares in short, of what was edited or compared with, and how many professions were off target."""
    counts = [item.base for item in report.professions if item.base.n]
    if not counts:
        return "no image showed a decidable label"
    labels = report.labels[:1] if len(report.labels) == 2 else report.labels
    said = _listed([_percent(_share(counts, label)) for label in labels])
    off = report.summary.base.off_target
    return said if off is None else f"{said}, with {_of(off, len(counts), report)} off target"


def _off_now(report: Report) -> str:
    """How many professions are called off target in the last variant. No one being called so proves nothing."""
    tested = [item for item in report.professions if item.off_target is not None]
    if not tested:
        return ""
    off = sum(bool(item.off_target) for item in tested)
    verb = "is" if off == 1 else "are"
    two = report.summary.edited is not None
    if two and report.summary.base.off_target is not None:
        # The sentence before has said what of.
        of = "" if len(tested) == len(report.professions) else f" of {count(len(tested))}"
        said = f"{count(off)}{of} {verb}" if off else "none is shown to be"
    else:
        said = f"{_of(off, len(tested), report)} {f'{verb} off target' if off else 'is shown to be off target'}"
    led = "" if not two else "now " if report.reference is None else f"in the {variant_names(report).other_full}, "
    whole = f"{led}{said}."
    return whole[0].upper() + whole[1:]


def _checks(report: Report) -> str:
    """What the gates say, counted; the verdict alone where no gate tells."""
    total = len(report.gates)
    failed = sum(gate.outcome == "fail" for gate in report.gates)
    open_ = sum(gate.outcome == "inconclusive" for gate in report.gates)
    undecided = f"{count(open_)} {'is' if open_ == 1 else 'are'} undecided"
    if failed:
        more = f", {undecided}" if open_ else ""
        return f"{count(failed)} of {_many(total, 'check')} {'fails' if failed == 1 else 'fail'}{more}."
    if open_:
        return f"Of {_many(total, 'check')}, {undecided}."
    if report.verdict == "pass":
        return "Every check passes." if total else ""
    return "It fails." if report.verdict == "fail" else "Whether that is good enough is undecided."


def _share(counts: Sequence[LabelCounts], label: str) -> float:
    return sum(each.labels.get(label, 0) for each in counts) / sum(each.n for each in counts)


def _percent(share: float) -> str:
    """A share in whole percent; one that only rounds to all or nothing is not called so."""
    whole = round(100 * share)
    if whole == 100 and share < 1:
        return "over 99 %"
    return "under 1 %" if whole == 0 and share > 0 else f"{whole} %"


def _of(some: int, professions: int, report: Report) -> str:
    """A number of professions; of how many only where it is not all of the report's."""
    if not some:
        return "no profession"
    if professions == len(report.professions):
        return _many(some, "profession")
    return f"{count(some)} of {_many(professions, 'profession')}"


def _many(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
