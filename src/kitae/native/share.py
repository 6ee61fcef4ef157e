"""Sharing work among threads that run without the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from kitae.machine import processors


def share(count: int, work: Callable[[int], None], threads: int | None = None) -> None:
    """`work(place)` for every place in [0, count), in threads; for work that releases the interpreter lock.

    The threads, this one among them, take one place after the other, so all end at nearly the same time. A pool for
    each call, so that none is left behind at a fork. Raises what the first place that fails raises. After an interrupt,
    no place is begun, and those that were begun are finished first, since they may write to memory by address.
    """
    threads = min(threads or processors(), count)
    places = iter(range(count))  # `next` on it is atomic
    failed: dict[int, BaseException] = {}

    def take() -> None:
        # A place that was taken is worked on, or an earlier one that fails would go unseen.
        while not failed and (place := next(places, None)) is not None:
            try:
                work(place)
            except BaseException as error:
                failed[place] = error

    if threads < 2:
        take()
    else:
        with ThreadPoolExecutor(threads - 1, thread_name_prefix="kitae-share") as pool:
            others = [pool.submit(take) for _ in range(threads - 1)]
            while True:
                try:
                    take()
                    wait(others)
                    break
                except BaseException as error:  # an interrupt
                    failed[-1] = error
    if failed:
        raise failed[min(failed)]
