"""Finished runs on a real MLflow tracking server: SQLite, artifacts through the server, on loopback."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.storage import LocalStore
from jobs.cli import main
from jobs.config import MlflowConfig, load_config
from jobs.errors import ConfigError, ExitCode, exit_code_of
from jobs.redact import without_credentials
from jobs.report.schema import Report
from jobs.runs.identity import without_paths
from jobs.runs.inputs import run_manifest_bytes
from jobs.sinks.mlflow import SinkError, check_sink, log_run, metrics_of, params_of, sink
from tests.jobs.helpers import config, manifest
from tests.jobs.report.mixtures import FOUR, make_mixture_report
from tests.jobs.report.reports import make_report
from tests.jobs.scheduling.test_history import PROVENANCE
from tests.jobs.test_redact import SECRETS

pytestmark = pytest.mark.slow

IN_A_URL = "plantedUrlPassword"
FILES = ("report.html", "report.json", "junit.xml", "operator.safetensors")


def finished(folder: Path, **changes: Any) -> tuple[str, Report]:
    """A finished run's folder."""
    report = make_report(professions=4).model_copy(update={"provenance": PROVENANCE, **changes})
    files = {
        "report.json": report.model_dump_json().encode(),
        "report.html": b"<!doctype html><p>report",
        "junit.xml": b"<testsuites/>",
        "operator.safetensors": b"operator",
        "manifest.parquet": run_manifest_bytes(manifest("nurse")),
        "images/part-00000.parquet": b"rows",
    }
    store = LocalStore(folder / "runs" / report.run)
    for name, data in files.items():
        store.put(name, data)
    told = {"tracking_uri": f"http://me:{IN_A_URL}@127.0.0.1:9"}
    settings = without_paths(config(images_per_cell=50, mlflow=told).model_dump(mode="json"))
    store.put("run.json", json.dumps({"run": report.run, "status": "done", "configuration": settings}).encode())
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    store.put("COMPLETE", json.dumps({"run": report.run, "files": digests, "shards": []}).encode())
    return store.url(), report


