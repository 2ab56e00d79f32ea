"""No secret in what people and files are told; `test_audit` looks through everything that a whole run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.storage import LocalStore
from jobs.cli import main
from jobs.redact import redact
from jobs.runs.folder import RunFolder

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "plantedAwsSecret/+=",
    "AWS_SESSION_TOKEN": "plantedSessionToken",
    "MLFLOW_TRACKING_PASSWORD": "plantedMlflowPassword",
    "HF_TOKEN": "hf_plantedHubToken",
    "RAY_AUTH_TOKEN": "plantedRayToken",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://user:pass@host:80/x?a=b.", "at http://***@host:80/x?a=b."),
        ("http://token@host", "http://***@host"),
        ("http://user:12345@host/x", "http://***@host/x"),
        ("'mlflow://u:pa/ss@host/path'", "'mlflow://***@host/path'"),
        ("http://host:8080/models@v2 and org/model@main", "http://host:8080/models@v2 and org/model@main"),
        ("s3://bucket/key, mail a@b.org", "s3://bucket/key, mail a@b.org"),
        ("https://h/k?X-Amz-Signature=abc123&list-type=2", "https://h/k?X-Amz-Signature=***&list-type=2"),
        ("{'Authorization': 'Bearer abc.def-1', 'a': 1}", "{'Authorization': 'Bearer ***', 'a': 1}"),
        ("authorization: Basic dTpw, a bearer certificate", "authorization: Basic ***, a bearer certificate"),
    ],
)
def test_credentials_in_urls_and_headers_are_blacked_out(text: str, shown: str) -> None:
    assert redact(text, {}) == shown


def test_values_of_secret_variables_are_blacked_out_but_no_words() -> None:
    text = " ".join(f"<{value}>" for value in SECRETS.values())
    assert redact(text, SECRETS) == " ".join(["<***>"] * len(SECRETS))
    assert redact("a short word", {"HF_TOKEN": "word", "AWS_SESSION_TOKEN": ""}) == "a short word"
    assert redact("in a URL: plantedAwsSecret%2F%2B%3D", SECRETS) == "in a URL: ***"


def test_variables_are_told_by_the_ends_of_their_names() -> None:
    ours = {"MY_API_KEY": "planted-1", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "planted-2", "REDIS_PASSWORD": "planted"}
    plain = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "TOKENIZERS_PARALLELISM": "disabled", "TOKEN_LIMIT": "100000"}
    text = " ".join([*ours.values(), *plain.values()])
    assert redact(text, ours | plain) == " ".join(["***"] * 3 + list(plain.values()))


def test_a_failed_run_says_why_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = RunFolder(LocalStore(tmp_path), "r")
    folder.open("identity", {})
    # A secret that would be cut in two by the limit on the error's length is still blacked out.
    padding = "x" * 1990
    folder.fail(ValueError(f"{padding}{SECRETS['HF_TOKEN']} http://u:planted@h {' '.join(SECRETS.values())}"), 1)
    written = folder.get("run.json").decode()
    assert '"status": "failed"' in written
    assert "plant" not in written.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--manifest", "m.csv", "--model", "m", "--classifier", "c", "--output", "s3://key:planted1@bucket/p"],
        ["plan", "--manifest", "s3://key:planted1@bucket/m.csv", "--model", "m", "--classifier", "c", "--output", "o"],
        ["plan", "--set", "mlflow.experiment=http://u:planted1@host", "--set", "seed=https://u:planted1@host"],
        ["report", "s3://key:planted1@bucket/runs/r"],
        ["mlflow", "gs://plantedMlflowPassword/r", "--tracking-uri", "http://u:planted1@127.0.0.1:9"],
    ],
)
def test_messages_of_the_command_line_show_no_secret(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code not in (0, None)
    assert "error" in err
    assert "planted" not in out + err


def test_a_fault_of_ours_keeps_its_traceback_but_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    (tmp_path / "run.yaml").write_text("manifest: m\nmodel: m\nclassifier: c\noutput: o\n")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"a library's message with {SECRETS['HF_TOKEN']}")

    monkeypatch.setattr("jobs.planning.plan.make_plan", broken)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "run.yaml")])
    err = capsys.readouterr().err
    assert (ended.value.code, "Traceback" in err, "a library's message with ***" in err) == (1, True, True)
