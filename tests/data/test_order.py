"""Block-shuffled orders: every image once, a pure function of their key, read in long stretches."""

from __future__ import annotations

import numpy as np
import pytest

from kitae.data.order import Blocks, block_order, lanes_of

SIZES = [30, 11, 25, 8, 40, 17, 22, 9, 31, 14, 12, 29, 16, 18, 20, 27]
OF = np.repeat(np.arange(len(SIZES)), SIZES)
ROWS = np.arange(len(OF))


def order(blocks: Blocks, epoch: int = 0, rows: np.ndarray = ROWS) -> tuple[np.ndarray, np.ndarray]:
    return block_order(rows, rows, blocks, 7, epoch)


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_every_image_comes_once_in_an_order_of_its_epoch(lanes: int) -> None:
    blocks = Blocks(OF, 40, lanes, batch=16)
    first, again, other = order(blocks)[0], order(blocks)[0], order(blocks, epoch=1)[0]
    assert sorted(first) == ROWS.tolist()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_window_holds_few_blocks_and_is_shuffled() -> None:
    index, windows = order(Blocks(OF, 40))
    assert (np.diff(windows) >= 0).all()
    for window in range(windows.max() + 1):
        inside = index[windows == window]
        assert 40 <= len(inside) < 80
        assert len(np.unique(OF[inside])) <= 7
        assert (np.diff(inside) < 0).any()
    # Each block is read by neighbouring windows only.
    for block in range(len(SIZES)):
        assert np.ptp(windows[OF[index] == block]) <= 1


def test_blocks_come_in_another_order_each_epoch() -> None:
    turns = [tuple(dict.fromkeys(OF[order(Blocks(OF, 2), epoch)[0]])) for epoch in range(3)]
    assert len(set(turns)) == 3


def test_processes_that_divide_the_lanes_read_different_blocks() -> None:
    blocks = Blocks(OF, 64, lanes=4, batch=16)
    index = order(blocks)[0]
    batches = OF[index[: 16 * 16].reshape(16, 16)]  # of 20; the last ones take what is left of longer lanes
    halves = [set(batches[:, :8].ravel()), set(batches[:, 8:].ravel())]
    assert halves[0].isdisjoint(halves[1])


def test_no_window_of_another_lane_follows_the_last_of_a_lane() -> None:
    windows = order(Blocks(OF, 64, lanes=4, batch=16))[1]
    lanes = np.unique(windows)
    assert np.count_nonzero(np.diff(lanes) > 1) == 3


def test_an_image_left_out_moves_none_to_another_block_s_place() -> None:
    fewer = np.delete(ROWS, 5)
    turns = [tuple(dict.fromkeys(OF[order(Blocks(OF, 2), rows=rows)[0]])) for rows in (ROWS, fewer)]
    assert turns[0] == turns[1]


def test_lanes_need_shards_and_even_shares() -> None:
    assert lanes_of(100, 128) == 16
    assert lanes_of(31, 128) == 8
    assert lanes_of(5, 128) == 2
    assert lanes_of(1, 128) == 1
    assert lanes_of(100, 6) == 1
    assert lanes_of(100, 20) == 2
