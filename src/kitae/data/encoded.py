"""Images that stay encoded in their shards and are decoded each time they are used.

Decoding uses threads, since Pillow releases the interpreter lock: two threads were as fast as two processes, and no
pixels have to be copied between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kitae.data.order import Blocks, block_order
from kitae.data.parallel import DecodeMemory
from kitae.data.pictures import Prepared
from kitae.data.remote import ShardCache
from kitae.native.share import share
from kitae.preprocess import picture, view, windowed

Window = Callable[[int, int, int], tuple[int, int, int, int]]
"""Place in the batch, height and width of the image -> top, left, height and width of its window."""

_SAMPLE = 2048  # images that statistics are computed from


@dataclass(frozen=True, eq=False)
class Encoded(Prepared):
    """M images in shards, prepared by `preprocess.picture` and `view`, the code of serving.

    Attributes:
        shards: paths and URLs.
        places: int64 [M, 3], the shard of each image, and the offset and size of its bytes in the shard.
        names: M names.
        cache: where shards are read from.
        memory: of all that is decoded at the same time.
    """

    shards: Sequence[str]
    places: NDArray[np.int64]
    names: Sequence[str]
    cache: ShardCache
    memory: DecodeMemory = field(default_factory=DecodeMemory)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def nbytes(self) -> int:
        """Bytes of all images as they are kept: encoded."""
        return int(self.places[:, 2].sum())

    @property
    def of(self) -> NDArray[np.int64]:
        """int64 [M], the shard of each image."""
        return self.places[:, 0]

    def bytes_of(self, row: int) -> bytes:
        """One encoded image. Raises DataError: see `ShardCache.read`."""
        number, offset, size = self.places[row].tolist()
        return self.cache.read(self.shards[number], offset, size)

    def prepared(self, row: int) -> NDArray[np.uint8]:
        kept, _ = picture(self.bytes_of(row), self.rules, self.names[row], self.memory.reserved)
        return view(kept, self.rules)

    def cut(
        self,
        rows: NDArray[np.int64],
        size: tuple[int, int],
        window: Window,
        use: Callable[[int, NDArray[np.uint8]], None],
        threads: int | None = None,
    ) -> None:
        """Decode a window of each image, in threads.

        Args:
            size: (height, width) that windows are to be resized to.
            use: called with the place in `rows` and the window, uint8 [h, w, C].
        """

        def prepare(place: int) -> None:
            row = int(rows[place])
            about = self.rules, self.names[row], self.memory.reserved
            with windowed(self.bytes_of(row), partial(window, place), size, *about) as pixels:
                use(place, pixels)

        share(len(rows), prepare, threads)

    def sample(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Up to 2,048 of the rows, keyed and from as few shards as possible, to compute statistics from."""
        if len(rows) <= _SAMPLE:
            return rows
        order, _ = block_order(rows, rows, Blocks(self.of, 4 * _SAMPLE), 0, 0)
        return np.sort(order[:_SAMPLE])
