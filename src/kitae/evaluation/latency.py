"""Compares the speed of several callables, timed in turn, in one process, with a control.

A time alone is unreliable: clock rates, other load and caches change. So every round times each candidate once, in a
new random order, and reports the ratio to the reference *within* the round. The reference is timed twice per round; the
ratio of the two (the A/A control) shows how large a difference is just noise on this machine.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.evaluation import intervals

_WARMUP = 5  # calls of each before the first round
_SHORTEST = 0.002  # seconds; a timing repeats a short call until it takes about so long


def as_fast(speedup: float, noise: float | None) -> bool:
    """Whether a speed-up is no larger than the noise of its measurement.

    Args:
        speedup: the reference's time / the candidate's.
        noise: `Latency.noise`; None where it was not measured.
    """
    return abs(1 / speedup - 1) <= (noise or 0.0)


@dataclass(frozen=True)
class Latency:
    """Seconds per call: of each candidate, float64 [rounds], and of the reference's second timing.

    Attributes:
        reference: the name that ratios divide by.
        seconds: name -> float64 [rounds].
        control: float64 [rounds], the reference again.
        calls: name -> calls in each timing (more than one where a call is too short for the clock).
    """

    reference: str
    seconds: Mapping[str, NDArray[np.float64]]
    control: NDArray[np.float64]
    calls: Mapping[str, int]

    def median(self, name: str) -> float:
        """Median seconds of one call."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str) -> float:
        """How long `name` takes relative to the reference: the median over rounds, below 1 is faster."""
        return float(np.median(self.seconds[name] / self.seconds[self.reference]))

    @property
    def control_ratio(self) -> float:
        """The reference relative to itself: 1, but for noise."""
        return float(np.median(self.control / self.seconds[self.reference]))

    @property
    def noise(self) -> float:
        """How far the control's interval extends from 1; smaller differences than this are noise."""
        interval = intervals.median(self.control / self.seconds[self.reference])
        return max(abs(end - 1) for end in (interval or (self.control_ratio,)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: of each candidate the median and its interval, the ratio and its interval, and the control."""
        reference = self.seconds[self.reference]
        return {
            "reference": self.reference,
            "rounds": len(self.control),
            "level": intervals.LEVEL,
            "covers": "rounds on this machine, in this process",
            "control": _described("ratio", self.control / reference),
            "noise": self.noise,
            "candidates": {
                name: {
                    **_described("seconds", times),
                    "calls": self.calls[name],
                    **_described("ratio", times / reference),
                }
                for name, times in self.seconds.items()
            },
        }


def _described(name: str, values: NDArray[np.float64]) -> dict[str, Any]:
    """The median over rounds, float64 [rounds], and its 95 % order-statistic interval."""
    interval = intervals.median(values)
    return {name: float(np.median(values)), f"{name}_interval": interval and list(interval)}


def measure(
    callables: Mapping[str, Callable[[], object]],
    *,
    reference: str | None = None,
    repeats: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time each callable once a round for `repeats` rounds, in a keyed random order.

    Args:
        callables: name -> function of nothing; at least one.
        reference: the name to compare with; the first by default.
        repeats: rounds; fewer than 6 give no interval.
        clock: seconds; another one for tests.
    """
    names = list(callables)
    first = names[0] if reference is None else reference

    def timed(run: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            run()
        return (clock() - start) / calls

    calls: dict[str, int] = {}
    for name, run in callables.items():
        shortest = min(timed(run, 1) for _ in range(_WARMUP))
        calls[name] = max(1, min(10_000, ceil(_SHORTEST / max(shortest, 1e-9))))

    entries = [*names, first]
    times = np.empty((len(entries), repeats))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for i in range(repeats):
            for entry in keyed.permutation(0, i, len(entries)).tolist():
                times[entry, i] = timed(callables[entries[entry]], calls[entries[entry]])
    finally:
        if collecting:
            gc.enable()
    *rounds, control = times
    return Latency(first, dict(zip(names, rounds, strict=True)), control, calls)
