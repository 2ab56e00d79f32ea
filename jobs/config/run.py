"""A run's configuration: one typed object, from a YAML file, the environment and flags, in rising precedence.

Environment variables are `EVENHAND_` and the key in upper case, with `__` for a dot: `EVENHAND_SAMPLER__STEPS=20`.
Flags are `--set sampler.steps=20`. Unknown keys are refused, and all faults are reported at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from jobs.config.classifiers import ClassifierSetting, classifier_faults, members_of
from jobs.config.searches import CalibrationConfig, MixtureConfig
from jobs.config.sections import (
    DEFAULT_CONTROLS,
    MIXTURE_CALIBRATION_WORDINGS,
    AuditConfig,
    EvaluateConfig,
    ExportConfig,
    GatesConfig,
    MlflowConfig,
    PicturesConfig,
    PreserveConfig,
    Probability,
    SamplerConfig,
    ScheduleConfig,
    StorageConfig,
    WordingsConfig,
    WorkersConfig,
)
from time_ops.prompts import VARIED_AUGMENTATIONS
from time_ops.route import UNEDITED

__all__ = ["RunConfig"]


class RunConfig(BaseSettings):
    """Everything that decides a run. All keys but the first four have defaults."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="EVENHAND_", env_nested_delimiter="__", protected_namespaces=()
    )

    manifest: str = Field(description="Parquet or CSV: a path, or s3://bucket/key; for `evaluate` an edit set")
    model: str = Field(
        description="diffusers text-to-image model: hub id, local folder or s3:// prefix. Or one .safetensors file of "
        "SD 1.x or 2.x: a path or s3://bucket/key, with `model_layout`"
    )
    classifier: ClassifierSetting = Field(
        description="dual encoder for zero-shot labels (CLIP, SigLIP, ...): hub id, local folder or s3:// prefix. Or a "
        "mapping ([classifiers.md](classifiers.md)). Or a list of both, which have to agree"
    )
    output: str = Field(description="s3://bucket/prefix or a local folder")
    model_layout: str | None = Field(
        None,
        min_length=1,
        description="where `model` is a single file: hub id, local folder or s3:// prefix of a diffusers model of the "
        "same kind. Its configuration and tokenizer are used, and its weights are not read",
    )
    run: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="the run's name. null: made from rows, tensors and settings, not from paths",
    )
    form: Literal["mixture", "single"] = Field(
        "mixture",
        description="mixture: one saturated edit for each label. Each image's seed picks one. single: one balanced "
        "edit, where one set of weights must be shipped",
    )
    attribute: dict[str, tuple[str, ...]] = Field(
        {"female": ("a photo of a female {profession}",), "male": ("a photo of a male {profession}",)},
        description="label -> zero-shot prompts, whose embeddings are averaged. Shares are of the first label",
    )
    recognition: tuple[str, ...] = Field(
        ("a photo of {source}",), min_length=1, description="zero-shot prompts by which a profession is recognised"
    )
    undetermined_margin: Probability = Field(
        0.1, description="an image is undetermined where its likeliest label leads the second by less, in probability"
    )
    confusion: dict[str, dict[str, Annotated[int, Field(ge=0)]]] | None = Field(
        None, description="true label -> given label -> number of images checked by hand. Shares are corrected by it"
    )
    wordings: WordingsConfig = Field(default_factory=WordingsConfig)
    preserve: PreserveConfig = Field(default_factory=PreserveConfig)
    controls: tuple[str, ...] = Field(DEFAULT_CONTROLS, description="unrelated prompts, audited for drift")
    images_per_cell: int = Field(50, ge=1, description="audit images per profession, wording and variant")
    explicit_images: int = Field(50, ge=1, description="audit images per explicit prompt and variant")
    control_images: int = Field(50, ge=1, description="audit images per control and variant")
    shard_images: int = Field(50, ge=1, description="images in one shard. Another number makes other shards")
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
    seed: int = Field(
        0, ge=0, lt=2**63, description="decides every image, together with its prompt and its place in the cell"
    )

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
