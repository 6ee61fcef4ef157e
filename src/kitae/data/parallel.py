"""Process all images of a source in threads. Pillow releases the interpreter lock, so threads are enough."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from kitae.data.base import Item, Progress, Source
from kitae.errors import DataError
from kitae.machine import processors

T = TypeVar("T")

_RESULT_BYTES = 512 << 20
_DECODING_LIMIT = 1 << 30  # memory limit of all decoding threads together; a larger image is decoded alone
_PORTION, _PORTION_BYTES = 32, 4 << 20  # images and encoded bytes handed to a thread at once, at most
_PORTIONS = 64  # at least, so that a few large photographs keep all threads busy


class DecodeMemory:
    """A memory budget of all threads. A thread waits until its share is free; one that needs more runs alone."""

    def __init__(self, size: int = _DECODING_LIMIT) -> None:
        self._size, self._free = size, size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def each_image(
    source: Source,
    work: Callable[[int, Item], T],
    threads: int | None = None,
    progress: Progress | None = None,
    result_bytes: int = 0,
) -> Generator[T | DataError, None, None]:
    """`work(row, item)` for every image, in the source's order; few results are in memory at once.

    A DataError of `work` takes the place of its result; any other exception stops everything, and so does closing the
    iterator.

    Args:
        progress: called with (images done, images in all).
        result_bytes: size of the result of `work` for one image. Results waiting for their turn take about 512 MB at
            most, or two images per thread.
    """
    count = threads or processors()
    pool = ThreadPoolExecutor(count, thread_name_prefix="kitae-decode")
    most = max(1, min(_PORTION, len(source) // _PORTIONS))
    if result_bytes:
        most = max(1, min(most, _RESULT_BYTES // ((2 * count + 1) * result_bytes)))

    def attempt(row: int, item: Item) -> T | DataError:
        try:
            return work(row, item)
        except DataError as error:
            return error

    def run(start: int, items: list[Item]) -> list[T | DataError]:
        return [attempt(row, item) for row, item in enumerate(items, start)]

    submitted = (pool.submit(run, start, items) for start, items in _portions(source.images(), most))
    done = 0
    try:
        waiting = deque(itertools.islice(submitted, 2 * count))
        while waiting:
            waiting.extend(itertools.islice(submitted, 1))
            results = waiting.popleft().result()
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, len(source))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _portions(images: Iterator[Item], most: int) -> Iterator[tuple[int, list[Item]]]:
    """(row of the first one, images) for a thread to work on."""
    start, items, size = 0, list[Item](), 0
    for item in images:
        items.append(item)
        size += len(item) if isinstance(item, bytes) else item.nbytes if isinstance(item, np.ndarray) else 0
        if len(items) == most or size >= _PORTION_BYTES:
            yield start, items
            start, items, size = start + len(items), [], 0
    if items:
        yield start, items


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may use: of the machine, or of its control group or one around it where that is less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):  # no control groups here
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            # Version 2 has one tree, version 1 a tree for each controller.
            limit = "memory.limit_in_bytes" if controllers else "memory.max"
            top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            group = top / path.lstrip("/")
            for place in (group, *group.parents):
                if place.is_relative_to(top):
                    with contextlib.suppress(OSError, ValueError):  # outside this container, or without a limit
                        found = min(found, int((place / limit).read_text()))
    return found
