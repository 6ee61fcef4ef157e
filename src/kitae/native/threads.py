"""Sharing work among threads that run without the interpreter lock."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kitae.machine import processors
from kitae.native.jit import by_address, native
from kitae.native.link import PART, TAKE, as_i64, call7, fetch_add

# The context of a work in parts: int64. The first word counts the parts that were taken, in a cache line of its own.
_KERNEL, _PARTS, _COUNT, _AREA, _AREA_BYTES, _WORDS = 8, 9, 10, 11, 12, 13
_CONTEXT = _WORDS + 4


def share(count: int, work: Callable[[int], None], threads: int | None = None) -> None:
    """`work(place)` for every place in [0, count), in threads; for work that releases the interpreter lock.

    A pool for each call, so that none is left behind at a fork.
    """
    threads = min(threads or processors(), count)
    if threads < 2:
        for place in range(count):
            work(place)
        return

    def part(number: int) -> None:
        for place in range(number, count, 4 * threads):
            work(place)

    with ThreadPoolExecutor(threads, thread_name_prefix="kitae-share") as pool:
        list(pool.map(part, range(4 * threads)))


def prepare(*kernels: Callable[..., Any]) -> None:
    """Compile kernels now and not at their first use."""
    for kernel in kernels:
        native(kernel, PART)
    native(take_parts, TAKE)


def share_parts(
    kernel: Callable[..., Any],
    words: tuple[int, int, int, int],
    count: int,
    parts: int,
    area: tuple[int, int],
    threads: int,
) -> None:
    """A compiled kernel on all items of a work, in parts that PyTorch's own threads take one after the other.

    After one of PyTorch's operations its threads wait without sleeping, and take the processor from any others.

    Args:
        kernel: takes the four words, the first item of a part and the one after its last, and the address of an area.
        count: number of items.
        parts: into which they are divided, whatever the number of threads.
        area: address of the first part's area, and bytes from one to the next.
    """
    context = np.zeros(_CONTEXT, np.int64)
    context[_KERNEL:] = native(kernel, PART).address, parts, count, *area, *words
    address = context.ctypes.data
    if threads > 1 and (parallel := _openmp()) is not None:
        parallel(native(take_parts, TAKE).address, address, threads, 0)
    else:
        take = by_address(take_parts, TAKE)
        share(threads, lambda _: take(address), threads)


def take_parts(context: Any) -> Any:
    """Work until no part is left; several threads do so at once."""
    c = as_i64(context)
    parts, count = c[_PARTS], c[_COUNT]
    part = fetch_add(context, 1)
    while part < parts:
        first, last = count * part // parts, count * (part + 1) // parts
        area = c[_AREA] + part * c[_AREA_BYTES]
        call7(c[_KERNEL], c[_WORDS], c[_WORDS + 1], c[_WORDS + 2], c[_WORDS + 3], first, last, area)
        part = fetch_add(context, 1)
    return 0


@functools.cache
def _openmp() -> Any:
    """What begins a parallel region of the GNU OpenMP that came with PyTorch: (function, data, threads, flags).

    None where PyTorch's threads are others.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        loaded = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line and "torch" in line}
        (path,) = loaded
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
            ("GOMP_parallel", ctypes.CDLL(path))
        )
    except (OSError, ValueError, AttributeError):
        return None
