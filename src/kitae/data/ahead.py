"""Read the next window of a block-shuffled order into the page cache while the current one is used.

Inside a window images are read in random order, which is slow on a disk. So the bytes of a window are first read
sequentially. This is only a hint: errors are ignored here, and raised by the later read of the same bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kitae.data.encoded import Encoded
from kitae.data.pictures import Pictures
from kitae.data.remote import ShardCache
from kitae.errors import KitaeError

_PIECE = 4 << 20  # bytes per read
_GAP = 1 << 20  # gaps of up to this many bytes are read rather than skipped

_Epoch = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
"""The first window of each row of the store; rows by window; where those of each window begin."""


class ReadAhead:
    """A thread that reads one window ahead of those that are used.

    Args:
        images: of a store; an array in memory is not read ahead.
    """

    def __init__(self, images: NDArray[np.uint8] | Pictures | Encoded) -> None:
        self._images = images
        self._epoch: _Epoch | None = None
        self._asked: set[int] = set()
        self._reading = threading.Lock()
        if isinstance(images, Encoded):
            self._files, self._cache = list(images.shards), images.cache
        else:
            file = getattr(images.pixels if isinstance(images, Pictures) else images, "filename", None)
            self._files, self._cache = [] if file is None else [str(file)], ShardCache(Path(), 0)

    def begin(self, rows: NDArray[np.int64], windows: NDArray[np.int32]) -> None:
        """A new epoch: int64 [n] rows in its order, and int32 [n] their windows."""
        if not self._files:
            return
        of = np.full(len(self._images), -1, np.int32)
        of[rows[::-1]] = windows[::-1]
        # Sorted once: to search all rows for those of each window takes a time quadratic in their number.
        begins = np.cumsum(np.r_[0, np.bincount(windows), 0])  # with an empty window at the end
        self._epoch, self._asked = (of, rows[np.argsort(windows, kind="stable")], begins), set()

    def reached(self, rows: NDArray[np.int64]) -> None:
        """Called when these rows are used: reads their windows and the next ones, unless they were read before."""
        if self._epoch is None:
            return
        now = np.unique(self._epoch[0][rows]).tolist()
        wanted = [w for w in dict.fromkeys([*now, *(w + 1 for w in now)]) if w not in self._asked]
        if wanted:
            self._asked.update(wanted)
            threading.Thread(target=self._read, args=(self._epoch, wanted), daemon=True, name="kitae-ahead").start()

    def _read(self, epoch: _Epoch, wanted: list[int]) -> None:
        _, rows, begins = epoch
        with self._reading:
            for window in wanted:
                mine = np.unique(rows[begins[window] : begins[window + 1]])
                for file, first, last in self._stretches(mine):
                    for at in range(first, last, _PIECE):
                        if self._epoch is not epoch:  # it is over
                            return
                        try:
                            self._cache.read(file, at, min(_PIECE, last - at))
                        except KitaeError:
                            return

    def _stretches(self, rows: NDArray[np.int64]) -> Iterator[tuple[str, int, int]]:
        """(file, first byte, last byte) that hold these sorted rows; small gaps are included."""
        images, files = self._images, np.zeros(len(rows), np.int64)
        if isinstance(images, Encoded):
            files, first, size = images.places[rows].T
            last = first + size
        elif isinstance(images, Pictures):
            first, last = images.starts[rows], images.starts[rows + 1]
        else:
            first, last = (rows * images[0].nbytes, (rows + 1) * images[0].nbytes)
        cuts = np.flatnonzero((np.diff(files) > 0) | (first[1:] > last[:-1] + _GAP)) + 1
        for part in np.split(np.arange(len(rows)), cuts):
            if len(part):
                yield self._files[files[part[0]]], int(first[part[0]]), int(last[part[-1]])
