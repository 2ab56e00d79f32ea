"""Start servers that outlive the command, find all that belongs to one, and stop exactly that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from infra.local.errors import LocalError
from infra.local.home import Home, Server

__all__ = ["alive", "base_environment", "log_tail", "members", "start", "stop", "wait_until"]

MARKER = "EVENHAND_LOCAL_CLUSTER"
_SAME_START_S = 2.0
_TERM_S = 4.0
_KILL_S = 10.0


def base_environment(home: Home) -> dict[str, str]:
    """Return what servers start with: the user's environment without AWS and Ray settings, and the home's marker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    # `python` in a job's entrypoint, and the workers, are the interpreter and the packages that started the cluster.
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    source = Path(__file__).resolve().parents[2]
    if source.name != "site-packages":
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), kept.get("PYTHONPATH")]))
    local = [*filter(None, kept.get("NO_PROXY", kept.get("no_proxy", "")).split(",")), "127.0.0.1", "localhost"]
    kept["NO_PROXY"] = kept["no_proxy"] = ",".join(dict.fromkeys(local))
    return kept | {MARKER: home.marker}


def start(command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> Server:
    """Start a server in a session of its own, its output in `log` (begun anew), and return who leads it."""
    with log.open("wb") as stream:
        log.chmod(0o600)
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(pid=process.pid, started=psutil.Process(process.pid).create_time())


def alive(server: Server | None) -> bool:
    """Return whether the very process that was started still runs."""
    if server is None:
        return False
    try:
        process = psutil.Process(server.pid)
        same = abs(process.create_time() - server.started) < _SAME_START_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(home: Home, leader: Server | None = None) -> list[psutil.Process]:
    """Return the live processes of one server, or of the whole home when `leader` is None.

    A server's are those of its session and their descendants. A home's are those whose environment names it, and their
    descendants: job drivers have sessions of their own, and the children of a killed leader have another parent.
    """
    ours: dict[int, psutil.Process] = {}
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            children.setdefault(process.ppid(), []).append(process)
            if _in_session(process, leader) if leader else process.environ().get(MARKER) == home.marker:
                ours[process.pid] = process
        except (psutil.Error, ProcessLookupError):
            continue  # it ended, or is not ours to look at
    waiting = list(ours)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child.pid not in ours:
                ours[child.pid] = child
                waiting.append(child.pid)
    ours.pop(os.getpid(), None)
    return list(ours.values())


def _in_session(process: psutil.Process, leader: Server) -> bool:
    if os.getsid(process.pid) != leader.pid:
        return False
    if alive(leader):
        return True
    # The leader was killed. Its session counts if no other process has its pid now, and this one calls itself a server:
    # Ray's helpers write their titles over their environment, so the marker can't tell.
    try:
        gone = psutil.Process(leader.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        gone = True
    words = " ".join(process.cmdline())
    return gone and ("ray" in words or "weed" in words)


def stop(home: Home, *leaders: Server | None, everything: bool = False, spare: Server | None = None) -> int:
    """Stop servers with all their processes: SIGTERM, four seconds, SIGKILL.

    Args:
        home: whose they are.
        leaders: the servers.
        everything: also every other process of the home, such as what jobs left behind.
        spare: a server that is left alone all the same.

    Returns:
        How many processes there were.

    Raises:
        LocalError: a process outlived SIGKILL.
    """
    sent: set[tuple[int, int]] = set()
    left: dict[int, psutil.Process] = {}
    for number, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            left = {process.pid: process for leader in leaders if leader for process in members(home, leader)}
            if everything:
                left |= {process.pid: process for process in members(home)}
            for process in members(home, spare) if spare else ():
                left.pop(process.pid, None)
            if not left:
                return len({pid for pid, _ in sent})
            for pid, process in left.items():
                if (pid, number) not in sent:  # looked for again each time, as a dying server may still start something
                    sent.add((pid, number))
                    _signal(process, number)
            psutil.wait_procs(list(left.values()), timeout=0.3)
    raise LocalError(f"could not stop processes {sorted(left)}. Look at them: ps -fp {','.join(map(str, left))}")


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # psutil refuses when the pid has been recycled
    except psutil.NoSuchProcess:
        return


def log_tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, for an error message; before them the fatal one, if a long trace hides it."""
    try:
        text = log.read_text("utf-8", errors="replace")
    except OSError:
        return "(no log)"
    rows = text.splitlines()
    fatal = [line for line in rows[:-lines] if re.match(r"F\d{4} |panic:", line)]  # as SeaweedFS writes them
    return "\n".join([*fatal[:1], *rows[-lines:]]) or "(the log is empty)"


def wait_until(ready: Callable[[], str | None], server: Server, name: str, log: Path, timeout_s: float) -> None:
    """Wait until `ready` returns None; it returns what is still missing otherwise.

    Raises:
        LocalError: the server ended, or is not ready in time; with the last lines of its log.
    """
    deadline = time.monotonic() + timeout_s
    while (missing := ready()) is not None:
        ended = not alive(server)
        if ended or time.monotonic() > deadline:
            why = "ended while starting" if ended else f"is not ready after {timeout_s:.0f} s: {missing}"
            raise LocalError(f"{name} {why}. The last lines of {log}:\n{log_tail(log)}")
        time.sleep(0.2)
