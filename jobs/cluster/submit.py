"""Submit a run to a Ray cluster, follow it, and return the driver's own exit code.

`ray job submit` ends with 1 for any failure and 0 for a stopped job; the driver's code is only in the API.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console
from rich.progress import Progress, TaskID

from jobs.cluster.progress import MARK, bars, update_bar
from jobs.config import AuditConfig, RunConfig
from jobs.errors import ClusterError, ExitCode
from jobs.images.judging import with_models

__all__ = ["submit"]

# They set a level of their own, so that of "ray" does not reach them.
_CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
# What Ray's client raises: of its own, of requests (an OSError), and where an answer is not what it thinks it is.
_FAILURES = (RuntimeError, OSError, RayError, LookupError, TypeError, ValueError)
# What Ray itself begins a job's log with; the job and its command have been told.
_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s+INFO job_manager\.py|Running entrypoint for job ")
_POLL_S = 1.0
_SILENCE_S = 300.0


def submit(
    config: RunConfig,
    address: str,
    console: Console,
    *,
    command: str = "debias",
    arguments: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    submission_id: str | None = None,
    python: str = "python",
) -> int:
    """Submit, show the driver's output and progress, and wait.

    Files of this machine that the configuration names travel along: manifest and operator as the job's working
    directory, local folders of models and runs by their absolute path, which the cluster's nodes must share.

    Args:
        config: the run.
        address: the dashboard, `http://host:8265`.
        console: where to show it.
        command: which job.
        arguments: flags of its own.
        headers: of the dashboard, such as authorization; a secret, never logged.
        submission_id: an idempotency key: a job of this id that exists is followed, not started again.
        python: the interpreter on the cluster that has Evenhand installed.

    Returns:
        The driver's exit code; 143 where the job was stopped, 1 where Ray does not say.

    Raises:
        ClusterError: the cluster can't be reached, refuses the token, or does not take the job.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address, headers=dict(headers) if headers else None)
        existing = {job.submission_id for job in client.list_jobs()} if submission_id else set()
    except _FAILURES as error:
        raise _refused(error, address, "no Ray dashboard answers", "`evenhand local up` starts one here") from error
    with tempfile.TemporaryDirectory(prefix="evenhand-submit-") as scratch:
        if submission_id in existing:
            job = str(submission_id)
            console.print(f"job {job} was submitted before; following it")
        else:
            entrypoint = shlex.join([python, "-m", f"jobs.{command}", "run.yaml", *arguments])
            try:
                job = _submit_job(client, config, Path(scratch), entrypoint, submission_id)
            except _FAILURES as error:
                hint = "see the log of Ray's dashboard on the head"
                raise _refused(error, address, "the dashboard does not take the job", hint) from error
            console.print(f"submitted as {job} to {address}")
        try:
            asyncio.run(_follow(client, job, console))
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            console.print(f"lost the job's log ({error}); waiting for its end", markup=False, highlight=False)
    return _exit_code(client, job)


