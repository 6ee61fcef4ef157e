"""One setting of the C library's allocator that training on a CPU wants."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step; does nothing elsewhere. Once a process is enough.

    By default every activation above a few hundred kilobytes is given back to the system when it is freed, and its
    pages are faulted in again, zeroed, at the next step. The price of keeping them is that memory, once used, stays.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
