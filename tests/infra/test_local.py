"""The embedded cluster, for real: started, looked at, broken, repaired and stopped."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobSubmissionClient

from infra import local
from infra.local import seaweed
from infra.local.home import Home, Server
from infra.local.ports import SEAWEED_PORTS, choose_ports
from infra.local.processes import alive, base_environment, log_tail, members, stop
from infra.storage import StorageError, open_store
from jobs.cli import main

SOURCE = str(Path(local.__file__).parents[2])
JOB = """
import os
import ray
from infra.storage import StorageError, StorageSettings, open_store

settings = StorageSettings.from_environment()
store = open_store(os.environ["TARGET"], settings)

@ray.remote
def work(store, name):
    return store.get(name).upper()

@ray.remote(max_retries=0)
def fail(store):
    store.get("missing")

store.put("out", ray.get(work.remote(store, "in")))
try:
    ray.get(fail.remote(store))
except StorageError as error:
    store.put("error", str(error).encode())
"""


def _processes(cluster: local.LocalCluster) -> list[psutil.Process]:
    home = Home(cluster.home)
    state = home.read_state()
    found = {p.pid: p for server in (state.seaweed, state.ray) for p in (members(home, server) if server else [])}
    return [*found.values(), *(p for p in members(home) if p.pid not in found)]


def _run(environment: dict[str, str], *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_a_submitted_job_reaches_the_store(cluster: local.LocalCluster, tmp_path: Path) -> None:
    store = open_store(f"{cluster.url}/job")
    store.put("in", b"text")
    (tmp_path / "job.py").write_text(JOB)
    runtime = json.dumps({"env_vars": {"TARGET": store.url()}})
    submit = ["-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(tmp_path)]
    submit += ["--runtime-env-json", runtime]
    done = _run(cluster.client_environment(), *submit, "--", "python", "job.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert store.get("out") == b"TEXT"
    assert b"no such object" in store.get("error")

    jobs = JobSubmissionClient(cluster.dashboard_url, headers=cluster.job_headers()).list_jobs()
    secrets = _secrets(cluster)
    assert any(job.entrypoint == "python job.py" for job in jobs)
    assert not any(secret in repr(jobs) for secret in secrets)
    _assert_secrets_are_kept(cluster)


def _secrets(cluster: local.LocalCluster) -> list[str]:
    home = Home(cluster.home)
    return [home.credentials().secret_key, home.ray_token.read_text().strip()]


def _assert_secrets_are_kept(cluster: local.LocalCluster) -> None:
    home, secrets = Home(cluster.home), [secret.encode() for secret in _secrets(cluster)]
    logs = [*home.logs.rglob("*"), *(home.temp / "ray").rglob("*.log"), *(home.temp / "ray").rglob("*.out")]
    texts: dict[object, bytes] = {
        path: path.read_bytes() for path in [*logs, home.state_file, home.aws_config] if path.is_file()
    }
    assert len(texts) > 10
    for process in _processes(cluster):
        texts[process] = " ".join(process.cmdline()).encode()
        texts[process.pid] = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert [name for name, text in texts.items() if any(secret in text for secret in secrets)] == []
    private = (home.credentials_file, home.ray_token, home.aws_config, home.state_file)
    for path in (*private, home.root / "s3-identities.json"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert home.root.stat().st_mode & 0o077 == 0


def test_only_loopback_is_listened_on(cluster: local.LocalCluster) -> None:
    found = [
        connection.laddr
        for process in _processes(cluster)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(found) > 15
    assert {address.ip for address in found} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not [address.port for address in found if 10002 <= address.port <= 19999]


def test_ray_asks_for_its_token(cluster: local.LocalCluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.dashboard_url}/api/jobs/", timeout=10)  # noqa: S310


def test_up_again_changes_nothing(cluster: local.LocalCluster) -> None:
    before = Home(cluster.home).read_state()
    assert local.up(cluster.home, bucket=cluster.bucket) == cluster
    assert Home(cluster.home).read_state() == before
    assert local.status(cluster.home).is_up


def test_another_bucket_is_made_on_a_running_store(cluster: local.LocalCluster) -> None:
    try:
        other = local.up(cluster.home, bucket="another")
        open_store(other.url).check_writable()
    finally:
        local.up(cluster.home, bucket=cluster.bucket)


def _code(*words: str) -> object:
    """What a command of `evenhand local` ends with."""
    with pytest.raises(SystemExit) as stop:
        main(["local", *words])
    return stop.value.code


def test_commands(
    cluster: local.LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENHAND_HOME", str(cluster.home))
    assert _code("up", "--bucket", cluster.bucket) == 0
    capsys.readouterr()
    assert _code("status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["up"], found["cluster"]["s3_endpoint"]) == (True, cluster.s3_endpoint)
    shell = 'export AWS_ACCESS_KEY_ID=mine; eval "$("$0" -m jobs.cli local env)"; env'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert cluster.environment().items() <= printed.items()
    assert "AWS_ACCESS_KEY_ID" not in printed
    assert _code("wipe", "--yes") == 8
    assert "evenhand local down" in capsys.readouterr().err
    assert _code("wipe") == 2

    monkeypatch.setenv("EVENHAND_HOME", str(tmp_path / "none"))
    assert _code("status") == 8
    assert _code("env") == 8
    assert _code("down") == 0
    assert not (tmp_path / "none").exists()


def test_a_killed_store_is_repaired_and_keeps_its_data(cluster: local.LocalCluster) -> None:
    open_store(cluster.url).put("repair/kept", b"kept")
    home = Home(cluster.home)
    before = home.read_state()
    assert before.seaweed
    os.kill(before.seaweed.pid, signal.SIGKILL)
    while alive(before.seaweed):
        time.sleep(0.05)
    assert local.status(cluster.home).store == "down"
    assert local.up(cluster.home, bucket=cluster.bucket) == cluster
    assert home.read_state().ray == before.ray
    assert open_store(cluster.url).get("repair/kept") == b"kept"


@pytest.mark.slow
def test_a_killed_ray_is_repaired_and_down_leaves_nothing(cluster: local.LocalCluster) -> None:
    home = Home(cluster.home)
    state = home.read_state()
    assert state.ray
    open_store(cluster.url).put("down/kept", b"kept")
    client = JobSubmissionClient(cluster.dashboard_url, headers=cluster.job_headers())
    client.submit_job(entrypoint="sleep 1000 & setsid sleep 1000")
    deadline = time.monotonic() + 60
    while sum("sleep" in process.name() for process in members(home)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    mine = _processes(cluster)
    assert sum("sleep" in process.name() for process in mine) >= 2
    os.kill(state.ray.pid, signal.SIGKILL)
    begun = time.monotonic()
    assert local.down(cluster.home)
    assert time.monotonic() - begun < 15
    assert [process for process in mine if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert members(home) == []
    assert not home.temp.exists()
    assert not local.down(cluster.home)
    assert not local.status(cluster.home).is_up

    # As the command line does it, in a process that ends; on the same ports, with the data of before.
    environment = {**os.environ, "EVENHAND_HOME": str(cluster.home), "PYTHONPATH": SOURCE}
    done = _run(environment, "-m", "jobs.cli", "local", "up", "--cpus", "2", "--bucket", cluster.bucket)
    assert done.returncode == 0, done.stdout + done.stderr
    assert local.up(cluster.home, bucket=cluster.bucket) == cluster
    assert open_store(cluster.url).get("down/kept") == b"kept"


def test_data_survives_other_ports_and_a_lost_state(tmp_path: Path, s3_server: object) -> None:
    """The store alone, moved to other ports as when the old ones are taken."""
    home = Home.at(tmp_path / "home")
    seen = []
    for seed in (5, 900):
        home.create()
        ports = choose_ports("seaweed", {}, seed)
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        server = seaweed.start_seaweed(home, "moved", {name: ports[name] for name in SEAWEED_PORTS})
        try:
            seaweed.wait_ready(home, server, endpoint, "moved")
            client = seaweed._client(endpoint, home.credentials())
            if seed == 5:
                client.put_object(Bucket="moved", Key="key", Body=b"kept" * 100_000)
            seen.append(client.get_object(Bucket="moved", Key="key")["Body"].read())
        finally:
            stop(home, everything=True)  # found by the marker alone
            seaweed.remove_sockets(ports)
            home.remove_temp()
    assert seen == [b"kept" * 100_000] * 2


def test_an_interrupted_up_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "EVENHAND_HOME": str(tmp_path), "PYTHONPATH": SOURCE}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "local", "up"],
        env=environment,
        stderr=subprocess.DEVNULL,
        # Tests that a shell has put into the background are deaf to it, and so would their children be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    home = Home.at(tmp_path)
    try:
        while process.poll() is None and home.read_state().ray is None:
            time.sleep(0.1)
        assert len(members(home)) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert members(home) == []
    finally:
        process.kill()
        local.down(tmp_path)


def test_a_server_that_does_not_come_up_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "weed"
    broken.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setattr("infra.local.seaweed.find_weed", lambda: broken)
    with pytest.raises(local.LocalError, match=r"(?s)SeaweedFS ended while starting.*the disk is on fire"):
        local.up(tmp_path / "home")
    assert Home.at(tmp_path / "home").read_state().seaweed is None


def test_a_bad_bucket_name_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(local.LocalError, match="'b_'"):
        local.up(tmp_path / "home", bucket="b_")
    assert not (tmp_path / "home").exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("infra.local.seaweed.metadata.distribution", missing)
    with pytest.raises(local.LocalError, match=r"pip install 'evenhand\[local\]'"):
        local.up(tmp_path)


def test_a_recycled_pid_is_never_touched(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.create()
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        started = psutil.Process(other.pid).create_time()
        home.write_state(home.read_state().model_copy(update={"ray": Server(pid=other.pid, started=started - 3600)}))
        assert not local.down(tmp_path)
        assert other.poll() is None
        assert alive(Server(pid=other.pid, started=started))
    finally:
        other.kill()
        other.wait()


def test_servers_do_not_inherit_the_users_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    assert not [name for name in base_environment(Home.at(tmp_path)) if name.startswith(("AWS_", "RAY_"))]


def test_log_tail_of_a_missing_log(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "none") == "(no log)"


def test_storage_errors_name_the_operation(cluster: local.LocalCluster) -> None:
    with pytest.raises(StorageError, match="read s3://tests/none: no such object"):
        open_store(cluster.url).get("none")
