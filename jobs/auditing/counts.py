"""Label codes counted, once: from tallies to the arrays that searches, figures and gates read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.auditing.judged_rows import MARGINS
from jobs.auditing.tally import CellTally, Judging, Tallies
from jobs.images.labels import FAILED

__all__ = ["Counts", "Pairs", "count_cells", "joint_counts", "label_counts"]


def label_counts(codes: np.ndarray, labels: int) -> np.ndarray:
    """[L + 1] counts of label codes, undetermined last; failures are left out."""
    return np.bincount(codes[codes != FAILED], minlength=labels + 1)[: labels + 1]


def joint_counts(codes: np.ndarray, labels: int) -> np.ndarray:
    """[L + 1, L + 1] counts of (base's label, edited's label) over images that both variants have."""
    table = np.zeros((labels + 1, labels + 1), dtype=np.int64)
    both = (codes != FAILED).all(axis=0)
    np.add.at(table, (codes[0, both], codes[1, both]), 1)
    return table


@dataclass
class Pairs:
    """What was found of images that both variants have."""

    both: int = 0
    edited_only: int = 0
    base_only: int = 0
    n: int = 0

    def add(self, hits: np.ndarray, ok: np.ndarray) -> None:
        """Count one cell: whether each image is a hit, and whether there is one, [2, n] bool."""
        there = ok.all(axis=0)
        base, edited = hits[0] & there, hits[1] & there
        self.both += int((base & edited).sum())
        self.edited_only += int((edited & ~base).sum())
        self.base_only += int((base & ~edited).sum())
        self.n += int(there.sum())


@dataclass(frozen=True)
class Counts:
    """Images of P professions in V variants and W wordings, by L labels; of E explicit labels and C controls beside.

    Attributes:
        labels: [P, V, W, L + 1], undetermined last; failures are left out.
        ok: [P, V, W], images that are no failures.
        failed: [P, V, W].
        recognised: [P, V, W], as their profession.
        explicit: [P, V, L, 3] of explicit prompts by the label that they name: right, ok, all.
        controls: [C, V, 2], cell by cell: recognised, ok.
        judged: [P, V, 4], see `Judging`.
        swept: [M, P, V, W, L + 1], as `labels` under each of `MARGINS`.
        joint: [P, W, L + 1, L + 1] of (base's label, edited's label); zeros with one variant.
        recognised_pairs: of the audit's images, with two variants.
        control_pairs: of the controls', recognised.
        undetermined_pairs: of the audit's, without a decidable label.
        images: asked for of each variant, whatever they are for.
    """

    labels: np.ndarray
    ok: np.ndarray
    failed: np.ndarray
    recognised: np.ndarray
    explicit: np.ndarray
    controls: np.ndarray
    judged: np.ndarray
    swept: np.ndarray
    joint: np.ndarray
    recognised_pairs: Pairs
    control_pairs: Pairs
    undetermined_pairs: Pairs
    images: int

    @classmethod
    def zeros(cls, professions: int, variants: int, wordings: int, labels: int, controls: int, images: int) -> Counts:
        """Nothing counted yet."""
        cells = professions, variants, wordings

        def none(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.int64)

        return cls(
            labels=none(*cells, labels + 1),
            ok=none(*cells),
            failed=none(*cells),
            recognised=none(*cells),
            explicit=none(professions, variants, labels, 3),
            controls=none(controls, variants, 2),
            judged=none(professions, variants, len(Judging)),
            swept=none(len(MARGINS), *cells, labels + 1),
            joint=none(professions, wordings, labels + 1, labels + 1),
            recognised_pairs=Pairs(),
            control_pairs=Pairs(),
            undetermined_pairs=Pairs(),
            images=images,
        )

    @property
    def variants(self) -> int:
        """V."""
        return int(self.labels.shape[1])

    def compared(self, v: int) -> np.ndarray:
        """[P, W, L + 1] of one variant, of two over the images alone that both have; what Deltas are read from."""
        counts: np.ndarray = self.labels[:, v] if self.variants == 1 else self.joint.sum(axis=-1 if v == 0 else -2)
        return counts

    def add_audit(self, p: int, w: int, tally: CellTally) -> None:
        """Count a profession's cell in a wording."""
        width, codes, ok = self.labels.shape[-1] - 1, tally.codes, tally.ok
        self.labels[p, :, w] += [label_counts(each, width) for each in codes]
        self.ok[p, :, w] += ok.sum(axis=1)
        self.failed[p, :, w] += (~ok).sum(axis=1)
        self.recognised[p, :, w] += (tally.recognised & ok).sum(axis=1)
        self.swept[:, p, :, w] += tally.swept
        if len(tally.judged):
            self.judged[p] += tally.judged
        if self.variants == 2:
            self.joint[p, w] += joint_counts(codes, width)
            self.recognised_pairs.add(tally.recognised, ok)
            self.undetermined_pairs.add(codes == width, ok)

    def add_explicit(self, p: int, named: int, tally: CellTally) -> None:
        """Count a cell of explicit prompts that name a label."""
        ok = tally.ok
        self.explicit[p, :, named] += np.stack(
            [((tally.codes == named) & ok).sum(axis=1), ok.sum(axis=1), np.full(len(ok), ok.shape[1])], axis=1
        )

    def add_control(self, c: int, tally: CellTally) -> None:
        """Count a control's cell."""
        ok = tally.ok
        self.controls[c] += np.stack([(tally.recognised & ok).sum(axis=1), ok.sum(axis=1)], axis=1)
        if self.variants == 2:
            self.control_pairs.add(tally.recognised, ok)


def count_cells(tallies: Tallies, professions: int, wordings: Sequence[str], labels: Sequence[str]) -> Counts:
    """Count all cells; those that are not among the tallies have zeros.

    Args:
        tallies: what was found in each cell. A task's subject is the index of its profession.
        professions: how many there are.
        wordings: of the audit's cells.
        labels: the attribute's.
    """
    places, codes = ({name: i for i, name in enumerate(names)} for names in (wordings, labels))
    controls = sum(task.cell.kind == "control" for task in tallies.tasks)
    images = sum(task.images for task in tallies.tasks)
    counts = Counts.zeros(professions, tallies.variants, len(wordings), len(labels), controls, images)
    control = 0
    for task, tally in zip(tallies.tasks, tallies, strict=True):
        cell = task.cell
        if task.subject is None:
            counts.add_control(control, tally)
            control += 1
        elif cell.kind == "explicit":
            counts.add_explicit(task.subject, codes[cell.label or ""], tally)
        else:
            counts.add_audit(task.subject, places[cell.wording], tally)
    return counts
