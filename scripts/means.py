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
