"""A worker without models: each prompt says what happens to its shard."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from jobs.config import RunConfig
from jobs.images.shards import ShardOutcome, ShardSpec


class FakeWorker:
    """Writes a line for each shard that it begins, so that tests see what was tried how often."""

    def __init__(self, config: RunConfig, settings: object, token: str, threads: object, expected: object) -> None:
        self._log = Path(config.output) / "log"
        # A node may be bad: what happens there is in a file of its name.
        bad = Path(config.output) / ray.get_runtime_context().get_node_id()
        self._trouble = bad.read_text() if bad.exists() else ""
        if "dies at start" in (config.model, self._trouble):
            os._exit(1)

    def probe(self) -> str:
        if self._first("probe died") and (self._log.parent / "probe dies once").exists():
            os._exit(1)
        return "probed"

    def run(self, specs: Sequence[ShardSpec], operators: object) -> list[ShardOutcome]:
        for spec in specs:
            with self._log.open("a") as log:
                log.write(f"{spec.prompt}\n")
            if spec.prompt == "kills" or (spec.prompt == "kills once" and self._first(spec.prompt)):
                os._exit(1)
            if "raises" in (spec.prompt, self._trouble):
                raise ValueError("this shard is bad")
            time.sleep(0.2 if spec.prompt == "slow" else 0.01)
        return [ShardOutcome(s.digest, s.count, 0, False, 0.01) for s in specs]

    def _first(self, what: str) -> bool:
        marker = self._log.parent / f"{what}.done"
        if marker.exists():
            return False
        marker.touch()
        return True
