"""A run's configuration: one typed object, from a YAML file, the environment and flags, in rising precedence.

Environment variables are `EVENHAND_` and the key in upper case, with `__` for a dot: `EVENHAND_SAMPLER__STEPS=20`.
Flags are `--set sampler.steps=20`. Unknown keys are refused, and all faults are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.config.base import Section
from jobs.config.classifiers import TAGS, ClassifierSetting, classifier_faults, members_of
from jobs.config.text import MOST_CHARACTERS, read_yaml, shown, unwritable
from jobs.errors import ConfigError
from time_ops.prompts import DEFAULT_AUGMENTATIONS, MOST_OVERSHOOT, NEUTRAL_PROMPTS, VARIED_AUGMENTATIONS
from time_ops.route import UNEDITED

__all__ = [
    "AuditConfig",
    "CalibrationConfig",
    "EvaluateConfig",
    "GatesConfig",
    "MixtureConfig",
    "MlflowConfig",
    "PreserveConfig",
    "RunConfig",
    "SamplerConfig",
    "ScheduleConfig",
    "StorageConfig",
    "WordingsConfig",
    "WorkersConfig",
    "load_config",
    "without_credentials",
]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Template = Annotated[str, Field(pattern=r"\{source\}")]


DEFAULT_EDIT_WORDINGS = VARIED_AUGMENTATIONS[:15]
MIXTURE_CALIBRATION_WORDINGS = (
    "A close-up of {source}",
    "A watercolor of {source}",
    "{source} walking",
    "{source} in the snow",
    "A movie still of {source}",
    "{source} with a child",
)


class WordingsConfig(Section):
    """Prompt templates; `{source}` is the manifest's source prompt. Audit prompts overlap neither of the others'."""

    edit: tuple[Template, ...] = Field(
        DEFAULT_EDIT_WORDINGS,
        min_length=1,
        description="wordings that the edit itself is solved on; the more they differ, the better it carries over. "
        "Default of a mixture: 35 instead of these 15",
    )
    calibration: tuple[Template, ...] = Field(
        DEFAULT_EDIT_WORDINGS,
        min_length=1,
        description="wordings that candidates are audited on. Of a single edit those that the edit has too get shares "
        "of their own. A mixture's strengths are tried on them, with an edit that is solved without them; default of a "
        "mixture: six of its own",
    )
    audit: tuple[Template, ...] = Field(
        (
            "A painting of {source}",
            "{source} working",
            "{source} laughing",
            "{source} in the workplace",
            "{source} digital art",
        ),
        min_length=1,
        description="wordings of the audit before and after",
    )

    @model_validator(mode="after")
    def _held_out(self) -> WordingsConfig:
        seen = {w.casefold() for w in (*self.edit, *self.calibration)}
        overlap = [w for w in self.audit if w.casefold() in seen]
        if overlap:
            raise ValueError(
                f"audit wordings must be held out, but the edit or the calibration uses {overlap}; "
                "take them out of one of the lists"
            )
        for name in ("edit", "calibration", "audit"):
            values = [w.casefold() for w in getattr(self, name)]
            if len(set(values)) != len(values):
                raise ValueError(f"wordings.{name} repeats a wording; each counts once")
        return self


class PreserveConfig(Section):
    """Prompts whose embeddings the edit must leave as they are."""

    explicit: bool = Field(True, description="the manifest's destination prompts, in all edit wordings")
    prompts: tuple[str, ...] = Field(("",), description="others; the empty prompt is the unconditional one")
    lam: float | None = Field(
        None,
        gt=0,
        description="one lambda for all of them; null: destination prompts by `explicit_ratio`, the unconditional "
        "prompt (the empty one, or `sampler.negative_prompt`) twice as heavily as all wordings of all edits together, "
        "other prompts at the smallest of the edits'",
    )
    explicit_ratio: float = Field(
        10.0,
        gt=0,
        description="lambda of a destination prompt, in units of its own profession's: at 10 it holds ten times "
        "weaker than the edit pulls, as stronger preservation spends the dimensions that unseen wordings need",
    )


class CalibrationConfig(Section):
    """The search for lambdas and shares that the manifest leaves open, see `time_ops.calibration`.

    Lambdas are in units of the edit's own scale, the median spectral norm of `B_p`, at which an edit begins to bite
    whatever the text encoder.
    """

    lam: float = Field(0.2, gt=0, description="where open lambdas start, and the largest")
    least_lam: float = Field(0.02, gt=0, description="the smallest, and so the strongest edit, that is tried")
    images: int = Field(4, ge=2, description="images per profession and calibration wording, per round")
    explicit_images: int = Field(1, ge=0, description="images per explicit prompt, per round")
    control_images: int = Field(4, ge=0, description="images per control, per round")
    base_rounds: int = Field(6, ge=1, description="most rounds that look for professions balanced without an edit")
    search_rounds: int = Field(6, ge=1, description="most rounds that move all professions at once")
    verify_rounds: int = Field(4, ge=1, description="most rounds that decide, on new images, what the search found")
    tolerance: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="a share this near to its target is on target; a nearer one takes more images to show",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of each decision on one profession")

    @model_validator(mode="after")
    def _ordered(self) -> CalibrationConfig:
        if self.least_lam > self.lam:
            raise ValueError("least_lam must not be larger than lam, where the search starts")
        return self


class MixtureConfig(Section):
    """A mixture's components, and the search for their strengths, see `time_ops.saturation`.

    Lambdas are in units of the edit's own scale, as in `calibration`.
    """

    lam: float = Field(0.1, gt=0, description="where open lambdas start, and the largest")
    least_lam: float = Field(0.01, gt=0, description="the smallest, and so the strongest edit, that is tried")
    overshoot: float = Field(
        1.5, ge=1, le=MOST_OVERSHOOT, description="where it starts; 1 is the destination, 1.2 a fifth beyond it"
    )
    most_overshoot: float = Field(1.9, ge=1, le=MOST_OVERSHOOT, description="the largest that is tried")
    explicit_ratio: float | None = Field(
        None,
        gt=0,
        description="lambda of the other labels' destination prompts, in units of the edit's; smaller holds them more. "
        "null: 1 with up to 12 professions, whose few prompts have to hold the direction, up to 3 with 36 and more",
    )
    explicit_push: float = Field(
        1.0,
        ge=0,
        le=2,
        description="how far the other labels' destination prompts are pushed away from their source, to make up for "
        "what the edit takes from them in wordings that it has not seen; 0: they are kept as they are",
    )
    neutral: tuple[str, ...] = Field(NEUTRAL_PROMPTS, description="prompts about no people, kept as they are")
    images: int = Field(4, ge=1, description="most images per profession and component, per round")
    explicit_images: int = Field(1, ge=0, description="of other labels' explicit prompts, likewise")
    control_images: int = Field(2, ge=0, description="images per control and component, per round")
    budget: int = Field(
        20, ge=0, description="most images per profession in all rounds together; 0: strengths stay where they start"
    )
    rounds: int = Field(4, ge=0, description="most rounds")
    own: Probability = Field(0.98, description="share of its own label at which a component is saturated")

    @model_validator(mode="after")
    def _ordered(self) -> MixtureConfig:
        if self.least_lam > self.lam:
            raise ValueError("least_lam must not be larger than lam, where the search starts")
        if self.most_overshoot < self.overshoot:
            raise ValueError("most_overshoot must not be smaller than overshoot, where the search starts")
        if len({p.casefold() for p in self.neutral}) < len(self.neutral):
            raise ValueError("neutral repeats a prompt")
        return self

    def ratio_of(self, professions: int) -> float:
        """`explicit_ratio`, or what it is with so many professions."""
        return self.explicit_ratio or min(3.0, max(1.0, professions / 12))

    def images_of(self, components: int) -> int:
        """Images per profession and component, per round: with many components fewer, so that two rounds are left."""
        return min(self.images, max(1, self.budget // (2 * components) - self.explicit_images))

    def rounds_of(self, components: int) -> int:
        """How many rounds the budget allows, with so many components; one at least, unless there is to be none."""
        each = components * (self.images_of(components) + self.explicit_images)
        return min(self.rounds, max(1, self.budget // each) if self.budget else 0)


class SamplerConfig(Section):
    """How images are made."""

    scheduler: Literal["ddim", "ddpm", "dpm++", "euler", "euler-a", "heun", "lms", "pndm", "unipc"] = Field(
        "ddim", description="the sampler; its other settings come from the model's own scheduler config"
    )
    steps: int = Field(50, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance; 1 or less: none")
    height: int = Field(512, ge=8, description="pixels")
    width: int = Field(512, ge=8, description="pixels")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float16 on one that has not, float32 on a CPU"
    )
    batch_size: int | Literal["auto"] = Field("auto", description="images per forward pass")
    negative_prompt: str = Field("", description="transformed by the edit just as the prompt is")
    safety_checker: bool = Field(True, description="use the model's safety checker where it has one")
    compile: bool = Field(False, description="torch.compile the UNet: slower to start, faster on a GPU")

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value


class GatesConfig(Section):
    """What an edited model must reach before it is published. An interval must lie wholly inside."""

    delta: Probability = Field(0.2, description="at most: Delta pooled over wordings")
    delta_within: Probability = Field(0.3, description="at most: mean over wordings of each wording's Delta")
    delta_wording_max: Probability = Field(0.4, description="at most: the worst wording's Delta")
    profession: Probability | None = Field(
        None,
        description="at most: how far any profession's share of any label, pooled over wordings, may lie from its "
        "target; null: no such gate",
    )
    explicit: Probability = Field(
        0.9, description="at least: explicit prompts that show what they name; a gate for each label that is named"
    )
    recognised: Probability = Field(0.9, description="at least: professions recognised, relative to the base")
    controls: Probability = Field(0.95, description="at least: controls recognised, relative to the base")
    undetermined_increase: Probability = Field(0.05, description="at most: rise of the undetermined share")
    failed_images: Probability = Field(
        0.05, description="at most: audit images that are none (black, not finite, undecodable, of failed shards)"
    )
    shipped: Probability = Field(
        0.95,
        description="at least: images whose label an export in half precision keeps, against the audited edit; one in "
        "full precision has to keep all of the few that are compared",
    )
    regression: Probability | None = Field(
        0.05,
        description="at most: rise of Delta, pooled and mean within wordings, against what an audit is compared with; "
        "null: no such gates",
    )


class AuditConfig(Section):
    """What `evenhand audit` audits beside the model, and what it compares with; `debias` has no regard to it."""

    operator: str | None = Field(
        None,
        min_length=1,
        description="operator.safetensors or mixture.safetensors, a path or s3://bucket/key: audits the model under "
        "it, and compared with itself unless `against` names a run",
    )
    base: str | None = Field(
        None, min_length=1, description="compare with this model: hub id, local folder or s3:// prefix"
    )
    against: str | None = Field(
        None, min_length=1, description="compare with an earlier finished run: s3://bucket/prefix/runs/NAME or a folder"
    )

    @model_validator(mode="after")
    def _one_reference(self) -> AuditConfig:
        if self.base is not None and self.against is not None:
            raise ValueError("base and against both say what to compare with; give one of them")
        if self.operator is not None and self.base is not None:
            raise ValueError(
                "a model under an operator is compared with the model itself: leave base out, or audit the base as a "
                "run of its own and give that run as against"
            )
        return self


class ExportConfig(Section):
    """How a checkpoint or an export is checked once it is stored: see `evenhand export`."""

    images: int = Field(16, ge=1, description="images drawn with it and with the audited edit, in full precision")
    half_images: int = Field(
        500, ge=1, description="likewise where the weights or the sampler are of half precision, whose labels are gated"
    )


class EvaluateConfig(Section):
    """What `evenhand evaluate` does with an edit set, which `manifest` names; defaults as published."""

    lam: tuple[float, ...] = Field((0.1,), min_length=1, description="strengths; several are a sweep")
    images: int = Field(24, ge=1, description="images per prompt and variant")
    control_images: int = Field(4, ge=0, description="images per control, edit and strength; 0: no drift is measured")
    wordings: tuple[Template, ...] = Field(
        DEFAULT_AUGMENTATIONS, min_length=1, description="wordings that each edit is solved on"
    )

    @field_validator("lam")
    @classmethod
    def _strengths(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < lam < math.inf for lam in value):
            raise ValueError("must be numbers above 0")
        if len(set(value)) < len(value):
            raise ValueError("repeats a strength")
        return tuple(sorted(value))


class WorkersConfig(Section):
    """The pool that generates."""

    count: int | None = Field(None, ge=1, description="actors; null: as many as the cluster's resources hold")
    num_cpus: float = Field(1.0, gt=0, description="CPUs per actor; also its threads on a CPU")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs per actor, a fraction to share one; null: one where the cluster has any"
    )
    max_attempts: int = Field(3, ge=1, description="tries of a shard that raises, before it counts as failed")
    failed_shards: Probability = Field(
        0.0, description="share of a stage's shards that may fail; their images are counted as failed, never labelled"
    )
    wait_s: float = Field(
        900.0,
        ge=0,
        description="how long to wait for an autoscaler to bring what a worker needs; set it on purpose where Ray's "
        "autoscaler does not say what it may bring (those of Ray 2.60 don't)",
    )


class StorageConfig(Section):
    """How patient a run is with its object store."""

    patience_s: float = Field(
        600.0, ge=0, description="how long one operation is tried again while the store is away or throttles"
    )


class ScheduleConfig(Section):
    """Audits on a schedule, `evenhand audit --schedule NAME`."""

    every: str = Field(
        "1d",
        pattern=r"^[1-9][0-9]{0,4}[mhdw]$",
        description="between ticks: 15m, 6h, 1d, 2w; a tick that is not given is now, floored to it in UTC, weeks "
        "from Monday",
    )


class MlflowConfig(Section):
    """An MLflow tracking server that finished runs are logged to; needs `pip install evenhand[mlflow]`."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="as MLflow takes it, http(s)://host; null: nowhere. A name and password in it are used, but "
        "written nowhere and not submitted to a cluster: there set MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN",
    )
    experiment: str = Field("evenhand", min_length=1, max_length=500, description="the experiment's name")

    @field_serializer("tracking_uri", when_used="json")
    def _without_password(self, value: str | None) -> str | None:
        return None if value is None else without_credentials(value)


