"""The mean of a few measurements with its 95 % t interval, for the pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from kitae.experiments.stats import half_interval


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of at least two values, and the ends of its interval."""
    mean, half = fmean(values), half_interval(stdev(values) / math.sqrt(len(values)), len(values) - 1)
    return mean, mean - half, mean + half


def points(gains: Sequence[float]) -> str:
    """The mean of gains in points, and its interval."""
    mean, low, high = mean_interval(gains)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
