"""README.md of an export: the run's model card, what this form of it is, how it is loaded, how it was checked."""

from __future__ import annotations

import re

from jobs.exports.mixture.loading import mixture_loading
from jobs.exports.schema import FILES, Exported, Form
from jobs.exports.task import denoiser_in
from jobs.models.files import variant_of
from jobs.models.joint_kinds import FLUX, SD3
from jobs.report.figure_schema import DeltaFigure, RateFigure
from jobs.report.formatting import plain_text
from jobs.report.mixture_schema import MixtureReport

__all__ = ["NOT_CHECKED", "REVERT", "export_card"]

NOT_CHECKED = "Not checked yet: the command that writes this is under way, or has failed.\n"
"""README.md of what is written, until it has been drawn with."""

_WHOLE = f'pipe = StableDiffusionPipeline.from_single_file("{FILES["single-file"]}")'
_TRANSFORMER = (
    f'transformer = {{kind}}.from_single_file("{FILES["single-file"]}", config=BASE, subfolder="transformer")\n'
    "pipe = StableDiffusionPipeline.from_pretrained(BASE, transformer=transformer)"
)
_WHOLE_OF_MIXTURE = 'StableDiffusionPipeline.from_single_file(f"{FOLDER}/{file}", config=BASE)'
_TRANSFORMER_OF_MIXTURE = (
    "StableDiffusionPipeline.from_pretrained(BASE, transformer={kind}.from_single_file("
    'f"{{FOLDER}}/{{file}}", config=BASE, subfolder="transformer"))'
)
_LOADING: dict[Form, str] = {
    "diffusers": "pipe = StableDiffusionPipeline.from_pretrained(FOLDER)",
    "single-file": _WHOLE,
    "lora": f'pipe.load_lora_weights(FOLDER, weight_name="{FILES["lora"]}")     # on the base model, at strength 1',
    "operator": "from load_operator import edited_prompt\n"
    'pipe(**edited_prompt(pipe, "a photo of a CEO"))     # on the base model',
    "tensors": "pipe.unet.load_state_dict(safetensors.torch.load_file"
    f'("{FILES["tensors"]}"), strict=False)     # on the base model',
}
REVERT: dict[Form, str] = {
    "lora": "Leave the LoRA out, or set its strength to 0. The prompts need no change either way.",
    "operator": "Give the pipeline the prompt as text: the operator changes its embeddings, never the model's files.",
}
"""How the edit is undone, of the forms whose model's weights stay as they are."""
_PIPELINE = "StableDiffusionPipeline"
_MARKUP = re.compile(r"([\\`*_\[\]<>|])")
_DENOISER = '{name} = {kind}.from_pretrained(FOLDER, subfolder="{name}")'
_CLASSES = {SD3: "SD3Transformer2DModel", FLUX: "FluxTransformer2DModel"}


def export_card(card: str, exported: Exported, *, only_unet: bool = False, mixture: MixtureReport | None = None) -> str:
    """The text of README.md.

    Args:
        card: the run's model card.
        exported: what was exported, and found of it.
        only_unet: a diffusers folder that holds the UNet or transformer only.
        mixture: of the run's report; None: the run made one edit.
    """
    lines = ["", f"## This export: {exported.form}", ""]
    if exported.forced:
        lines += ["**It was forced: a gate of the run did not pass. Do not ship it.**", ""]
    if exported.outcome != "pass":
        lines += ["**It did not pass its own check, below, and was not published. Do not ship it.**", ""]
    if mixture is not None:
        lines += [_named(mixture_loading(mixture, exported.form), exported), *_components(exported)]
    else:
        lines += ["```python", _loading(exported, only_unet=only_unet), "```", ""]
    if exported.rank is not None:
        of_parts = "" if mixture is None else ", as the next figures the largest of the components"
        lines += [
            f"Rank {exported.rank}{of_parts}: it leaves out {exported.error:.2e} of the edit (Frobenius norm over all "
            f"layers), {exported.weight_error:.2e} of the unedited weights; {exported.stored_error:.2e} of the edit as "
            "rounded in the file. A strength s gives W + s W (A - I): only 1 was audited.",
            "",
        ]
    lines += _checked(exported)
    if exported.audit is not None:
        audited = exported.audit
        lines += [
            f"Audited at this rank (run `{audited.run}`, verdict *{audited.verdict}*), beside the whole edit:",
            "",
            "| | at this rank | whole edit |",
            "|---|---|---|",
            f"| Delta, pooled | {_delta(audited.delta)} | {_delta(audited.delta_of_run)} |",
            f"| Delta, mean within wordings | {_delta(audited.delta_within)} | {_delta(audited.delta_within_of_run)} |",
            f"| explicit prompts right | {_rate(audited.explicit)} | |",
            "",
        ]
    return card.rstrip("\n") + "\n" + "\n".join(lines)


