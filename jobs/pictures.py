"""Which pictures the report shows: base and edited side by side, at equal seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from infra.storage import ObjectStore, safe_name
from jobs.classifier import FAILED
from jobs.report.schema import PairedPicture, ProfessionReport
from jobs.shards import Shard
from jobs.tally import CellTally, TallyTask

__all__ = ["choose_pictures"]

_PROFESSIONS = 40
_PER_PROFESSION = 5


def choose_pictures(
    store: ObjectStore,
    tasks: Sequence[TallyTask],
    tallies: Sequence[CellTally],
    labels: Sequence[str],
    professions: Sequence[ProfessionReport],
) -> tuple[list[PairedPicture], dict[str, bytes]]:
    """Pictures of the professions that moved most, over all wordings in turn.

    The first images of each cell are shown, whatever they show: a choice by their look would flatter or slander.

    Returns:
        The pairs, and the files to write, named below the run's folder.
    """

    def change(p: ProfessionReport) -> float:
        if p.edited is None or p.edited.share is None or p.base.share is None:
            return 0.0
        return abs(p.edited.share - p.base.share)

    chosen = [p.profession for p in sorted(professions, key=change, reverse=True)[:_PROFESSIONS]]
    pairs: list[PairedPicture] = []
    files: dict[str, bytes] = {}
    for name in chosen:
        cells = [
            (t, c) for t, c in zip(tasks, tallies, strict=True) if t.cell.kind == "audit" and t.cell.subject == name
        ]
        turns = zip_longest(*([(task, found, i) for i in range(2)] for task, found in cells))
        for task, found, i in [turn for column in turns for turn in column if turn][:_PER_PROFESSION]:
            pair = _pair(store, task, found, labels, i, files)
            if pair:
                pairs.append(pair)
    return pairs, files


def _pair(
    store: ObjectStore, task: TallyTask, found: CellTally, labels: Sequence[str], i: int, files: dict[str, bytes]
) -> PairedPicture | None:
    spec = task.shards[0][0]
    if i >= spec.count:
        return None
    names: list[str] = []
    shown: list[str] = []
    for v, variant in enumerate(("base", "edited")[: len(task.shards)]):
        shard = task.shards[v][0]
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
