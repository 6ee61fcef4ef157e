"""Where the time of a batch goes with one and with two threads, so that it can be said why two are not twice as fast.

    python benchmarks/thread_profile.py         two minutes; nothing else may run
    python benchmarks/thread_profile.py --tiny  small settings: does it run?

Each thread writes the time at which it begins and ends its part of a batch, by a clock that all share. A batch takes

    Python      from the call until the work is handed over, and from its end until the call returns
    waking      from the hand-over until a thread begins, a mean over the threads
    kernels     the compiled work of a thread, planning included, a mean over the threads
    waiting     from the end of a thread's work until the last one ends, a mean over the threads

which add up to its time. Half of what one thread takes is the aim; what two threads lose against it is told for each of
the four. Kernels are lost time if the two threads together need more than one alone: the cores slow each other. How
much they do so in any program is measured beside: a plain copy that moves the same bytes (memory and caches), and
arithmetic in registers (execution units, clock rate), with one and two threads of the same crew.

The ways take turns, round after round. `training` rows have a step of a small network between the batches, outside the
clock. Batches are always shared here; `Augment` itself stops sharing them where that takes longer (`Pace`).
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import numpy as np
from contestants import MEAN, STD
from threads import WORKS, step

from kitae.machine import sleep_while_waiting
from kitae.native.jit import native
from kitae.native.link import PART, as_i64, as_u64, call6, call7
from kitae.native.threads import share_parts

PROFILED: dict[str, list[Any]] = {**WORKS, "rand_augment": ["rand_augment"]}
TRAINING = ("horizontal_flip", "standard", "auto_augment")
BATCHES = (128, 512)
SIDE = 32
PARTS = ("python", "waking", "kernels", "waiting")
LIBC: Any = ctypes.CDLL(None)
_STAMPS = 8  # int64 of a thread: begin, its processor time then and at the end, end; each seconds and nanoseconds


def clock() -> float:
    """Seconds, by the clock of the stamps."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def stamped(job_at: Any, b: Any, c: Any, d: Any, first: Any, last: Any, area: Any) -> Any:
    """A kernel, and the times at which a thread begins and ends it."""
    job = as_i64(job_at)
    at = job[6] + 8 * _STAMPS * first
    call6(job[5], job[7], at, 0, 0, 0, 0)
    call6(job[5], job[8], at + 16, 0, 0, 0, 0)
    call7(job[0], job[1], job[2], job[3], job[4], first, last, area)
    call6(job[5], job[8], at + 32, 0, 0, 0, 0)
    call6(job[5], job[7], at + 48, 0, 0, 0, 0)
    return 0


def copied(memcpy: Any, source: Any, target: Any, piece: Any, first: Any, last: Any, area: Any) -> Any:
    """A copy of pieces of so many bytes."""
    call6(memcpy, target + first * piece, source + first * piece, (last - first) * piece, 0, 0, 0)
    return 0


def calculated(rounds: Any, b: Any, c: Any, d: Any, first: Any, last: Any, area: Any) -> Any:
    """Arithmetic in registers."""
    x = np.uint64(first + 88172645463325252)
    for _ in range(rounds * (last - first)):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
    as_u64(area)[0] = x
    return 0


class Watched:
    """`share_parts`, which also notes when the work was handed over and when each thread worked."""

    def __init__(self, most: int = 2) -> None:
        self.stamps = np.zeros((most, _STAMPS), np.int64)
        self._job = np.zeros(9, np.int64)
        self.handed, self.parts = 0.0, 0
        self._fixed = [_address(LIBC.clock_gettime), self.stamps.ctypes.data]
        self._fixed += [time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID]

    def __call__(
        self, kernel: Any, words: tuple[int, int, int, int], count: int, parts: int, area: tuple[int, int], threads: int
    ) -> None:
        self.handed, self.parts = clock(), parts
        self._job[:] = [native(kernel, PART).address, *words, *self._fixed]
        share_parts(stamped, (self._job.ctypes.data, 0, 0, 0), count, parts, area, threads)

    def took(self, began: float, ended: float) -> dict[str, float]:
        """Milliseconds of the parts of a call from `began` to `ended`, and of processor time in the kernels."""
        seconds = self.stamps[: self.parts].reshape(-1, 4, 2) @ np.array([1.0, 1e-9])
        begins, ends = seconds[:, 0], seconds[:, 3]
        last = ends.max()
        found = {
            "python": self.handed - began + ended - last,
            "waking": float((begins - self.handed).mean()),
            "kernels": float((ends - begins).mean()),
            "waiting": float((last - ends).mean()),
            "processor": float((seconds[:, 2] - seconds[:, 1]).sum()),
            "total": ended - began,
        }
        return {name: 1000 * value for name, value in found.items()}


def _address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


class Always:
    """A `Pace` that always shares."""

    def share(self) -> bool:
        return True

    def took(self, *facts: Any) -> None: ...


