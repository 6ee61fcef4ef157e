"""Images of a store that are prepared for the network each time they are used.

Indexing gives what the network sees, so `Store.images` is used in the same way whether a store keeps whole pictures,
encoded images in shards (`encoded.Encoded`), or one array at the network's size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.native.share import share
from kitae.preprocess import PreprocessRules, view


@dataclass(frozen=True, eq=False)
class Prepared(ABC):
    """M images. `rules`: how an image is prepared for the network."""

    rules: PreprocessRules

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def prepared(self, row: int) -> NDArray[np.uint8]:
        """One image as a network sees it: uint8 [C, H, W]."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(M, C, H, W) of what a network sees."""
        return (len(self), *self.rules.shape)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """uint8 [n, C, H, W] of a slice or of integers [n], [C, H, W] of one integer."""
        index = self._numbers(rows)
        if index.ndim == 0:
            return self.prepared(int(index))
        out = np.empty((len(index), *self.rules.shape), np.uint8)

        def fill(place: int) -> None:
            out[place] = self.prepared(int(index[place]))

        share(len(index), fill)  # Pillow decodes and resizes without the interpreter lock
        return out

    def _numbers(self, rows: Any) -> NDArray[Any]:
        """The images that an index names. In a time that does not grow with M, since every batch is an index."""
        count, index = len(self), np.asarray(rows)
        if isinstance(rows, slice):
            index = np.arange(*rows.indices(count))
        elif index.dtype.kind not in "iu":
            index = np.arange(count)[rows]  # a mask; for anything else, NumPy's error
        elif index.size and not -count <= index.min() <= index.max() < count:
            raise IndexError(f"images {index.min()} to {index.max()} of {count}")
        return np.asarray(index % max(count, 1))


@dataclass(frozen=True, eq=False)
class Pictures(Prepared):
    """Whole pictures of many sizes in one buffer, memory-mapped, each at its own aspect ratio.

    Attributes:
        pixels: uint8, one picture after the other, each [C, h, w].
        starts: int64 [M + 1], where each begins in `pixels`, and where the last one ends.
        heights, widths: int64 [M].
        sums: int64 [M, 2, C], of the levels of each picture, and of their squares.
    """

    pixels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    sums: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels as they are kept."""
        return self.pixels.nbytes

    def whole(self, row: int) -> NDArray[np.uint8]:
        """One picture as it is kept: uint8 [C, h, w], not copied."""
        shape = (self.rules.channels, int(self.heights[row]), int(self.widths[row]))
        return self.pixels[self.starts[row] : self.starts[row + 1]].view(np.ndarray).reshape(shape)

    def prepared(self, row: int) -> NDArray[np.uint8]:
        return view(self.whole(row), self.rules)


def level_sums(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of the levels and of their squares, per channel: uint8 [..., C, h, w] to int64 [2, ..., C]."""
    squares = np.square(pixels, dtype=np.uint16)
    return np.stack([values.sum(axis=(-2, -1), dtype=np.int64) for values in (pixels, squares)])
