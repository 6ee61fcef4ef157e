"""One-line errors for failed writes to the cache folder."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from kitae.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_CURE = "set data.cache or KITAE_CACHE to a folder"


@contextlib.contextmanager
def storage_errors(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the body into one line that names the cache folder and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            wanted = f", {needed / 1e6:,.0f} MB are needed" if needed else ""
            raise DataError(
                f"{folder}: the disk is full{wanted}; nothing was saved: free some space or {_CURE} on another disk"
            ) from error
        if error.errno in _DENIED:
            raise DataError(f"{folder}: cannot be written ({error.strerror}): {_CURE} that you may write to") from error
        raise DataError(f"{folder}: cannot be used ({error.strerror or error}): {_CURE} on another disk") from error
