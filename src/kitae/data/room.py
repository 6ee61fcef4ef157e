"""Room in the cache folder: what was used least recently is removed first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from kitae.folders import lock


class Kept(NamedTuple):
    """Something in the cache: when it was last used (nanoseconds), its bytes, and its file or folder."""

    used: int
    size: int
    path: Path


def make_room(
    folder: Path,
    entries: Callable[[], Iterable[Kept]],
    limit: Callable[[int], float],
    remove: Callable[[Path], None],
    keep: Path,
) -> None:
    """Remove the least recently used entries until the rest fits, but not `keep` or one that is being opened or made.

    What cannot be removed stays, such as the entries of another user.

    Args:
        folder: what is locked meanwhile, so that two processes do not both remove enough.
        entries: what `folder` holds now.
        limit: bytes that they may take, by what they take now.
        remove: called with an entry's path while its lock is held, `NAME.lock` next to it. OSError: it is still there.
    """
    with ExitStack() as alone:
        with suppress(PermissionError):  # made by another user
            alone.enter_context(lock(folder / "room.lock"))
        held = sorted(entries())
        total = sum(entry.size for entry in held)
        most = limit(total)
        for entry in held:
            if total <= most:
                break
            if entry.path == keep:
                continue
            with suppress(OSError), lock(entry.path.with_suffix(".lock"), wait=False) as state:
                if state != "busy":
                    remove(entry.path)
                    total -= entry.size
