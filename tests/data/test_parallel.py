"""Decoding in threads: in order, and within its memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kitae.data import parallel
from kitae.data.parallel import each_image


class Numbers:
    """A source of numbers, in blocks of 32, that notes how far it was read."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, 0

    def blocks(self) -> Iterator[list[Any]]:
        for start in range(0, self.count, 32):
            self.read = min(start + 32, self.count)
            yield list(range(start, self.read))


@pytest.mark.parametrize("result_bytes", [0, 1, 10 << 20, 1 << 40])
def test_results_come_in_order_whatever_their_size(result_bytes: int) -> None:
    blocks = list(each_image(Numbers(100), lambda row, item: (row, item), 3, result_bytes))  # type: ignore[arg-type]
    assert [pair for block in blocks for pair in block] == [(i, i) for i in range(100)]
    assert max(len(block) for block in blocks) == (32 if result_bytes < 2 else 7 if result_bytes < 1 << 30 else 1)


def test_large_results_wait_in_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_RESULT_BYTES", 1000)
    begun, lock = [0], threading.Lock()

    def work(row: int, item: Any) -> int:
        with lock:
            begun[0] += 1
        return row

    taken = 0
    for block in each_image(Numbers(320), work, 2, 100):  # type: ignore[arg-type]
        taken += len(block)
        assert begun[0] - taken <= 10, "no more than 1000 bytes in results of 100"
    assert taken == 320