def augmenting(ops: list[Any], batch: int, threads: int) -> Callable[[], Any]:
    """Augments a batch with so many threads, a new epoch at each call."""
    from kitae.augment import Augment

    images = common.generated(SIDE, batch)
    augment = Augment(ops, mean=MEAN, std=STD, threads=threads)
    (executor,) = augment._executors(augment.pipeline(3, SIDE, SIDE))
    executor._pace = Always()  # type: ignore[union-attr,assignment]
    index, epochs = np.arange(batch), iter(range(10**9))
    return lambda: augment(images, epoch=next(epochs), index=index)


def copying(batch: int, threads: int, watched: Watched) -> Callable[[], Any]:
    """Moves as many bytes as augmenting a batch does, which reads a byte for each value and writes four."""
    size = batch * 3 * SIDE * SIDE * 5 // 2  # a copy reads each byte and writes it
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    words = (_address(LIBC.memcpy), source.ctypes.data, target.ctypes.data, size // threads)

    def call() -> Any:
        watched(copied, words, threads, threads, (0, 0), threads)
        return source, target  # which must live as long as this function

    return call


def calculating(rounds: int, threads: int, watched: Watched) -> Callable[[], Any]:
    """So many rounds of arithmetic, shared evenly."""
    results = np.zeros((2, 8), np.int64)

    def call() -> Any:
        area = (results.ctypes.data, results.strides[0])
        watched(calculated, (rounds // threads, 0, 0, 0), threads, threads, area, threads)
        return results

    return call


def turn(call: Callable[[], Any], watched: Watched, count: int, between: Callable[[], Any] | None) -> dict[str, float]:
    """Means of the parts of so many calls, in milliseconds; `between` comes before each and does not count."""
    found = []
    for _ in range(count):
        if between is not None:
            between()
        began = clock()
        call()
        found.append(watched.took(began, clock()))
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}


def explained(one: Sequence[dict[str, float]], two: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What two threads lose against half of what one takes: milliseconds of each part, which add up to the whole."""
    lost = {
        part: common.spread([after[part] - before[part] / 2 for before, after in zip(one, two, strict=True)])
        for part in (*PARTS, "total")
    }
    ratios = {
        "speedup": [before["total"] / after["total"] for before, after in zip(one, two, strict=True)],
        # of the kernels alone, if handing over and waiting took no time
        "kernel_speedup": [before["kernels"] / after["kernels"] for before, after in zip(one, two, strict=True)],
    }
    return {"lost_milliseconds": lost, **{name: common.spread(values) for name, values in ratios.items()}}


def profile(
    name: str, batch: int, watched: Watched, rounds: int, calls: int, spins: int, between: Callable[[], Any] | None
) -> dict[str, Any]:
    """One work in batches of one size, and the two limits of the machine; printed too."""
    ways: dict[str, list[Callable[[], Any]]] = {
        "augment": [augmenting(PROFILED[name], batch, threads) for threads in (1, 2)],
        "copy": [copying(batch, threads, watched) for threads in (1, 2)],
        "arithmetic": [calculating(spins, threads, watched) for threads in (1, 2)],
    }
    taken: dict[str, list[list[dict[str, float]]]] = {way: [[], []] for way in ways}
    for number in range(-1, rounds):  # the first does not count
        for way, pair in ways.items():
            for threads, call in enumerate(pair):
                measured = turn(call, watched, calls, between)
                if number >= 0:
                    taken[way][threads].append(measured)
    milliseconds = {
        str(threads + 1): {part: common.spread([one[part] for one in mine]) for part in mine[0]}
        for threads, mine in enumerate(taken["augment"])
    }
    limits = {way: explained(*taken[way])["speedup"] for way in ("copy", "arithmetic")}
    found = {
        "work": name, "side": SIDE, "batch": batch, "training": between is not None, "milliseconds": milliseconds,
        **explained(*taken["augment"]), "limits": limits,
    }  # fmt: skip
    said = ", ".join(f"{part} {found['lost_milliseconds'][part]['median']:+.3f}" for part in PARTS)
    where = f"{name}, batch {batch}{', while training' if between else ''}"
    bounds = ", ".join(f"{way} {limit['median']:.2f}" for way, limit in limits.items())
    print(f"{where}: {found['speedup']['median']:.2f} times as fast; lost ms: {said}; limits: {bounds}", flush=True)
    return found


def main() -> None:
    sleep_while_waiting(os.environ)  # before PyTorch's threads start
    given = common.turns(__doc__, "thread_profile", rounds=7, seconds=0.05)
    from kitae.augment import cpu

    watched = Watched()
    cpu.share_parts = watched  # type: ignore[assignment]
    calls, spins = (2, 1000) if given.tiny else (30, 400_000)
    results: dict[str, Any] = {"what": __doc__, "machine": common.hardware(2), "rows": []}
    between = step()
    rows = [(name, batch, None, calls) for batch in BATCHES for name in PROFILED]
    rows += [(name, batch, between, max(calls // 5, 1)) for batch in BATCHES for name in TRAINING]
    if given.tiny:
        rows = [("standard", 16, None, calls), ("horizontal_flip", 16, between, 1)]
    for name, batch, pause, count in rows:
        results["rows"].append(profile(name, batch, watched, given.rounds, count, spins, pause))
        common.save(given.out, results)
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
