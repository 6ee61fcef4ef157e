"""Whole pictures of many sizes in one buffer, each at its own aspect ratio.

Indexing gives what the network sees, so `Store.images` is used in the same way whether a store keeps whole pictures or
one array at the network's size:

    pictures[rows]      uint8 [n, C, H, W], prepared by `preprocess.view`, the code of serving
    pictures.whole(5)   uint8 [C, h, w], one picture as it is kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.parallel import share
from kitae.preprocess import PreprocessRules, view


@dataclass(frozen=True, eq=False)
class Pictures:
    """M pictures, memory-mapped.

    Attributes:
        pixels: uint8, one picture after the other, each [C, h, w].
        starts: int64 [M + 1], where each begins in `pixels`, and where the last one ends.
        heights, widths: int64 [M].
        sums: int64 [M, 2, C], of the levels of each picture, and of their squares.
        rules: how a picture is prepared for the network.
    """

    pixels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    sums: NDArray[np.int64]
    rules: PreprocessRules

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(M, C, H, W) of what a network sees."""
        return (len(self), *self.rules.shape)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return self.pixels.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels as they are kept."""
        return self.pixels.nbytes

    def whole(self, row: int) -> NDArray[np.uint8]:
        """One picture as it is kept: uint8 [C, h, w], not copied."""
        shape = (self.rules.channels, int(self.heights[row]), int(self.widths[row]))
        return self.pixels[self.starts[row] : self.starts[row + 1]].view(np.ndarray).reshape(shape)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """uint8 [n, C, H, W] of a slice or of integers [n], [C, H, W] of one integer."""
        index = np.arange(len(self))[rows]
        if index.ndim == 0:
            return view(self.whole(int(index)), self.rules)
        out = np.empty((len(index), *self.rules.shape), np.uint8)

        def prepare(place: int) -> None:
            out[place] = view(self.whole(int(index[place])), self.rules)

        share(len(index), prepare)  # Pillow resizes without the interpreter lock
        return out


def level_sums(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of the levels and of their squares, per channel: uint8 [C, h, w] to int64 [2, C]."""
    squares = np.square(pixels, dtype=np.uint16)
    return np.stack([values.sum(axis=(1, 2), dtype=np.int64) for values in (pixels, squares)])