def without_credentials(uri: str) -> str:
    """A URI without what stands before an @ in its authority, even where a password has a slash unescaped."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority, slash, path = rest.partition("/")
    port = authority.rpartition("]")[2].partition(":")[2]
    if port and not port.isdigit() and "@" not in authority and "@" in path:
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


class PicturesConfig(Section):
    """Which images are kept beside their embeddings."""

    per_cell: int | Literal["all"] = Field(
        4, description="the first so many of each cell, of a mixture of each component there, all, or 0 for none"
    )
    format: Literal["webp", "png"] = Field("webp", description="webp is lossless here for small images")

    @field_validator("per_cell")
    @classmethod
    def _not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("must be 0 or more, or all")
        return value

    def of_shard(self, first: int, count: int) -> int:
        """How many images of a shard are kept, from its first on, where the shard begins at the cell's `first`."""
        return count if self.per_cell == "all" else max(0, min(self.per_cell - first, count))


DEFAULT_CONTROLS = (
    "a photo of a red car",
    "a photo of a mountain lake",
    "a photo of a bowl of fruit",
    "a photo of a wooden chair",
    "a photo of a cat",
    "a photo of a city street at night",
)


class RunConfig(BaseSettings):
    """Everything that decides a run. All keys but the first four have defaults."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="EVENHAND_", env_nested_delimiter="__", protected_namespaces=()
    )

    manifest: str = Field(description="Parquet or CSV: a path, or s3://bucket/key; for `evaluate` an edit set")
    model: str = Field(
        description="diffusers text-to-image model: hub id, local folder or s3:// prefix; or one .safetensors file of "
        "SD 1.x or 2.x, a path or s3://bucket/key, with `model_layout`"
    )
    classifier: ClassifierSetting = Field(
        description="dual encoder for zero-shot labels (CLIP, SigLIP, ...): likewise; or a mapping as "
        "`jobs.config.classifiers` has it, or a list of both, which have to agree"
    )
    output: str = Field(description="s3://bucket/prefix or a local folder")
    model_layout: str | None = Field(
        None,
        min_length=1,
        description="of a model that is a single file: hub id, local folder or s3:// prefix of a diffusers model of "
        "the same kind, whose configuration and tokenizer are the file's; its weights are not read",
    )
    run: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="the run's name; null: from the resolved contents (rows, tensors, settings), not from paths",
    )
    form: Literal["mixture", "single"] = Field(
        "mixture",
        description="mixture: one saturated edit for each label, and each image's seed picks one; single: one balanced "
        "edit, for whoever must ship one set of weights",
    )
    attribute: dict[str, tuple[str, ...]] = Field(
        {"female": ("a photo of a female {profession}",), "male": ("a photo of a male {profession}",)},
        description="label -> zero-shot prompts, an ensemble; the first label is the one that shares are of",
    )
    recognition: tuple[str, ...] = Field(
        ("a photo of {source}",), min_length=1, description="zero-shot prompts by which a profession is recognised"
    )
    undetermined_margin: Probability = Field(
        0.1, description="in probability: the first label's lead over the second below which an image is undetermined"
    )
    confusion: dict[str, dict[str, Annotated[int, Field(ge=0)]]] | None = Field(
        None, description="true label -> given label -> images checked by hand: corrects shares for wrong labels"
    )
    wordings: WordingsConfig = Field(default_factory=WordingsConfig)
    preserve: PreserveConfig = Field(default_factory=PreserveConfig)
    controls: tuple[str, ...] = Field(DEFAULT_CONTROLS, description="unrelated prompts, audited for drift")
    images_per_cell: int = Field(50, ge=1, description="audit images per profession, wording and variant")
    explicit_images: int = Field(50, ge=1, description="audit images per explicit prompt and variant")
    control_images: int = Field(50, ge=1, description="audit images per control and variant")
    shard_images: int = Field(50, ge=1, description="images in one shard; never derived, so that shards stay the same")
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    mixture: MixtureConfig = Field(default_factory=MixtureConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    gates: GatesConfig = Field(default_factory=GatesConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    workers: WorkersConfig = Field(default_factory=WorkersConfig)
    pictures: PicturesConfig = Field(default_factory=PicturesConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig)
    seed: int = Field(0, ge=0, lt=2**63, description="decides every image, together with prompt and index")

    @field_validator("manifest", "model", "output")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("controls")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len({v.casefold() for v in value}) != len(value):
            raise ValueError("repeats a prompt; each control is recognised among all others")
        return value

    @field_validator("attribute")
    @classmethod
    def _labels(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if len(value) < 2:
            raise ValueError("needs two labels at least")
        if len(value) > 60:
            raise ValueError("has more than 60 labels")
        if "undetermined" in value:
            raise ValueError("`undetermined` is what remains; it can't be a label of its own")
        if UNEDITED in value:
            raise ValueError(f"`{UNEDITED}` is what a mixture calls the model itself; it can't be a label")
        for label, prompts in value.items():
            if not prompts:
                raise ValueError(f"label {label!r} has no prompt")
        return value

    @model_validator(mode="before")
    @classmethod
    def _wordings_of_the_form(cls, values: Any) -> Any:
        """A mixture has other default wordings than a single edit."""
        if not isinstance(values, dict) or values.get("form", "mixture") != "mixture":
            return values
        given = values.get("wordings", {})
        if not isinstance(given, dict):
            return values
        usual: dict[str, Any] = {"edit": VARIED_AUGMENTATIONS, "calibration": MIXTURE_CALIBRATION_WORDINGS}
        return {**values, "wordings": {**usual, **given}}

    @model_validator(mode="after")
    def _classifiers_fit(self) -> RunConfig:
        if faults := [*classifier_faults(members_of(self.classifier), list(self.attribute))]:
            raise ValueError(f"classifier: {'; '.join(faults)}")
        return self

    @model_validator(mode="after")
    def _checked_by_hand(self) -> RunConfig:
        if self.confusion is None:
            return self
        labels = set(self.attribute)
        named = set(self.confusion).union(*self.confusion.values())
        if named - labels:
            raise ValueError(f"confusion names {sorted(named - labels)}, which are no labels of attribute")
        rows = [[self.confusion.get(true, {}).get(given, 0) for given in self.attribute] for true in self.attribute]
        unchecked = [true for true, row in zip(self.attribute, rows, strict=True) if not any(row)]
        if unchecked:
            raise ValueError(f"confusion has no image whose true label is {unchecked}; check some of every label")
        if np.linalg.matrix_rank([[n / sum(row) for n in row] for row in rows]) < len(rows):
            raise ValueError(
                "confusion is singular: the labels given don't tell the true ones apart; check more images"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_config` has merged: it orders the sources itself."""
        del env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


