"""The model card of an edited checkpoint: every figure from the run, none typed."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from jobs.report.schema import Report

__all__ = ["model_card"]


def model_card(report: Report, base_model: str, base_digest: str, attribute: Sequence[str]) -> str:
    """The README.md of `checkpoint/` or `candidate/`."""
    base, edited = report.summary.base, report.summary.edited
    gated = report.verdict == "pass"
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["evenhand", "time", "debiasing"],
    )
    rows = []
    if edited is not None:
        for name, label in (
            ("delta", "Delta, pooled over wordings"),
            ("delta_within", "Delta, mean within wordings"),
            ("delta_wording_max", "Delta, worst wording"),
            ("explicit", "explicit prompts that show what they name"),
            ("recognised", "professions recognised"),
            ("controls", "unrelated prompts recognised"),
            ("undetermined", "undetermined"),
        ):
            rows.append(f"| {label} | {_cell(getattr(base, name))} | {_cell(getattr(edited, name))} |")
    status = (
        "It passed every gate of its audit."
        if gated
        else f"**It is ungated: the audit's verdict is *{report.verdict}*.** {report.sentence} Do not ship it."
    )
    content = "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            "",
            f"# {base_model.rstrip('/').rpartition('/')[2]}, debiased over {len(report.professions)} professions",
            "",
            status,
            "",
            "## What was done",
            "",
            "The key and value projections of the UNet's cross-attention were replaced in closed form (TIME, "
            "arXiv 2303.08084), all professions in one solve. Nothing else differs from the base model, whose content "
            f"digest is `{base_digest}`. To revert, load the base model.",
            "",
            "## Results",
            "",
            f"Perceived {' / '.join(attribute)}, labelled by a zero-shot classifier; 95 % intervals in brackets.",
            "",
            "| | base | edited |",
            "|---|---|---|",
            *rows,
            "",
            "## Limits",
            "",
            "Labels are *perceived* and few; the classifier errs; wordings other than the audited ones may behave "
            "otherwise. The licence and the limits of the base model hold here too.",
            "",
            f"Run `{report.run}`, {report.created}.",
            "",
        ]
    )
    return str(ModelCard(content))


def _cell(figure: object) -> str:
    value, low, high, n = (getattr(figure, name) for name in ("value", "low", "high", "n"))
    if value is None:
        return f"unknown (n = {n})"
    return f"{value:.3f} [{low:.3f}, {high:.3f}] (n = {n:,})"
