"""Read the next window of a block-shuffled order into the page cache while one is trained on.

Inside a window images are read in random order, which is slow on a disk. So the bytes of a window are first read
sequentially. This is only a hint: errors are ignored here, and raised by the later read of the same bytes.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kitae.data.encoded import Encoded
from kitae.data.pictures import Pictures
from kitae.errors import KitaeError

_PIECE = 4 << 20  # bytes per read
_GAP = 1 << 20  # gaps up to so many bytes are read rather than skipped


class Stretches(Protocol):
    """Where the bytes of images lie."""

    def stretches(self, rows: NDArray[np.int64]) -> list[tuple[str, int, int]]:
        """(file, first byte, last byte) of what holds these rows, in reading order."""

    def touch(self, file: str, offset: int, size: int) -> None:
        """Read and forget."""


class ReadAhead:
    """A thread that reads one window ahead of those that are used.

    Args:
        images: of a store; those that are in memory anyway are not read.
    """

    def __init__(self, images: NDArray[np.uint8] | Pictures | Encoded) -> None:
        self._images: Stretches | None = images if isinstance(images, Encoded) else _mapped(images)
        self._count = len(images)
        self._window: NDArray[np.int32] | None = None
        self._order: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None
        self._asked: set[int] = set()
        self._pass = 0
        self._reading = threading.Lock()

    def begin(self, rows: NDArray[np.int64], windows: NDArray[np.int32]) -> None:
        """A new epoch: int64 [n] rows in its order, and int32 [n] their windows."""
        if self._images is None:
            return
        of = np.full(self._count, -1, np.int32)
        of[rows] = windows
        self._window, self._order, self._asked = of, (rows, windows), set()
        self._pass += 1

    def reached(self, rows: NDArray[np.int64]) -> None:
        """Called when these rows are used: reads their windows and the next ones, unless they were read before."""
        if self._window is None or self._order is None:
            return
        now = np.unique(self._window[rows]).tolist()
        wanted = [w for w in dict.fromkeys([*now, *(w + 1 for w in now)]) if w not in self._asked]
        if wanted:
            self._asked.update(wanted)
            arguments = (self._order, wanted, self._pass)
            threading.Thread(target=self._read, args=arguments, daemon=True, name="kitae-ahead").start()

    def _read(self, order: tuple[NDArray[np.int64], NDArray[np.int32]], wanted: list[int], number: int) -> None:
        assert self._images is not None
        rows, windows = order
        with self._reading:
            for window in wanted:
                for file, first, last in self._images.stretches(np.sort(rows[windows == window])):
                    for at in range(first, last, _PIECE):
                        if self._pass != number:  # the epoch is over
                            return
                        try:
                            self._images.touch(file, at, min(_PIECE, last - at))
                        except (OSError, KitaeError):
                            return


class _Mapped:
    """A memory-mapped store. `starts`: int64 [M + 1], where each image begins in its file."""

    def __init__(self, file: str, starts: NDArray[np.int64]) -> None:
        self._file, self._starts = file, starts

    def stretches(self, rows: NDArray[np.int64]) -> list[tuple[str, int, int]]:
        return [(self._file, *stretch) for stretch in joined(self._starts[rows], self._starts[rows + 1])]

    def touch(self, file: str, offset: int, size: int) -> None:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


def _mapped(images: NDArray[np.uint8] | Pictures) -> _Mapped | None:
    pixels = images.pixels if isinstance(images, Pictures) else images
    file = getattr(pixels, "filename", None)
    if file is None:
        return None
    if isinstance(images, Pictures):
        return _Mapped(str(file), images.starts)
    return _Mapped(str(file), np.arange(len(images) + 1, dtype=np.int64) * int(np.prod(images.shape[1:])))


def joined(first: NDArray[np.int64], last: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Byte ranges in ascending order, with nearly adjacent ones merged."""
    if not len(first):
        return []
    cuts = np.flatnonzero(first[1:] > last[:-1] + _GAP) + 1
    heads, tails = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(first)]]) - 1
    return list(zip(first[heads].tolist(), last[tails].tolist(), strict=True))
