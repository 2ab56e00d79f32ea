"""The main job as users run it: `ray job submit` to a real Ray, a real S3 store, the demo model.

One run serves most tests. Small on purpose: whether the figures are right is tested where they are computed.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from PIL import Image
from ray.job_submission import JobSubmissionClient

from infra import local
from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.local.home import Home
from infra.storage import ObjectStore, StorageSettings, open_store
from jobs.report.schema import Report
from manifests import write_manifest
from tests.jobs.helpers import manifest
from tests.jobs.test_redact import SECRETS
from time_ops import EditOperator, encode_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROFESSIONS = ("nurse", "CEO", "mechanic")
WORDINGS = {
    "edit": ["{source}", "A photo of {source}"],
    "calibration": ["A sketch of {source}"],
    "audit": ["A painting of {source}", "{source} at night"],
}


@dataclass(frozen=True)
class Run:
    """A finished submission."""

    code: int
    output: str
    store: ObjectStore
    folder: str
    config: dict[str, Any]

    def json(self, name: str) -> Any:
        return json.loads(self.store.get(f"{self.folder}/{name}"))

    @property
    def report(self) -> Report:
        return Report.model_validate(self.json("report.json"))


def settings_of(cluster: local.LocalCluster, output: str) -> dict[str, Any]:
    return {
        "manifest": "professions.parquet",
        "model": str(PIPELINE_PATH),
        "classifier": str(CLASSIFIER_PATH),
        "output": output,
        "run": "test",
        "form": "single",
        "wordings": WORDINGS,
        # The empty prompt is left to move, so that a checkpoint or an audit that forgot to transform it would be seen.
        "preserve": {"prompts": []},
        "controls": ["a photo of a tree"],
        "images_per_cell": 6,
        "explicit_images": 3,
        "control_images": 3,
        "shard_images": 3,
        "sampler": {"steps": 5, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 12},
        "calibration": {"images": 3, "base_rounds": 1, "search_rounds": 2, "verify_rounds": 1},
        "pictures": {"per_cell": 4, "format": "png"},
    }


def ray_job_submit(cluster: local.LocalCluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """The very command that users type."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "submit", "--working-dir", str(folder), "--", "python", "-m", "jobs.debias", "run.yaml"]
    environment = cluster.client_environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def submitted(cluster: local.LocalCluster, folder: Path, config: dict[str, Any]) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    if not (folder / "professions.parquet").exists():
        write_manifest(manifest(*PROFESSIONS), folder / "professions.parquet")
    done = ray_job_submit(cluster, folder)
    settings = StorageSettings(endpoint_url=cluster.s3_endpoint, region="us-east-1")
    store = open_store(config["output"], settings)
    return Run(done.returncode, done.stdout + done.stderr, store, "runs/test", config)


@pytest.fixture(scope="module")
def aws(cluster_server: local.LocalCluster) -> Iterator[pytest.MonkeyPatch]:
    """This module's process reaches the cluster's store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster_server.environment().items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submission")


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as the hub's cache keeps one, with a card."""
    there = tmp_path_factory.mktemp("hub") / "models--owner--demo" / "snapshots" / ("c0ffee" * 7)[:40]
    shutil.copytree(PIPELINE_PATH, there)
    (there / "README.md").write_text("---\nlicense: openrail\n---\n")
    return there


