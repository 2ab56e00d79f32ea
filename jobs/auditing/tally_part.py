"""The worker's part of a tally: shards read back from the store, labelled, counted, and written one row per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra.storage import ObjectStore
from jobs.auditing.blocks import OK, Block, places_of, write_table
from jobs.auditing.judged_rows import counted_codes, judged_columns, swept_codes
from jobs.auditing.tally import CellTally, Drawn, PartTally, TallyFrame, TallyTask, pack
from jobs.config import RunConfig
from jobs.images.cells import cut_parts
from jobs.images.judging import is_plain
from jobs.images.labels import FAILED, Labels, TextEmbeddings
from jobs.images.shards import STATUSES
from jobs.images.variants import Variant

__all__ = ["tally_part"]


def tally_part(
    tasks: Sequence[TallyTask],
    frame: TallyFrame,
    texts: TextEmbeddings,
    config: RunConfig,
    store: ObjectStore,
    key: str | None,
) -> PartTally:
    """Label and count these cells; with a key also write one row per image there.

    Raises:
        ShardError: a shard in the store is not what was stored.
        StorageError: one can't be read.
    """
    results: list[CellTally] = []
    rows: list[pa.Table] = []
    seconds = np.zeros(len(frame.variants))
    bad: Counter[str] = Counter()
    makers: Counter[str] = Counter()
    plain = is_plain(config)
    for task in tasks:
        drawn = [_Drawing.read(store, task, frame, variant, texts, config) for variant in frame.variants.values()]
        for v, (name, one) in enumerate(zip(frame.variants, drawn, strict=True)):
            seconds[v] += sum(b.seconds for b in one.blocks)
            for block in one.blocks:
                bad.update(s for s in block.statuses if s != STATUSES[OK])
                makers[block.maker] += block.spec.count
            if key is not None:
                table = _rows(task, name, one, list(config.attribute))
                rows.append(table if plain else judged_columns(table, one.labels, one.ok, list(config.attribute)))
        packed = np.stack([pack(d.labels.codes, d.labels.recognised, d.ok)[d.order] for d in drawn])
        swept = np.stack([_swept(d) for d in drawn], axis=1)
        judged = np.array([d.judgings() for d in drawn], np.int32)
        results.append(CellTally(packed, swept, _drift(drawn), drawn[-1].counts(len(config.attribute)), judged))
    makers.pop("", None)
    return PartTally(
        np.concatenate([r.packed for r in results], axis=1),
        np.stack([r.swept for r in results]),
        np.array([r.drift for r in results]),
        np.stack([r.components for r in results]),
        seconds,
        bad,
        makers,
        None if key is None else write_table(store, key, pa.concat_tables(rows)),
        np.stack([r.judged for r in results]),
    )


@dataclass(frozen=True)
class _Drawing:
    """A cell's images of one variant, block after block and part after part; n of them.

    Attributes:
        parts: [n] index of the part that drew each.
        order: [n] which image is in each place of the cell. Images of equal seeds have one place in every variant. A
            mixture lacks a few of the cell's first seeds and has as many later ones: those fill the places left.
    """

    variant: Variant
    blocks: list[Block]
    embeddings: np.ndarray
    ok: np.ndarray
    labels: Labels
    indices: np.ndarray
    parts: np.ndarray
    order: np.ndarray

    @classmethod
    def read(
        cls,
        store: ObjectStore,
        task: TallyTask,
        frame: TallyFrame,
        variant: Variant,
        texts: TextEmbeddings,
        config: RunConfig,
    ) -> _Drawing:
        """Read and label them; raises as `Block.read`."""
        cut = cut_parts(task.cell, frame.recipe, variant, config, pictures=False)
        drawn = [draw.part for draw in variant.draws(task.cell.prompt, task.cell.images, config.shard_images)]
        blocks = [[Block.read(store, spec, frame.missing, texts.width) for spec in part] for part in cut]
        flat = [block for part in blocks for block in part]
        stored = np.concatenate([b.embeddings for b in flat])
        ok = np.concatenate([b.ok for b in flat])
        indices = np.concatenate([b.spec.indices for b in flat])
        parts = np.repeat(drawn, [sum(b.spec.count for b in part) for part in blocks])
        labels = Labels.of(stored, ok, texts, task.subject, task.concept, config.undetermined_margin)
        embeddings = stored[:, : texts.concepts.shape[1]]
        return cls(variant, flat, embeddings, ok, labels, indices, parts, places_of(indices, task.cell.first))

    def judgings(self) -> list[int]:
        """Counts, see `Judging`."""
        labels = self.labels
        labelled = int(self.ok.sum()) if labels.judged else 0
        return [labelled, int(labels.compared.sum()), int(labels.differ.sum()), int(labels.blind.sum())]

    def counts(self, labels: int) -> np.ndarray:
        """[K, L + 3] int32 counts by component; [0, L + 3] where the variant is no mixture."""
        counts = np.zeros((len(self.variant.labels), labels + 3), np.int32)
        for k, of_component in enumerate(counts):
            mine = self.parts == k
            codes = self.labels.codes[mine]
            of_component[: labels + 1] = np.bincount(codes[codes != FAILED], minlength=labels + 1)[: labels + 1]
            of_component[Drawn.RECOGNISED] = (self.labels.recognised & self.ok)[mine].sum()
            of_component[Drawn.OK] = self.ok[mine].sum()
        return counts


def _drift(drawn: Sequence[_Drawing]) -> float:
    """Mean cosine distance of two variants' embeddings at equal seeds."""
    if len(drawn) != 2:
        return float("nan")
    one, other = drawn
    same = one.indices[one.order] == other.indices[other.order]
    both = same & one.ok[one.order] & other.ok[other.order]
    if not both.any():
        return float("nan")
    pairs = one.embeddings[one.order][both] * other.embeddings[other.order][both]
    return float(1 - pairs.sum(axis=1).mean())


