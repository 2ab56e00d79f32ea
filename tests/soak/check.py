"""What must hold of a run whatever happened to it: `compare(calm, finished, ledger)` says what does not.

Rows byte for byte, the report but for times, every file as COMPLETE has it, the same shards with the same images; and
no shard that a worker could see stored was made again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from infra.storage import ObjectStore
from tests.jobs.helpers import but_for_times
from tests.soak.wire import Ledger

__all__ = ["Finished", "Verdict", "compare", "read_finished"]

_RUN = "runs/r"


@dataclass(frozen=True)
class Finished:
    """What a finished run left in the store."""

    rows: dict[str, bytes]
    report: dict[str, Any]
    complete: dict[str, Any]
    status: str
    wrong_files: list[str]
    """Files whose digest is not what COMPLETE says."""
    leftovers: list[str]
    """What should be gone."""
    probes: int
    """Small objects by which a driver tries the store; one that is killed meanwhile leaves its own."""
    images: dict[str, str]
    """Key of each stored shard -> digest of its images by its own footer, or why it can't be read."""

    def counted(self) -> Counter[tuple[str, str, int]]:
        """How many rows there are of each image: variant, prompt, index."""
        counts: Counter[tuple[str, str, int]] = Counter()
        for data in self.rows.values():
            table = pq.read_table(io.BytesIO(data), columns=["variant", "prompt", "index"])
            counts.update(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
        return counts


def read_finished(store: ObjectStore) -> Finished:
    """Read it all, the shards' footers too."""
    complete = json.loads(store.get(f"{_RUN}/COMPLETE"))
    names = sorted(name for name in complete["files"] if name.startswith("images/"))
    with ThreadPoolExecutor(8) as pool:
        keys = list(store.list("shards"))
        images = dict(zip(keys, pool.map(lambda key: _images_of(store.get(key)), keys), strict=True))
        digests = dict(zip(complete["files"], pool.map(lambda n: _digest(store, n), complete["files"]), strict=True))
    return Finished(
        rows={name: store.get(f"{_RUN}/{name}") for name in names},
        report=but_for_times(store.get(f"{_RUN}/report.json")),
        complete=complete,
        status=json.loads(store.get(f"{_RUN}/run.json"))["status"],
        wrong_files=[name for name, digest in digests.items() if complete["files"][name] != digest],
        leftovers=[key for key in store.list() if key.endswith("/LEASE")],
        probes=sum(key.startswith("evenhand-probe-") for key in store.list()),
        images=images,
    )


def _digest(store: ObjectStore, name: str) -> str:
    return hashlib.sha256(store.get(f"{_RUN}/{name}")).hexdigest()


def _images_of(data: bytes) -> str:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return metadata.get(b"evenhand.payload_sha256", b"no footer").decode(errors="replace")


@dataclass
class Verdict:
    """What a run came to."""

    lost: int = 0
    """Images of the calm run without a row."""
    doubled: int = 0
    """Rows beyond the first of an image."""
    twice: int = 0
    """Shards that two workers had in hand at once, so that both stored them; the same images each time."""
    probes: int = 0
    """See `Finished`."""
    wrong: list[str] = field(default_factory=list)
    """Everything that does not hold."""


def compare(calm: Finished, now: Finished, ledger: Ledger) -> Verdict:
    """Compare a disturbed run with a calm one."""
    verdict = Verdict(probes=now.probes)
    wanted, counted = calm.counted(), now.counted()
    verdict.lost = sum((wanted - counted).values())
    verdict.doubled = sum((counted - wanted).values())
    checks = {
        f"{verdict.lost} images lost": verdict.lost,
        f"{verdict.doubled} images doubled": verdict.doubled,
        "rows differ": now.rows != calm.rows,
        f"report differs: {_differences(calm.report, now.report)[:5]}": now.report != calm.report,
        f"files are not what COMPLETE says: {now.wrong_files[:5]}": now.wrong_files,
        f"COMPLETE lists {len(now.complete['shards'])} shards": now.complete["shards"] != calm.complete["shards"],
        f"run.json says {now.status}": now.status != "done",
        f"left behind: {now.leftovers[:5]}": now.leftovers,
        f"shards differ: {_differences(calm.images, now.images)[:5]}": now.images != calm.images,
    }
    verdict.wrong = [what for what, wrong in checks.items() if wrong]
    for key, shard in ledger.shards.items():
        if shard.damaged:
            continue
        if shard.lost:
            verdict.wrong.append(f"{key} was stored and could not be found {shard.lost} times")
        if len(shard.digests) > max(1, shard.misses):
            verdict.wrong.append(f"{key} was made {len(shard.digests)} times and missed {shard.misses} times")
        verdict.twice += len(shard.digests) > 1
    return verdict


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [d for key in keys for d in _differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in _differences(*pair, f"{path}/{i}")]
    return [] if one == other else [f"{path}: {str(one)[:80]} and now {str(other)[:80]}"]
