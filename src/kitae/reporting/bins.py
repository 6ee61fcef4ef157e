"""Bins of a reliability diagram, and their intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kitae.evaluation.intervals import wilson

Floats = NDArray[np.float64]


def confidence_bins(
    confidence: Floats, correct: NDArray[np.bool_], edges: Floats
) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Centres, mean confidence, accuracy and count of bins (low, high]; a confidence of 0 falls into the first."""
    k = len(edges) - 1
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, k - 1)
    count = np.bincount(where, minlength=k)
    safe = np.maximum(count, 1)
    mean = np.bincount(where, weights=confidence, minlength=k) / safe
    accuracy = np.bincount(where, weights=correct.astype(float), minlength=k) / safe
    return (edges[:-1] + edges[1:]) / 2, mean, accuracy, count


def wilson_intervals(accuracy: Floats, count: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Lower and upper bounds of proportions, each of at least one image."""
    found = [wilson(round(p * n), int(n)) or (p, p) for p, n in zip(accuracy, count, strict=True)]
    return np.array([low for low, _ in found]), np.array([high for _, high in found])
