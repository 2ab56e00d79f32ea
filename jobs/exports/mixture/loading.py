"""How a mixture is loaded, in each form: the text of its cards, with the run's own labels, weights and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.exports.mixture.parts import component_place
from jobs.exports.schema import Form
from jobs.report.mixture_schema import MixtureReport

__all__ = ["mixture_loading"]

_STEPS = 20
"""Most choices of a prompt that can say no weights."""


def mixture_loading(mixture: MixtureReport, form: Form) -> str:
    """Markdown: an example that runs as it stands, once BASE and FOLDER are paths, and prompts for other programs.

    Args:
        mixture: of the run's report.
        form: which form.
    """
    files = {c.label: component_place(form, c.label) for c in mixture.components if c.operator is not None}
    unedited = next((c.label for c in mixture.components if c.operator is None), None)
    rows = {"every prompt" if not mixture.professions else "prompts that name none of the following": mixture.weights}
    rows |= {f"prompts that name {each.source!r}": each.weights for each in mixture.professions}
    environment = Environment(
        loader=PackageLoader("jobs.exports"),
        autoescape=False,  # noqa: S701 - Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("mixture_loading.md").render(
        form=form,
        files=files,
        unedited=None if unedited is None else repr(unedited),
        dynamic=[(name, _dynamic(weights, files)) for name, weights in rows.items()] if form == "lora" else [],
        choices=[(name, _choices(weights, files)) for name, weights in rows.items()] if form == "lora" else [],
    )
    return text.strip("\n") + "\n"


def _tag(label: str, files: Mapping[str, str]) -> str:
    """What a prompt calls a component's LoRA: its file without the suffix; nothing for the unedited model."""
    return f"<lora:{files[label].removesuffix('.safetensors')}:1>" if label in files else ""


def _dynamic(weights: Mapping[str, float], files: Mapping[str, str]) -> str:
    choices = [f"{weight:.6g}::{_tag(label, files)}" for label, weight in weights.items() if weight > 0]
    return f"{{{'|'.join(choices)}}} ..."


def _choices(weights: Mapping[str, float], files: Mapping[str, str]) -> str:
    counts = _counts(list(weights.values()))
    tags = [_tag(label, files) for label, count in zip(weights, counts, strict=True) for _ in range(count)]
    return f"{{{'|'.join(tags)}}} ..."


def _counts(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the weights' proportions, at most a twentieth away; no component is lost."""
    for total in range(1, _STEPS + 1):
        counts = [round(weight * total) for weight in weights]
        kept = all((count > 0) == (weight > 0) for count, weight in zip(counts, weights, strict=True))
        if kept and all(
            abs(Fraction(c, sum(counts)) - Fraction(w)) < 1e-6 for c, w in zip(counts, weights, strict=True)
        ):
            return counts
    return [max(1, round(weight * _STEPS)) if weight > 0 else 0 for weight in weights]
