"""Label codes counted."""

from __future__ import annotations

import numpy as np

from jobs.images.labels import FAILED

__all__ = ["joint_counts", "label_counts"]


def label_counts(codes: np.ndarray, labels: int) -> np.ndarray:
    """[L + 1] counts of label codes, undetermined last; failures are left out."""
    return np.bincount(codes[codes != FAILED], minlength=labels + 1)[: labels + 1]


def joint_counts(codes: np.ndarray, labels: int) -> np.ndarray:
    """[L + 1, L + 1] counts of (base's label, edited's label) over images that both variants have."""
    table = np.zeros((labels + 1, labels + 1), dtype=np.int64)
    both = (codes != FAILED).all(axis=0)
    np.add.at(table, (codes[0, both], codes[1, both]), 1)
    return table
