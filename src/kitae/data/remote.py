"""Shards on this machine: local files, and URLs downloaded into a cache folder of bounded size.

A URL is downloaded to a temporary name and renamed, by one process at a time. If the folder is full, the least recently
used shards are removed. A shard that is being read stays readable when its file is removed. A shard that is downloaded
again must not have changed, or its index would not match.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from kitae.data.download import DownloadError, chunks, is_url
from kitae.data.room import Kept, make_room
from kitae.errors import DataError
from kitae.files import remove_unfinished, replacing, storage_errors, user_path, write_atomically
from kitae.folders import lock

_OPEN = 64  # shards that a process keeps open


class _Held:
    """An open file that is closed once nobody uses it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


class ShardCache:
    """Where shards are read from. `limit`: bytes that shards from URLs take in `folder`. From any thread.

    Attributes:
        stopped: set it to end downloads in other threads.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit, self.stopped = folder, limit, False
        self._bounded = False
        self._opened = lru_cache(_OPEN)(lambda shard: _Held(self.open(shard)))

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a shard. Raises DataError: it is gone, shorter than it was, or cannot be read or reached."""
        try:
            held = self._opened(shard)
            data = os.pread(held.file.fileno(), size, offset)
            # A network disk may give less than was asked for.
            while len(data) < size and (more := os.pread(held.file.fileno(), size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise DataError(f"{shard}: cannot be read ({error.strerror}); was it moved?") from error
        if len(data) != size:
            raise DataError(f"{shard}: was changed or truncated since it was indexed; restore it, or start a new run")
        return data

    def open(self, shard: str) -> IO[bytes]:
        """The shard's file, open for reading, downloaded if necessary.

        Raises:
            OSError: the file cannot be read.
            DataError: the URL cannot be reached, no room or no permission.
        """
        if not is_url(shard):
            return user_path(shard).open("rb")
        target = self._target(shard)
        with storage_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Until it is open, so that nobody removes it to make room.
                with lock(target.with_suffix(".lock")) as state:
                    if missing := not self._complete(target):
                        if state == "held":  # else another process may be writing them
                            remove_unfinished(target)
                        self._download(shard, target)
                    os.utime(target)  # used just now
                    opened = target.open("rb")
            except PermissionError:  # another user downloaded it
                if missing := not self._complete(target):
                    raise
                opened = target.open("rb")
            if missing or not self._bounded:  # an earlier run may have had a higher limit
                self._make_room(keep=target)
                self._bounded = True
        return opened

    def digest(self, url: str) -> str:
        """SHA-256 of a URL's content when it was first downloaded, 64 hex digits. Raises DataError: see `open`."""
        noted = self._target(url).with_suffix(".sha256")
        with storage_errors(noted.parent):
            if not noted.exists():
                self.open(url).close()
            return noted.read_text()

    def _target(self, url: str) -> Path:
        return self.folder / "remote" / f"{hashlib.blake2b(url.encode(), digest_size=10).hexdigest()}.tar"

    def _complete(self, target: Path) -> bool:
        return target.exists() and target.with_suffix(".sha256").exists()

    def _download(self, url: str, target: Path) -> None:
        noted, content = target.with_suffix(".sha256"), hashlib.sha256()
        cure = "check the address and the network, or copy the shards here and name the files"
        with replacing(target) as out:
            try:
                for chunk in chunks(url):
                    if self.stopped:
                        raise DownloadError("stopped")
                    out.write(chunk)
                    content.update(chunk)
            except DownloadError as error:
                raise DataError(f"{url}: cannot be downloaded ({error}); {cure}") from error
            if not out.tell():
                raise DataError(f"{url}: is empty; {cure}")
            if noted.exists() and noted.read_text() != content.hexdigest():
                raise DataError(
                    f"{url}: has changed since it was first downloaded, so the data would differ; delete {noted} "
                    "to accept the new version"
                )
            write_atomically(noted, content.hexdigest().encode())

    def _make_room(self, keep: Path) -> None:
        def entries() -> Iterator[Kept]:
            for path in keep.parent.glob("*.tar"):
                with contextlib.suppress(OSError):  # removed by another process
                    stat = path.stat()
                    yield Kept(stat.st_mtime_ns, stat.st_size, path)

        make_room(keep.parent, entries, lambda _: self.limit, lambda path: path.unlink(missing_ok=True), keep)
        self._opened.cache_clear()  # an open file would keep its room, also one that another process removed
