"""What the header of every exported file says: ModelSpec 1.0.1, which other programs show, and where the edit is from.

ModelSpec is Stability AI's standard for metadata of model files. Fields under `evenhand.` name contents by digest and
carry no path of a machine. Nothing is taken from the clock: the same run gives the same header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs.models.files import denoiser_folder
from jobs.models.names import family_of
from jobs.report.figure_schema import Verdict
from time_ops import EditOperator, Mixture, ModelError
from time_ops.files import json_of

__all__ = [
    "Form",
    "ModelSpec",
    "Provenance",
    "component_header",
    "file_header",
    "lams_digest",
    "not_alone",
    "spec_of",
]

Form = Literal["single_file", "lora", "tensors", "operator", "mixture"]

_VERSION = "1.0.1"
_FLUX_SIZE = 128
_UNKNOWN_ARCHITECTURE = "stable-diffusion-custom"
# A path, or a place on some store, in a value that is to be published.
_PLACE = re.compile(r"""(?:^|[\s"'(=,])(?:~?/\w|[A-Za-z]:\\|file:|s3://)""")


@dataclass(frozen=True)
class ModelSpec:
    """What a reader of the file is told of the model.

    Attributes:
        title: name that a program shows.
        architecture: ModelSpec's name of it, "stable-diffusion-v1" and so on, without a suffix.
        resolution: in pixels, "512x512".
        prediction_type: "epsilon" or "v"; None: it matches a flow.
        description: some sentences.
        author: who made it.
        date: ISO 8601, of the run; never that of the export.
        license: of the base model, passed on.
        usage_hint: one sentence.
    """

    title: str
    architecture: str
    resolution: str
    prediction_type: str | None = None
    description: str | None = None
    author: str | None = None
    date: str | None = None
    license: str | None = None
    usage_hint: str | None = None


@dataclass(frozen=True)
class Provenance:
    """Where an edit is from.

    Attributes:
        base_digest: of the base model's content.
        manifest_digest: of the manifest.
        lams_digest: see `lams_digest`.
        run: the run's name.
        verdict: of its audit.
        forced: whether it was exported although the gates did not pass.
    """

    base_digest: str
    manifest_digest: str
    lams_digest: str
    run: str
    verdict: Verdict
    forced: bool = False


def file_header(form: Form, spec: ModelSpec, provenance: Provenance) -> dict[str, str]:
    """Metadata of one file; the hash of its tensors is added where it is written.

    A licence is the words of the base model's card: one that names a place is left out, as no fault of the run's.

    Raises:
        ValueError: any other value names a path, or a place in a store.
    """
    implementation = {"single_file": "sgm", "lora": "diffusers", "tensors": "diffusers"}.get(form, "evenhand")
    suffix = {"lora": "/lora", "operator": "/evenhand-operator", "mixture": "/evenhand-mixture"}.get(form, "")
    if form == "lora" and spec.architecture.startswith("stable-diffusion-xl"):
        # Its names are those of the original code.
        implementation = "sgm"
    if spec.license is not None and _PLACE.search(spec.license):
        spec = replace(spec, license=None)
    fields = {
        "sai_model_spec": _VERSION,
        "implementation": implementation,
        **vars(replace(spec, architecture=spec.architecture + suffix)),
    }
    header = {f"modelspec.{key}": value for key, value in fields.items() if value is not None}
    header |= {
        f"evenhand.{key}": ("true" if value else "false") if isinstance(value, bool) else value
        for key, value in vars(provenance).items()
    }
    places = [f"{key}: {value!r}" for key, value in header.items() if _PLACE.search(value)]
    if places:
        raise ValueError(f"published metadata names a place: {'; '.join(places)}")
    return header


def component_header(header: Mapping[str, str], label: str, mixture: str) -> dict[str, str]:
    """A file's header once it also says of which mixture it is a component, and that it is none by itself.

    Args:
        header: see `file_header`.
        label: of the component.
        mixture: the mixture's digest.
    """
    said = not_alone(label)
    return {
        **header,
        "modelspec.title": f"{label} only, not debiased: one component of {header['modelspec.title']}",
        "modelspec.description": said,
        "evenhand.is": said,
        "evenhand.component": label,
        "evenhand.mixture": mixture,
    }


def not_alone(label: str) -> str:
    """What a component of a mixture is not, in the words of every header and card."""
    return (
        f"Not a debiased model: one component of a mixture. By itself it sends every profession to {label!r}. Only the "
        "whole mixture, whose components take turns by each image's seed, was audited."
    )


def lams_digest(edit: EditOperator | Mixture) -> str:
    """sha256 in hex of the strengths that an edit was solved with, by source prompt, in the order of its steps.

    Of a mixture those of all components, by label.
    """
    if isinstance(edit, Mixture):
        lams: Any = [[component.label, _lams(component.operator)] for component in edit.components]
    else:
        lams = _lams(edit)
    return hashlib.sha256(json.dumps(lams).encode()).hexdigest()


def _lams(operator: EditOperator) -> list[list[tuple[str, str]]]:
    return [sorted((r.source, repr(r.lam)) for r in step.edits) for step in operator.steps]


def spec_of(folder: Path, title: str, **others: str | None) -> ModelSpec:
    """What a diffusers folder says of itself.

    Args:
        folder: of the base model.
        title: see `ModelSpec`.
        others: its other attributes, from `description` on.

    Raises:
        ModelError: a configuration that can't be read.
    """
    part = denoiser_folder(folder)
    config, vae = _config(part / "config.json"), _config(folder / "vae" / "config.json")
    predicts_v = _config(folder / "scheduler" / "scheduler_config.json").get("prediction_type") == "v_prediction"
    # FLUX's configuration says no size; its pipeline draws 128 latents wide where it is told none.
    side = int(config.get("sample_size", _FLUX_SIZE)) * 2 ** (len(vae["block_out_channels"]) - 1)
    flow = family_of(config) in ("sd3", "flux")
    return ModelSpec(
        title=title,
        architecture=_architecture(config, predicts_v=predicts_v),
        resolution=f"{side}x{side}",
        # ModelSpec has no word for what matches a flow.
        prediction_type=None if flow else "v" if predicts_v else "epsilon",
        **others,
    )


def _architecture(config: Mapping[str, Any], *, predicts_v: bool) -> str:
    """The name that programs know; sizes of SD3, which no name of its configuration tells, are not in it."""
    family = family_of(config)
    if family == "sd3":
        return "stable-diffusion-3"
    if family == "flux":
        return "flux-1-dev" if config.get("guidance_embeds") else "flux-1-schnell"
    width = config["cross_attention_dim"]
    if family == "xl":
        return {2048: "stable-diffusion-xl-v1-base", 1280: "stable-diffusion-xl-v1-refiner"}.get(
            width, _UNKNOWN_ARCHITECTURE
        )
    second = "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512"
    return {768: "stable-diffusion-v1", 1024: second}.get(width, _UNKNOWN_ARCHITECTURE)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path.parent.name}/{path.name} is not a configuration")
    return config
