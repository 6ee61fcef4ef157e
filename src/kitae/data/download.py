"""Read URLs: http and https with the standard library, cloud and server storage with fsspec.

A connection that breaks is opened again where it broke. A host that has not answered yet is not asked again, so that a
machine without network is told at once.

fsspec is installed with PyTorch, and needs a library for each kind of storage: s3fs, gcsfs, adlfs, huggingface_hub,
paramiko. It reads credentials and settings from their usual places and from its own (`FSSPEC_S3_ANON=true`).
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from kitae.errors import MissingExtraError, one_line

SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "hf", "ftp", "sftp")
_CHUNK = 1 << 16
_BLOCK = 16 << 20  # bytes of one request to a storage
_TIMEOUT = 30.0  # seconds without a byte
_WAITS = (1.0, 2.0, 4.0)  # seconds before a URL is requested again
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that may answer later

_answered: set[str] = set()  # hosts

_Version = tuple[str | None, str | None]
"""What a response says of the file: its bytes, and its time or tag."""


class DownloadError(Exception):
    """Why a URL cannot be read, in a few words.

    Attributes:
        transient: whether it may be read later.
    """

    def __init__(self, why: str, *, transient: bool = False) -> None:
        super().__init__(why)
        self.transient = transient


def is_url(name: str) -> bool:
    """Whether a name is a URL that `chunks` reads."""
    return name.partition("://")[0] in SCHEMES and "://" in name


def chunks(url: str) -> Iterator[bytes]:
    """The content of a URL, at most 64 KiB at a time.

    Raises:
        DownloadError: it cannot be reached, ended early, or changed meanwhile.
        MissingExtraError: the library of the storage is not installed.
    """
    return _from_web(url) if url.startswith(("http://", "https://")) else _from_storage(url)


def _from_web(url: str) -> Iterator[bytes]:
    done, waits, versions = 0, iter(_WAITS), list[_Version]()
    while True:
        try:
            for chunk in _response(url, done, versions):
                yield chunk
                done, waits = done + len(chunk), iter(_WAITS)
            return
        except DownloadError as error:
            wait = next(waits, None) if error.transient else None
            if wait is None:
                raise
            time.sleep(wait)


def _response(url: str, start: int, versions: list[_Version]) -> Iterator[bytes]:
    """The content from byte `start` on. `versions`: of the file, in each response so far."""
    host = url.split("/", 3)[2]
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "kitae"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            _answered.add(host)
            versions.append(_version(response.headers))
            # A server need not say both each time.
            if any(before and now and before != now for before, now in zip(versions[0], versions[-1], strict=True)):
                raise DownloadError("it changed while it was downloaded")
            skipped = start if response.status != http.client.PARTIAL_CONTENT else 0  # a server that ignores the range
            while chunk := response.read(min(_CHUNK, skipped) or _CHUNK):
                if skipped:
                    skipped -= len(chunk)
                else:
                    yield chunk
            if response.length:  # not an error of its own when read in parts
                raise DownloadError(f"the connection was closed {response.length:,} bytes early", transient=True)
    except urllib.error.HTTPError as error:
        raise DownloadError(one_line(error), transient=error.code in _BUSY) from error
    except urllib.error.URLError as error:
        raise DownloadError(str(error.reason), transient=host in _answered) from error
    except UnicodeError as error:
        raise DownloadError("write special characters as %20 and so on") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a port that is not a number
        raise DownloadError(one_line(error), transient=host in _answered) from error


def _version(headers: http.client.HTTPMessage) -> _Version:
    length = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length")
    return length, headers.get("Last-Modified") or headers.get("ETag")


def _from_storage(url: str) -> Iterator[bytes]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        with system.open(path, "rb", block_size=_BLOCK) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except ImportError as error:  # names the library to install
        raise MissingExtraError(f"{url}: {one_line(error)}") from error
    except FileNotFoundError as error:
        raise DownloadError("there is no such file") from error
    except Exception as error:  # each storage has errors of its own
        raise DownloadError(f"{type(error).__name__}: {one_line(error)}") from error
