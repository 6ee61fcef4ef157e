"""Decoding in threads: in order, and within its memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kitae.data import parallel
from kitae.data.parallel import each_image


class Numbers:
    """A source of numbers, in blocks of 32."""

    def __init__(self, count: int) -> None:
        self.count = count

    def blocks(self) -> Iterator[list[Any]]:
        for start in range(0, self.count, 32):
            yield list(range(start, min(start + 32, self.count)))


@pytest.mark.parametrize("result_bytes", [0, 1, 10 << 20, 1 << 40])
def test_results_come_in_order_whatever_their_size(result_bytes: int) -> None:
    numbers: Any = Numbers(100)
    results = each_image(numbers, lambda row, item: (row, item), 3, result_bytes=result_bytes)
    assert list(results) == [(i, i) for i in range(100)]


def test_large_results_wait_in_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_RESULT_BYTES", 1000)
    begun, lock = [0], threading.Lock()

    def work(row: int, item: Any) -> int:
        with lock:
            begun[0] += 1
        return row

    numbers: Any = Numbers(320)
    for taken, _ in enumerate(each_image(numbers, work, 2, result_bytes=100)):
        assert begun[0] - taken <= 10, "no more than 1000 bytes in results of 100"
    assert taken == 319
