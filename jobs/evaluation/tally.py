"""The tally of an evaluation: shards read back from the store, each image given to its source or its destination.

Workers do it part by part, and write one row for each image; the driver gets a byte per image and variant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from infra.storage import ObjectStore
from jobs.auditing.blocks import Block, write_table
from jobs.config import RunConfig
from jobs.images.cells import Cell, cut_cell
from jobs.images.recipe import Recipe
from jobs.images.shards import BASE, STATUSES
from time_ops.stats.evaluation import chooses_destination

__all__ = [
    "DESTINATION",
    "NONE",
    "SOURCE",
    "MeasureFrame",
    "MeasureTask",
    "Measures",
    "PartMeasures",
    "PromptTexts",
    "Role",
    "cell_of",
    "measure_part",
]

Role = Literal["source", "positive", "negative", "control"]

NONE, SOURCE, DESTINATION = 0, 1, 2
"""What an image is: none that can be decided on, its pair's source, its pair's destination; a control's is `SOURCE`."""


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """The classifier's unit embeddings of prompts, `[n, D]` float32, and its factor from cosine to logit."""

    embeddings: np.ndarray
    scale: float


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """One prompt of one edit.

    Attributes:
        edit: index of the edit.
        role: what the prompt is to it.
        prompt: what is drawn.
        images: how many.
        text: the prompt's row in the text embeddings.
        other: the row of the pair's destination; None for a control.
        oracle: the prompt that shows what an edit should reach, drawn by the base model; None where that is `prompt`.
        operators: digest of the edit's operator at each lam.
    """

    edit: int
    role: Role
    prompt: str
    images: int
    text: int
    other: int | None
    oracle: str | None
    operators: tuple[str, ...]


@dataclass(frozen=True)
class MeasureFrame:
    """What all parts of one tally share.

    Attributes:
        recipe: of the shards.
        lams: strengths, as `MeasureTask.operators` has them.
        missing: digests of shards that were given up; their images are none.
    """

    recipe: Recipe
    lams: tuple[float, ...]
    missing: frozenset[str] = frozenset()

    @property
    def variants(self) -> list[tuple[str, float | None]]:
        """Name and lam of each variant: base, oracle, then edited at each lam."""
        return [("base", None), ("oracle", None), *(("edited", lam) for lam in self.lams)]


@dataclass(frozen=True, slots=True)
class Measures:
    """One prompt's images in V variants: base, oracle, edited at each lam.

    Attributes:
        states: [V, n] uint8: `NONE`, `SOURCE` or `DESTINATION`. Without an oracle of its own it is the base's.
        lead: [V] mean lead in probability of the prompt that was decided for, NaN without an image or a pair.
        clip: [V] mean cosine similarity of image and prompt, NaN without an image.
        distance: [V] mean cosine distance of images to the base's at equal seeds, NaN without.
        spread: mean cosine distance of the base's images to one another, NaN with fewer than two.
    """

    states: np.ndarray
    lead: np.ndarray
    clip: np.ndarray
    distance: np.ndarray
    spread: float


@dataclass(frozen=True)
class PartMeasures:
    """What a worker hands back of one part.

    Attributes:
        measures: of each task.
        statuses: images of each status but ok.
        makers: JSON of what decides an image's last bits -> images.
        sha256: of the rows written, or None.
    """

    measures: list[Measures]
    statuses: Counter[str]
    makers: Counter[str]
    sha256: str | None


def cell_of(prompt: str, images: int, subject: str = "") -> Cell:
    """The cell of a prompt: seeds are the audit's, so that runs on one bucket share the base model's images."""
    return Cell("edit", subject or prompt, prompt, prompt, images)


