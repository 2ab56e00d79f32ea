"""Synthetic reports of mixtures: of two labels, and of the four that two crossed attributes make."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from jobs.report.figure_schema import ComponentEdit, RateFigure
from jobs.report.mixture_schema import ComponentReport, ComponentWording, MixtureReport, ProfessionWeights
from jobs.report.schema import LabelCounts, ProfessionReport, Report
from jobs.report.search_schema import SaturatedProfession, Saturation, SaturationRound
from tests.jobs.report.reports import make_report, rate, wilson

FOUR = ("young female", "young male", "old female", "old male")


def make_mixture_report(professions: int = 35, labels: Sequence[str] = ("female", "male"), **how: object) -> Report:
    """A report of a run that ended in a mixture: one component a label, one profession with weights of its own."""
    report = make_report(professions=professions, **how)  # type: ignore[arg-type]
    if tuple(labels) != ("female", "male"):
        report = _relabelled(report, labels)
    for index, item in enumerate(report.professions):
        item.lam, item.shares = None, {}
        alone = index == 1
        item.components = {
            label: ComponentEdit(
                lam=None if alone and k else round(0.01 * (1 + index % 4), 3),
                overshoot=None if alone and k else (1.2 if index % 5 else 1.3),
                left_alone=alone and bool(k),
            )
            for k, label in enumerate(labels)
        }
    for meta in report.pictures:
        meta.component = labels[meta.index % len(labels)]
        meta.edited_label = meta.component
    report.calibration = None
    report.mixture = _mixture(report, labels)
    report.saturation = _saturation(report, labels)
    return report


def _mixture(report: Report, labels: Sequence[str]) -> MixtureReport:
    draw = random.Random(3)
    names = [item.profession for item in report.professions]
    default = [0.52, 0.48] if len(labels) == 2 else [1 / len(labels)] * len(labels)
    own = [0.3, *[0.7 / (len(labels) - 1)] * (len(labels) - 1)]
    return MixtureReport(
        digest="5e" * 32,
        route=1,
        weights=dict(zip(labels, default, strict=True)),
        professions=[
            ProfessionWeights(profession=names[0], source=f"a {names[0]}", weights=dict(zip(labels, own, strict=True)))
        ],
        components=[
            _component(report, label, weight, labels, draw) for label, weight in zip(labels, default, strict=True)
        ],
        left_alone=dict.fromkeys(labels[1:], names[1:2]),
    )


def _component(
    report: Report, label: str, weight: float, labels: Sequence[str], draw: random.Random
) -> ComponentReport:
    wordings = []
    for place, each in enumerate(report.wordings):
        n = round(each.base.n * weight)
        hits = round(n * (0.74 if place == 2 and label == labels[-1] else draw.uniform(0.97, 1.0)))
        rest = n - hits
        counted = dict.fromkeys(labels, 0) | {label: hits}
        counted[labels[0] if label != labels[0] else labels[1]] += rest
        low, high = wilson(hits, n)
        wordings.append(
            ComponentWording(
                wording=each.wording,
                n=n,
                labels=counted,
                undetermined=n // 50,
                share=hits / n if n else None,
                low=low,
                high=high,
            )
        )
    total = sum(line.n for line in wordings)
    return ComponentReport(
        label=label,
        operator=f"{labels.index(label)}c" * 32,
        weight=weight,
        images=total + 1950 // len(labels),
        own=rate(sum(line.labels[label] for line in wordings), total, report.professions[-1].profession),
        wordings=wordings,
        explicit=rate(842, 875, "baker"),
        explicit_by_label={other: rate(432 - 6 * k, 437) for k, other in enumerate(labels)},
        recognised=rate(860, 875, "attendant"),
        controls=rate(99, 100, "a photo of a red car"),
        undetermined=rate(total // 50, total + total // 50),
    )


def _saturation(report: Report, labels: Sequence[str]) -> Saturation:
    def figure(hits: int, n: int) -> RateFigure:
        return rate(hits, n)

    rounds = [
        SaturationRound(
            round=number,
            component=label,
            lam=0.03 / number,
            overshoot=1.0 + 0.1 * number,
            professions=len(report.professions),
            images=20 * len(report.professions),
            own=figure(560 + 60 * number, 700),
            explicit=figure(196 - 2 * number, 200),
            recognised=figure(690, 700),
            controls=RateFigure(value=None, n=0, low=None, high=None) if number == 1 else figure(40, 40),
            undetermined=figure(14, 700),
            chosen=number == 2,
        )
        for number in (1, 2)
        for label in labels
    ]
    ended = []
    for index, item in enumerate(report.professions):
        for k, label in enumerate(labels):
            done = (item.components or {})[label]
            short = index % 9 == 4 and k == len(labels) - 1
            ended.append(
                SaturatedProfession(
                    profession=item.profession,
                    component=label,
                    state="left alone" if done.left_alone else "short" if short else "saturated",
                    lam=done.lam,
                    overshoot=done.overshoot,
                    own=figure(0, 0) if done.left_alone else figure(13 if short else 20 - index % 2, 20),
                )
            )
    return Saturation(
        rule="A component stops at the weakest strength at which 95 % of its images show its label.",
        wordings=["a photo of {source}", "{source} <at> home"],
        rounds=rounds,
        professions=ended,
        images=sum(line.images for line in rounds),
        images_per_profession=80.0,
    )


def _relabelled(report: Report, labels: Sequence[str]) -> Report:
    """The same report over more labels: each half of a count goes to every second label, in turn."""

    def split(images: int, among: Sequence[str]) -> dict[str, int]:
        each, rest = divmod(images, len(among))
        return {label: each + (place < rest) for place, label in enumerate(among)}

    def counts(old: LabelCounts) -> LabelCounts:
        found = split(old.labels["female"], labels[::2]) | split(old.labels["male"], labels[1::2])
        hits = found[labels[0]]
        low, high = wilson(hits, old.n)
        return old.model_copy(
            update={
                "labels": {label: found[label] for label in labels},
                "share": hits / old.n if old.n else None,
                "low": low,
                "high": high,
                "worst_low": hits / (old.n + old.undetermined),
                "worst_high": (hits + old.undetermined) / (old.n + old.undetermined),
            }
        )

    def profession(item: ProfessionReport) -> ProfessionReport:
        return item.model_copy(
            update={
                "target": {label: 1 / len(labels) for label in labels},
                "base": counts(item.base),
                "edited": item.edited and counts(item.edited),
                "wordings": {
                    wording: {variant: counts(found) for variant, found in cell.items()}
                    for wording, cell in item.wordings.items()
                },
            }
        )

    found = report.model_copy(deep=True)
    found.labels, found.professions = list(labels), [profession(item) for item in report.professions]
    for variant in filter(None, (found.summary.base, found.summary.edited)):
        variant.explicit_by_label = _by_label(variant.explicit_by_label, labels)
    found.gates = [each for each in found.gates if not each.name.startswith("explicit:")]
    return found


def _by_label(old: Mapping[str, RateFigure], labels: Sequence[str]) -> dict[str, RateFigure]:
    return {label: old["male" if place % 2 else "female"] for place, label in enumerate(labels)}
