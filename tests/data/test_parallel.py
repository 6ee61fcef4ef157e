"""Decoding in threads: in order, and within its memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kitae.data import parallel
from kitae.data.parallel import each_image, memory_bytes


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


@pytest.mark.parametrize(
    ("group", "limits", "lowest"),
    [
        ("0::/", {"memory.max": "70000"}, 70000),  # a container
        ("0::/slurm/job_7/task", {"slurm/memory.max": "max", "slurm/job_7/memory.max": "50000"}, 50000),
        ("0::/elsewhere", {"memory.max": "60000"}, 60000),  # a container that sees its host's path
        ("4:cpu,memory:/job\n0::/", {"memory/job/memory.limit_in_bytes": "40000"}, 40000),  # version 1
        ("4:cpu:/job", {"cpu/job/memory.limit_in_bytes": "1", "memory.max": "1"}, None),
        ("", {}, None),
    ],
)
def test_the_limits_of_control_groups_count_as_memory(
    group: str, limits: dict[str, str], lowest: int | None, tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{k}": v for k, v in limits.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n" if text else "")
    whole = memory_bytes(tmp_path / "without")
    assert whole > 1 << 20
    assert memory_bytes(tmp_path) == (lowest or whole)
