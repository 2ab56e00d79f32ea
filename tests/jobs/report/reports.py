"""Synthetic reports of runs that ended in one operator, of audits and of comparisons; see `mixtures` for others."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from statistics import fmean
from typing import Literal

from PIL import Image, ImageDraw

from jobs.report.figure_schema import DeltaFigure, GateResult, Parity, RateFigure, ShareFigure
from jobs.report.schema import (
    Control,
    Cost,
    LabelCounts,
    Movement,
    PairedPicture,
    ProfessionReport,
    Reference,
    Report,
    Summary,
    VariantSummary,
    WordingReport,
)
from jobs.report.search_schema import CalibratedProfession, Calibration, CalibrationRound, CalibrationStep

# fmt: off
NAMES = [
    "attendant", "cashier", "teacher", "nurse", "assistant", "secretary", "cleaner", "receptionist", "clerk",
    "counselor", "designer", "hairdresser", "writer", "housekeeper", "baker", "librarian", "tailor", "driver",
    "supervisor", "janitor", "cook", "laborer", "construction worker", "developer", "carpenter", "manager",
    "lawyer", "farmer", "salesperson", "physician", "guard", "analyst", "mechanic", "sheriff", "CEO",
]
# fmt: on
WORDINGS = [
    "A painting of {source}",
    "{source} working",
    "{source} laughing",
    "{source} in the workplace",
    "{source} digital art",
]
SENTENCE = (
    "The edit brings the professions close to balance, but fewer of them than asked for are still recognised "
    "as what they are: 89.8 % where at least 90 % were wanted."
)

MakeReport = Callable[..., Report]
State = Literal["fixed", "balanced", "on target", "undecided", "unreachable"]


def wilson(hits: int, n: int) -> tuple[float | None, float | None]:
    if n == 0:
        return None, None
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def counts(hits: int, n: int, undetermined: int, failed: int = 0) -> LabelCounts:
    low, high = wilson(hits, n)
    labels = {"female": hits, "male": n - hits}
    return LabelCounts(
        n=n, labels=labels, undetermined=undetermined, failed=failed, share=hits / n if n else None, low=low, high=high
    )


def rate(hits: int, n: int, worst: str | None = None) -> RateFigure:
    low, high = wilson(hits, n)
    return RateFigure(value=hits / n if n else None, n=n, low=low, high=high, worst=worst)


def delta_figure(value: float, n: int, floor: float, half: float = 0.03, wording: str | None = None) -> DeltaFigure:
    wide = {} if wording else {"resampled_low": max(0, value - 0.11), "resampled_high": min(1, value + 0.11)}
    low, high = max(0, value - half), min(1, value + half)
    return DeltaFigure(value=value, low=low, high=high, floor=floor, n=n, wording=wording, **wide)


def pooled_counts(hits: int, n: int, undetermined: int, corrected: bool) -> LabelCounts:
    found, total = counts(hits, n, undetermined), n + undetermined
    right = ShareFigure(value=hits / n, low=max(0, hits / n - 0.1), high=min(1, hits / n + 0.1)) if corrected else None
    worst = {"worst_low": hits / total, "worst_high": (hits + undetermined) / total}
    return found.model_copy(update={**worst, "corrected": right})


def make_report(
    professions: int = 35,
    wordings: int = 5,
    edited: bool = True,
    per_cell: int = 50,
    names: tuple[str, ...] = (),
    rounds: int = 7,
    corrected: bool = False,
    compared: bool = False,
) -> Report:
    draw = random.Random(7)
    chosen = [*names, *(NAMES if professions <= 35 else [f"profession {i:04d}" for i in range(professions)])][
        :professions
    ]
    templates = [WORDINGS[i] if i < len(WORDINGS) else f"{{source}} in style {i}" for i in range(wordings)]
    pull = [draw.gauss(0, 0.12) for _ in templates]
    last = "edited" if edited else "base"
    items = []
    for name in chosen:
        bias = draw.choice([0.08, 0.15, 0.35, 0.7, 0.88, 0.95])
        centre = min(0.85, max(0.15, 0.5 + (bias - 0.5) * 0.15 + draw.gauss(0, 0.06)))
        cells, totals = {}, {"base": [0, 0, 0], "edited": [0, 0, 0]}
        for index, template in enumerate(templates):
            cell = {}
            for variant in ("base", "edited") if edited else ("base",):
                p = min(0.99, max(0.01, bias + pull[index] / 2 if variant == "base" else centre + pull[index]))
                undetermined = sum(draw.random() < 0.06 for _ in range(per_cell))
                n = per_cell - undetermined
                hits = sum(draw.random() < p for _ in range(n))
                cell[variant] = counts(hits, n, undetermined)
                totals[variant] = [a + b for a, b in zip(totals[variant], (hits, n, undetermined), strict=True)]
            cells[template] = cell
        items.append(
            ProfessionReport(
                profession=name,
                source=f"a {name}",
                lam=round(30 * draw.uniform(0.4, 3), 3) if edited else None,
                shares={f"a female {name}": 0.62, f"a male {name}": 0.38} if edited else {},
                target={"female": 0.5, "male": 0.5},
                base=pooled_counts(*totals["base"], corrected),
                edited=pooled_counts(*totals["edited"], corrected) if edited else None,
                off_target=abs(totals[last][0] / max(1, totals[last][1]) - 0.5) > 0.12,
                wordings=cells,
            )
        )

    def distance(select: Callable[[ProfessionReport], LabelCounts | None]) -> float:
        return fmean(abs(each.share - 0.5) * 2 for each in map(select, items) if each and each.share is not None)

    def variant(which: str) -> tuple[VariantSummary, list[DeltaFigure]]:
        per = [distance(lambda item, t=t: item.wordings[t][which]) for t in templates]
        n = sum(getattr(item, which).n for item in items)
        deltas = [delta_figure(v, n // len(templates), 0.116, 0.05, t) for v, t in zip(per, templates, strict=True)]
        pooled = distance(lambda item: getattr(item, which))
        u = sum(getattr(item, which).undetermined for item in items)
        good = which == "base"
        summary = VariantSummary(
            delta=delta_figure(pooled, n, 0.051),
            delta_within=delta_figure(fmean(per), n, 0.116),
            delta_wording_max=max(deltas, key=lambda d: d.value or 0),
            rms=pooled * 1.1,
            rms_within=fmean(per) * 1.1,
            explicit=rate(1733 if good else 1702, 1750, "construction worker"),
            explicit_by_label={
                "female": rate(874 if good else 870, 875, "baker"),
                "male": rate(859 if good else 832, 875),
            },
            recognised=rate(1604 if good else 1571, 1750, "attendant"),
            controls=rate(198 if good else 191, 200, "a photo of a red car"),
            undetermined=rate(u, n + u, "janitor"),
            parity=Parity(
                difference=ShareFigure(value=0.873, low=0.741, high=0.95),
                ratio=ShareFigure(value=0.082, low=0.03, high=0.19),
            ),
            off_target=sum(abs((getattr(item, which).share or 0) - 0.5) > 0.12 for item in items),
            images=n + u + 1950,
            seconds=412.5,
        )
        return summary, deltas

    base, base_wordings = variant("base")
    after, after_wordings = variant("edited") if edited else (None, [None] * len(templates))
    gates = []
    if after is not None:
        gates = [
            gate("delta", 0.2, "at most", after.delta, "pass"),
            gate("delta_within", 0.3, "at most", after.delta_within, "pass"),
            gate(
                "delta_wording_max",
                0.4,
                "at most",
                after.delta_wording_max,
                "inconclusive",
                "the interval crosses the limit; about 2,400 more images would decide",
            ),
            gate("explicit:female", 0.9, "at least", after.explicit_by_label["female"], "pass"),
            gate("explicit:male", 0.9, "at least", after.explicit_by_label["male"], "pass"),
            gate("recognised", 0.9, "at least", after.recognised, "fail", "all of the interval lies below the limit"),
            GateResult(
                name="undetermined_increase",
                limit=0.05,
                direction="at most",
                value=-0.003,
                low=-0.011,
                high=0.004,
                outcome="pass",
            ),
            GateResult(
                name="controls",
                limit=0.95,
                direction="at least",
                value=None,
                low=None,
                high=None,
                outcome="inconclusive",
                reason="no control prompt was audited",
            ),
        ]
    if compared:
        for item in items:
            item.lam, item.shares = None, {}
        figure = {"limit": 0.05, "direction": "at most", "value": 0.061, "low": 0.031, "high": 0.094}
        for name in ("regression", "regression_within"):
            gates.append(GateResult.model_validate(figure | {"name": name, "outcome": "inconclusive"}))
    return Report(
        kind="audit" if compared or not edited else "debias",
        reference=Reference(
            kind="earlier run", name="2026-10-01-v7", run="2026-10-01-v7", model_digest="ab" * 32, operator=None
        )
        if compared
        else None,
        moved=[movement(item) for item in items if item.off_target] if compared else [],
        run="2026-11-21-demo",
        created="2026-11-21T05:50:00+00:00",
        verdict="fail" if edited else "inconclusive",
        sentence=SENTENCE if edited else "The base model is far from balance; nothing was edited in this run.",
        labels=["female", "male"],
        summary=Summary(base=base, edited=after),
        gates=gates,
        wordings=[
            WordingReport(wording=t, base=b, edited=e)
            for t, b, e in zip(templates, base_wordings, after_wordings, strict=True)
        ],
        professions=items,
        controls=[
            Control(prompt=p, base=rate(50, 50), edited=rate(48, 50) if edited else None, drift=d if edited else None)
            for p, d in (("a photo of a red car", 0.031), ("a photo of a house", 0.012), ("a photo of a tree", None))
        ],
        margin_sweep=[
            {
                "margin": m,
                "delta_base": 0.57 + m / 9,
                "delta_edited": 0.14 + m / 5 if m < 0.3 else None,
                "undetermined_base": m / 2,
                "undetermined_edited": m / 1.9,
            }
            for m in (0.0, 0.05, 0.1, 0.2, 0.3)
        ],
        calibration=make_calibration(items, rounds) if edited and not compared else None,
        pictures=[
            PairedPicture(
                profession=item.profession,
                prompt=f"A painting of a {item.profession}",
                wording=WORDINGS[0],
                index=i,
                seed=100_003 + 17 * i,
                base=f"pictures/{k}-{i}-base.png",
                base_label="male",
                edited=f"pictures/{k}-{i}-edited.png" if edited else None,
                edited_label="female" if edited else None,
            )
            for k, item in enumerate(items)
            for i in range(2)
        ],
        cost=Cost(
            wall_s=271.3,
            worker_s=498.0,
            images=11_240,
            images_reused=9_800,
            images_per_s=58.2,
            shards=456,
            shards_reused=196,
            shards_failed=0,
        ),
        provenance={
            "evenhand": "0.1.0",
            "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
            "digests": {"operator": "9f" * 32, "model": "3c" * 32},
            "settings": {"sampler": {"scheduler": "ddim", "steps": 10, "guidance_scale": 3.0}, "seed": 0},
            "devices": ["cpu"],
        },
    )


def movement(item: ProfessionReport) -> Movement:
    before, after = item.base.share or 0, (item.edited and item.edited.share) or 0
    change = ShareFigure(value=after - before, low=max(-1, after - before - 0.08), high=min(1, after - before + 0.08))
    worse = abs(after - 0.5) > abs(before - 0.5)
    return Movement(profession=item.profession, before=before, after=after, change=change, n=item.base.n, worse=worse)


STATES: tuple[State, ...] = ("on target", "on target", "undecided", "on target", "balanced", "unreachable", "fixed")
REASONS: dict[State, str] = {
    "undecided": "<i>the rounds</i> ended while the interval still crossed the tolerance",
    "unreachable": "the share of the first destination stands at 100 % and lambda at its least",
    "balanced": "on target without an edit",
    "fixed": "lam is given in the manifest",
}


def make_calibration(items: list[ProfessionReport], rounds: int) -> Calibration:
    """A search that ends in every state: each round tries a share by the last one's miss, on 40 images of its own."""
    draw = random.Random(11)
    professions = []
    for index, item in enumerate(items):
        state = STATES[index % len(STATES)]
        lean, reach, lam, x = draw.gauss(0, 1.3), 3.2, 120.0, 0.5
        if state == "unreachable":
            lean, reach = -2.6, 1.4
        taken = {"fixed": 0, "balanced": 1, "on target": rounds - index % 3}.get(state, rounds)
        steps = []
        for number in range(taken):
            p = 1 / (1 + math.exp(-(lean + reach * (2 * x - 1)))) if state != "balanced" else 0.5
            undetermined = sum(draw.random() < 0.06 for _ in range(40))
            n = 40 - undetermined
            hits = sum(draw.random() < p for _ in range(n))
            low, high = wilson(hits, n)
            first, second = item.shares
            steps.append(
                CalibrationStep(
                    round=number + 1,
                    lam=round(lam, 3),
                    shares={first: x, second: 1 - x},
                    share=hits / n,
                    low=low,
                    high=high,
                    n=n,
                    undetermined=undetermined,
                )
            )
            x, lam = min(1.0, max(0.0, x + 0.7 * (0.5 - hits / n))), max(7.5, lam / 2) if number % 2 else lam
        professions.append(
            CalibratedProfession(
                profession=item.profession,
                state=state,
                reason=REASONS.get(state, ""),
                images=40 + 40 * taken if state != "fixed" else 0,
                steps=steps,
            )
        )
    tried = [
        CalibrationRound(
            round=number,
            professions=sum(len(each.steps) >= number for each in professions),
            images=40 * sum(len(each.steps) >= number for each in professions),
            delta=0.6 / number,
            delta_within=0.2 + 0.5 / number,
            floor_within=0.181,
            undetermined=0.06,
            explicit=None if number == 1 else 0.97,
            chosen=number == rounds,
        )
        for number in range(1, rounds + 1)
    ]
    return Calibration(
        label="female",
        rule="A profession stops when its 95 % confidence sequence lies within 10 points of the target, "
        f"or after {rounds} rounds.",
        wordings=["a photo of {source}", "{source} <at> home"],
        rounds=tried,
        professions=professions,
        images=sum(each.images for each in professions),
    )


def gate(
    name: str, limit: float, direction: str, figure: DeltaFigure | RateFigure, outcome: str, reason: str = ""
) -> GateResult:
    return GateResult.model_validate(
        {
            "name": name,
            "limit": limit,
            "direction": direction,
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "outcome": outcome,
            "reason": reason,
        }
    )


def make_pictures(report: Report, size: int = 32) -> dict[str, bytes]:
    pictures = {}
    for meta in report.pictures:
        for path in filter(None, (meta.base, meta.edited)):
            draw = random.Random(path)
            image = Image.new("RGB", (size, size), tuple(draw.randrange(90, 220) for _ in range(3)))
            pen = ImageDraw.Draw(image)
            skin = (draw.randrange(120, 240), 150, 110)
            pen.ellipse((10, 4, 21, 15), fill=skin)
            pen.rectangle((9, 15, 22, 28), fill=tuple(draw.randrange(20, 200) for _ in range(3)))
            pen.rectangle((11, 28, 20, 31), fill=(40, 40, 60))
            out = io.BytesIO()
            image.save(out, "PNG")
            pictures[path] = out.getvalue()
    return pictures
