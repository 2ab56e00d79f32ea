"""A plan's figures, as `evenhand plan --json` prints them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Plan", "RateEstimate", "StagePlan", "StorageEstimate"]


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StagePlan(_Figures):
    """One stage. Where its edit is not known yet, nothing of it is known to be stored."""

    name: str
    rounds_at_most: int = Field(description="times that it generates all its images, each under another edit")
    images: int
    shards: int
    images_stored: int | None = Field(description="None: not known before the edit is")
    shards_stored: int | None = Field(description="found in the store; they are verified only when they are used")
    images_to_make: int
    shards_to_make: int
    worker_s: float | None = Field(None, description="seconds of one worker, models' loading not counted")
    wall_s: float | None = Field(None, description="seconds with all workers")


class StorageEstimate(_Figures):
    """What a run stores."""

    shards_bytes: int = Field(description="all shards of the run, those stored already included")
    shards_bytes_to_write: int
    checkpoint_bytes: int
    basis: str


class MemoryEstimate(_Figures):
    """What the model's weights take on each worker; images under way and classifiers come on top."""

    weights_bytes: int = Field(description="all components, in the dtype that they run in")
    encoding_bytes: int = Field(
        description="the text encoders once more in float32, while prompts are encoded; 0 where they run in it"
    )


class RateEstimate(_Figures):
    """How fast one worker is."""

    images_per_s: float | None
    source: Literal["given", "measured"] | None
    sampled_shards: int = Field(0, description="stored shards of the same recipe that the median is of")
    device: str | None = Field(None, description="what these were made on")


class Plan(_Figures):
    """What `evenhand debias` with the same configuration will do. Figures of the calibration are upper bounds."""

    schema_version: Literal[1] = 1
    run: str
    url: str
    identity: str
    professions: int
    stages: list[StagePlan]
    images: int
    shards: int
    images_to_make: int
    shards_to_make: int
    storage: StorageEstimate
    memory: MemoryEstimate
    rate: RateEstimate
    workers: int | None
    worker_hours: float | None
    gpu_hours: float | None = Field(description="None: not known whether workers have GPUs")
    wall_hours: float | None
    dtype: str
    dtype_asked: str
    versions: dict[str, str]
    host: str
    advice: list[str]
    notes: list[str]
