"""What mypy sees of the calls that drivers send; `test_seam` runs it on this file. Nothing here is ever called.

Under `--strict` an ignored error that is none is an error too: each wrong call below must be one.
"""

from collections.abc import Sequence
from typing import assert_type

from jobs.auditing.api import TallyWorker
from jobs.auditing.tally import PartTally, TallyFrame, TallyTask
from jobs.cluster.api import ShardWorker
from jobs.cluster.pool import Pool
from jobs.editing.api import ChunkWorker
from jobs.editing.chunk_encoding import ChunkStrengths, EditChunk
from jobs.images.labels import TextEmbeddings
from jobs.images.recipe import Probe
from time_ops import Statistics


def one_call(pool: Pool) -> None:
    assert_type(pool.call(ShardWorker.probe), Probe)
    assert_type(pool.share(pool.call(TallyWorker.texts, [("CEO", "a CEO")], [])), TextEmbeddings)
    pool.call(TallyWorker.texts, [("CEO", 1)], [])  # type: ignore[list-item]
    pool.call(TallyWorker.texts, [("CEO", "a CEO")])  # type: ignore[call-arg]
    pool.call(TallyWorker.texts, [("CEO", "a CEO")], wordings=[])  # type: ignore[call-arg]


def many_calls(pool: Pool, tasks: Sequence[TallyTask], frame: TallyFrame, texts: TextEmbeddings) -> None:
    for index, result in pool.map(TallyWorker.tally, ((tasks, frame, texts, None) for _ in range(2))):
        assert_type(index, int)
        assert_type(result, PartTally)
    pool.map(TallyWorker.tally, [(tasks, frame, "texts", None)])  # type: ignore[arg-type]
    pool.map(TallyWorker.tally, [(tasks, frame, texts)])  # type: ignore[arg-type]


def a_sum(pool: Pool, chunk: EditChunk, strengths: Sequence[ChunkStrengths]) -> None:
    def add(parts: Sequence[tuple[Statistics, ...]]) -> tuple[Statistics, ...]:
        return parts[0]

    def count(total: tuple[Statistics, ...]) -> int:
        return len(total)

    calls = [(chunk, strengths, None)]
    assert_type(pool.reduce(ChunkWorker.chunk_statistics, lambda: calls, 1, add, count), int)
    pool.reduce(ChunkWorker.chunk_norms, lambda: [(chunk,)], 1, add, count)  # type: ignore[misc]
