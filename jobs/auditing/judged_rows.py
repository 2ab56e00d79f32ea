"""What rows of images say of several classifiers, or of one that is no plain dual encoder: written, and read again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jobs.images.labels import Labels, decided

__all__ = ["MARGINS", "counted_codes", "judged_columns", "read_judged", "swept_codes"]

MARGINS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Undetermined margins that the report sweeps."""


def swept_codes(labels: Labels) -> np.ndarray:
    """[M, n] uint8 label codes under each of `MARGINS`, L where undetermined; all so of images without a label."""
    n, width = labels.scores.shape
    if not labels.judged:
        return np.full((len(MARGINS), n), width, np.uint8)
    return np.stack([decided(labels.judged, margin)[0] for margin in MARGINS]).astype(np.uint8)


def counted_codes(codes: np.ndarray, labels: int) -> np.ndarray:
    """[M, L + 1] int32 counts of codes [M, n], undetermined last."""
    return np.stack([np.bincount(each, minlength=labels + 1) for each in codes]).astype(np.int32)


def judged_columns(table: pa.Table, labelled: Labels, ok: np.ndarray, labels: Sequence[str]) -> pa.Table:
    """Rows with what each classifier says by itself, whether they differ, whether a face is there, and the sweep.

    Args:
        table: n rows.
        labelled: labels of the same images.
        ok: [n] bool, images that are no failures.
        labels: names.
    """
    n = len(table)
    names = np.array([*labels, "undetermined"], dtype=object)
    says: list[list[str] | None] = [None] * n
    differ: list[bool | None] = [None] * n
    face: list[bool | None] = [None] * n
    if labelled.judged:
        each = np.stack([names[one.codes()] for one in labelled.judged], axis=1)
        says = [row.tolist() if fine else None for row, fine in zip(each, ok, strict=True)]
        differ = [bool(d) if c else None for d, c in zip(labelled.differ, labelled.compared, strict=True)]
        face = [not blind if fine else None for blind, fine in zip(labelled.blind.tolist(), ok, strict=True)]
    swept = swept_codes(labelled).T.tolist() if labelled.judged else [None] * n
    for name, values, kind in (
        ("by_classifier", says, pa.list_(pa.string())),
        ("classifiers_differ", differ, pa.bool_()),
        ("face", face, pa.bool_()),
        ("margins", swept, pa.list_(pa.uint8())),
    ):
        table = table.append_column(name, pa.array(values, kind))
    return table


def read_judged(table: pa.Table, labels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What `judged_columns` wrote of labelled images.

    Returns:
        [M, n] codes, as `swept_codes`, and [n, 4] bool as `jobs.auditing.tally.Judging` has it; None where nothing was
        written.
    """
    if "margins" not in table.column_names or len(table) == 0:
        return None
    swept = [row if row is not None else [labels] * len(MARGINS) for row in table.column("margins").to_pylist()]
    differ, face = (table.column(name).to_pylist() for name in ("classifiers_differ", "face"))
    rows = [(f is not None, d is not None, d is True, f is False) for d, f in zip(differ, face, strict=True)]
    return np.array(swept, np.int64).T, np.array(rows, bool)
