"""Shards on this machine: local files, and URLs downloaded into a cache folder of bounded size.

A URL is opened by the webdataset library (extra `shards`), copied to a temporary name and renamed, by one process at a
time. If the folder is full, the least recently used shards are removed. A shard that is being read stays readable when
its file is removed. A shard that is downloaded again must not have changed, or its index would not match.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

from kitae.errors import DataError, one_line, require
from kitae.files import replacing, storage_errors, user_path, write_atomically
from kitae.folders import lock

_OPEN = 64  # shards that a process keeps open
_CHUNK = 1 << 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_URL = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]*")  # no quotes: the library runs a shell


def is_url(shard: str) -> bool:
    """Whether a shard is on the network."""
    return shard.startswith(("http://", "https://"))


class _Open:
    """A descriptor that is closed once nobody uses it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


class ShardCache:
    """Where shards are read from. `limit`: bytes that shards from URLs take in `folder`."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._opened = lru_cache(_OPEN)(lambda shard: _Open(self.path(shard)))

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a shard. From any thread.

        Raises:
            DataError: the file is gone, shorter than it was, or cannot be read, or the URL cannot be reached.
        """
        try:
            try:
                held = self._opened(shard)
            except FileNotFoundError:  # another process made room just now
                held = self._opened(shard)
            data = os.pread(held.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{shard}: cannot be read ({error.strerror}); was it moved?") from error
        if len(data) != size:
            raise DataError(f"{shard}: was changed or truncated since it was indexed; restore it, or start a new run")
        return data

    def path(self, shard: str) -> Path:
        """The shard's file, downloaded if necessary.

        Raises:
            DataError: the URL cannot be reached or is not a safe one, no room or no permission.
        """
        if not is_url(shard):
            return user_path(shard)
        if _URL.fullmatch(shard) is None:
            raise DataError(f"data.source: {shard!r} is not a valid URL; write special characters as %20 and so on")
        target = self._target(shard)
        with storage_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with lock(target.with_suffix(".lock")):
                if not target.exists() or not target.with_suffix(".sha256").exists():
                    self._download(shard, target)
                os.utime(target)  # used just now
            self._make_room(keep=target)
        return target

    def digest(self, url: str) -> str:
        """SHA-256 of a URL's content when it was first downloaded, 64 hex digits.

        Raises:
            DataError: see `path`.
        """
        noted = self._target(url).with_suffix(".sha256")
        with storage_errors(noted.parent):
            if not noted.exists():
                self.path(url)
            return noted.read_text()

    def _target(self, url: str) -> Path:
        return self.folder / "remote" / f"{hashlib.blake2b(url.encode(), digest_size=10).hexdigest()}.tar"

    def _download(self, url: str, target: Path) -> None:
        gopen = require("webdataset", "shards").gopen
        for left in target.parent.glob(f".{target.name}.*.tmp"):  # by a process that was killed: the lock is ours
            left.unlink(missing_ok=True)
        noted, content = target.with_suffix(".sha256"), hashlib.sha256()
        cure = "check the address and the network, or copy the shards here and name the files"
        with replacing(target) as out:
            try:
                with gopen(url, "rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        out.write(chunk)
                        content.update(chunk)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) in _DISK:
                    raise
                raise DataError(f"{url}: cannot be downloaded ({_reason(error)}); {cure}") from error
            if not out.tell():
                raise DataError(f"{url}: is empty; {cure}")
            if noted.exists() and noted.read_text() != content.hexdigest():
                raise DataError(
                    f"{url}: has changed since it was first downloaded, so the data would differ; delete {noted} "
                    "to accept the new version"
                )
            write_atomically(noted, content.hexdigest().encode())

    def _make_room(self, keep: Path) -> None:
        """Remove the least recently used shards until the rest fits; `keep` is never removed."""
        with lock(keep.parent / "room.lock"):
            held = []
            for path in keep.parent.glob("*.tar"):
                with contextlib.suppress(OSError):  # removed by another process
                    stat = path.stat()
                    held.append((stat.st_mtime_ns, stat.st_size, path))
            total = sum(size for _, size, _ in held)
            for _, size, path in sorted(held):
                if total > self.limit and path != keep:
                    path.unlink(missing_ok=True)
                    total -= size
                    self._opened.cache_clear()  # an open file would keep its room


def _reason(error: Exception) -> str:
    """The error in a few words, since the library reports its whole command."""
    if isinstance(error, FileNotFoundError):
        return "the webdataset library needs the program curl"
    status = re.search(r"exit (\d+)", str(error))
    return f"curl ended with status {status[1]}" if status else one_line(error)
