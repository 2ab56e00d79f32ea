"""The model card of an edited checkpoint: every figure from the run, none typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from jobs.exports.mixture.loading import mixture_loading
from jobs.report import formatting
from jobs.report.figure_schema import DeltaFigure, GateResult, RateFigure, ShareFigure
from jobs.report.formatting import finite
from jobs.report.mixture_schema import MixtureReport
from jobs.report.schema import Report, VariantSummary

__all__ = ["edited_title", "licence_of", "model_card"]

_MOST_LAMS = 40
"""Professions up to which a card lists each one's lam."""
_LICENCE_KEYS = ("license", "license_name", "license_link")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|])")

_REVERT_MIXTURE = (
    "Load the base model without the mixture: its files are as they were. The prompts need no change either way."
)

_RESULTS = (
    ("delta", "Delta, pooled over wordings"),
    ("delta_within", "Delta, mean within wordings"),
    ("delta_wording_max", "Delta, worst wording"),
    ("explicit", "explicit prompts that show what they name"),
    ("recognised", "professions recognised"),
    ("controls", "unrelated prompts recognised"),
    ("undetermined", "undetermined"),
)


def model_card(
    report: Report,
    base_model: str,
    base_digest: str,
    attribute: Sequence[str],
    *,
    hub_id: str | None = None,
    revision: str | None = None,
    base_card: str | None = None,
    revert: str | None = None,
    loading: bool = True,
) -> str:
    """The README.md of `checkpoint/`, `candidate/` or an export.

    Args:
        report: of the run that made it.
        base_model: a path or URL; the card shows its last name only.
        base_digest: of the base model's content.
        attribute: its labels.
        hub_id: `owner/name` of the base model, where it came from a hub.
        revision: of the base model, where it is known.
        base_card: text of the base model's own card, whose licence is passed on.
        revert: how the edit is undone; None: as of edited weights, or of a mixture's pipeline.
        loading: whether the card of a mixture says how its folder is loaded; an export's says it below.
    """
    licence, mixture = _licence(base_card), report.mixture
    title = edited_title(base_model, len(report.professions))
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["evenhand", "time", "debiasing"],
        base_model=hub_id,
        base_model_relation=None if hub_id is None else "finetune",
        base_model_revision=revision,
        model_name=title,
        eval_results=_eval_results(report, report.summary.edited),
        **licence,
    )
    content = _template("card.md" if mixture is None else "mixture_card.md").render(
        card_data=data.to_yaml(),
        title=_text(title),
        base_model=_text(hub_id or base_model.rstrip("/").rpartition("/")[2]),
        revision=revision,
        base_digest=base_digest,
        revert=revert or (_revert(revision) if mixture is None else _REVERT_MIXTURE),
        labels=_text(", ".join(attribute)),
        label_count=len(attribute),
        licence=_licence_said(licence),
        **_report_context(report),
        **({} if mixture is None else _mixture_context(report, mixture, loading=loading)),
    )
    return str(ModelCard(content))


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("jobs.exports"),
        autoescape=False,  # noqa: S701 - Markdown: users' text goes through `_text`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def _report_context(report: Report) -> dict[str, Any]:
    """What a card says of the run, whatever edit it is of."""
    summary, provenance = report.summary, report.provenance
    versions = provenance.get("versions")
    return {
        "status": _status(report),
        "professions": len(report.professions),
        "operator": provenance.get("operator"),
        "lam_rows": _lam_rows(report),
        "lam_range": _lam_range(report),
        "calibrated": report.calibration is not None,
        "classifier": _text(str(provenance.get("classifier", "unknown"))),
        "result_rows": _result_rows(report),
        "gate_rows": [_gate_row(gate) for gate in report.gates],
        "off_target": _text(", ".join(item.profession for item in report.professions if item.off_target)),
        "undetermined": _undetermined(summary.edited or summary.base),
        "wordings": _text("; ".join(f"“{each.wording.replace('{source}', '…')}”" for each in report.wordings)),
        "run": report.run,
        "version": versions.get("evenhand", "unknown") if isinstance(versions, dict) else "unknown",
        "manifest": provenance.get("manifest"),
    }


def _mixture_context(report: Report, mixture: MixtureReport, *, loading: bool) -> dict[str, Any]:
    """What the card of a mixture says beyond a single edit's."""
    return {
        "loading": mixture_loading(mixture, "diffusers") if loading else None,
        "route_version": mixture.route,
        "component_rows": [
            _row(
                _text(each.label),
                f"{each.weight:.4g}",
                "none, the unedited model" if each.operator is None else _component_lams(report, each.label),
                f"{each.images:,}",
                *map(_cell, (each.own, each.explicit, each.recognised, each.controls)),
            )
            for each in mixture.components
        ],
        "weight_rows": [
            _row(_text(each.source), *(f"{each.weights[c.label]:.4g}" for c in mixture.components))
            for each in mixture.professions
        ],
        "weight_labels": _row(*(_text(c.label) for c in mixture.components)).strip("|"),
        "left_alone": [
            f"{_text(label)}: {_text(', '.join(names))}" for label, names in sorted(mixture.left_alone.items()) if names
        ],
    }


def _component_lams(report: Report, label: str) -> str:
    """Strengths of one component's edits."""
    edits = [item.components[label] for item in report.professions if item.components and label in item.components]
    lams = [lam for edit in edits if (lam := finite(edit.lam)) is not None]
    if not lams:
        return "unknown"
    low, high = formatting.number(min(lams)), formatting.number(max(lams))
    return low if low == high else f"{low} to {high}"


