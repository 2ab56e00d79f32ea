"""What a run is asked to do: its settings, typed, and how they are read."""

from jobs.config.loading import load_config, read_text
from jobs.config.run import RunConfig
from jobs.config.searches import CalibrationConfig, MixtureConfig
from jobs.config.sections import (
    DEFAULT_EDIT_WORDINGS,
    MIXTURE_CALIBRATION_WORDINGS,
    AuditConfig,
    EvaluateConfig,
    GatesConfig,
    MlflowConfig,
    PreserveConfig,
    SamplerConfig,
    ScheduleConfig,
    StorageConfig,
    WordingsConfig,
    WorkersConfig,
)

__all__ = [
    "DEFAULT_EDIT_WORDINGS",
    "MIXTURE_CALIBRATION_WORDINGS",
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
    "read_text",
]