def _components(exported: Exported) -> list[str]:
    """Where each component lies, and that it is none of the whole's worth."""
    rows = ["| component | weight | alone in | rank |", "|---|---|---|---|"]
    for each in exported.components or []:
        place = "the unedited model" if each.place is None else f"`{each.place}`"
        label = _MARKUP.sub(r"\\\1", plain_text(each.label))
        rows.append(f"| {label} | {each.weight:.4g} | {place} | {each.rank or ''} |")
    said = (
        "**No component by itself is a debiased model:** it sends every profession to its label. Only all of them, by "
        "these weights, were audited."
    )
    return [*rows, "", said, ""]


def _checked(exported: Exported) -> list[str]:
    check = exported.shipped
    if check is None:
        return []
    apart = (
        "no image was drawn"
        if check.mean_difference is None or check.largest_difference is None
        else f"pixels differ by {check.mean_difference:.1e} on average, {check.largest_difference:.3f} at most (of 1)"
    )
    return [
        f"Checked once it was stored ({check.dtype}): {check.images} images drawn with it and with the audited edit, "
        f"on the audit's prompts, its own seeds first; {apart}; labels are the same in {_rate(check.same_label)}: "
        f"*{check.gate.outcome}*.",
        "",
    ]


def _delta(figure: DeltaFigure) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return "unknown"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}] (n = {figure.n:,})"


def _rate(figure: RateFigure) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return f"unknown (n = {figure.n:,})"
    return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}] (n = {figure.n:,})"


def _loading(exported: Exported, *, only_unet: bool) -> str:
    """The lines that load an export of a single edit."""
    own = denoiser_in(exported.pipeline)
    kind = _CLASSES.get(exported.pipeline, "UNet2DConditionModel")
    alone = only_unet and exported.form == "diffusers"
    loading = _DENOISER.format(name=own, kind=kind) if alone else _LOADING[exported.form]
    loading = _named(loading, exported)
    # Weights that the base model has in a variant alone, as fp16, are found by its name only.
    names = [name.removeprefix(f"{own}/") for name in exported.files if name.startswith(f"{own}/")]
    if exported.form == "diffusers" and (variant := variant_of(names, own)) is not None:
        return f'{loading[:-1]}, variant="{variant}")'
    return loading


def _named(loading: str, exported: Exported) -> str:
    """Lines for Stable Diffusion 1.x, with the base model's own class and component."""
    own = denoiser_in(exported.pipeline)
    if own == "transformer":
        # Single files of these families hold the transformer alone as often as not.
        loading = loading.replace(_WHOLE, _TRANSFORMER.format(kind=_CLASSES[exported.pipeline]))
        loading = loading.replace(_WHOLE_OF_MIXTURE, _TRANSFORMER_OF_MIXTURE.format(kind=_CLASSES[exported.pipeline]))
    return loading.replace(_PIPELINE, exported.pipeline).replace("pipe.unet.", f"pipe.{own}.")