def edited_title(base_model: str, professions: int) -> str:
    """What an edited model is called: the base model's last name, and over how many professions."""
    return f"{base_model.rstrip('/').rpartition('/')[2]}, debiased over {professions} professions"


def _revert(revision: str | None) -> str:
    base = "the base model" + (f" at revision `{revision}`" if revision else "")
    return f"Load {base}: the edit lies in these files' weights only. The prompts need no\nchange either way."


def licence_of(base_card: str | None) -> str | None:
    """What the base model's card calls its licence, in one line; None where it does not say."""
    said = _licence(base_card)
    named = said.get("license_name") or said.get("license")
    return None if named is None else " ".join(named.split())


def _licence(base_card: str | None) -> dict[str, Any]:
    """What the base model's card says of its licence; nothing where it has no readable front matter."""
    if base_card is None:
        return {}
    try:
        data = ModelCard(base_card, ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError):
        return {}
    return {key: said for key in _LICENCE_KEYS if isinstance(said := data.get(key), str)}


def _licence_said(licence: dict[str, Any]) -> str:
    if not licence:
        return "The base model's licence, whose card did not say which one it is, holds for this checkpoint too."
    told = _text(licence.get("license_name") or licence.get("license", "see its link"))
    link = licence.get("license_link")
    return f"As of the base model, passed on: {told}{f' ({_text(link)})' if link else ''}."


def _status(report: Report) -> str:
    if report.verdict == "pass":
        return f"It passed every gate of its audit. {_text(report.sentence)}"
    return f"**It is ungated: the audit's verdict is *{report.verdict}*.** {_text(report.sentence)} Do not ship it."


def _eval_results(report: Report, edited: VariantSummary | None) -> list[EvalResult] | None:
    """The edited model's figures as the hub's model index has them; one without a value is left out."""
    results = []
    manifest = report.provenance.get("manifest")
    for field, title in _RESULTS if edited is not None else ():
        figure: DeltaFigure | RateFigure = getattr(edited, field)
        value = finite(figure.value)
        if value is not None:
            results.append(
                EvalResult(
                    task_type="text-to-image",
                    dataset_type="evenhand-manifest",
                    dataset_name=f"{len(report.professions)} professions, held-out wordings",
                    dataset_revision=manifest if isinstance(manifest, str) else None,
                    metric_type=field,
                    metric_name=title,
                    metric_value=_rounded(value),
                    metric_args={"low": _rounded(figure.low), "high": _rounded(figure.high), "n": figure.n},
                )
            )
    return results or None


def _rounded(value: float | None) -> float | None:
    known = finite(value)
    return None if known is None else round(known, 6)


def _result_rows(report: Report) -> list[str]:
    base, edited = report.summary.base, report.summary.edited
    rows = []
    for field, title in _RESULTS:
        rows.append(_row(title, *(_cell(None if each is None else getattr(each, field)) for each in (base, edited))))
        if field == "explicit":
            rows += [
                _row(
                    f"of these, {_text(label)}",
                    _cell(base.explicit_by_label.get(label)),
                    _cell(None if edited is None else edited.explicit_by_label.get(label)),
                )
                for label in base.explicit_by_label
            ]
    for field in ("difference", "ratio") if base.parity is not None else ():
        both = (getattr(each.parity, field) if each and each.parity else None for each in (base, edited))
        rows.append(_row(f"demographic parity {field} (Fairlearn)", *map(_cell, both)))
    return rows


def _gate_row(gate: GateResult) -> str:
    measure = formatting.gate_measure(gate.name)
    limit = f"{gate.direction} {formatting.in_kind(gate.limit, measure.kind)}"
    value = finite(gate.value)
    shown = "unknown" if value is None else formatting.in_kind(value, measure.kind)
    return _row(
        _text(measure.title), limit, f"{shown} [{formatting.span(gate, measure.kind) or 'no interval'}]", gate.outcome
    )


def _lam_rows(report: Report) -> list[str]:
    if len(report.professions) > _MOST_LAMS:
        return []
    rows = []
    for item in report.professions:
        lam = finite(item.lam)
        shares = ", ".join(f"{prompt} {formatting.percent(share, 0)}" for prompt, share in item.shares.items())
        rows.append(
            _row(_text(item.profession), "not edited" if lam is None else formatting.number(lam), _text(shares))
        )
    return rows


def _lam_range(report: Report) -> str:
    lams = [lam for item in report.professions if (lam := finite(item.lam)) is not None]
    if not lams:
        return "none, no profession was edited"
    low, middle, high = map(formatting.number, (min(lams), median(lams), max(lams)))
    return f"{low} to {high}, median {middle}, over {len(lams):,} edited professions"


def _undetermined(summary: VariantSummary) -> str:
    share = finite(summary.undetermined.value)
    if share is None:
        return "No image was labelled."
    return f"{formatting.percent(share)} of the images were too close to call, and are in no share."


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(figure: DeltaFigure | RateFigure | ShareFigure | None) -> str:
    if figure is None:
        return "not measured"
    n = getattr(figure, "n", None)
    value, low, high = finite(figure.value), finite(figure.low), finite(figure.high)
    said = [] if n is None else [f"n = {n:,}"]
    floor = finite(figure.floor) if isinstance(figure, DeltaFigure) else None
    if floor is not None:
        said.append(f"floor {floor:.3f}")
    tail = f" ({', '.join(said)})" if said else ""
    if value is None:
        return f"unknown{tail}"
    return f"{value:.3f}{'' if low is None or high is None else f' [{low:.3f}, {high:.3f}]'}{tail}"


def _text(text: str) -> str:
    """A user's text as Markdown shows it: on one line, and no part of it markup."""
    return _MARKDOWN.sub(r"\\\1", formatting.plain_text(text))
