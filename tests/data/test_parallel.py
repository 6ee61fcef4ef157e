"""Decoding in threads: in order, and within its memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kitae.data import parallel
from kitae.data.parallel import each_image


class Copies:
    """A source of one image, `count` times."""

    def __init__(self, count: int, image: bytes = b"x") -> None:
        self.count, self.image = count, image

    def __len__(self) -> int:
        return self.count

    def images(self) -> Iterator[bytes]:
        return itertools.repeat(self.image, self.count)


@pytest.mark.parametrize("result_bytes", [0, 1, 10 << 20, 1 << 40])
def test_results_come_in_order_whatever_their_size(result_bytes: int) -> None:
    source: Any = Copies(100)
    assert list(each_image(source, lambda row, item: (row, item), 3, None, result_bytes)) == [
        (row, b"x") for row in range(100)
    ]


@pytest.mark.parametrize(("image_bytes", "result_bytes"), [(1, 100), (3 << 20, 0)])
def test_large_images_and_results_wait_in_small_numbers(
    monkeypatch: pytest.MonkeyPatch, image_bytes: int, result_bytes: int
) -> None:
    monkeypatch.setattr(parallel, "_RESULT_BYTES", 1000)
    begun, lock = [0], threading.Lock()

    def work(row: int, item: Any) -> int:
        with lock:
            begun[0] += 1
        return row

    source: Any = Copies(640, bytes(image_bytes))
    for taken, row in enumerate(each_image(source, work, 2, None, result_bytes)):
        assert taken == row
        assert begun[0] - taken <= 10, "no more than 1000 bytes in results of 100, or two images of 3 MB a portion"
    assert taken == 639
