"""The model card, read back as the hub reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import ModelCard

from jobs.exports.model_card import model_card
from jobs.report.schema import Report

LICENSED = """---
license: other
license_name: openrail
license_link: https://example.com/licence
tags: [x]
---
# Base
"""


def card_of(report: Report, **known: str) -> ModelCard:
    return ModelCard(model_card(report, "/somewhere/models/tiny-sd", "ab" * 32, ["female", "male"], **known))  # type: ignore[arg-type]


def test_figures_are_the_runs(report: Report) -> None:
    edited = report.summary.edited
    assert edited is not None
    card = card_of(report, hub_id="owner/tiny-sd", revision="c0ffee")
    found = {result.metric_type: result for result in card.data.eval_results}
    assert set(found) == {
        "delta", "delta_within", "delta_wording_max", "explicit", "recognised", "controls", "undetermined",
    }  # fmt: skip
    for name, result in found.items():
        figure = getattr(edited, name)
        assert result.metric_value == pytest.approx(figure.value, abs=1e-6)
        assert result.metric_args == pytest.approx({"low": figure.low, "high": figure.high, "n": figure.n}, abs=1e-6)
    assert (card.data.base_model, card.data.base_model_revision) == ("owner/tiny-sd", "c0ffee")
    assert card.data.base_model_relation == "finetune"
    delta = edited.delta
    assert f"{delta.value:.3f} [{delta.low:.3f}, {delta.high:.3f}] (n = {delta.n:,}, floor 0.051)" in card.text
    assert "| of these, male | 0.982 [" in card.text
    assert "| demographic parity ratio (Fairlearn) | 0.082 [0.030, 0.190] |" in card.text
    assert "| Explicit prompts keep “male” | at least 90.0" in card.text
    assert "/somewhere" not in card.content
    lines = card.text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|---"):
            # A table is one block: nothing empty between its rows.
            rows = lines[i + 1 : lines.index("", i)]
            assert len(rows) >= 3
            assert {row.replace("\\|", "").count("|") for row in rows} == {line.count("|")}
    for item in report.professions:
        assert f"| {item.profession} | {item.lam:.4g} |" in card.text
    for part in ("How to revert", "Bias, risks and limits", "at revision `c0ffee`", "It is ungated", "Do not ship it."):
        assert part in card.text


def test_the_same_run_gone_through_again_has_the_same_card(report: Report) -> None:
    """Else its published checkpoint would be taken away and put back each time."""
    later = report.model_copy(update={"created": "2031-01-01T00:00:00+00:00"})
    assert str(card_of(later)) == str(card_of(report))


def test_a_pass_is_said_and_long_lists_are_ranges(build: Callable[..., Report]) -> None:
    report = build(professions=41)
    lams = [item.lam for item in report.professions if item.lam]
    text = card_of(report.model_copy(update={"verdict": "pass"})).text
    assert "It passed every gate" in text
    assert "ungated" not in text
    assert f"{min(lams):.4g} to {max(lams):.4g}, median" in text
    assert "`report.json` of the run has each" in text
    assert "| profession | lam |" not in text


def test_the_licence_is_passed_on_where_the_base_says_one(report: Report) -> None:
    data = card_of(report, base_card=LICENSED).data
    assert (data.license, data.license_name, data.license_link) == ("other", "openrail", "https://example.com/licence")
    assert data.tags == ["evenhand", "time", "debiasing"]
    for card in ("# no front matter", "---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\ntags: [x]\n---\n"):
        found = card_of(report, base_card=card)
        assert found.data.license is None
        assert "did not say which one" in found.text
    assert card_of(report).data.base_model is None


def test_what_was_not_measured_is_said_and_names_are_text(build: Callable[..., Report]) -> None:
    report = build(professions=2, names=("a | b\n<script>", "*boss*"))
    edited = report.summary.edited
    assert edited is not None
    edited.controls.value = edited.controls.low = edited.controls.high = None
    edited.controls.n = 0
    edited.parity = None
    card = card_of(report)
    assert "controls" not in {result.metric_type for result in card.data.eval_results}
    assert "| unknown (n = 0) |" in card.text
    assert "| not measured |" in card.text
    assert "| a \\| b \\<script\\> |" in card.text
    assert "| \\*boss\\* |" in card.text
