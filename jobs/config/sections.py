"""The sections of a run's configuration: one class per concern, every field with what it does."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from jobs.config.base import Section
from jobs.redact import without_credentials
from time_ops.prompts import DEFAULT_AUGMENTATIONS, VARIED_AUGMENTATIONS

__all__ = [
    "DEFAULT_CONTROLS",
    "MIXTURE_CALIBRATION_WORDINGS",
    "AuditConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GatesConfig",
    "MlflowConfig",
    "PicturesConfig",
    "PreserveConfig",
    "Probability",
    "SamplerConfig",
    "ScheduleConfig",
    "StorageConfig",
    "WordingsConfig",
    "WorkersConfig",
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
    """Prompt templates. `{source}` stands for the manifest's source prompt. No audit wording is in another list."""

    edit: tuple[Template, ...] = Field(
        DEFAULT_EDIT_WORDINGS,
        min_length=1,
        description="wordings that the edit itself is solved on. The more they differ, the better it carries over. "
        "Default of a mixture: 35 instead of these 15",
    )
    calibration: tuple[Template, ...] = Field(
        DEFAULT_EDIT_WORDINGS,
        min_length=1,
        description="wordings on which the search tries strengths. A single edit gives those that are in `edit` too "
        "shares of their own. A mixture tries strengths with edits that are solved without these wordings. Default of "
        "a mixture: six of its own",
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
        description="wordings of the audits before and after the edit",
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
    prompts: tuple[str, ...] = Field(
        ("",), description="other prompts. The empty one is the prompt of unconditional guidance"
    )
    lam: float | None = Field(
        None,
        gt=0,
        description="one lambda for all of them. null: destination prompts by `explicit_ratio`. The unconditional "
        "prompt (the empty one, or `sampler.negative_prompt`) is held twice as heavily as all edits together. Other "
        "prompts have the smallest lambda of the edits",
    )
    explicit_ratio: float = Field(
        10.0,
        gt=0,
        description="of `form: single` only: lambda of a destination prompt, in units of its own profession's. At 10 "
        "the prompt is held ten times weaker than the edit pulls. Holding it more strongly spends dimensions that "
        "unseen wordings need",
    )


class SamplerConfig(Section):
    """How images are made."""

    scheduler: Literal["ddim", "ddpm", "dpm++", "euler", "euler-a", "heun", "lms", "pndm", "unipc", "flow-euler"] = (
        Field(
            "ddim",
            description="the sampler. Its other settings come from the model's own scheduler config. SD3 and FLUX take "
            "flow-euler, other models any other",
        )
    )
    steps: int = Field(50, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(
        7.5, ge=0, description="classifier-free guidance. 1 or less: none. FLUX reads the number itself"
    )
    height: int = Field(512, ge=8, description="pixels")
    width: int = Field(512, ge=8, description="pixels")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float16 on other GPUs, float32 on a CPU"
    )
    batch_size: int | Literal["auto"] = Field("auto", description="images per forward pass")
    negative_prompt: str = Field("", description="transformed by the edit as the prompt is. FLUX reads none")
    safety_checker: bool = Field(True, description="use the model's safety checker where it has one")
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="whether torch.compile compiles the UNet or transformer. The start takes a minute more, and images "
        "then take less. auto: on a GPU in half precision with a C compiler, if the run has enough images to pay for "
        "it",
    )

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value


class GatesConfig(Section):
    """What an edited model must reach before it is published. The whole interval must lie inside the limit."""

    delta: Probability = Field(
        0.2, description="at most: Delta, pooled over wordings ([report.md](report.md) defines Delta)"
    )
    delta_within: Probability = Field(0.3, description="at most: the mean of the wordings' Deltas")
    delta_wording_max: Probability = Field(0.4, description="at most: the worst wording's Delta")
    profession: Probability | None = Field(
        None,
        description="at most: distance of any profession's share of any label from its target, pooled over wordings. "
        "null: no such gate",
    )
    explicit: Probability = Field(
        0.9,
        description="at least: share of explicit prompts' images that show the label named. One gate for each label",
    )
    recognised: Probability = Field(0.9, description="at least: professions recognised, relative to the base")
    controls: Probability = Field(0.95, description="at least: controls recognised, relative to the base")
    undetermined_increase: Probability = Field(0.05, description="at most: rise of the undetermined share")
    failed_images: Probability = Field(
        0.05,
        description="at most: share of audit images that failed (black, not finite, undecodable, of failed shards)",
    )
    shipped: Probability = Field(
        0.95,
        description="at least: share of images whose label an export in half precision keeps, against the audited "
        "edit. One in full precision has to keep the labels of all images that are compared",
    )
    regression: Probability | None = Field(
        0.05,
        description="at most: rise of Delta against what an audit is compared with. Read for Delta pooled, and for the "
        "mean within wordings. null: no such gates",
    )


