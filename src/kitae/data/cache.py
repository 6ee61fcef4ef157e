"""A lock in the cache folder, and one line for what can go wrong when writing there."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kitae.errors import DataError
from kitae.files import cache_folder as cache_folder

try:
    import fcntl
except ImportError:  # Windows: two processes may both build; the first to finish wins, the other's copy is dropped
    fcntl = None  # type: ignore[assignment]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_CURE = "set data.cache or KITAE_CACHE to a folder"


@contextlib.contextmanager
def storage_errors(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the body into one line about the cache folder and its cure."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            room = f", {needed / 1e6:,.0f} MB are needed" if needed else ""
            raise DataError(
                f"{folder}: the disk is full{room}; nothing was kept: free some space or {_CURE} with room"
            ) from error
        if error.errno in _DENIED:
            raise DataError(f"{folder}: cannot be written ({error.strerror}): {_CURE} that you may write to") from error
        raise DataError(f"{folder}: cannot be used ({error.strerror or error}): {_CURE} on another disk") from error


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on `path`, waiting for it; False where the file system or the platform has none.

    The kernel frees it when the process ends, however it ends.
    """
    with path.open("ab") as file:
        yield _flock(file, wait=True)


def is_locked(path: Path) -> bool:
    """Whether someone holds `lock(path)`; True where that cannot be told."""
    try:
        with path.open("ab") as file:
            return not _flock(file, wait=False)
    except OSError:
        return True


def _flock(file: IO[bytes], wait: bool) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # BlockingIOError: held by another; else a file system without locks
        return False
    return True
