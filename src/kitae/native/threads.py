"""Compiled work in parts, shared among PyTorch's own threads."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import multiprocessing
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kitae.machine import after_fork
from kitae.native.jit import by_address, native
from kitae.native.link import PART, TAKE, as_i64, call7, fetch_add
from kitae.native.share import share

# The context of a job: int64. The first word counts the parts that were taken, in a cache line of its own.
_KERNEL, _PARTS, _COUNT, _AREA, _AREA_BYTES, _WORDS = 8, 9, 10, 11, 12, 13
_CONTEXT = _WORDS + 4
_OPENMP = re.compile(r"lib(gomp|omp|iomp5)[-.]")

_forked = multiprocessing.parent_process() is not None  # perhaps forked before this was imported
_shared = threading.Lock()  # one job at a time has several threads


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
    """Run a compiled kernel on all items of a job, in parts that PyTorch's own threads take one after the other.

    After one of PyTorch's operations its threads wait without sleeping, and take the processor from any others.

    Args:
        kernel: takes the four words, the first item of a part and the one after its last, and the address of an area.
        count: number of items.
        parts: into which they are divided, whatever the number of threads.
        area: address of the first part's area, and bytes from one to the next.
        threads: at most; 1 while another thread of Python shares a job.
    """
    context = np.zeros(_CONTEXT, np.int64)
    context[_KERNEL:] = native(kernel, PART).address, parts, count, *area, *words
    address, take = context.ctypes.data, by_address(take_parts, TAKE)
    if threads < 2 or not _shared.acquire(blocking=False):
        take(address)
        return
    try:
        if (parallel := _openmp()) is not None and not _forked:
            parallel(native(take_parts, TAKE).address, address, threads, 0)
            return
        share(threads, lambda _: take(address), threads)  # waits after an interrupt too: memory must stay until then
    finally:
        _shared.release()


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


def _after_fork() -> None:
    """Neither threads nor GNU's OpenMP work in a forked process whose parent had used them."""
    global _forked, _shared
    _forked, _shared = True, threading.Lock()


after_fork(_after_fork)


@functools.cache
def _openmp() -> Any:
    """What begins a parallel region in the OpenMP library that PyTorch uses: (function, data, threads, flags).

    GNU's, or one that has the same function. None where none is found, as on macOS.
    """
    for path in _in_wheel() or _loaded():
        try:
            function = ("GOMP_parallel", ctypes.CDLL(path))
            return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(function)
        except (OSError, AttributeError):
            continue
    return None


def _in_wheel() -> list[str]:
    """The OpenMP library of PyTorch's wheel, which may be imported later."""
    found = importlib.util.find_spec("torch")
    torch = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    folders = [place for folder in torch for place in (folder / "lib", folder.with_name("torch.libs"))]
    return [str(file) for folder in folders for file in sorted(folder.glob("lib*.so*")) if _OPENMP.match(file.name)]


def _loaded() -> list[str]:
    """The OpenMP library of this process, if it has only one."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = {path for line in lines if _OPENMP.match(Path(path := line.split(maxsplit=5)[-1]).name)}
    return list(found) if len(found) == 1 else []
