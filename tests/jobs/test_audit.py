"""The audit and export jobs on a real Ray and a real S3 store with the demo model: alone, under an operator, compared.

One `debias` run is what all audits start from, so most of their images are there already. Small on purpose: whether
the figures are right is tested where they are computed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import ObjectStore, StorageSettings
from jobs.audit import audit
from jobs.auditing.reporting import Outcome
from jobs.cli import main
from jobs.config import RunConfig, load_config
from jobs.debias import debias
from jobs.images.recipe import recipe_of
from jobs.images.shards import ShardSpec
from jobs.models.checksums import verify_folder
from jobs.report.schema import Report
from jobs.worker.worker import Worker
from manifests import write_manifest
from tests.conftest import S3Server
from tests.jobs.helpers import manifest
from tests.jobs.warm import warm_workers
from time_ops import EditOperator, ModelError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PROFESSIONS = ("nurse", "mechanic")
# 2 professions x 2 wordings x 4 images, 4 explicit prompts of 2, a control of 2; of one variant.
IMAGES = 2 * 2 * 4 + 4 * 2 + 2
SECRETS = {"HF_TOKEN": "hf_plantedHubToken", "MLFLOW_TRACKING_PASSWORD": "plantedMlflowPassword"}
IN_A_URL = "plantedUrlPassword"


@dataclass
class Workplace:
    """A bucket's prefix, a configuration, and the `debias` run that is there, with what it printed."""

    store: ObjectStore
    file: Path
    debiased: Outcome
    printed: str
    secrets: tuple[str, ...]

    def config(self, **keys: Any) -> RunConfig:
        return load_config(self.file.read_text(), flags=keys)

    def audit(self, **keys: Any) -> Outcome:
        return audit(self.config(**keys), Console(file=io.StringIO()))

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        names = sorted(self.store.list(f"runs/{outcome.run}/images"))
        tables = [pq.read_table(pa.BufferReader(self.store.get(name))) for name in names]
        return list(pa.concat_tables(tables).to_pylist())

    def json(self, outcome: Outcome, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.store.get(f"runs/{outcome.run}/{name}"))
        return content


