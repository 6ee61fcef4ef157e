"""Read URLs: http and https with the standard library, cloud and server storage with fsspec.

fsspec is installed with PyTorch, and needs a library for each kind of storage: s3fs, gcsfs, adlfs, huggingface_hub,
paramiko. It reads credentials and settings from their usual places and from its own (`FSSPEC_S3_ANON=true`).
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator

from kitae.errors import MissingExtraError, one_line

SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "hf", "ftp", "sftp")
_CHUNK = 1 << 16
_BLOCK = 16 << 20  # bytes of one request to a storage
_TIMEOUT = 30.0  # seconds without a byte


class DownloadError(Exception):
    """Why a URL cannot be read, in a few words."""


def is_url(name: str) -> bool:
    """Whether a name is a URL that `chunks` reads."""
    return name.partition("://")[0] in SCHEMES and "://" in name


def chunks(url: str) -> Iterator[bytes]:
    """The content of a URL, at most 64 KiB at a time.

    Raises:
        DownloadError: it cannot be reached, or ended early.
        MissingExtraError: the library of the storage is not installed.
    """
    return _from_web(url) if url.startswith(("http://", "https://")) else _from_storage(url)


def _from_web(url: str) -> Iterator[bytes]:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "kitae"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            while chunk := response.read(_CHUNK):
                yield chunk
            if response.length:  # not an error of its own when read in parts
                raise DownloadError(f"the connection was closed {response.length:,} bytes early")
    except urllib.error.HTTPError as error:
        raise DownloadError(one_line(error)) from error
    except urllib.error.URLError as error:
        raise DownloadError(str(error.reason)) from error
    except UnicodeError as error:
        raise DownloadError("write special characters as %20 and so on") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a port that is not a number
        raise DownloadError(one_line(error)) from error


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
