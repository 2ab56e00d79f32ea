"""Exit codes, and the errors that end a job.

Errors of the lower packages (`ManifestError`, `EditError`, `ModelError`, `StorageError`) are mapped here and
nowhere else. All of them pickle, because they cross Ray. A user's mistake is printed without a traceback.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ClusterError",
    "ConfigError",
    "ExitCode",
    "JobError",
    "LeaseHeldError",
    "ShardsFailedError",
    "exit_code_of",
]


class ExitCode(IntEnum):
    """What the driver ends with; `evenhand submit` hands on the same code."""

    DONE = 0
    FAULT = 1
    INPUT = 2
    MODEL = 3
    STORAGE = 4
    GATE_FAILED = 5
    GATE_INCONCLUSIVE = 6
    SHARDS_FAILED = 7
    CLUSTER = 8
    LEASE_HELD = 9
    INTERRUPTED = 130
    TERMINATED = 143


class JobError(Exception):
    """A failure with a message for the user and an exit code of its own."""

    code = ExitCode.FAULT


class ConfigError(JobError):
    """The configuration, or something it names, must be mended; the message lists every fault."""

    code = ExitCode.INPUT


class ClusterError(JobError):
    """The Ray cluster can't run this job, now or ever."""

    code = ExitCode.CLUSTER


class LeaseHeldError(JobError):
    """Another driver is working on this run."""

    code = ExitCode.LEASE_HELD


class NotPassedError(JobError):
    """What was asked for is not done to a run whose gates did not pass."""

    def __init__(self, message: str, verdict: str) -> None:
        super().__init__(message)
        self.code = ExitCode.GATE_FAILED if verdict == "fail" else ExitCode.GATE_INCONCLUSIVE


class ShardsFailedError(JobError):
    """Some shards failed for good; what was done stays done."""

    code = ExitCode.SHARDS_FAILED


def exit_code_of(error: BaseException) -> ExitCode | None:
    """The documented code of an error the user can act on; None where it is an internal error."""
    if isinstance(error, JobError):
        return error.code
    # Imported only when something has failed: they bring torch and boto3, and `evenhand --help` needs neither.
    from infra.local.errors import LocalError
    from infra.storage import InvalidKey, StorageError
    from jobs.shards import ShardError
    from manifests.errors import ManifestError
    from time_ops.errors import EditError, ModelError

    codes: dict[type[Exception], ExitCode] = {
        ManifestError: ExitCode.INPUT,
        EditError: ExitCode.INPUT,
        InvalidKey: ExitCode.INPUT,
        ModelError: ExitCode.MODEL,
        StorageError: ExitCode.STORAGE,
        ShardError: ExitCode.STORAGE,
        LocalError: ExitCode.CLUSTER,
    }
    for kind, code in codes.items():
        if isinstance(error, kind):
            return code
    return None