@pytest.fixture(scope="module")
def finished(cluster_server: local.LocalCluster, aws: pytest.MonkeyPatch, folder: Path, licensed: Path) -> Run:
    output = f"{cluster_server.url}/{uuid.uuid4().hex}"
    return submitted(cluster_server, folder, settings_of(cluster_server, output) | {"model": str(licensed)})


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(PIPELINE_PATH, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_run_writes_what_the_design_says(finished: Run) -> None:
    # `ray job submit` ends with 1 for every failing code of the driver: a gate that fails is told by run.json.
    assert finished.code in (0, 1), finished.output
    state = finished.json("run.json")
    assert (state["status"], state["exit_code"]) == (
        "done",
        {"pass": 0, "fail": 5, "inconclusive": 6}[state["verdict"]],
    )
    names = {key.removeprefix(f"{finished.folder}/") for key in finished.store.list(finished.folder)}
    wanted = "run.json manifest.parquet calibration.parquet operator.safetensors images/part-00000.parquet COMPLETE"
    reports = "report.json report.html junit.xml"
    assert {*wanted.split(), *reports.split()} <= names
    where = "checkpoint" if state["verdict"] == "pass" else "candidate"
    assert {f"{where}/{n}" for n in ("model_index.json", "README.md", "SHA256SUMS")} <= names
    assert ("checkpoint/model_index.json" in names) == (state["verdict"] == "pass")


def test_the_card_names_the_base_model_and_passes_its_licence_on(finished: Run, licensed: Path) -> None:
    where = "checkpoint" if finished.report.verdict == "pass" else "candidate"
    card = ModelCard(finished.store.get(f"{finished.folder}/{where}/README.md").decode()).data
    assert (card.base_model, card.base_model_revision, card.license) == ("owner/demo", licensed.name, "openrail")


def test_report_and_image_rows_tell_the_same(finished: Run) -> None:
    report = finished.report
    rows = pq.read_table(io.BytesIO(finished.store.get(f"{finished.folder}/images/part-00000.parquet"))).to_pylist()
    cells = len(PROFESSIONS) * (2 * 6 + 2 * 3) + 3
    assert len(rows) == 2 * cells == report.summary.base.images * 2
    assert len({(r["variant"], r["prompt"], r["index"]) for r in rows}) == len(rows)
    for person in report.professions:
        for variant in ("base", "edited"):
            mine = [
                r for r in rows if (r["kind"], r["profession"], r["variant"]) == ("audit", person.profession, variant)
            ]
            counts = getattr(person, variant)
            assert counts is not None
            assert counts.labels == {g: sum(r["label"] == g for r in mine) for g in ("female", "male")}
            assert counts.undetermined == sum(r["label"] == "undetermined" for r in mine)
            assert counts.n + counts.undetermined + counts.failed == 12
    # A round draws three images of each profession, two explicit prompts of each, four images of the control.
    rounds = [len(PROFESSIONS) * (3 + 2) + 4] * 4
    assert report.calibration is not None
    assert [r.images for r in report.calibration.rounds] == rounds
    assert report.cost.images == 2 * cells + sum(rounds)
    assert report.cost.shards_failed == 0


def test_calibration_is_told_round_by_round(finished: Run) -> None:
    found = finished.report.calibration
    assert found is not None
    rows = pq.read_table(io.BytesIO(finished.store.get(f"{finished.folder}/calibration.parquet"))).to_pylist()
    assert [(r["round"], r["phase"], r["profession"]) for r in rows] == [
        (i + 1, phase, name) for i, phase in enumerate(("base", "search", "search", "verify")) for name in PROFESSIONS
    ]
    assert [math.isinf(r["lam"]) for r in rows] == [r["phase"] == "base" for r in rows]
    assert all(r["determined"] + r["undetermined"] == r["images"] == 3 for r in rows)
    chosen = [r.round for r in found.rounds if r.chosen]
    assert {r["operator"] for r in rows if r["round"] in chosen} == {finished.report.provenance["operator"]}
    assert 1 not in chosen
    for item, person in zip(found.professions, finished.report.professions, strict=True):
        assert item.images == 12
        assert [s.round for s in item.steps] == [2, 3, 4]
        (step,) = (s for s in item.steps if s.round == chosen[-1])
        assert (step.shares, step.lam) == (person.shares, person.lam)


def test_complete_names_every_shard_that_the_report_rests_on(finished: Run) -> None:
    rows = pq.read_table(io.BytesIO(finished.store.get(f"{finished.folder}/images/part-00000.parquet"))).to_pylist()
    complete = finished.json("COMPLETE")
    assert {r["shard"] for r in rows} <= set(complete["shards"])
    stored = {key.rpartition("/")[2].removesuffix(".parquet") for key in finished.store.list("shards")}
    assert set(complete["shards"]) == stored


def draw(pipe: StableDiffusionPipeline, config: dict[str, Any], seeds: list[int], **prompt: Any) -> np.ndarray:
    sampler = config["sampler"]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    result = pipe(
        **prompt,
        generator=generators,
        num_inference_steps=sampler["steps"],
        guidance_scale=sampler["guidance_scale"],
        height=32,
        width=32,
        output_type="np",
    )
    return np.asarray(result.images)


def test_the_folded_checkpoint_draws_what_was_audited(
    finished: Run, pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """The checkpoint, opened by diffusers alone, against what the audit made by transforming embeddings."""
    state = finished.json("run.json")
    where = "checkpoint" if state["verdict"] == "pass" else "candidate"
    finished.store.download_folder(f"{finished.folder}/{where}", tmp_path / "checkpoint")
    folded = StableDiffusionPipeline.from_pretrained(tmp_path / "checkpoint", local_files_only=True)
    folded.set_progress_bar_config(disable=True)
    operator = EditOperator.load(_saved(finished, tmp_path))
    pairs = [p for p in finished.report.pictures if p.edited][:12]
    assert len(pairs) == 12
    prompts, seeds = [p.prompt for p in pairs], [p.seed for p in pairs]
    from_weights = draw(folded, finished.config, seeds, prompt=prompts)

    embeddings = operator.transform(encode_prompts(pipe, prompts))
    empty = operator.transform(encode_prompts(pipe, [""])).expand_as(embeddings)
    through = {"prompt_embeds": embeddings, "negative_prompt_embeds": empty}
    np.testing.assert_allclose(from_weights, draw(pipe, finished.config, seeds, **through), atol=1e-4)

    stored = [_picture(finished, p.edited) for p in pairs]
    assert np.abs(np.stack(stored) - from_weights * 255).max() <= 1.0
    base = [_picture(finished, p.base) for p in pairs]
    np.testing.assert_allclose(np.stack(base), draw(pipe, finished.config, seeds, prompt=prompts) * 255, atol=1.0)
    assert np.abs(np.stack(base) - np.stack(stored)).max() > 20, "the edit changed nothing"

    # What must be transformed too, or the identity breaks: the unconditional embedding.
    untransformed = encode_prompts(pipe, [""]).expand_as(embeddings)
    wrong = draw(pipe, finished.config, seeds, prompt_embeds=embeddings, negative_prompt_embeds=untransformed)
    assert np.abs(wrong - from_weights).max() > 0.02


def _saved(run: Run, folder: Path) -> Path:
    run.store.download(f"{run.folder}/operator.safetensors", folder / "operator.safetensors")
    return folder / "operator.safetensors"


def _picture(run: Run, name: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(run.store.get(f"{run.folder}/{name}"))).convert("RGB"), dtype=np.float32)


def test_only_the_projections_of_the_checkpoint_differ(finished: Run, tmp_path: Path) -> None:
    state = finished.json("run.json")
    where = "checkpoint" if state["verdict"] == "pass" else "candidate"
    finished.store.download_folder(f"{finished.folder}/{where}", tmp_path / "c")
    before = UNet2DConditionModel.from_pretrained(PIPELINE_PATH / "unet").state_dict()
    after = UNet2DConditionModel.from_pretrained(tmp_path / "c" / "unet").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    for file in (PIPELINE_PATH / "vae").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "c" / "vae" / file.name).read_bytes()
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "c", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_broken_manifest_ends_the_job_before_anything_is_written(
    cluster_server: local.LocalCluster, aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        "profession,source,destination,label,target,share,lam",
        "CEO,a CEO,a female CEO,female,0.5,,",
        "CEO,a CEO,a male CEO,male,0.7,,",
        "nurse,a nurse,,female,,,",
        "baker,a baker,a female baker,female,,,-1",
        "cook,a cook,a female teacher,female,,,",
        f"clerk,a clerk,a female clerk {'very ' * 90}tired,female,,,",
        "guard,a guard,a tall guard,tall,,,",
    ]
    (tmp_path / "professions.csv").write_text("\n".join(rows) + "\n")
    output = f"{cluster_server.url}/{uuid.uuid4().hex}"
    config = settings_of(cluster_server, output) | {"manifest": "professions.csv"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs.debias", "run.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert [row for row in range(1, 9) if f"row {row} " in said] == [1, 3, 4, 5, 6, 7], said
    settings = StorageSettings(endpoint_url=cluster_server.s3_endpoint, region="us-east-1")
    assert list(open_store(output, settings).list()) == []


def test_submit_hands_on_the_drivers_own_code_and_no_secret(
    finished: Run, cluster_server: local.LocalCluster, folder: Path, tmp_path: Path
) -> None:
    """Whoever may list the cluster's jobs reads their environment, entry points and logs, all jobs of this file's."""
    evenhand = Path(sys.executable).with_name("evenhand")
    planted = {name: value for name, value in SECRETS.items() if not name.startswith(("AWS_", "RAY_"))}
    environment = cluster_server.client_environment() | planted

    def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(evenhand), "submit", str(folder / "run.yaml"), *arguments]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    (tmp_path / "bad.csv").write_text("profession\nCEO\n")
    assert submit("--manifest", str(tmp_path / "bad.csv")).returncode == 2
    in_a_url = "mlflow.tracking_uri=http://me:plantedUrlPassword@127.0.0.1:9"
    assert submit("--set", "output=s3://no-such-bucket-here/x", "--set", in_a_url).returncode == 4
    home = Home(cluster_server.home)
    keys = home.credentials()
    secrets = {"planted", keys.access_key, keys.secret_key, home.ray_token.read_text().strip()}
    client = JobSubmissionClient(cluster_server.dashboard_url, headers=cluster_server.job_headers())
    told = [repr(job) + client.get_job_logs(job.submission_id) for job in client.list_jobs()]
    assert any("professions, " in text for text in told)
    assert any("no-such-bucket-here" in text for text in told)
    assert not [text for text in told if any(secret in text for secret in secrets)]
