"""Work on all images of a source in threads: Pillow decodes outside the interpreter lock, so threads are enough."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kitae.data.base import Item, Source

T = TypeVar("T")


def each_image(
    source: Source, work: Callable[[int, Item], T], threads: int | None = None
) -> Generator[list[T], None, None]:
    """`work(row, item)` for every image, block by block in the source's order; few blocks are in memory at once.

    An exception of `work` stops everything; so does closing the iterator.
    """
    count = threads or processors()
    pool = ThreadPoolExecutor(count, thread_name_prefix="kitae-decode")

    def run(start: int, items: list[Item]) -> list[T]:
        return [work(row, item) for row, item in enumerate(items, start)]

    waiting: deque[Future[list[T]]] = deque()
    try:
        start = 0
        for items in source.blocks():
            waiting.append(pool.submit(run, start, items))
            start += len(items)
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