def measure_part(
    tasks: Sequence[MeasureTask],
    frame: MeasureFrame,
    texts: PromptTexts,
    config: RunConfig,
    store: ObjectStore,
    key: str | None,
) -> PartMeasures:
    """Decide on these prompts' images; with a key also write one row per image there.

    Raises:
        ShardError: a shard in the store is not what was stored.
        StorageError: one can't be read.
    """
    measures: list[Measures] = []
    rows: list[pa.Table] = []
    statuses: Counter[str] = Counter()
    makers: Counter[str] = Counter()
    for task in tasks:
        drawn = [(task.prompt, BASE), None if task.oracle is None else (task.oracle, BASE)]
        drawn += [(task.prompt, operator) for operator in task.operators]
        variants = [None if each is None else _images(*each, task, frame, texts, config, store) for each in drawn]
        measures.append(_measures(task, variants, texts))
        for number, each in enumerate(variants):
            if each is None:
                continue
            for block in each.blocks:
                statuses.update(s for s in block.statuses if s != STATUSES[0])
                makers[block.maker] += block.spec.count
            if key is not None:
                rows.append(_rows(task, frame.variants[number], each, texts, measures[-1].states[number]))
    makers.pop("", None)
    return PartMeasures(
        measures, statuses, makers, None if key is None else write_table(store, key, pa.concat_tables(rows))
    )


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of one prompt in one variant."""

    blocks: list[Block]
    embeddings: np.ndarray
    ok: np.ndarray


def _images(
    prompt: str,
    operator: str,
    task: MeasureTask,
    frame: MeasureFrame,
    texts: PromptTexts,
    config: RunConfig,
    store: ObjectStore,
) -> _Images:
    specs = cut_cell(cell_of(prompt, task.images), frame.recipe, operator, config, pictures=False)
    blocks = [Block.read(store, spec, frame.missing, texts.embeddings.shape[1]) for spec in specs]
    # Behind the embedding that recognises there may be what other classifiers label by.
    embeddings = np.concatenate([block.embeddings[:, : texts.embeddings.shape[1]] for block in blocks])
    return _Images(blocks, embeddings, np.concatenate([block.ok for block in blocks]))


def _measures(task: MeasureTask, variants: Sequence[_Images | None], texts: PromptTexts) -> Measures:
    base = variants[0]
    if base is None:
        raise ValueError("the base model's images are always there")
    own = texts.embeddings[task.text]
    states, lead, clip, distance = [], [], [], []
    for given in variants:
        images = given or base
        state = np.where(images.ok, SOURCE, NONE).astype(np.uint8)
        leads = np.full(len(state), np.nan)
        if task.other is not None:
            other = texts.embeddings[task.other]
            state[images.ok & chooses_destination(images.embeddings, own, other)] = DESTINATION
            leads = np.abs(2 * _chance(images.embeddings, own, other, texts.scale) - 1)
        both = images.ok & base.ok
        states.append(state)
        lead.append(_mean(leads[images.ok]))
        clip.append(_mean((images.embeddings @ own)[images.ok]))
        distance.append(_mean(1 - (images.embeddings * base.embeddings).sum(axis=1)[both]))
    return Measures(np.stack(states), np.array(lead), np.array(clip), np.array(distance), _spread(base))


def _chance(images: np.ndarray, source: np.ndarray, destination: np.ndarray, scale: float) -> np.ndarray:
    """[n] the classifier's probability of the destination, against the source."""
    logit = scale * (images.astype(np.float64) @ (destination.astype(np.float64) - source))
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -500, 500))))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _spread(images: _Images) -> float:
    """Mean cosine distance of two images, from the length of their sum."""
    embeddings = images.embeddings[images.ok].astype(np.float64)
    n = len(embeddings)
    if n < 2:
        return float("nan")
    return float(1 - ((embeddings.sum(axis=0) ** 2).sum() - (embeddings**2).sum()) / (n * (n - 1)))


def _rows(
    task: MeasureTask,
    variant: tuple[str, float | None],
    images: _Images,
    texts: PromptTexts,
    states: np.ndarray,
) -> pa.Table:
    n = task.images
    blocks = images.blocks
    names = np.array([None, "source", "destination"], dtype=object)
    decided = task.other is not None
    chance = np.full(n, np.nan)
    if task.other is not None:
        chance = _chance(images.embeddings, texts.embeddings[task.text], texts.embeddings[task.other], texts.scale)
    return pa.table(
        {
            "edit": pa.repeat(pa.scalar(task.edit, pa.int32()), n),
            "role": pa.repeat(task.role, n),
            "prompt": pa.repeat(blocks[0].spec.prompt, n),
            "variant": pa.repeat(variant[0], n),
            "lam": pa.repeat(pa.scalar(variant[1], pa.float64()), n),
            "index": pa.array(
                [i for b in blocks for i in range(b.spec.first, b.spec.first + b.spec.count)], pa.int64()
            ),
            "seed": pa.array([seed for b in blocks for seed in b.spec.seeds()], pa.int64()),
            "label": pa.array(names[states] if decided else [None] * n, pa.string()),
            "destination_probability": pa.array(
                [float(p) if decided and ok else None for p, ok in zip(chance, images.ok, strict=True)], pa.float32()
            ),
            "status": pa.array([s for b in blocks for s in b.statuses], pa.string()),
            "shard": pa.array([b.spec.digest for b in blocks for _ in range(b.spec.count)], pa.string()),
        }
    )
