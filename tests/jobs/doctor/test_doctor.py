"""`evenhand doctor`: what it finds on a real store, with real models, and on a small Ray."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import S3Store, StorageSettings
from jobs.cli import main
from jobs.doctor.cluster import Facts, check_cluster, gpus, places, versions_of
from jobs.doctor.models import UNGIVEN, check_edit_set, check_models, disk, hub
from jobs.doctor.schema import Diagnosis, Finding, of_error, said
from jobs.doctor.storage import check_storage, clock, reaching
from jobs.doctor.text import diagnosis_text
from jobs.errors import ClusterError, ConfigError
from manifests import write_manifest
from tests.conftest import S3Server
from tests.jobs.helpers import config, manifest
from tests.wire import read_only


def outcomes(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.outcome for finding in findings}


def finding(area: str, outcome: str) -> Finding:
    return Finding.model_validate({"area": area, "check": "c", "outcome": outcome, "found": "f"})


@pytest.mark.parametrize(
    ("faulty", "code"),
    [((), 0), (("cluster",), 8), (("cluster", "storage"), 4), (("storage", "model"), 3), (("model", "input"), 2)],
)
def test_the_exit_code_is_that_of_the_first_area_with_a_fault(faulty: tuple[str, ...], code: int) -> None:
    findings = [finding(area, "fault") for area in faulty]
    assert Diagnosis(findings=[finding("input", "warning"), *findings, finding("storage", "ok")]).exit_code == code


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("write s3://b/k: no (from http://h:1). Let them.", ("write s3://b/k: no (from http://h:1)", "Let them.")),
        ("there is no a.csv; correct the name", ("there is no a.csv", "Correct the name")),
        ("row 1: bad; mend it\nrow 2: bad. Mend it", ("row 1: bad; mend it\nrow 2: bad. Mend it", "")),
        ("odd", ("odd", "")),
    ],
)
def test_a_message_is_told_apart_from_its_advice(message: str, parts: tuple[str, str]) -> None:
    assert said(message) == parts


def test_no_finding_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    error = ConfigError("s3://key:planted@bucket/p: no hf_planted there; give s3://key:planted@bucket/q")
    shown = Diagnosis(findings=[of_error("input", "manifest", error)]).model_dump_json()
    assert "planted" not in shown
    assert "s3://***@bucket/q" in shown


@pytest.mark.parametrize(
    ("skew_s", "outcome", "found"),
    [(-1.2, "ok", "as the server's"), (61, "warning", "61 s ahead"), (-901, "fault", "901 s behind")],
)
def test_the_clock_is_held_against_the_servers(skew_s: float, outcome: str, found: str) -> None:
    result = clock(skew_s)
    assert (result.outcome, result.found[: len(found)]) == (outcome, found)


@pytest.mark.parametrize(
    ("free", "needed", "outcome"), [(10, None, "ok"), (99, 100, "fault"), (199, 100, "warning"), (200, 100, "ok")]
)
def test_the_cache_needs_room_for_the_models(free: int, needed: int | None, outcome: str) -> None:
    assert disk(free * 10**9, needed and needed * 10**9, Path("/cache")).outcome == outcome


def test_what_the_settings_say_of_the_server(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert reaching(StorageSettings(endpoint_url="https://s3.example.org", ca_bundle=str(bundle))).outcome == "ok"
    gone = reaching(StorageSettings(endpoint_url="https://s3.example.org", ca_bundle=str(tmp_path / "no.pem")))
    assert (gone.outcome, "AWS_CA_BUNDLE" in gone.mend) == ("fault", True)
    assert reaching(StorageSettings(endpoint_url="http://s3.example.org")).outcome == "warning"
    assert reaching(StorageSettings(endpoint_url="http://127.0.0.1:8333")).outcome == "ok"
    assert reaching(StorageSettings()).outcome == "warning"
    picky = StorageSettings(endpoint_url="https://s3.example.org", checksum_mode="when_supported")
    assert reaching(picky).outcome == "warning"


def test_a_hub_is_told_without_its_token() -> None:
    assert hub(["s3://bucket/model", str(PIPELINE_PATH)], {}).outcome == "ok"
    asked = hub(["CompVis/stable-diffusion-v1-4"], {"HF_TOKEN": "hf_planted"})
    assert (asked.outcome, "with a token" in asked.found, "hf_planted" in str(asked)) == ("warning", True, False)
    offline = hub(["CompVis/stable-diffusion-v1-4"], {"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in offline.found


def test_versions_that_decide_images_are_faults_others_warnings() -> None:
    versions = {"torch": "2.13.0", "diffusers": "0.36", "transformers": "5.0", "ray": "2.60", "evenhand": "0.1"}
    here = Facts("head", "3.11.7", versions, ())
    assert versions_of(here, [here]).outcome == "ok"
    newer = Facts("n2", "3.11.9", versions, ())
    assert versions_of(here, [here, newer]).outcome == "warning"
    other = Facts("n3", "3.11.7", versions | {"torch": "", "ray": "2.61"}, ())
    found = versions_of(here, [newer, other])
    assert found.outcome == "fault"
    assert found.found.startswith("torch is missing on n3, 2.13.0 here")
    assert versions_of(here, [here], silent=1).outcome == "warning"


def test_gpus_in_use_are_told() -> None:
    free, busy = ("H200", 140 << 30, 141 << 30), ("H200", 70 << 30, 141 << 30)
    assert gpus([Facts("n", "", {}, (free, free))]).outcome == "ok"
    found = gpus([Facts("n", "", {}, (free,)), Facts("m", "", {}, (busy,))])
    assert (found.outcome, found.found) == ("warning", "2: H200 of 141 GiB; 1 of them in use")
    assert gpus([]).outcome == "warning"


def test_folders_of_one_machine_are_no_places_for_several_nodes(tmp_path: Path) -> None:
    here = config(model=str(tmp_path), classifier="s3://b/c", output=str(tmp_path / "out"))
    assert places(here, 1).outcome == "ok"
    found = places(here, 2)
    assert (found.outcome, "model" in found.found, "classifier" in found.found) == ("warning", True, False)
    assert places(config(model="s3://b/m", classifier="org/hub", output="s3://b/o"), 9).outcome == "ok"


def test_a_sound_store_passes_and_keeps_nothing(s3: S3Server) -> None:
    store = s3.store()
    store.put("theirs", b"stays")
    findings = list(check_storage(store.url(), s3.settings))
    assert set(outcomes(findings).values()) == {"ok"}, findings
    assert list(outcomes(findings)) == [
        *("settings", "credentials", "reach and list", "write", "read back", "clock"),
        *("multipart upload", "conditional write", "server-side copy", "delete"),
    ]
    assert list(store.list()) == ["theirs"]
    secrets = (s3.credentials.secret_key, s3.credentials.access_key)
    assert not [secret for secret in secrets if secret in str(findings)]


def test_nothing_stays_when_nobody_listens_to_the_end(s3: S3Server) -> None:
    store = s3.store()
    for found in check_storage(store.url(), s3.settings):
        if found.check == "multipart upload":
            break
    assert list(store.list()) == []


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    findings = list(check_storage(str(tmp_path / "a" / "b"), StorageSettings()))
    assert set(outcomes(findings).values()) == {"ok"}, findings
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_secret_is_told_and_not_shown(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3.apply(
        monkeypatch,
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
        AWS_ACCESS_KEY_ID=s3.credentials.access_key,
        AWS_SECRET_ACCESS_KEY="plantedsecret",
        AWS_PROFILE=None,
    )
    findings = list(check_storage(s3.store().url(), s3.settings))
    assert outcomes(findings) == {"settings": "ok", "credentials": "ok", "reach and list": "fault"}
    assert "SignatureDoesNotMatch" in findings[-1].found
    assert "AWS_SECRET_ACCESS_KEY" in findings[-1].mend
    assert "plantedsecret" not in str(findings)


def test_no_credentials_are_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "no")}
    s3.apply(monkeypatch, AWS_PROFILE=None, **nowhere)
    findings = list(check_storage(s3.store().url(), s3.settings))
    assert outcomes(findings) == {"settings": "ok", "credentials": "fault"}


def test_a_missing_bucket_is_told(s3: S3Server) -> None:
    findings = list(check_storage("s3://no-such-bucket/prefix", s3.settings))
    assert outcomes(findings)["reach and list"] == "fault"
    assert "does not exist" in findings[-1].found
    assert Diagnosis(findings=findings).exit_code == 4


def test_a_read_only_bucket_is_told(s3: S3Server) -> None:
    store = s3.store()
    assert isinstance(store, S3Store)
    with read_only(store):
        findings = list(check_storage(store.url(), s3.settings))
    assert outcomes(findings)["reach and list"] == "ok"
    assert (findings[-1].check, findings[-1].outcome) == ("write", "fault")
    assert "AccessDenied" in findings[-1].found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_with_a_pickled_part_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = Path(shutil.copytree(PIPELINE_PATH, tmp_path / "model"))
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    findings = list(check_models(config(model=str(folder), classifier=UNGIVEN), StorageSettings(), "t"))
    assert (findings[-1].check, findings[-1].outcome, findings[-1].area) == ("model", "fault", "model")
    assert "vae holds pickled weights alone" in findings[-1].found
    assert "safe_serialization=True" in findings[-1].mend


EDIT = "old,new,positive1,gt1\na cat,a cat at night,A sketch of a cat,A sketch of a cat at night\n"


@pytest.mark.parametrize(
    ("has_model", "found"),
    [(True, "1 of 2 edits (the report says why)"), (False, "2 edits; lengths of prompts not checked")],
)
def test_an_evaluations_edit_set_is_read_as_one(has_model: bool, found: str, tmp_path: Path, cache: Path) -> None:
    """The second edit is of more words than the encoder reads, which only the tokenizer can tell."""
    long = f"a boat {'at night ' * 90}"
    (tmp_path / "e.csv").write_text(f"{EDIT}a boat,{long},A sketch of a boat,A sketch of {long}\n")
    settings = config(manifest=str(tmp_path / "e.csv"), model=str(PIPELINE_PATH), evaluate={"lam": [0.1]})
    finding = check_edit_set(settings, StorageSettings(), "doctor-x", has_model=has_model)
    assert (finding.check, finding.outcome) == ("edit set", "ok")
    assert finding.found.startswith(found)


def test_which_file_is_read_is_the_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> None:
        raise ClusterError("no cluster is asked for here")

    monkeypatch.setattr("jobs.cli.looking.connect", connect)
    (tmp_path / "e.csv").write_text(EDIT)
    found = {}
    for job in ("debias", "evaluate"):
        with pytest.raises(SystemExit):
            main(["doctor", "--manifest", str(tmp_path / "e.csv"), "--job", job, "--json"])
        first = json.loads(capsys.readouterr().out)["findings"][0]
        found[job] = (first["check"], first["outcome"])
    assert found == {"debias": ("manifest", "fault"), "evaluate": ("edit set", "ok")}


def test_a_classifier_that_is_none_and_a_prefix_without_objects_are_told(s3: S3Server, cache: Path) -> None:
    wrong = config(model=UNGIVEN, classifier=str(PIPELINE_PATH / "text_encoder"))
    findings = list(check_models(wrong, s3.settings, "t"))
    assert (outcomes(findings)["classifier"], Diagnosis(findings=findings).exit_code) == ("fault", 3)
    empty = config(model=s3.store().url(), classifier=UNGIVEN)
    findings = list(check_models(empty, s3.settings, "t"))
    assert (findings[0].outcome, Diagnosis(findings=findings).exit_code) == ("fault", 4)


class _Refusing(BaseHTTPRequestHandler):
    """A dashboard that asks for a token."""

    def do_GET(self) -> None:
        self.send_error(401, "Unauthorized: Missing authentication token")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("there", [True, False])
def test_a_dashboard_that_refuses_or_is_not_there_is_told(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        port = server.server_port
        if there:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        else:
            server.server_close()
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{port}")
        (found,) = check_cluster(config(), lambda: None)
        if there:
            server.shutdown()
    assert (found.outcome, Diagnosis(findings=[found]).exit_code) == ("fault", 8)
    assert "RAY_AUTH_TOKEN" in found.mend


@pytest.fixture
def little_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.timeout(200)
def test_a_whole_examination(
    s3: S3Server, cache: Path, tmp_path: Path, little_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model from the store, so that it is staged; nothing of it stays."""
    store = s3.store()
    store.upload_folder(PIPELINE_PATH, "model")
    write_manifest(manifest("nurse", "mechanic"), tmp_path / "m.parquet")
    flags = {"--manifest": tmp_path / "m.parquet", "--model": store.url("model"), "--classifier": CLASSIFIER_PATH}
    arguments = [str(part) for pair in flags.items() for part in pair]
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments, "--output", store.url("runs"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    found = Diagnosis(findings=[Finding.model_validate(each) for each in printed["findings"]])
    assert outcomes(found.findings) == dict.fromkeys(
        (
            *("manifest", "cache folder", "model hub", "model", "tokenizer", "text encoder", "classifier"),
            *("settings", "credentials", "reach and list", "write", "read back", "clock", "multipart upload"),
            *("conditional write", "server-side copy", "delete"),
            *("Ray", "room for workers", "places", "our packages", "versions"),
        ),
        "ok",
    ) | {"GPUs": found.findings[-1].outcome}
    assert (ended.value.code, printed["exit_code"]) == (0, 0)
    assert list(cache.iterdir()) == []
    assert not [key for key in store.list() if not key.startswith("model/")]

    console = Console(width=160)
    with console.capture() as shown:
        console.print(diagnosis_text(found))
    text = shown.get()
    assert "No fault" in text
    assert all(each.check in text for each in found.findings)
