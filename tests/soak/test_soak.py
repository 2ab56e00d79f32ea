"""The soak in small: thirty faults of a fixed seed on no-op shards; and its own list and checks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.check import Finished, compare
from tests.soak.faults import KINDS, fault_list
from tests.soak.wire import Ledger, Shard

ROOT = Path(__file__).parents[2]
FINISHED = Finished({}, {"a": [1]}, {"shards": ["x"]}, "done", [], [], 0, {"shards/x": "0"})


def test_the_list_is_the_seeds_and_has_every_kind() -> None:
    thousand = fault_list(3, 1000)
    assert fault_list(3, 30) == thousand[:30] != fault_list(4, 30)
    assert {fault.kind for fault in thousand} == set(KINDS)


@pytest.mark.parametrize(
    ("shard", "wrong"),
    [
        (Shard(misses=1, digests=["a"]), 0),
        (Shard(misses=2, digests=["a", "b"]), 0),
        (Shard(misses=1, digests=["a", "b"]), 1),
        (Shard(misses=2, lost=1, digests=["a"]), 1),
        (Shard(misses=1, digests=["a", "b"], damaged=1), 0),
    ],
    ids=["once", "in two hands", "again", "lost", "mended"],
)
def test_a_shard_is_made_again_only_where_its_worker_found_none(shard: Shard, wrong: int) -> None:
    assert len(compare(FINISHED, FINISHED, Ledger("p", {"shards/x": shard})).wrong) == wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_faults_change_nothing() -> None:
    command = [sys.executable, "-m", "tests.soak", "--faults", "30", "--seed", "9541", "--per-cycle", "30"]
    command += ["--shards", "200", "--no-demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    assert re.search(r"^30 faults, seed 9541,", done.stdout, re.MULTILINE), done.stdout
    assert " 0 lost, 0 doubled" in done.stdout
