"""Cells counted by hand: each array has its images in their places, and nobody else's."""

from collections import Counter

import numpy as np

from jobs.auditing.counts import Pairs, count_cells
from jobs.auditing.judged_rows import MARGINS
from jobs.auditing.tally import PartTally, Tallies, TallyTask, pack
from jobs.images.cells import Cell
from jobs.images.labels import FAILED

WORDINGS, LABELS = ("one {source}", "two {source}"), ("female", "male")
CODES = {
    # Base, then edited; 2 is undetermined.
    ("audit", 0, WORDINGS[0]): ([0, 0, 1, 2], [1, 0, FAILED, 2]),
    ("audit", 1, WORDINGS[1]): ([1, 1, 1, 1], [2, 2, 0, 0]),
    ("explicit", 1, "a male CEO"): ([1, 0, 1, FAILED], [1, 1, 1, 1]),
    ("control", None, "a tree"): ([FAILED] * 4, [FAILED] * 4),
}


def tallies() -> Tallies:
    tasks, packed = [], []
    for (kind, subject, wording), codes in CODES.items():
        label = "male" if kind == "explicit" else None
        tasks.append(TallyTask(Cell(kind, str(subject), wording, wording, 4, label), subject, 0))  # type: ignore[arg-type]
        both = np.array(codes, np.uint8)
        recognised = np.array([[True, True, False, False], [True, False, True, True]])
        packed.append(pack(both, recognised, np.ones((2, 4), bool) if kind == "control" else both != FAILED))
    cells = len(tasks)
    part = PartTally(
        np.concatenate(packed, axis=1),
        np.ones((cells, len(MARGINS), 2, 3), np.int32),
        np.zeros(cells),
        np.zeros((cells, 0, 5), np.int32),
        np.zeros(2),
        Counter(),
        Counter(),
        None,
    )
    return Tallies(tasks, [part])


def test_every_cell_is_counted_in_its_place() -> None:
    counts = count_cells(tallies(), 2, WORDINGS, LABELS)
    assert counts.labels[0, :, 0].tolist() == [[2, 1, 1], [1, 1, 1]]
    assert counts.labels[1, :, 1].tolist() == [[0, 4, 0], [2, 0, 2]]
    assert not counts.labels[0, :, 1].any()
    assert not counts.labels[1, :, 0].any()
    assert (counts.ok[0, :, 0].tolist(), counts.failed[0, :, 0].tolist()) == ([4, 3], [0, 1])
    assert counts.recognised[0, :, 0].tolist() == [2, 2]
    assert counts.explicit[1, :, 1].tolist() == [[2, 3, 4], [4, 4, 4]]
    assert counts.explicit.sum() == 21
    assert counts.controls.tolist() == [[[2, 4], [3, 4]]]
    assert (counts.images, counts.swept.sum()) == (16, len(MARGINS) * 2 * 2 * 3)


def test_pairs_are_of_images_that_both_variants_have() -> None:
    counts = count_cells(tallies(), 2, WORDINGS, LABELS)
    assert counts.joint[0, 0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert counts.compared(0)[0, 0].tolist() == [2, 0, 1]
    assert counts.compared(1)[0, 0].tolist() == [1, 1, 1]
    # Of the first cell's three, and the second's four.
    assert counts.recognised_pairs == Pairs(both=2, edited_only=3, base_only=2, n=7)
    assert counts.undetermined_pairs == Pairs(both=1, edited_only=2, base_only=0, n=7)
    assert counts.control_pairs == Pairs(both=1, edited_only=2, base_only=1, n=4)