@pytest.fixture(scope="module")
def here(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("audit")
    write_manifest(manifest(*PROFESSIONS, lam=500.0), folder / "m.parquet")
    with pytest.MonkeyPatch.context() as patch:
        s3_server.apply(patch)
        store = s3_server.store()
        config = {
            "manifest": str(folder / "m.parquet"),
            "model": str(PIPELINE_PATH),
            "classifier": str(CLASSIFIER_PATH),
            "output": store.url(),
            "form": "single",
            "wordings": {
                "edit": ["{source}"],
                "calibration": ["{source}"],
                "audit": ["A painting of {source}", "{source} at night"],
            },
            "controls": ["a photo of a tree"],
            "images_per_cell": 4,
            "explicit_images": 2,
            "control_images": 2,
            "shard_images": 4,
            "sampler": {"steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 8},
            "pictures": {"per_cell": 2, "format": "png"},
            "workers": {"count": 1},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        keys = s3_server.credentials
        secrets = (*SECRETS.values(), IN_A_URL, keys.access_key, keys.secret_key)
        told = {"tracking_uri": f"http://somebody:{IN_A_URL}@127.0.0.1:9"}
        printed = io.StringIO()
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        try:
            loaded = load_config(yaml.safe_dump(config), flags={"run": "debiased", "mlflow": told})
            with warm_workers():
                debiased = debias(loaded, Console(file=printed))
                yield Workplace(store, folder / "run.yaml", debiased, printed.getvalue(), secrets)
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def compared(here: Workplace) -> Outcome:
    """The folded candidate against the model that it was made from."""
    return here.audit(model=f"{here.debiased.url}/candidate", audit={"base": str(PIPELINE_PATH)})


def test_a_run_writes_and_prints_no_secret(here: Workplace) -> None:
    """Everything below the output, what the driver printed, and the logs of Ray's own processes and workers."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    seen = {"printed": here.printed.encode()}
    seen |= {key: here.store.get(key) for key in here.store.list()}
    seen |= {f"log {file.name}": file.read_bytes() for file in logs.rglob("*") if file.is_file()}
    assert "runs/debiased/run.json" in seen
    assert len([name for name in seen if name.startswith("log ")]) > 3
    assert not [name for name, data in seen.items() if any(secret.encode() in data for secret in here.secrets)]


def figures(report: Report) -> dict[str, Any]:
    """What does not depend on how a report came about."""
    content = report.model_dump(include={"summary", "wordings", "professions", "controls", "margin_sweep"})
    for variant in content["summary"].values():
        del variant["seconds"]
    for person in content["professions"]:
        del person["shares"]
    return content


def test_an_operator_audited_gives_the_figures_of_the_run_that_solved_it(here: Workplace) -> None:
    found = here.audit(audit={"operator": f"{here.debiased.url}/operator.safetensors"})
    assert figures(found.report) == figures(here.debiased.report)
    assert (found.report.cost.images, found.report.cost.images_reused) == (0, 2 * IMAGES)
    assert found.report.kind == "audit"
    assert found.report.reference is not None
    assert (found.report.reference.kind, found.report.reference.run) == ("base model", found.run)
    assert [p.lam for p in found.report.professions] == [500.0, 500.0]
    assert [sorted(p.shares) for p in found.report.professions] == [
        sorted(p.shares) for p in here.debiased.report.professions
    ]
    state = here.json(found, "run.json")
    assert (state["status"], state["exit_code"]) == ("done", int(found.code))
    names = {name.removeprefix(f"runs/{found.run}/") for name in here.store.list(f"runs/{found.run}")}
    assert {"report.json", "report.html", "junit.xml", "operator.safetensors", "COMPLETE"} <= names
    assert not [name for name in names if name.startswith(("checkpoint", "candidate"))]
    assert {row["variant"] for row in here.rows(found)} == {"base", "edited"}


def test_a_checkpoint_and_its_base_are_compared_as_the_operator_was(here: Workplace, compared: Outcome) -> None:
    report = compared.report
    assert report.reference is not None
    assert (report.reference.kind, report.reference.name) == ("base model", PIPELINE_PATH.name)
    assert report.reference.model_digest == here.debiased.report.provenance["model_digest"]
    assert report.provenance["model_digest"] != report.reference.model_digest
    # The base's own run: one variant, of images that debias had made.
    base = Report.model_validate(json.loads(here.store.get(f"runs/{report.reference.run}/report.json")))
    assert (base.summary.edited, base.reference, base.cost.images) == (None, None, 0)
    assert [p.base.labels for p in base.professions] == [p.base.labels for p in here.debiased.report.professions]
    assert report.summary.base.model_dump(exclude={"seconds"}) == base.summary.base.model_dump(exclude={"seconds"})
    before, after = base.margin_sweep, report.margin_sweep
    assert [row["delta_base"] for row in after] == [row["delta_base"] for row in before]

    assert (report.cost.images, report.cost.shards_failed) == (IMAGES, 0)
    key = ("variant", "kind", "profession", "prompt", "index")
    mine = {tuple(row[k] for k in key): row for row in here.rows(compared)}
    theirs = {tuple(row[k] for k in key): row for row in here.rows(here.debiased)}
    assert len(mine) == 2 * IMAGES
    assert mine.keys() == theirs.keys()
    assert all(mine[k] == theirs[k] for k in mine if k[0] == "base")
    # Folded weights and transformed embeddings differ in their last bits.
    same = [mine[k]["label"] == theirs[k]["label"] for k in mine if k[0] == "edited"]
    assert np.mean(same) > 0.9
    assert [mine[k]["seed"] for k in mine] == [theirs[k]["seed"] for k in mine]
    assert report.pictures
    assert all(p.base and p.edited for p in report.pictures)


def test_an_earlier_run_serves_as_reference_and_the_same_command_makes_no_image(
    here: Workplace, compared: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", f"{here.debiased.url}/candidate", "--against", here.debiased.url, "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(here.file), *flags])
    out, err = capsys.readouterr()
    report = Report.model_validate_json(out)
    assert "report:" in err
    assert ended.value.code == {"pass": 0, "fail": 5, "inconclusive": 6}[report.verdict]
    # `compared` drew the candidate's images, under another comparison.
    assert (report.cost.images, report.cost.images_reused) == (0, IMAGES)
    assert report.reference is not None
    assert (report.reference.kind, report.reference.name) == ("earlier run", "debiased")
    assert report.reference.operator == here.debiased.report.provenance["operator"]
    assert report.summary.base.model_dump(exclude={"seconds"}) == edited(here.debiased.report)
    assert report.summary.edited is not None
    assert compared.report.summary.edited is not None
    assert report.summary.edited.delta.value == compared.report.summary.edited.delta.value


def edited(report: Report) -> dict[str, Any]:
    assert report.summary.edited is not None
    return report.summary.edited.model_dump(exclude={"seconds"})


def test_the_model_alone_is_found_finished_where_that_will_do(here: Workplace, compared: Outcome) -> None:
    """The base's own run is what an audit of that model alone would be."""
    assert compared.report.reference is not None
    run = compared.report.reference.run
    written = here.store.get(f"runs/{run}/COMPLETE")
    found = audit(here.config(), Console(file=io.StringIO()), again=False)
    assert (found.run, found.reused, found.report.kind) == (run, True, "audit")
    assert found.code == here.json(found, "run.json")["exit_code"]
    assert here.store.get(f"runs/{run}/COMPLETE") == written


def test_an_operator_of_another_text_encoder_is_refused(here: Workplace) -> None:
    data = here.store.get(f"runs/{here.debiased.run}/operator.safetensors")
    (here.file.parent / "o.safetensors").write_bytes(data)
    solved = EditOperator.load(here.file.parent / "o.safetensors")
    (step,) = solved.steps
    assert step.encoder is not None
    other = replace(step.encoder, exact="0" * 64, float16="0" * 64, bfloat16="0" * 64)
    foreign = EditOperator(solved.matrix, (replace(step, encoder=other),))
    config = here.config()
    worker = Worker(config, StorageSettings.from_environment(), "test", threads=1)
    recipe = recipe_of(config, worker.probe())
    spec = ShardSpec(recipe, foreign.digest, "audit", "A painting of a nurse", 0, 4)
    with pytest.raises(ModelError, match="solved for the text encoder 0000"):
        worker.run([spec], (foreign,))
    assert not here.store.exists(spec.object_key)


def test_a_local_run_may_be_named_by_where_it_lies_from_here(
    here: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.store.download_folder("runs/debiased", tmp_path / "runs/debiased")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["export", "runs/debiased", "--model", str(PIPELINE_PATH), "--classifier", str(CLASSIFIER_PATH)])
    assert ended.value.code == {"fail": 5, "inconclusive": 6}[here.debiased.report.verdict], capsys.readouterr().err


@pytest.mark.parametrize(("against", "said"), [("runs/nothing", "no finished run"), ("runs/half", "status is running")])
def test_what_is_no_finished_run_ends_with_2_and_writes_nothing(
    here: Workplace, against: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before a worker is started."""
    here.store.put("runs/half/run.json", json.dumps({"status": "running"}).encode())
    before = set(here.store.list("runs"))
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(here.file), "--against", here.store.url(against)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert set(here.store.list("runs")) == before


def export(here: Workplace, *flags: str) -> int:
    models = ["--model", str(PIPELINE_PATH), "--classifier", str(CLASSIFIER_PATH)]
    with pytest.raises(SystemExit) as ended:
        main(["export", here.debiased.url, *models, *flags])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_did_not_pass_is_exported_by_force_only(here: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    code = {"fail": 5, "inconclusive": 6}[here.debiased.report.verdict]
    assert export(here, "--form", "lora") == code
    assert "--force" in capsys.readouterr().err
    assert export(here, "--form", "ckpt", "--force") == 2
    assert "there is no form ckpt" in capsys.readouterr().err
    assert export(here, "--form", "single-file", "--force") == 2
    assert "--base-file" in capsys.readouterr().err
    assert export(here, "--form", "single-file", "--base-file", "s3://far/away/sd.ckpt", "--force") == 3
    assert "pickled" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["export", here.debiased.url, "--force"])
    assert ended.value.code == 2
    assert "say where it is now: --model FOLDER --classifier FOLDER" in capsys.readouterr().err
    assert not list(here.store.list(f"runs/{here.debiased.run}/exports"))


def test_exports_are_checked_audited_and_then_published(
    here: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below = f"runs/{here.debiased.run}/exports"
    forms = [flag for form in ("operator", "lora", "diffusers") for flag in ("--form", form)]
    assert export(here, *forms, "--force", "--json") == 0
    found = {each["form"]: each for each in json.loads(capsys.readouterr().out)}
    assert {name.split("/")[3] for name in here.store.list(below)} == set(found) == {"operator", "lora", "diffusers"}
    for form, told in found.items():
        folder = tmp_path / form
        here.store.download_folder(f"{below}/{form}", folder)
        verify_folder(folder, form)
        assert json.loads((folder / "export.json").read_text()) == told
        assert told["forced"]
        assert "forced" in (folder / "README.md").read_text()
        assert told["shipped"]["gate"]["outcome"] == "pass"
        # All labelled images of the audit, where it has fewer than are asked for; drawn on its seeds.
        assert told["shipped"]["same_label"]["n"] == told["shipped"]["images"] == 16
    # At its rank, on the run's images' own seeds: all but the same edit, so all but the same figures.
    audited = found["lora"]["audit"]
    assert found["lora"]["error"] <= 1e-3
    assert audited["delta_of_run"]["value"] == edited(here.debiased.report)["delta"]["value"]
    assert abs(audited["delta"]["value"] - audited["delta_of_run"]["value"]) < 0.2
    report = json.loads(here.store.get(f"runs/{audited['run']}/report.json"))
    assert report["reference"]["run"] == here.debiased.run
    assert report["provenance"]["operator"] != here.debiased.report.provenance["operator"]
    # The run itself is as it was, and its own checkpoint was checked in the same way.
    assert here.debiased.report.shipped is not None
    assert here.debiased.report.shipped.same_label.value == 1
    assert [gate.outcome for gate in here.debiased.report.gates if gate.name == "shipped"] == ["pass"]
    sums = here.store.get(f"{below}/operator/SHA256SUMS")
    assert export(here, "--form", "operator", "--force") == 0
    assert here.store.get(f"{below}/operator/SHA256SUMS") == sums
