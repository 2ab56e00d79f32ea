"""Calls of workers are typed: an argument of the wrong type is an error before anything runs."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from jobs.worker.api import WorkerApi
from jobs.worker.make import make_worker
from jobs.worker.worker import Worker

ROOT = Path(__file__).parents[3]
CALLS = [name for name in dir(WorkerApi) if not name.startswith("_")]


def test_a_worker_answers_every_call_by_the_same_parameters() -> None:
    assert len(CALLS) == 19
    assert get_type_hints(make_worker)["return"] is WorkerApi
    for name in CALLS:
        asked, answered = (inspect.signature(getattr(each, name)).parameters for each in (WorkerApi, Worker))
        assert [(p.name, p.annotation) for p in asked.values()] == [(p.name, p.annotation) for p in answered.values()]


@pytest.mark.slow
@pytest.mark.timeout(900)  # it reads every module that the calls come from, where none is in mypy's cache
def test_mypy_sees_through_the_pool() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "tests/jobs/cluster/typed_calls.py"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
