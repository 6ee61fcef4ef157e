"""Sharing work among threads that run without the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kitae.machine import processors


def share(count: int, work: Callable[[int], None], threads: int | None = None) -> None:
    """`work(place)` for every place in [0, count), in threads; for work that releases the interpreter lock.

    A pool for each call, so that none is left behind at a fork.
    """
    threads = min(threads or processors(), count)
    if threads < 2:
        for place in range(count):
            work(place)
        return

    def part(number: int) -> None:
        for place in range(number, count, 4 * threads):
            work(place)

    with ThreadPoolExecutor(threads, thread_name_prefix="kitae-share") as pool:
        list(pool.map(part, range(4 * threads)))
