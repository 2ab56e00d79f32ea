"""From decided images to the figures of an evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.config import RunConfig
from jobs.evaluation.tally import DESTINATION, NONE, SOURCE, Measures, MeasureTask, Role
from jobs.evaluation.tasks import Solved
from jobs.report.evaluation.page import best_of
from jobs.report.evaluation.schema import (
    ControlDrift,
    Drift,
    EditFigures,
    MeanFigure,
    TestedEditReport,
    Variant,
    VariantFigures,
)
from jobs.report.figure_schema import RateFigure
from manifests import TestedEdit
from time_ops.stats.estimates import Rate
from time_ops.stats.evaluation import Mean, evaluate, kept, mean_over_edits, resampled_edits
from time_ops.stats.intervals import rate

__all__ = ["Figures", "evaluation_sentence", "figures_of"]

_ROLES: tuple[Role, ...] = ("source", "positive", "negative")


@dataclass(frozen=True)
class Figures:
    """What an evaluation found."""

    summary: list[VariantFigures]
    edits: list[TestedEditReport]
    controls: list[ControlDrift]


def figures_of(
    solved: Solved, tasks: Sequence[MeasureTask], measures: Sequence[Measures], config: RunConfig
) -> Figures:
    """All figures.

    Args:
        solved: the edits.
        tasks: their prompts.
        measures: what came of each.
        config: the run's.
    """
    return _Tally(solved, tasks, measures, config).figures()


class _Tally:
    """Counts of all edits, and what they say."""

    def __init__(
        self, solved: Solved, tasks: Sequence[MeasureTask], measured: Sequence[Measures], config: RunConfig
    ) -> None:
        self._solved, self._config = solved, config
        self._lams = config.evaluate.lam
        self._draws = resampled_edits(len(solved.edits), seed=config.seed)
        variants, edits = 2 + len(self._lams), len(solved.edits)
        self._k = np.zeros((variants, len(_ROLES), edits), np.int64)
        self._n = np.zeros_like(self._k)
        self._joint = np.zeros((len(self._lams), edits, 4), np.int64)
        self._lead: list[list[float]] = [[] for _ in range(variants)]
        self._controls: list[tuple[MeasureTask, Measures]] = []
        for task, measures in zip(tasks, measured, strict=True):
            if task.role == "control":
                self._controls.append((task, measures))
                continue
            hit = measures.states == (SOURCE if task.role == "negative" else DESTINATION)
            ok = measures.states != NONE
            place = _ROLES.index(task.role), task.edit
            self._k[:, place[0], place[1]] += hit.sum(axis=1)
            self._n[:, place[0], place[1]] += ok.sum(axis=1)
            for variant, lead in enumerate(measures.lead):
                self._lead[variant].append(float(lead))
            if task.role == "negative":
                for lam in range(len(self._lams)):
                    both = ok[0] & ok[2 + lam]
                    one, other = hit[2 + lam] & both, hit[0] & both
                    self._joint[lam, task.edit] += [
                        (one & other).sum(),
                        (one & ~other).sum(),
                        (other & ~one).sum(),
                        both.sum(),
                    ]

    def figures(self) -> Figures:
        variants: list[tuple[Variant, float | None]] = [("base", None), ("oracle", None)]
        variants += [("edited", lam) for lam in self._lams]
        return Figures(
            [self._variant(i, *each) for i, each in enumerate(variants)],
            [self._edit(i, edit, variants) for i, edit in enumerate(self._solved.edits)],
            [
                ControlDrift(prompt=prompt, lam=lam, **self._drift(i, prompt).model_dump())
                for i, lam in enumerate(self._lams)
                for prompt in dict.fromkeys(task.prompt for task, _ in self._controls)
            ],
        )

    def _variant(self, i: int, variant: Variant, lam: float | None) -> VariantFigures:
        rates = evaluate(self._k[i], self._n[i], self._draws)
        edited = variant == "edited"
        return VariantFigures(
            variant=variant,
            lam=lam,
            efficacy=_figure(rates.efficacy),
            generality=_figure(rates.generality),
            specificity=_figure(rates.specificity),
            harmonic=_figure(rates.harmonic),
            f1=_figure(rates.f1),
            specificity_kept=_figure(kept(self._joint[i - 2], self._draws)) if edited else None,
            lead=_mean(self._lead[i]),
            drift=self._drift(i - 2) if edited and self._controls else None,
        )

    def _edit(
        self, number: int, edit: TestedEdit, variants: Sequence[tuple[Variant, float | None]]
    ) -> TestedEditReport:
        rows = []
        for i, (variant, lam) in enumerate(variants):
            rates = [
                _figure(rate(int(k), int(n))) for k, n in zip(self._k[i, :, number], self._n[i, :, number], strict=True)
            ]
            operator = self._solved.operators[number][i - 2] if variant == "edited" else None
            rows.append(
                EditFigures(
                    variant=variant,
                    lam=lam,
                    efficacy=rates[0],
                    generality=rates[1],
                    specificity=rates[2],
                    condition=operator.condition if operator else None,
                    operator=operator.digest if operator else None,
                )
            )
        return TestedEditReport(
            row=edit.row,
            source=edit.source,
            destination=edit.destination,
            positives=len(edit.positives),
            negatives=len(edit.negatives),
            variants=rows,
        )

    def _drift(self, lam: int, prompt: str | None = None) -> Drift:
        """Over all controls, or of one; the base's images of a control are the same for every edit."""
        edits = len(self._solved.edits)
        change: list[list[float]] = [[] for _ in range(edits)]
        distance: list[list[float]] = [[] for _ in range(edits)]
        base: dict[str, tuple[float, float]] = {}
        edited: list[float] = []
        images = 0
        for task, measures in self._controls:
            if prompt not in (None, task.prompt):
                continue
            base[task.prompt] = float(measures.clip[0]), measures.spread
            edited.append(float(measures.clip[2 + lam]))
            change[task.edit].append(100 * float(measures.clip[2 + lam] - measures.clip[0]))
            distance[task.edit].append(float(measures.distance[2 + lam]))
            images += int((measures.states[2 + lam] != NONE).sum())
        return Drift(
            clip_base=_scaled(_mean([clip for clip, _ in base.values()])),
            clip_edited=_scaled(_mean(edited)),
            clip_change=self._mean_figure(change, images),
            distance=self._mean_figure(distance, images),
            spread=_mean([spread for _, spread in base.values()]),
        )

    def _mean_figure(self, values: Sequence[Sequence[float]], images: int) -> MeanFigure:
        mean: Mean = mean_over_edits([math.nan if (m := _mean(v)) is None else m for v in values], self._draws)
        return MeanFigure(value=mean.value, low=mean.low, high=mean.high, n=images)


def _scaled(cosine: float | None) -> float | None:
    return None if cosine is None else 100 * cosine


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _figure(rate: Rate) -> RateFigure:
    """A rate without a value has no interval to show either."""
    if rate.value is None:
        return RateFigure(value=None, n=rate.n, low=None, high=None)
    high = rate.high if math.isfinite(rate.high) else None
    return RateFigure(value=rate.value, n=rate.n, low=rate.low, high=high)


def evaluation_sentence(summary: Sequence[VariantFigures]) -> str:
    """The result in one sentence, at the strength with the best harmonic mean."""
    base = summary[0]
    tried = [each for each in summary if each.variant == "edited"]
    best = best_of(summary)
    said = [
        f"{name} {100 * rate.value:.1f} %" + (f" (base {100 * before.value:.1f} %)" if before.value is not None else "")
        for name, rate, before in (
            ("efficacy", best.efficacy, base.efficacy),
            ("generality", best.generality, base.generality),
            ("specificity", best.specificity, base.specificity),
        )
        if rate.value is not None
    ]
    lead = f"At lam {best.lam:g}" + (f", the best of {len(tried)}" if len(tried) > 1 else "")
    return f"{lead}: {', '.join(said) or 'no image could be decided on'}."
