"""Atomic writes, and folders that one process at a time may write to."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from kitae.errors import KitaeError

LOCK = ".lock"
"""The lock file of a folder; it is never removed."""


def cache_folder(given: str | None = None) -> Path:
    """`given` (data.cache), else $KITAE_CACHE, else $XDG_CACHE_HOME/kitae, else ~/.cache/kitae. Not created."""
    if chosen := given or os.environ.get("KITAE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "kitae"


def lock_folder(folder: Path, error: type[KitaeError], busy: str) -> int:
    """Make a folder and lock it for this process, until the descriptor is closed or the process ends.

    Args:
        error: the type of error to raise.
        busy: the message where another process holds the lock.

    Returns:
        The descriptor that holds the lock.
    """
    import fcntl  # not on Windows, where modules that only write files must still import

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise error(f"{folder}: cannot be used as --out ({problem.strerror})") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        os.close(lock)
        raise error(f"{folder}: {busy}") from problem
    except OSError:  # a file system without locks, such as some network disks
        pass
    return lock


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content, or leave it unchanged. Creates parent folders.

    Raises:
        KitaeError: the disk is full, or writing is not allowed.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise KitaeError(f"{path}: cannot write ({error.strerror}); what was there before is kept") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically. NaN and infinity are not JSON and raise ValueError."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