@dataclass(frozen=True)
class Launched:
    """A server that may not answer yet."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path


@pytest.fixture(scope="module", autouse=True)
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """Start `mlflow server`, which takes seconds; tests that need none come first.

    Without the job queue, whose workers it would start for evaluations.
    """
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield Launched(process, f"http://127.0.0.1:{port}", log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture(scope="module")
def server(launched: Launched) -> str:
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"{launched.address}/health", timeout=1):  # noqa: S310 - loopback
                return launched.address
        except OSError:
            assert launched.process.poll() is None, launched.log.read_text()
            time.sleep(0.1)
    pytest.fail(launched.log.read_text())


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client tries again for minutes; the tests' servers are there or not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


class Refusing(BaseHTTPRequestHandler):
    """Refuses everybody, and remembers by what name they came."""

    seen: list[str] = []  # noqa: RUF012 - read by the one test

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"who are you?")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_refuses_costs_no_run_and_hears_the_password_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of another server")
    url, _ = finished(tmp_path)
    said = io.StringIO()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        address = f"http://me:s3cr%2Ft@127.0.0.1:{refusing.server_address[1]}"
        wanted = MlflowConfig(tracking_uri=address)
        sink(wanted, url, Console(file=said, width=300))
        with pytest.raises(SinkError, match="401") as refused:
            log_run(url, wanted)
        refusing.shutdown()
    assert set(Refusing.seen) == {"Basic " + base64.b64encode(b"me:s3cr/t").decode()}
    assert exit_code_of(refused.value) == ExitCode.STORAGE
    assert "the run is complete, but MLflow does not have it" in said.getvalue()
    assert f"later: evenhand mlflow {url}" in said.getvalue().replace("\n", " ")
    told = said.getvalue() + str(refused.value) + "".join(capfd.readouterr())
    assert "s3cr" not in told
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "of another server"
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ


def test_the_command_ends_with_4_where_the_server_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = finished(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["mlflow", url, "--tracking-uri", "http://me:s3cret@127.0.0.1:9"])
    assert ended.value.code == ExitCode.STORAGE
    out, err = capsys.readouterr()
    assert "http://127.0.0.1:9: " in err
    assert "s3cret" not in out + err


def test_a_server_that_is_away_is_told(tmp_path: Path) -> None:
    url, _ = finished(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SinkError, match=f"^http://127.0.0.1:{port}: "):
        log_run(url, MlflowConfig(tracking_uri=f"http://me:s3cret@127.0.0.1:{port}"))


@pytest.mark.parametrize("flags", [["--tracking-uri", ""], ["--tracking-uri", "http://h", "--experiment", ""]])
def test_an_empty_flag_is_the_users_to_mend(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["mlflow", str(tmp_path), *flags])
    assert ended.value.code == ExitCode.INPUT


def test_an_unfinished_run_is_not_logged(tmp_path: Path) -> None:
    url, _ = finished(tmp_path)
    LocalStore(url).delete("COMPLETE")
    with pytest.raises(ConfigError, match="is not finished"):
        log_run(url, MlflowConfig(tracking_uri="http://127.0.0.1:9"))


def test_without_an_address_nothing_is_done(tmp_path: Path) -> None:
    sink(MlflowConfig(), str(tmp_path), Console(file=io.StringIO()))
    check_sink(MlflowConfig())
    with pytest.raises(ConfigError, match="give the tracking server"):
        log_run(str(tmp_path), MlflowConfig())


@pytest.mark.parametrize("uri", ["mlflow:5000", "file:///tmp/x", "postgresql://me:s3cret@host/db", "http://"])
def test_an_address_that_is_none_is_refused_before_anything_is_spent(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"give the address of a tracking server") as refused:
        check_sink(MlflowConfig(tracking_uri=uri))
    assert "s3cret" not in str(refused.value)


def test_a_password_is_in_no_dump_of_the_configuration() -> None:
    loaded = load_config(
        flags={"manifest": "m", "model": "m", "classifier": "c", "output": "o"},
        assignments=["mlflow.tracking_uri=https://me:s3cret@mlflow.example:8443/a@b"],
    )
    assert loaded.model_dump(mode="json")["mlflow"]["tracking_uri"] == "https://mlflow.example:8443/a@b"
    assert "s3cret" not in json.dumps(loaded.model_dump(mode="json", exclude_defaults=True))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:s3/cr@et@[::1]:5000/x", "http://[::1]:5000/x"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("http://me@host", "http://host"),
    ],
)
def test_a_password_with_a_slash_is_shown_nowhere_either(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown


def test_labels_of_any_script_have_figures_of_their_own() -> None:
    report = make_report(professions=1)
    rate = report.summary.base.explicit
    counted = {label: rate.model_copy(update={"n": n}) for n, label in enumerate(("女", "男"), 1)}
    base = report.summary.base.model_copy(update={"explicit_by_label": counted})
    summary = report.summary.model_copy(update={"base": base, "edited": None})
    found = metrics_of(report.model_copy(update={"summary": summary}))
    assert (found["explicit.女_n"], found["explicit.男_n"]) == (1, 2)


def test_parameters_say_what_decided_the_run_and_fit() -> None:
    report = make_report(professions=1).model_copy(update={"provenance": PROVENANCE})
    found = params_of(report, config(controls=["x" * 7000], workers={"count": 3}).model_dump(mode="json"))
    assert max(map(len, found.values())) == 6000
    assert not [name for name in found if name.startswith(("workers", "storage", "mlflow", "schedule"))]
    assert (found["gates.delta"], found["provenance.dtype"]) == ("0.2", "float32")


def test_a_mixture_has_its_components_figures_and_weights() -> None:
    report = make_mixture_report(professions=3, labels=FOUR)
    assert report.mixture is not None
    found, component = metrics_of(report), report.mixture.components[3]
    assert found["component.old male.own"] == component.own.value
    assert found["component.old male.explicit.young female_n"] == component.explicit_by_label["young female"].n
    assert found["component.old male.controls_low"] == component.controls.low
    assert found["component.young female.weight"] == 0.25
    assert not [name for name in metrics_of(make_report(professions=3)) if name.startswith("component")]
    assert found["off_target"] == report.summary.edited.off_target  # type: ignore[union-attr]
    params = params_of(report, {})
    assert (params["form"], params["mixture.digest"]) == ("mixture", report.mixture.digest)
    assert params["mixture.weights.old male"] == "0.25"
    single = make_report(professions=3).model_copy(update={"provenance": PROVENANCE | {"operator": "9f" * 32}})
    assert params_of(single, {})["form"] == "single"


def client(server: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(server)


def test_a_run_is_logged_whole_and_only_once(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, report = finished(tmp_path)
    wanted = MlflowConfig(tracking_uri=server, experiment="once")
    page = log_run(url, wanted)
    assert log_run(url, wanted) == page
    # Standard output is the report's, where --json asks for it; MLflow's client prints links to it.
    out, err = capsys.readouterr()
    assert (out, "View run" in err) == ("", True)
    there = client(server)
    number = there.get_experiment_by_name("once").experiment_id
    (run,) = there.search_runs([number])
    assert page == f"{server}/#/experiments/{number}/runs/{run.info.run_id}"
    assert (run.info.run_name, run.info.status) == (report.run, "FINISHED")

    assert report.summary.edited is not None
    delta, before = report.summary.edited.delta, report.summary.base.recognised
    found = run.data.metrics
    assert [found[f"delta{end}"] for end in ("", "_low", "_high", "_floor", "_n")] == [
        *(delta.value, delta.low, delta.high, delta.floor, delta.n)
    ]
    ends = [found[f"base.recognised{end}"] for end in ("", "_low", "_high", "_n")]
    assert ends == [before.value, before.low, before.high, before.n]
    assert found == metrics_of(report)
    # Twice logged, once there.
    assert len(there.get_metric_history(run.info.run_id, "delta")) == 1

    params = run.data.params
    assert (params["images_per_cell"], params["sampler.scheduler"]) == ("50", "ddim")
    assert params["provenance.model_digest"] == PROVENANCE["model_digest"]
    tags = run.data.tags
    assert (tags["evenhand.verdict"], tags["evenhand.run"]) == (report.verdict, report.run)
    assert tags["evenhand.gate.recognised"] == "fail"
    assert tags["mlflow.note.content"] == report.sentence
    with pytest.raises(SystemExit) as ended:
        main(["mlflow", url, "--tracking-uri", server, "--experiment", "once"])
    assert not ended.value.code
    assert page in capsys.readouterr().out
    assert sorted(f.path for f in there.list_artifacts(run.info.run_id)) == sorted(FILES)
    local = there.download_artifacts(run.info.run_id, "report.json", str(tmp_path))
    assert Path(local).read_bytes() == LocalStore(url).get("report.json")


def test_the_server_gets_no_secret(
    server: str, launched: Launched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database, artifacts and log: neither this process's secrets nor the password that is sent to it."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedAwsKeyId")
    url, report = finished(tmp_path)
    address = server.replace("://", f"://me:{IN_A_URL}@")
    page = log_run(url, MlflowConfig(tracking_uri=address, experiment="secrets"))
    assert IN_A_URL not in page
    files = [path for path in launched.log.parent.rglob("*") if path.is_file()]
    held = {str(path.relative_to(launched.log.parent)): path.read_bytes() for path in files}
    assert any(report.run.encode() in data for name, data in held.items() if name.startswith("mlflow.db"))
    assert any(name.endswith("report.json") for name in held)
    assert b"POST /api" in held["server.log"]
    assert not [name for name, data in held.items() if b"planted" in data or b"Planted" in data]


def test_what_an_earlier_call_began_is_completed(server: str, tmp_path: Path) -> None:
    """A run deleted on the server is logged anew; one whose artifacts are lacking gets them."""
    url, _ = finished(tmp_path)
    wanted = MlflowConfig(tracking_uri=server, experiment="begun")
    (tmp_path / "runs" / "2026-11-21-demo" / "junit.xml").rename(tmp_path / "junit.xml")
    with pytest.raises(ConfigError, match=r"junit\.xml is gone"):
        log_run(url, wanted)
    there = client(server)
    number = there.get_experiment_by_name("begun").experiment_id
    (run,) = there.search_runs([number])
    assert run.info.status == "RUNNING"
    (tmp_path / "junit.xml").rename(tmp_path / "runs" / "2026-11-21-demo" / "junit.xml")
    assert log_run(url, wanted).endswith(run.info.run_id)
    assert there.get_run(run.info.run_id).info.status == "FINISHED"
    there.delete_run(run.info.run_id)
    assert not log_run(url, wanted).endswith(run.info.run_id)


def test_runs_of_one_name_and_other_images_are_apart(server: str, tmp_path: Path) -> None:
    wanted = MlflowConfig(tracking_uri=server, experiment="apart")
    one, _ = finished(tmp_path / "one")
    two, _ = finished(tmp_path / "two")
    # The same run copied elsewhere is the same run.
    assert log_run(one, wanted) == log_run(two, wanted)
    store = LocalStore(two)
    store.put("images/part-00000.parquet", b"other rows")
    complete = json.loads(store.get("COMPLETE"))
    complete["files"]["images/part-00000.parquet"] = hashlib.sha256(b"other rows").hexdigest()
    store.put("COMPLETE", json.dumps(complete).encode())
    assert log_run(one, wanted) != log_run(two, wanted)


def test_labels_and_prompts_of_any_script_are_taken(server: str, tmp_path: Path) -> None:
    report = make_report(professions=1)
    rate = report.summary.base.explicit
    base = report.summary.base.model_copy(update={"explicit_by_label": {"женский/x": rate, "a:b": rate, "女²": rate}})
    url, _ = finished(tmp_path, summary=report.summary.model_copy(update={"base": base}), run='it\'s "quoted"')
    assert "/runs/" in log_run(url, MlflowConfig(tracking_uri=server, experiment="наборы 'x'"))


def test_a_deleted_experiment_is_told(server: str, tmp_path: Path) -> None:
    there = client(server)
    there.delete_experiment(there.create_experiment("old"))
    url, _ = finished(tmp_path)
    with pytest.raises(SinkError, match="'old' is deleted there; restore it"):
        log_run(url, MlflowConfig(tracking_uri=server, experiment="old"))
