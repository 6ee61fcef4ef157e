"""Compiled work in parts, shared among PyTorch's own threads."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kitae.native.jit import by_address, native
from kitae.native.link import PART, TAKE, as_i64, call7, fetch_add
from kitae.native.share import share

# The context of a work in parts: int64. The first word counts the parts that were taken, in a cache line of its own.
_KERNEL, _PARTS, _COUNT, _AREA, _AREA_BYTES, _WORDS = 8, 9, 10, 11, 12, 13
_CONTEXT = _WORDS + 4


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
    """What begins a parallel region in the OpenMP library that PyTorch uses: (function, data, threads, flags).

    GNU's, or one that has the same function. None where none is found, as on macOS.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    loaded = {line.split(maxsplit=5)[-1] for line in lines if re.search(r"/lib(gomp|omp|iomp5)[-.][^/]*$", line)}
    places = [str(folder) + os.sep for folder in _torch_folders()]
    own = {path for path in loaded if path.startswith(tuple(places))} or loaded
    if len(own) != 1:
        return None
    try:
        function = ("GOMP_parallel", ctypes.CDLL(own.pop()))
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(function)
    except (OSError, AttributeError):
        return None


def _torch_folders() -> list[Path]:
    """Where a wheel of PyTorch keeps its libraries; none before it is imported."""
    module = sys.modules.get("torch")
    folder = Path(str(getattr(module, "__file__", ""))).parent
    return [] if module is None else [folder, folder.with_name("torch.libs")]
