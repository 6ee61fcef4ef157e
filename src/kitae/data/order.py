"""The order of an epoch over data that do not fit in memory: reads are long and sequential, shuffling is local.

Images lie in blocks (a shard; a stretch of a store). The order of blocks is keyed; the images of consecutive blocks
are cut into windows of `buffer` images, and each window is shuffled. So whole blocks are read one after the other from
a disk or network, and memory for one window is enough. The order is a pure function of (seed, epoch, blocks, buffer)
and, with several lanes, of the batch size, so training can resume at any position, with any number of processes.

With several lanes the blocks are distributed over them, and a batch takes an equal share of each. Processes that divide
the lanes among themselves then read different shards, while the batches are the same for any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed

MAX_LANES = 16


@dataclass(frozen=True, eq=False)
class Blocks:
    """How the images of a store lie, and how they are shuffled.

    Attributes:
        of: integers [M], the block of each row of the store.
        buffer: images of a window, over all lanes.
        lanes: see above; a batch is a multiple of twice as many.
        batch: images of a batch; without effect with one lane.
    """

    of: NDArray[np.integer[Any]]
    buffer: int
    lanes: int = 1
    batch: int = 2


def lanes_of(blocks: int, batch: int) -> int:
    """How many lanes: 16, 8, 4, 2 or 1, with at least two shards for each, and even shares of a batch."""
    lanes = MAX_LANES
    while lanes > 1 and (blocks < 2 * lanes or batch % (2 * lanes)):
        lanes //= 2
    return lanes


def block_order(
    index: NDArray[np.int64], rows: NDArray[np.int64], blocks: Blocks, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Keyed indices in the order of an epoch.

    Args:
        index: int64 [n], what keys each image; a row may come more than once, under different indices.
        rows: int64 [n], their rows of the store.

    Returns:
        int64 [n], the indices in order; int32 [n], the window of each. The windows of a lane are numbered one after the
        other. No number is used by two lanes, nor is the one that follows a lane's last.
    """
    of = blocks.of[rows]
    present, sizes = np.unique(of, return_counts=True)
    turn = keyed.shuffled(seed, epoch, present.astype(np.int64), keyed.SLOT_BLOCKS)
    lanes = min(blocks.lanes, len(present))
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    filled = [0] * lanes
    for place in turn:
        lane = filled.index(min(filled))  # the shortest one, so that lanes end together
        dealt[lane].append(int(place))
        filled[lane] += int(sizes[place])
    rank = np.empty(len(present), np.int64)
    lane_of = np.empty(len(present), np.int64)
    for lane, places in enumerate(dealt):
        rank[places], lane_of[places] = np.arange(len(places)), lane
    member = np.searchsorted(present, of)
    by_lane = np.lexsort((index, rank[member], lane_of[member]))
    window_size = max(2, blocks.buffer // lanes)
    shuffle = keyed.sort_keys(seed, epoch, index, keyed.SLOT_ORDER)
    streams: list[NDArray[Any]] = []
    windows: list[NDArray[Any]] = []
    used = 0
    for part in np.split(by_lane, np.cumsum(filled)[:-1]):
        # A last window of a few images would hardly be shuffled, so they are added to the previous window.
        window = np.minimum(np.arange(len(part)) // window_size, max(len(part) // window_size - 1, 0))
        inside = np.lexsort((shuffle[part], window))
        streams.append(index[part[inside]])
        windows.append((window + used).astype(np.int32))
        used += int(window[-1]) + 2
    return _interleaved(streams, blocks.batch // lanes), _interleaved(windows, blocks.batch // lanes)


def _interleaved(streams: list[NDArray[Any]], share: int) -> NDArray[Any]:
    """`share` items of each stream in turn, then the rest of the longer ones."""
    if len(streams) == 1:
        return streams[0]
    turns = min(map(len, streams)) // share
    even = np.stack([stream[: turns * share].reshape(turns, share) for stream in streams], axis=1)
    return np.concatenate([even.ravel(), *(stream[turns * share :] for stream in streams)])
