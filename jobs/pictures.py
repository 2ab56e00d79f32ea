"""Which pictures the report shows: base and edited side by side, at equal seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from infra.storage import ObjectStore, safe_name
from jobs.labels import FAILED
from jobs.report.schema import PairedPicture, ProfessionReport
from jobs.shards import Shard, ShardSpec
from jobs.tally import CellTally, Tallies, TallyTask

__all__ = ["choose_pictures"]

_PROFESSIONS = 40
_PER_PROFESSION = 5


def choose_pictures(
    store: ObjectStore,
    tallies: Tallies,
    shards: Callable[[TallyTask], Sequence[ShardSpec | None]],
    labels: Sequence[str],
    professions: Sequence[ProfessionReport],
) -> tuple[list[PairedPicture], dict[str, bytes]]:
    """Pictures of the professions that moved most, over all wordings in turn.

    The first images of each cell are shown, whatever they show: a choice by their look would flatter or slander.

    Args:
        store: holds the shards.
        tallies: what was found.
        shards: the first shard of a cell in each variant; none at all where the last one's was given up, None for a
            base whose pictures can't be had: its path is then "".
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
    shards: Sequence[ShardSpec | None],
    found: CellTally,
    labels: Sequence[str],
    i: int,
    files: dict[str, bytes],
) -> PairedPicture | None:
    spec = shards[-1] if shards else None
    if spec is None or i >= spec.count:
        return None
    names: list[str] = []
    shown: list[str] = []
    for v, (variant, shard) in enumerate(zip(("base", "edited"), shards, strict=False)):
        name = ""
        if shard is not None and i < shard.count:
            picture = Shard.from_bytes(store.get(shard.object_key), shard).pictures[i]
            if picture is None:
                return None
            stem = f"{safe_name(task.cell.subject)}-{safe_name(task.cell.wording)}-{spec.first + i}-{variant}"
            name = f"pictures/{stem}.{shard.picture_format}"
            files[name] = picture
        names.append(name)
        code = int(found.codes[v, i])
        shown.append("failed" if code == FAILED else [*labels, "undetermined"][code])
    return PairedPicture(
        profession=task.cell.subject,
        prompt=task.cell.prompt,
        wording=task.cell.wording,
        index=spec.first + i,
        seed=spec.seeds()[i],
        base=names[0],
        base_label=shown[0],
        edited=names[1] if len(names) > 1 else None,
        edited_label=shown[1] if len(shown) > 1 else None,
    )