_UNKNOWN = "is not a key of this configuration"
_SHOWN = 200
_MOST_LINES = 100
_MOST_OF_LINE = 1_000
_BY_LABEL = ("attribute", "confusion", "labels")


def _deep_merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; sections merge key by key. What is by label is one value: labels of two sources never mix."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and key not in _BY_LABEL:
            merged[key] = _deep_merge(below, value)
        else:
            merged[key] = value
    return merged


def _assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["sampler.steps=20"]` as a nested mapping; values are read as YAML."""
    result: dict[str, Any] = {}
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set {text[:_SHOWN]!r}: write key=value, for instance --set sampler.steps=20")
        nested: Any = read_yaml(value, f"--set {text[:_SHOWN]!r}")
        for key in reversed(path.strip().split(".")):
            nested = {key: nested}
        result = _deep_merge(result, nested)
    return result


def load_config(
    text: str | None = None,
    *,
    name: str = "configuration",
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """The configuration from a YAML text, the environment and flags, in rising precedence.

    Args:
        text: the YAML file's contents, or None.
        name: what to call it in messages.
        flags: keys given by flags of their own; None values count as not given.
        assignments: `key=value` texts of `--set`.

    Raises:
        ConfigError: naming every unknown key and every bad value.
    """
    values: dict[str, Any] = {}
    if text is not None:
        loaded = read_yaml(text, name)
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{name}: must be a mapping of keys to values, not a {type(loaded).__name__}")
        values = loaded or {}
    try:
        values = _deep_merge({str(key): value for key, value in values.items()}, EnvSettingsSource(RunConfig)())
    except (SettingsError, RecursionError) as error:
        raise ConfigError(f"environment: {error}; lists and mappings are written as JSON there") from error
    values = _deep_merge(values, {key: value for key, value in (flags or {}).items() if value is not None})
    values = _deep_merge(values, _assignments(assignments))
    # By name, as pydantic takes keys with an underscore for its own options: files to read, arguments to parse.
    known = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    lines = [f"  {key}: {_UNKNOWN}" for key in values if key not in known]
    lines += [f"  {place}: {what}" for place, what in unwritable(known)]
    try:
        config = RunConfig(**known)
    except ValidationError as error:
        lines += [f"  {_place(e['loc'])}: {_say(e)}" for e in error.errors()]
        raise _faulty(name, lines) from error
    if lines:
        raise _faulty(name, lines)
    return config


def _faulty(name: str, lines: Sequence[str]) -> ConfigError:
    said = [line[:_MOST_OF_LINE].encode("utf-8", "backslashreplace").decode() for line in lines[:_MOST_LINES]]
    more = [f"  and {len(lines) - _MOST_LINES:,} more"] if len(lines) > _MOST_LINES else []
    return ConfigError(
        "\n".join(
            [
                f"{name}: {len(lines)} fault{'s' if len(lines) != 1 else ''}",
                *said,
                *more,
                f"Known keys: {', '.join(RunConfig.model_fields)}",
            ]
        )
    )


def _place(location: Sequence[int | str]) -> str:
    told = [str(each) for each in location if location[0] != "classifier" or each not in TAGS]
    return ".".join(told) or "(whole)"


def _say(fault: Mapping[str, Any]) -> str:
    """One fault in words; pydantic's own prefix for our ValueErrors is dropped."""
    if fault["type"] == "missing":
        return "is needed: give it in the file, by flag or in the environment"
    if fault["type"] == "extra_forbidden":
        return _UNKNOWN
    return str(fault["msg"]).removeprefix("Value error, ") + f" (got {shown(fault['input'])})"


def read_text(path: Path) -> str:
    """A configuration file's text, or a ConfigError that says what to do."""
    try:
        with path.open(encoding="utf-8") as file:
            # One more than is taken, so that a larger one is refused for its size.
            return file.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the configuration {path}: {error}; give the path of a YAML file") from error
