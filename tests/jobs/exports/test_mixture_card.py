"""The card of a mixture, read back as the hub reads it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from jobs.exports.model_card import model_card
from jobs.report.figure_schema import ComponentEdit, RateFigure
from jobs.report.mixture_schema import ComponentReport, MixtureReport, ProfessionWeights
from jobs.report.schema import Report


def rate(value: float | None, n: int = 40) -> RateFigure:
    return RateFigure(value=value, n=n if value is not None else 0, low=value, high=value)


@pytest.fixture
def mixed(report: Report) -> Report:
    """The synthetic run, as if a mixture had drawn it."""
    weights = {"female": 0.45, "male": 0.35, "unedited": 0.2}
    components = [
        ComponentReport(
            label=label,
            operator=None if label == "unedited" else label[0] * 64,
            weight=weight,
            images=4_500,
            own=rate(0.99 if label != "unedited" else None),
            wordings=[],
            explicit=rate(0.98),
            recognised=rate(0.97),
            controls=rate(1.0),
            undetermined=rate(0.01),
        )
        for label, weight in weights.items()
    ]
    own = {"female": 0.2, "male": 0.8, "unedited": 0.0}
    first, *_ = report.professions
    mixture = MixtureReport(
        digest="d" * 64,
        route=1,
        weights=weights,
        professions=[ProfessionWeights(profession=first.profession, source="a | b", weights=own)],
        components=components,
        left_alone={"female": ["nun"], "male": []},
    )
    edits = {"female": ComponentEdit(lam=0.1, overshoot=1.2), "male": ComponentEdit(lam=0.3, overshoot=1.2)}
    professions = [item.model_copy(update={"components": edits, "lam": None}) for item in report.professions]
    professions[0].components = {**edits, "female": ComponentEdit(lam=0.01, overshoot=1.0)}
    return report.model_copy(update={"mixture": mixture, "professions": professions})


def card_of(report: Report, **known: Any) -> ModelCard:
    return ModelCard(model_card(report, "/somewhere/models/tiny-sd", "ab" * 32, ["female", "male"], **known))


def test_it_says_what_it_is_how_it_is_used_and_what_each_component_did(mixed: Report) -> None:
    card = card_of(mixed, hub_id="owner/tiny-sd", revision="c0ffee")
    text = card.text
    assert text.index("It is a mixture of edits") < text.index("## How to use it") < text.index("## What was done")
    assert "no component by itself is a debiased model" in text
    assert "pipe = MixturePipeline.from_pretrained(BASE)" in text
    assert "| female | 0.45 | 0.01 to 0.1 | 4,500 | 0.990 [0.990, 0.990] (n = 40) |" in text
    assert "| male | 0.35 | 0.3 | 4,500 |" in text
    assert "| unedited | 0.2 | none, the unedited model | 4,500 | unknown (n = 0) |" in text
    assert "| a \\| b | 0.2 | 0.8 | 0 |" in text
    assert "- female: nun" in text
    assert "- male:" not in text
    assert "its files are as they were" in text
    assert "One seed always draws one component" in text
    assert "It is ungated" in text
    assert "/somewhere" not in card.content
    assert {result.metric_type for result in card.data.eval_results} >= {"delta", "explicit"}


def test_its_tables_are_whole(mixed: Report) -> None:
    lines = card_of(mixed).text.splitlines()
    tables = 0
    for i, line in enumerate(lines):
        if line.startswith("|---"):
            tables += 1
            rows = [lines[i - 1], *lines[i + 1 : lines.index("", i)]]
            assert len(rows) >= 2
            assert {row.replace("\\|", "").count("|") for row in rows} == {line.count("|")}
    assert tables == 4  # components, weights, results, gates
    fences = [line for line in lines if line.startswith("```")]
    assert fences == ["```python", "```"] * 2


def test_an_exports_card_leaves_its_use_to_the_export(mixed: Report) -> None:
    text = card_of(mixed, loading=False).text
    assert "How to use it" not in text
    assert "MixturePipeline" not in text
    assert "\n\n\n\n" not in text
