"""`make run`: the whole path on this machine, with the demo model. Everything on it is real."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from infra import demo, local
from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.cluster.submit import submit
from jobs.config import RunConfig, load_config
from jobs.errors import ConfigError
from jobs.images.recipe import SHARD_SCHEMA
from jobs.models.digests import content_digest
from jobs.runs.rerender import rerender
from manifests.build import shipped_manifest_path

__all__ = ["run_demo"]


def run_demo(out: Path, console: Console, *, keep_running: bool = False, assignments: Sequence[str] = ()) -> int:
    """Bring up the embedded cluster, stage model and manifest, submit the job, copy the report, take the cluster down.

    A run that is finished is shown again, without Ray and without a job.

    Args:
        out: where `report.json` and `report.html` are copied to.
        console: where to show progress.
        keep_running: leave the servers up.
        assignments: `key=value` changes to the demo's configuration.

    Returns:
        0 on any verdict, which is printed; otherwise the driver's exit code.
    """
    started = time.monotonic()
    was_up = local.status().is_up
    with console.status("starting the S3 server"):
        cluster = local.up(with_ray=keep_running)
    try:
        store = open_store(cluster.url, _settings(cluster))
        config = _config(cluster.url, assignments)
        run = f"demo/runs/{config.run}"
        if _show_again(store, run, out, console):
            console.print(f"this run was finished before; open {out / 'report.html'}", soft_wrap=True)
        else:
            with console.status("starting Ray"):
                cluster = local.up()
            store.upload_folder(demo.PIPELINE_PATH, "demo/model")
            store.upload_folder(demo.CLASSIFIER_PATH, "demo/classifier")
            store.upload(shipped_manifest_path(), "demo/professions.parquet")
            code = submit(config, cluster.dashboard_url, console, headers=cluster.job_headers())
            if code not in (0, 5, 6):
                return code
            out.mkdir(parents=True, exist_ok=True)
            for name in ("report.json", "report.html"):
                (out / name).write_bytes(store.get(f"{run}/{name}"))
            console.print(f"finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}", soft_wrap=True)
        evenhand = Path(sys.executable).with_name("evenhand")
        evenhand = evenhand.relative_to(Path.cwd()) if evenhand.is_relative_to(Path.cwd()) else evenhand
        console.print(
            f"the run is in {store.url(run)} (its data stays in {cluster.home}). To look inside:\n"
            f'  {evenhand} local up && eval "$({evenhand} local env)"',
            soft_wrap=True,
        )
        return 0
    finally:
        if not (keep_running or was_up):
            with console.status("stopping the servers"):
                local.down()


def _show_again(store: ObjectStore, run: str, out: Path, console: Console) -> bool:
    """Whether the run is finished and whole: then its report is drawn, and nothing is started or computed."""
    if not store.exists(f"{run}/COMPLETE"):
        return False
    try:
        rerender(store.url(run), out / "report.html", console)
    except ConfigError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return False
    (out / "report.json").write_bytes(store.get(f"{run}/report.json"))
    return True


def _config(bucket: str, assignments: Sequence[str]) -> RunConfig:
    flags = {
        "manifest": f"{bucket}/demo/professions.parquet",
        "model": f"{bucket}/demo/model",
        "classifier": f"{bucket}/demo/classifier",
        "output": f"{bucket}/demo",
    }
    text = files("jobs.cli").joinpath("demo.yaml").read_text(encoding="utf-8")
    config = load_config(text, name="demo.yaml", flags=flags, assignments=assignments)
    return config.model_copy(update={"run": config.run or _name(config)})


def _name(config: RunConfig) -> str:
    """The same run again goes on where the last one stopped; other settings or other weights are another run."""
    content = [config.model_dump_json(), content_digest(demo.PIPELINE_PATH), content_digest(demo.CLASSIFIER_PATH)]
    content += [hashlib.sha256(shipped_manifest_path().read_bytes()).hexdigest(), str(SHARD_SCHEMA)]
    content += [version(name) for name in ("diffusers", "torch", "transformers")]
    return f"demo-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"


def _settings(cluster: local.LocalCluster) -> StorageSettings:
    """This process reaches the store as any client of the cluster does: by its files and endpoint."""
    os.environ.update({k: v for k, v in cluster.environment().items() if k.startswith("AWS_")})
    return StorageSettings.from_environment()