def _submit_job(
    client: JobSubmissionClient, config: RunConfig, folder: Path, entrypoint: str, submission_id: str | None
) -> str:
    """The job's id; `folder` becomes its working directory."""
    values = _ship(config, folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    job: str = client.submit_job(
        entrypoint=entrypoint,
        submission_id=submission_id,
        runtime_env={"working_dir": str(folder), "env_vars": {"EVENHAND_PROGRESS": "json", **_storage()}},
    )
    return job


def _refused(error: Exception, address: str, what: str, hint: str) -> ClusterError:
    if isinstance(error, AuthenticationError):
        # Its own message is a page long, and advises a token for a cluster that is to be started.
        what, hint = (
            "Ray's token is not there or refused",
            ("set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"),
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ClusterError(f"{what} at {address} ({reason:.200}); {hint}")


def _storage() -> dict[str, str]:
    """Where this machine's storage is, as far as it is no secret: anyone who may list jobs can read it."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
    checksums = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
    encryption = ("EVENHAND_S3_SSE", "EVENHAND_S3_SSE_KMS_KEY_ID")
    return {name: os.environ[name] for name in (*names, *checksums, *encryption) if os.environ.get(name)}


def _ship(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The configuration as the driver reads it there."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    manifest = Path(config.manifest).expanduser()
    if "://" not in config.manifest and manifest.is_file():
        (folder / manifest.name).write_bytes(manifest.read_bytes())
        values["manifest"] = manifest.name

    def resolved(place: str, *, is_output: bool = False) -> str:
        path = Path(place).expanduser()
        return str(path.resolve()) if "://" not in place and (path.exists() or is_output) else place

    values["model"] = resolved(values["model"])
    if values.get("model_layout"):
        values["model_layout"] = resolved(values["model_layout"])
    values["classifier"] = with_models(values["classifier"], resolved)
    values["output"] = resolved(values["output"], is_output=True)
    return values | ({"audit": _ship_audit(config.audit, folder)} if "audit" in values else {})


def _ship_audit(config: AuditConfig, folder: Path) -> dict[str, str]:
    shipped = {}
    for key, value in config.model_dump(exclude_none=True).items():
        path = Path(value).expanduser()
        if key == "operator" and "://" not in value and path.is_file():
            # Under a name that no manifest has.
            (folder / "audited-operator.safetensors").write_bytes(path.read_bytes())
            shipped[key] = "audited-operator.safetensors"
        else:
            shipped[key] = str(path.resolve()) if "://" not in value and path.exists() else value
    return shipped


async def _follow(client: JobSubmissionClient, job: str, console: Console) -> None:
    """Show the driver's log as it comes; its marked lines become bars."""
    tasks: dict[str, TaskID] = {}
    progress: Progress | None = None
    pending = ""
    try:
        async for chunk in client.tail_job_logs(job):
            *lines, pending = (pending + chunk).split("\n")
            for line in lines:
                if line.startswith(MARK):
                    progress = _advance(line, tasks, progress, console)
                elif line.strip() and not _OF_RAY.match(line):
                    (progress.console if progress else console).print(
                        line, markup=False, highlight=False, soft_wrap=True
                    )
        if pending.strip() and not pending.startswith(MARK):
            console.print(pending, markup=False, highlight=False, soft_wrap=True)
    finally:
        if progress:
            progress.stop()


def _advance(line: str, tasks: dict[str, TaskID], progress: Progress | None, console: Console) -> Progress | None:
    try:
        fields = json.loads(line.removeprefix(MARK))
    except ValueError:
        return progress
    if not console.is_terminal:
        if fields["done"] == 0 or fields["state"] != "running":
            console.print(
                f"{fields['stage']}: {fields['done']}/{fields['total']}, {fields['rate']:.1f}/s", highlight=False
            )
        return progress
    if progress is None:
        progress = bars(console)
        progress.start()
    name = fields["stage"]
    if name not in tasks:
        tasks[name] = progress.add_task(name, total=fields["total"], rate="")
    update_bar(progress, tasks[name], fields)
    return progress


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    silent_since = time.monotonic()
    while True:
        try:
            info = client.get_job_info(job)
        except (RuntimeError, OSError, RayError) as error:
            if time.monotonic() - silent_since > _SILENCE_S:
                raise ClusterError(f"the cluster has not answered for {_SILENCE_S:.0f} s: {error}") from error
            time.sleep(_POLL_S)
            continue
        silent_since = time.monotonic()
        if info.status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
            break
        time.sleep(_POLL_S)
    if info.status == JobStatus.STOPPED:
        return int(ExitCode.TERMINATED)
    if info.driver_exit_code is not None:
        # A negative code is a signal's number.
        return int(info.driver_exit_code) if info.driver_exit_code >= 0 else 128 - int(info.driver_exit_code)
    return int(ExitCode.DONE if info.status == JobStatus.SUCCEEDED else ExitCode.FAULT)