def _swept(drawn: _Drawing) -> np.ndarray:
    """[M, L + 1] int32 counts of a cell's labels under each of `MARGINS`, of images that are no failures."""
    return counted_codes(swept_codes(drawn.labels)[:, drawn.ok], drawn.labels.scores.shape[1])


def _rows(task: TallyTask, variant: str, drawn: _Drawing, labels: Sequence[str]) -> pa.Table:
    names = np.array([*labels, "undetermined", *[None] * (FAILED - len(labels))], dtype=object)
    cell, blocks, given = task.cell, drawn.blocks, drawn.labels
    n = cell.images
    labelled = task.subject is not None
    components = np.array([*drawn.variant.labels, None], dtype=object)
    scores = pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1) * given.scores.shape[1], pa.int32()), pa.array(given.scores.reshape(-1), pa.float32())
    )
    return pa.table(
        {
            "kind": pa.repeat(cell.kind, n),
            "profession": pa.repeat(cell.subject, n),
            "wording": pa.repeat(cell.wording, n),
            "prompt": pa.repeat(cell.prompt, n),
            "variant": pa.repeat(variant, n),
            "component": pa.array(components[drawn.parts if drawn.variant.labels else [-1] * n], pa.string()),
            "index": pa.array(drawn.indices, pa.int64()),
            "seed": pa.array([seed for b in blocks for seed in b.spec.seeds()], pa.int64()),
            "label": pa.array(names[given.codes] if labelled else [None] * n, pa.string()),
            "scores": scores if labelled else pa.nulls(n, pa.list_(pa.float32())),
            "recognised": pa.array(given.recognised, pa.bool_()),
            "status": pa.array([s for b in blocks for s in b.statuses], pa.string()),
            "shard": pa.array([b.spec.digest for b in blocks for _ in range(b.spec.count)], pa.string()),
        }
    )
