"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST from their original binary files. No pickle is read.

Files are looked up in a given folder, or in the download folder of the cache, to which they are downloaded once and
checked by SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter

from kitae.data.base import TEST, TRAIN, Item, Progress, Source, Table
from kitae.data.download import DownloadError, chunks
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.files import cache_folder, remove_unfinished, replacing, storage_errors, user_path
from kitae.folders import lock

_MOST_IDX_BYTES = 1 << 30  # 1,369,568 images of 28 x 28 pixels
_PICKLED = ("cifar-10-batches-py", "data_batch_1", "cifar-100-python", "meta")  # of the version for Python

_Part = tuple[int, NDArray[np.uint8], NDArray[np.uint8]]
"""TRAIN or TEST, images [n, H, W] or [n, H, W, 3], labels [n]."""


@dataclass(frozen=True)
class Download:
    """A file on the network, with its SHA-256 and its size in bytes."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class _Cifar:
    archive: Download
    folder: str  # in the archive
    train: tuple[str, ...]
    test: str
    label_bytes: int  # CIFAR-100 stores the coarse label before the fine one
    class_file: str
    rows: int  # images in each train file
    test_rows: int = 10_000


@dataclass(frozen=True)
class _Idx:
    downloads: tuple[Download, ...]
    classes: tuple[str, ...]
    torchvision: str  # what torchvision calls the folder that it puts `raw` into


_TABLES = yaml.safe_load((Path(__file__).parent / "assets" / "archives.yaml").read_text(encoding="utf-8"))
_CIFAR = TypeAdapter(dict[str, _Cifar]).validate_python(_TABLES["cifar"])
_IDX = TypeAdapter(dict[str, _Idx]).validate_python(_TABLES["idx"])


def open_archive(name: str, path: str, spec: DataSpec, progress: Progress | None) -> Source:
    """The source `name`, from the folder `path`; if `path` is empty, it is looked up or downloaded.

    Raises:
        DataError: the folder or a file in it is missing or wrong, or a download fails.
    """
    folder = user_path(path) if path else None
    if folder is not None and not os.path.isdir(folder):
        raise DataError(f"{spec.source}: no such folder")
    source = spec.source.removesuffix(":")
    downloads = cache_folder(spec.cache) / "downloads"
    if name in _CIFAR:
        layout = _CIFAR[name]
        files = _cifar_files(source, layout, folder, downloads, progress)
        return ArchiveSource(spec.source, files, lambda: _read_cifar(files, layout))
    idx = _IDX[name]
    files = _idx_files(source, idx, folder, downloads / name, progress)
    # A folder may be given for the wrong set, as the files have the same names; its classes must not be kept for the
    # right one. One of the two needs an identity for that; fashion-mnist has none, so that its runs stay valid.
    identity = {"set": name} if folder is not None and name == "mnist" else {}
    return ArchiveSource(spec.source, files, lambda: _read_idx(files, idx), identity)


class ArchiveSource(Source):
    """Images in memory, the train ones first; named `train/00000` and so on.

    Args:
        read: reads the classes and images of the files.
        identity: options that change what `read` makes of the files.
    """

    def __init__(
        self,
        name: str,
        files: list[Path],
        read: Callable[[], tuple[tuple[str, ...], list[_Part]]],
        identity: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name)
        self._files, self._read, self._identity = files, read, identity or {}

    def files(self) -> list[Path]:
        return self._files

    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _content(self) -> tuple[tuple[str, ...], list[_Part]]:
        try:
            return self._read()
        except OSError as error:
            raise DataError(f"{error.filename or self.name}: cannot be read ({error.strerror})") from error

    def load_table(self) -> Table:
        classes, parts = self._content
        labels = np.concatenate([labels for _, _, labels in parts]).astype(np.int64)
        splits = np.repeat(np.array([code for code, _, _ in parts], np.uint8), [len(labels) for _, _, labels in parts])
        train = int((splits == TRAIN).sum())
        names = [f"train/{i:05d}" for i in range(train)] + [f"test/{i:05d}" for i in range(len(labels) - train)]
        return Table(classes, labels, splits, names, keys=np.arange(len(labels), dtype=np.int64))

    def images(self) -> Iterator[Item]:
        for _, images, _ in self._content[1]:
            yield from images


def _read_cifar(files: list[Path], layout: _Cifar) -> tuple[tuple[str, ...], list[_Part]]:
    """From the archive, or from the files that it contains."""
    if len(files) == 1:
        _check(files[0], layout.archive)
        with tarfile.open(files[0]) as tar:  # by their names, without their folders
            content = {Path(member.name).name: stream.read() for member in tar if (stream := tar.extractfile(member))}
    else:
        content = {path.name: path.read_bytes() for path in files}
    parts, stride = [], layout.label_bytes + 3072
    for name in (*layout.train, layout.test):
        code, count = (TEST, layout.test_rows) if name == layout.test else (TRAIN, layout.rows)
        if len(content[name]) != count * stride:
            raise DataError(f"{files[0].parent / name}: has {len(content[name])} bytes instead of {count * stride}")
        rows = np.frombuffer(content[name], np.uint8).reshape(count, stride)
        images = rows[:, layout.label_bytes :].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
        parts.append((code, images, rows[:, layout.label_bytes - 1]))
    return tuple(content[layout.class_file].decode(errors="replace").strip().splitlines()), parts


def _read_idx(files: list[Path], idx: _Idx) -> tuple[tuple[str, ...], list[_Part]]:
    parts = []
    for code, image_file, label_file in ((TRAIN, files[0], files[1]), (TEST, files[2], files[3])):
        images, labels = _idx_array(image_file, 3), _idx_array(label_file, 1)
        if len(images) != len(labels):
            raise DataError(f"{image_file.name} has {len(images)} images, {label_file.name} {len(labels)} labels")
        parts.append((code, images, labels))
    return idx.classes, parts


def _idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type 8, the number of dimensions, their sizes, and the bytes.

    Only one byte more is decompressed than its header says, since a small .gz file can contain any number of zeros.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4)]
            size = math.prod(shape)
            content = file.read(min(size, _MOST_IDX_BYTES) + 1)  # to the end, where the checksum of a .gz is compared
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read ({error})") from error
    if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: not an idx file of bytes with {dimensions} dimensions; download it again")
    if len(content) != size:
        raise DataError(
            f"{path}: must have the {size:,} bytes that its header names, at most {_MOST_IDX_BYTES:,}; download again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


# Finding and fetching


def _cifar_files(
    source: str, layout: _Cifar, folder: Path | None, downloads: Path, progress: Progress | None
) -> list[Path]:
    """The archive, or all files that it contains, if these are in `folder`."""
    archive = (folder or downloads) / layout.archive.name
    if folder is None:
        return [archive if archive.is_file() else fetch(layout.archive, downloads, f"{source}:FOLDER", progress)]
    for place in (folder, folder / layout.folder):
        files = [place / name for name in (*layout.train, layout.test, layout.class_file)]
        if all(file.is_file() for file in files):
            return files
    if not archive.is_file():
        pickled = any((folder / file).exists() for file in _PICKLED)
        why = " (it has the pickled version, which Kitae does not read)" if pickled else ""
        raise DataError(f"{source}: {archive.name} or its .bin files are not in this folder{why}")
    return [archive]


def _idx_files(source: str, idx: _Idx, folder: Path | None, downloads: Path, progress: Progress | None) -> list[Path]:
    # The files of the two sets have the same names, so the folder that names this set comes first.
    for place in [downloads] if folder is None else [folder / idx.torchvision / "raw", folder]:
        files = [_existing(place, download.name) for download in idx.downloads]
        if all(files):
            return cast(list[Path], files)
    if folder is not None:
        wanted = ", ".join(download.name for download in idx.downloads)
        raise DataError(f"{source}: the folder must hold {wanted} (or without .gz, or in {idx.torchvision}/raw)")
    return [fetch(download, downloads, f"{source}:FOLDER", progress) for download in idx.downloads]


def _existing(folder: Path, name: str) -> Path | None:
    plain = name.removesuffix(".gz")
    files = (folder / candidate for candidate in (name, plain, plain.replace("-idx", ".idx")))
    return next((file for file in files if file.is_file()), None)


def fetch(download: Download, folder: Path, alternative: str, progress: Progress | None = None) -> Path:
    """Download a file into `folder` unless it is there; it is only saved if its hash is right.

    Args:
        alternative: the `data.source` to use instead once the user has the file.

    Raises:
        DataError: no network, a wrong hash, a full disk or no permission; says where to put the file by hand.
    """
    target = folder / download.name
    by_hand = (
        f"get {download.url} another way, and put it into {folder}, or into a FOLDER and set data.source={alternative}"
    )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder.with_name(f".{download.name}.lock")) as state:  # else all processes of a training download it
            if not _is_there(target, download):
                if state == "held":  # else another process may be writing it
                    remove_unfinished(target)
                _save(download, target, by_hand, progress)
    return target


def _save(download: Download, target: Path, by_hand: str, progress: Progress | None) -> None:
    digest, done = hashlib.sha256(), 0
    with replacing(target) as out:
        try:
            for chunk in chunks(download.url):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, download.size)
                if done > download.size:
                    break  # another file
        except DownloadError as error:
            raise DataError(f"{download.name} cannot be downloaded ({error}): {by_hand}") from error
        if digest.hexdigest() != download.sha256:
            raise DataError(f"{download.name}: the download's SHA-256 is wrong, nothing was saved: {by_hand}")


def _is_there(target: Path, download: Download) -> bool:
    if not target.is_file() or target.stat().st_size != download.size:
        return False
    _check(target, download)  # it may have been put there by hand
    return True


def _check(path: Path, download: Download) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != download.sha256:
            raise DataError(f"{path}: its SHA-256 is wrong; download {download.url} again")
