"""From an edit set to tasks and shards, and from decided images to the report's figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from infra.storage import StorageSettings
from jobs.config import RunConfig
from jobs.evaluation.operators import EditRequest, SolvedEdit
from jobs.evaluation.tally import DESTINATION, NONE, SOURCE, Measures, MeasureTask, Role, cell_of
from jobs.images.cells import Cell, shards_of
from jobs.images.shards import Recipe, ShardSpec
from jobs.images.variants import Variant as DrawnUnder
from jobs.models.kinds import check_kind
from jobs.models.staging import cache_folder, load_tokenizers, stage_model
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
from jobs.report.schema import RateFigure
from jobs.runs.identity import evaluation_identity, last_name
from jobs.runs.inputs import prompt_checker, read_bytes
from manifests import EditSet, Fault, ManifestError, TestedEdit, read_edit_set
from time_ops.evaluation import Mean, evaluate, kept, mean_over_edits, resampled_edits
from time_ops.prompts import check_prompts
from time_ops.ratios import Rate, rate

__all__ = [
    "EditInputs",
    "Figures",
    "Solved",
    "base_cells",
    "figures_of",
    "read_edits",
    "requests_of",
    "sentence",
    "solved_of",
    "specs_of",
    "tasks_of",
    "texts_of",
]

_ROLES: tuple[Role, ...] = ("source", "positive", "negative")


@dataclass(frozen=True)
class EditInputs:
    """An edit set, checked against the model's tokenizers; see `jobs.auditing.session.Inputs`."""

    config: RunConfig
    edit_set: EditSet

    @property
    def summary(self) -> str:
        """How many edits."""
        found, rows = len(self.edit_set.edits), self.edit_set.rows
        return f"{found} edits" if found == rows else f"{found} of {rows} edits (the report says why)"

    def check(self, recipe: Recipe) -> None:
        """Everything is checked as it is read."""

    def identity(self, recipe: Recipe) -> str:
        """See `evaluation_identity`."""
        return evaluation_identity(self.config, self.edit_set.digest, recipe)

    def files(self) -> Mapping[str, bytes]:
        """The edit set as used."""
        return {"edits.parquet": self.edit_set.to_bytes()}


def read_edits(config: RunConfig, settings: StorageSettings, token: str) -> EditInputs:
    """The edit set that `manifest` names, without what the model's tokenizers can't align or read.

    Raises:
        ManifestError: it is no edit set, or none of its edits can be used; with every fault.
        ConfigError: the file is missing.
        ModelError: the model is missing, or no Stable Diffusion pipeline.
    """
    content = read_bytes(config.manifest, settings)
    folder = stage_model(config, settings, cache_folder() / token)
    check_kind(folder, safety_checker=config.sampler.safety_checker)
    tokenizers = load_tokenizers(folder)
    aligned = prompt_checker(tokenizers, config.evaluate.wordings)
    columns = {"source": "old", "destination": "new"}

    def check(prompts: Sequence[tuple[int, str, str]]) -> Iterator[Fault]:
        for fault in aligned(prompts):
            yield replace(fault, column=columns.get(fault.column or "", fault.column))

    found = read_edit_set(content, name=last_name(config.manifest), checker=check)
    tested = [p for e in found.edits for pair in (*e.positives, *e.negatives) for p in (pair.source, pair.destination)]
    others = [*config.controls, config.sampler.negative_prompt]
    long = {f.prompt: f.reason for t in tokenizers for f in check_prompts(t, [], prompts=[*tested, *others])}
    refused = [Fault(None, None, f"controls or sampler.negative_prompt: {long[p]}") for p in others if p in long]
    if refused:
        raise ManifestError(found.name, refused)
    return EditInputs(config, found.without(long) if long else found)


@dataclass(frozen=True)
class Solved:
    """Edits that have an operator at every lam.

    Attributes:
        edits: those.
        operators: of each edit, what was solved at each lam.
        requests: digest -> from what it is solved.
        left_out: why others have none.
    """

    edits: tuple[TestedEdit, ...]
    operators: tuple[tuple[SolvedEdit, ...], ...]
    requests: dict[str, EditRequest]
    left_out: tuple[Fault, ...] = ()


def requests_of(edit: TestedEdit, config: RunConfig) -> list[EditRequest]:
    """One request for each lam."""
    wanted = config.evaluate
    return [EditRequest(edit.source, edit.destination, lam, wanted.wordings) for lam in wanted.lam]


def solved_of(edit_set: EditSet, config: RunConfig, found: Sequence[Sequence[SolvedEdit]]) -> Solved:
    """What came of the requests, which were made for each edit in order.

    Raises:
        ManifestError: not one edit could be solved.
    """
    edits, operators, requests, faults = [], [], {}, []
    for edit, solved in zip(edit_set.edits, found, strict=True):
        bad = next((each.fault for each in solved if each.fault is not None), None)
        if bad is not None:
            faults.append(Fault(edit.row, None, f"{bad}; the edit is left out"))
            continue
        edits.append(edit)
        operators.append(tuple(solved))
        requests.update({each.digest: request for each, request in zip(solved, requests_of(edit, config), strict=True)})
    if not edits:
        raise ManifestError(edit_set.name, faults)
    return Solved(tuple(edits), tuple(operators), requests, tuple(faults))