class AuditConfig(Section):
    """What `evenhand audit` audits beside the model, and what it compares with. `debias` ignores this section."""

    operator: str | None = Field(
        None,
        min_length=1,
        description="operator.safetensors or mixture.safetensors, a path or s3://bucket/key. The model is audited "
        "under it, and compared with the model itself unless `against` names a run",
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
    """How a checkpoint or an export is checked once it is stored. [exports.md](exports.md) describes the check."""

    images: int = Field(
        16, ge=1, description="in full precision: images drawn with the export, and again with the audited edit"
    )
    half_images: int = Field(
        500, ge=1, description="likewise if weights or sampler are in half precision. Their labels are gated"
    )


class EvaluateConfig(Section):
    """What `evenhand evaluate` does with the edit set that `manifest` names. Defaults are those of the TIME paper."""

    lam: tuple[float, ...] = Field((0.1,), min_length=1, description="strengths. Several make a sweep")
    images: int = Field(24, ge=1, description="images per prompt and variant")
    control_images: int = Field(4, ge=0, description="images per control, edit and strength. 0: drift is not measured")
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
    """The processes that draw images. Each is a Ray actor, an *actor* below."""

    count: int | None = Field(None, ge=1, description="actors. null: as many as the cluster's resources hold")
    num_cpus: float = Field(1.0, gt=0, description="CPUs per actor, and its threads on a CPU")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs per actor. A fraction shares one. null: one where the cluster has any"
    )
    max_attempts: int = Field(3, ge=1, description="attempts at a shard before it counts as failed")
    failed_shards: Probability = Field(
        0.0,
        description="share of a stage's shards that may fail. A *stage* is one pass of drawing, such as the base "
        "audit. Images of failed shards count as failed and have no label",
    )
    wait_s: float = Field(
        900.0,
        ge=0,
        description="how long to wait for an autoscaler to bring what a worker needs. Set it yourself if Ray's "
        "autoscaler does not say what it may bring. Those of Ray 2.60 do not",
    )


class StorageConfig(Section):
    """How patient a run is with its object store."""

    patience_s: float = Field(
        600.0, ge=0, description="how long one operation is retried while the store is unavailable or throttles"
    )


class ScheduleConfig(Section):
    """Audits on a schedule, `evenhand audit --schedule NAME`."""

    every: str = Field(
        "1d",
        pattern=r"^[1-9][0-9]{0,4}[mhdw]$",
        description="time between ticks, such as 15m, 6h, 1d, 2w. A *tick* is the time that an audit stands for. "
        "Without --tick it is now in UTC, rounded down to this. Weeks begin on Monday",
    )


class MlflowConfig(Section):
    """An MLflow tracking server that finished runs are logged to. It needs the extra `mlflow`."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="as MLflow takes it, http(s)://host. null: nothing is logged. A name and password in it are used, "
        "but not written anywhere and not sent to a cluster. On a cluster set MLFLOW_TRACKING_USERNAME and _PASSWORD, "
        "or _TOKEN",
    )
    experiment: str = Field("evenhand", min_length=1, max_length=500, description="the experiment's name")

    @field_serializer("tracking_uri", when_used="json")
    def _without_password(self, value: str | None) -> str | None:
        return None if value is None else without_credentials(value)


class PicturesConfig(Section):
    """Which images are kept beside their embeddings."""

    per_cell: int | Literal["all"] = Field(
        4,
        description="how many images of each cell are kept, the first ones. With a mixture, of each component in a "
        "cell. Or `all`, or 0 for none",
    )
    format: Literal["webp", "png"] = Field("webp", description="webp is lossless for small images")

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
