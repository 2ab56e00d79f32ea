"""Which pictures the report shows: base and edited side by side, at equal seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from infra.storage import ObjectStore, safe_name
from jobs.auditing.tally import CellTally, Tallies, TallyTask
from jobs.images.labels import FAILED
from jobs.images.shards import Shard, ShardSpec
from jobs.report.schema import PairedPicture, ProfessionReport

__all__ = ["Shown", "choose_pictures"]

Shown = Sequence[tuple[str, ShardSpec]]
"""The first shard of each part of a variant, with its component's label ("" where there is one part)."""

_PROFESSIONS = 40
_PER_PROFESSION = 5


def choose_pictures(
    store: ObjectStore,
    tallies: Tallies,
    shards: Callable[[TallyTask], Sequence[Shown]],
    labels: Sequence[str],
    professions: Sequence[ProfessionReport],
) -> tuple[list[PairedPicture], dict[str, bytes]]:
    """Pictures of the professions that moved most, over all wordings in turn.

    The first images of each cell are shown, whatever they show: a choice by their look would flatter or slander.

    Args:
        store: holds the shards.
        tallies: what was found.
        shards: the first shards of a cell in each variant. Nothing is shown where the last variant has none; a base
            that has none, as its pictures can't be had, has "" for a path.
        labels: the attribute's.
        professions: the report's.

    Returns:
        The pairs, and the files to write, named below the run's folder.
    """

    def change(p: ProfessionReport) -> float:
        if p.edited is None or p.edited.share is None or p.base.share is None:
            return 0.0
        return abs(p.edited.share - p.base.share)

    chosen = [p.profession for p in sorted(professions, key=change, reverse=True)[:_PROFESSIONS]]
    cells: dict[str, list[int]] = {name: [] for name in chosen}
    for i, task in enumerate(tallies.tasks):
        if task.cell.kind == "audit" and task.cell.subject in cells:
            cells[task.cell.subject].append(i)
    pairs: list[PairedPicture] = []
    files: dict[str, bytes] = {}
    for name in chosen:
        turns = zip_longest(*([(cell, i) for i in range(2)] for cell in cells[name]))
        for cell, i in [turn for column in turns for turn in column if turn][:_PER_PROFESSION]:
            task = tallies.tasks[cell]
            pair = _pair(store, task, shards(task), tallies[cell], labels, i, files)
            if pair:
                pairs.append(pair)
    return pairs, files


def _pair(
    store: ObjectStore,
    task: TallyTask,
    shards: Sequence[Shown],
    tally: CellTally,
    labels: Sequence[str],
    i: int,
    files: dict[str, bytes],
) -> PairedPicture | None:
    """The cell's i-th image in each variant, where the last one has it."""
    index = task.cell.first + i
    at = [_place(shown, index) for shown in shards]
    if not at or at[-1] is None:
        return None
    names: list[str] = []
    for variant, place in zip(("base", "edited"), at, strict=False):
        name = ""
        if place is not None:
            picture = Shard.from_bytes(store.get(place.spec.object_key), place.spec).pictures[place.number]
            if picture is None:
                return None
            stem = f"{safe_name(task.cell.subject)}-{safe_name(task.cell.wording)}-{index}-{variant}"
            name = f"pictures/{stem}.{place.spec.picture_format}"
            files[name] = picture
        names.append(name)
    codes = [int(tally.codes[v, i]) for v in range(len(at))]
    shown = ["failed" if code == FAILED else [*labels, "undetermined"][code] for code in codes]
    return PairedPicture(
        profession=task.cell.subject,
        prompt=task.cell.prompt,
        wording=task.cell.wording,
        index=index,
        seed=at[-1].spec.seeds()[at[-1].number],
        base=names[0],
        base_label=shown[0],
        edited=names[1] if len(names) > 1 else None,
        edited_label=shown[1] if len(shown) > 1 else None,
        component=at[-1].component or None,
    )


@dataclass(frozen=True)
class _Place:
    """Where an image is: the component that drew it, its shard, and its number in that."""

    component: str
    spec: ShardSpec
    number: int


def _place(shown: Shown, index: int) -> _Place | None:
    for component, spec in shown:
        if index in spec.indices:
            return _Place(component, spec, spec.indices.index(index))
    return None