def texts_of(edits: Sequence[TestedEdit], controls: Sequence[str]) -> list[str]:
    """Every prompt that images are held against, each once."""
    pairs = [
        p
        for e in edits
        for p in (
            e.source,
            e.destination,
            *(q for pair in (*e.positives, *e.negatives) for q in (pair.source, pair.destination)),
        )
    ]
    return list(dict.fromkeys([*pairs, *controls]))


def tasks_of(solved: Solved, config: RunConfig) -> list[MeasureTask]:
    """All prompts of all edits, edit by edit: source, positives, negatives, and the controls that don't speak of it."""
    wanted = config.evaluate
    controls = config.controls if wanted.control_images else ()
    rows = {prompt: row for row, prompt in enumerate(texts_of(solved.edits, controls))}
    tasks = []
    for number, (edit, operators) in enumerate(zip(solved.edits, solved.operators, strict=True)):
        digests = tuple(each.digest for each in operators)
        pairs: list[tuple[Role, str, str]] = [("source", edit.source, edit.destination)]
        pairs += [("positive", pair.source, pair.destination) for pair in edit.positives]
        pairs += [("negative", pair.source, pair.destination) for pair in edit.negatives]
        for role, source, destination in pairs:
            # What should stay has nothing better to show than the base model's own image.
            oracle = None if role == "negative" else destination
            tasks.append(
                MeasureTask(number, role, source, wanted.images, rows[source], rows[destination], oracle, digests)
            )
        for prompt in (p for p in controls if not _speaks_of(p, edit.source)):
            tasks.append(
                MeasureTask(number, "control", prompt, wanted.control_images, rows[prompt], None, None, digests)
            )
    return tasks


def _speaks_of(control: str, source: str) -> bool:
    """Whether a control holds an edit's source, and so is not unrelated to it."""
    return re.search(rf"(?<!\w){re.escape(source)}(?!\w)", control, re.IGNORECASE) is not None


def base_cells(tasks: Sequence[MeasureTask]) -> list[Cell]:
    """What the unedited model draws: every prompt and every oracle, each once."""
    wanted = [(prompt, task.images) for task in tasks for prompt in (task.prompt, task.oracle) if prompt is not None]
    return [cell_of(prompt, images) for prompt, images in dict.fromkeys(wanted)]


def specs_of(tasks: Sequence[MeasureTask], recipe: Recipe, config: RunConfig, *, edited: bool) -> Iterator[ShardSpec]:
    """The shards: of the base model, or edit by edit under its operators. Each is there once."""
    if not edited:
        yield from shards_of(base_cells(tasks), recipe, DrawnUnder.plain(), config)
        return
    by_operator: dict[str, list[Cell]] = {}
    for task in tasks:
        for operator in task.operators:
            by_operator.setdefault(operator, []).append(cell_of(task.prompt, task.images))
    for operator, cells in by_operator.items():
        yield from shards_of(cells, recipe, DrawnUnder.plain(operator), config)


@dataclass(frozen=True)
class Figures:
    """What an evaluation found."""

    summary: list[VariantFigures]
    edits: list[TestedEditReport]
    controls: list[ControlDrift]


def figures_of(solved: Solved, tasks: Sequence[MeasureTask], found: Sequence[Measures], config: RunConfig) -> Figures:
    """All figures.

    Args:
        solved: the edits.
        tasks: their prompts.
        found: what came of each.
        config: the run's.
    """
    return _Tally(solved, tasks, found, config).figures()


class _Tally:
    """Counts of all edits, and what they say."""

    def __init__(
        self, solved: Solved, tasks: Sequence[MeasureTask], found: Sequence[Measures], config: RunConfig
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
        for task, measures in zip(tasks, found, strict=True):
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
        found = evaluate(self._k[i], self._n[i], self._draws)
        edited = variant == "edited"
        return VariantFigures(
            variant=variant,
            lam=lam,
            efficacy=_figure(found.efficacy),
            generality=_figure(found.generality),
            specificity=_figure(found.specificity),
            harmonic=_figure(found.harmonic),
            f1=_figure(found.f1),
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
        found: Mean = mean_over_edits([math.nan if (m := _mean(v)) is None else m for v in values], self._draws)
        return MeanFigure(value=found.value, low=found.low, high=found.high, n=images)


def _scaled(cosine: float | None) -> float | None:
    return None if cosine is None else 100 * cosine


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _figure(found: Rate) -> RateFigure:
    """A rate without a value has no interval to show either."""
    if found.value is None:
        return RateFigure(value=None, n=found.n, low=None, high=None)
    high = found.high if math.isfinite(found.high) else None
    return RateFigure(value=found.value, n=found.n, low=found.low, high=high)


def sentence(summary: Sequence[VariantFigures]) -> str:
    """The result in one sentence, at the strength with the best harmonic mean."""
    base = summary[0]
    tried = [each for each in summary if each.variant == "edited"]
    best = best_of(summary)
    said = [
        f"{name} {100 * found.value:.1f} %"
        + (f" (base {100 * before.value:.1f} %)" if before.value is not None else "")
        for name, found, before in (
            ("efficacy", best.efficacy, base.efficacy),
            ("generality", best.generality, base.generality),
            ("specificity", best.specificity, base.specificity),
        )
        if found.value is not None
    ]
    lead = f"At lam {best.lam:g}" + (f", the best of {len(tried)}" if len(tried) > 1 else "")
    return f"{lead}: {', '.join(said) or 'no image could be decided on'}."
