"""`evenhand submit` where no Ray answers, or one that refuses: exit code 8, and what to do; no cluster is started."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from jobs.cli import main
from jobs.cluster.submit import _follow
from jobs.errors import ExitCode

ROOT = Path(__file__).parents[3]
VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "s"}

Answer = tuple[int, object]


@contextmanager
def answering(answers: dict[str, Answer], otherwise: Answer) -> Iterator[str]:
    """The address of a server that says these things, by method and path."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answers.get(f"{self.command} {self.path}", otherwise)
            if status == 0:
                self.close_connection = True
                return
            body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Ray's client prefers these two over what it is told.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    (tmp_path / "run.yaml").write_text("manifest: s3://b/m\nmodel: s3://b/m\nclassifier: s3://b/c\noutput: s3://b/o\n")
    return tmp_path / "run.yaml"


def refused(file: Path, address: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What the command says on the error stream, once it has ended with 8."""
    with pytest.raises(SystemExit) as ended:
        main(["submit", str(file), "--address", address, *more])
    shown = capsys.readouterr()
    assert ended.value.code == ExitCode.CLUSTER, shown.err
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert address in shown.err
    return shown.err


def test_a_closed_port(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering({}, (200, VERSION)) as address:
        pass
    said = refused(file, address, capsys)
    assert "no Ray dashboard answers" in said
    assert "evenhand local up" in said


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("later", [False, True])
def test_a_token_that_is_not_there_or_refused(
    status: int, later: bool, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first request; or, as the token ends or may only read, when the job is handed over."""
    with answering({"GET /api/version": (200, VERSION)} if later else {}, (status, "Unauthorized")) as address:
        said = refused(file, address, capsys)
    assert "RAY_AUTH_MODE=token" in said
    assert "RAY_AUTH_TOKEN" in said
    assert "local up" not in said, "it is there already"


@pytest.mark.parametrize(
    "answer", [(200, {}), (200, ["other"]), (200, "<html>"), (404, ""), (502, "Bad Gateway"), (0, "")]
)
def test_what_is_no_dashboard(answer: Answer, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering({}, answer) as address:
        assert "no Ray dashboard answers" in refused(file, address, capsys)


@pytest.mark.parametrize("answer", [(500, "no agent"), (0, "")])
def test_a_dashboard_that_takes_no_job(answer: Answer, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering({"GET /api/version": (200, VERSION)}, answer) as address:
        assert "does not take the job" in refused(file, address, capsys)
        assert "no Ray dashboard answers" in refused(file, address, capsys, "--submission-id", "once")


def test_an_address_that_is_no_dashboards(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", str(file), "--address", "ray://head:10001"])
    assert ended.value.code == ExitCode.CLUSTER
    assert "give --address http://host:8265" in capsys.readouterr().err


def test_what_ray_says_of_itself_is_not_shown() -> None:
    class Client:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "2026-11-28 16:39:16,106\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entry"
            yield f"point for job {job}: python -m jobs.debias run.yaml\n35 professions, 2 worker(s)\n"
            yield "2026-11-28 16:39:17,000 WARNING of a library\nthe end"

    said = io.StringIO()
    asyncio.run(_follow(Client(), "raysubmit_1", Console(file=said, width=200)))  # type: ignore[arg-type]
    assert said.getvalue().splitlines() == [
        *("35 professions, 2 worker(s)", "2026-11-28 16:39:17,000 WARNING of a library", "the end"),
    ]


def test_a_ray_of_the_commands_own_asks_for_a_token(tmp_path: Path) -> None:
    """A process of its own: Ray's mode is that of its import."""
    code = (
        "import os, sys; from jobs.cluster.connect import guard\n"
        "def said(command, **more):\n"
        "    for name in ('RAY_AUTH_MODE', 'RAY_AUTH_TOKEN', 'RAY_ADDRESS'): os.environ.pop(name, None)\n"
        "    os.environ |= more; guard(command)\n"
        "    print(os.environ.get('RAY_AUTH_MODE'), len(os.environ.get('RAY_AUTH_TOKEN', '')))\n"
        "assert 'ray' not in sys.modules\n"
        "said('debias'); said('submit'); said('audit', RAY_ADDRESS='auto'); said('audit', RAY_AUTH_MODE='disabled')\n"
    )
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:-1] == ["token 64", "None 0", "None 0", "disabled 0"], done.stderr


def test_a_ray_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    """The file that it leaves behind names a port at which nobody answers; a fresh process starts a Ray of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(f"127.0.0.1:{port}")
    code = (
        "import os; from jobs.cluster.connect import connect, guard\n"
        "guard('debias'); print(os.environ['RAY_AUTH_MODE'])\n"
        # Paths of sockets are short, so this Ray's own files lie where they always do.
        "import ray; init = ray.init; ray.init = lambda **options: print(options.get('address'))\n"
        "connect()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    environment["RAY_TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-c", code]

    def said() -> list[str]:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert said() == ["token", "local"]
    with socket.create_server(("127.0.0.1", port)):  # one that answers is joined
        environment["RAY_AUTH_MODE"] = "disabled"
        assert said() == ["disabled", "None"]
