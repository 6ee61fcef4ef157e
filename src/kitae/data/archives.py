"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST from their original binary files. No pickle is read.

Files are looked up in a given folder, in a folder where a Linux distribution puts them, and in the download folder of
the cache. If they are in none, they are downloaded once: to a temporary name, checked by SHA-256, then renamed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import uuid
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import TEST, TRAIN, Item, Progress, Source, Table
from kitae.data.cache import cache_folder, storage_errors
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.files import user_path

_BLOCK = 128
_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


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
    train: tuple[str, ...]
    test: str
    label_bytes: int  # CIFAR-100 stores the coarse label before the fine one
    class_file: str
    rows: int  # images in each train file
    test_rows: int = 10_000

    def sizes(self) -> dict[str, int]:
        stride = self.label_bytes + 3072
        return dict.fromkeys(self.train, self.rows * stride) | {self.test: self.test_rows * stride}


@dataclass(frozen=True)
class _Idx:
    downloads: tuple[Download, ...]
    classes: tuple[str, ...]
    folders: tuple[str, ...]


# Sizes and SHA-256 of the CIFAR archives and the idx files are those that TensorFlow Datasets publishes in
# `url_checksums/` (cifar10, cifar100, mnist, fashion_mnist).
_CIFAR = {
    "cifar10": _Cifar(
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        label_bytes=1,
        class_file="batches.meta.txt",
        rows=10_000,
    ),
    "cifar100": _Cifar(
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        train=("train.bin",),
        test="test.bin",
        label_bytes=2,
        class_file="fine_label_names.txt",
        rows=50_000,
    ),
}


def _idx_downloads(base: str, facts: tuple[tuple[str, int, str], ...]) -> tuple[Download, ...]:
    return tuple(Download(f"{base}/{name}-ubyte.gz", size, sha256) for name, size, sha256 in facts)


_IDX = {
    "fashion-mnist": _Idx(
        _idx_downloads(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            (
                ("train-images-idx3", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                ("train-labels-idx1", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                ("t10k-images-idx3", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                ("t10k-labels-idx1", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
        (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        folders=("/usr/share/datasets/fashion-mnist",),  # Debian's dataset-fashion-mnist
    ),
    "mnist": _Idx(
        _idx_downloads(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            (
                ("train-images-idx3", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                ("train-labels-idx1", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                ("t10k-images-idx3", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                ("t10k-labels-idx1", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            ),
        ),
        tuple("0123456789"),
        folders=(),
    ),
}  # fmt: skip


def open_archive(name: str, path: str, spec: DataSpec, progress: Progress | None = None) -> Source:
    """The source `name`, from the folder `path`; if `path` is empty, it is looked up or downloaded.

    Raises:
        DataError: the folder or a file in it is missing or wrong, or a download fails.
    """
    folder = user_path(path) if path else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{spec.source}: no such folder")
    downloads = cache_folder(spec.cache) / "downloads"
    if name in _CIFAR:
        return CifarSource(
            spec.source, _CIFAR[name], _cifar_folder(spec.source, _CIFAR[name], folder, downloads, progress)
        )
    idx = _IDX[name]
    return IdxSource(spec.source, idx.classes, _idx_files(spec.source, name, idx, folder, downloads, progress))


class _PairedSource(Source):
    """Train rows first, then test rows; named `train/00000` and so on."""

    @abstractmethod
    def _labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    @abstractmethod
    def _class_names(self) -> tuple[str, ...]: ...

    def load_table(self) -> Table:
        train, test = self._labels()
        labels = np.concatenate([train, test])
        splits = np.repeat(np.array([TRAIN, TEST], dtype=np.uint8), [len(train), len(test)])
        names = [f"train/{i:05d}" for i in range(len(train))] + [f"test/{i:05d}" for i in range(len(test))]
        return Table(self._class_names(), labels, splits, names, keys=np.arange(len(labels), dtype=np.int64))


class CifarSource(_PairedSource):
    """The `.bin` files of CIFAR-10 or CIFAR-100, memory-mapped."""

    def __init__(self, name: str, layout: _Cifar, folder: Path) -> None:
        super().__init__(name)
        self._layout = layout
        self._folder = folder

    def files(self) -> list[Path]:
        return [self._folder / file for file in (*self._layout.train, self._layout.test, self._layout.class_file)]

    def _rows(self, file: str) -> NDArray[np.uint8]:
        try:
            return np.memmap(self._folder / file, np.uint8, "r").reshape(-1, self._layout.label_bytes + 3072)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._folder / file}: cannot be read ({error})") from error

    def _labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        column = self._layout.label_bytes - 1
        train = np.concatenate([self._rows(file)[:, column] for file in self._layout.train])
        return train.astype(np.int64), self._rows(self._layout.test)[:, column].astype(np.int64)

    def _class_names(self) -> tuple[str, ...]:
        path = self._folder / self._layout.class_file
        try:
            return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    def _pixels(self, row: NDArray[np.uint8]) -> Item:
        return np.array(row[self._layout.label_bytes :].reshape(3, 32, 32).transpose(1, 2, 0))

    def blocks(self) -> Iterator[list[Item]]:
        for file in (*self._layout.train, self._layout.test):
            rows = self._rows(file)
            for start in range(0, len(rows), _BLOCK):
                yield [self._pixels(row) for row in rows[start : start + _BLOCK]]

    def read(self, index: int) -> Item:
        for file in (*self._layout.train, self._layout.test):
            rows = self._rows(file)
            if index < len(rows):
                return self._pixels(rows[index])
            index -= len(rows)
        raise IndexError("index is beyond the last image")


class IdxSource(_PairedSource):
    """The four idx files of MNIST and its like, plain or gzipped; images are read as a stream."""

    def __init__(self, name: str, classes: tuple[str, ...], files: list[Path]) -> None:
        super().__init__(name)
        self._classes = classes
        self._train_images, self._train_labels, self._test_images, self._test_labels = files

    def files(self) -> list[Path]:
        return [self._train_images, self._train_labels, self._test_images, self._test_labels]

    def _labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        out = []
        for images, labels in ((self._train_images, self._train_labels), (self._test_images, self._test_labels)):
            with _idx(labels, 1) as (file, shape):
                values = np.frombuffer(_exactly(file, shape[0], labels), np.uint8).astype(np.int64)
            with _idx(images, 3) as (_, image_shape):
                if image_shape[0] != shape[0]:
                    raise DataError(f"{images.name} has {image_shape[0]} images, {labels.name} {shape[0]} labels")
            out.append(values)
        return out[0], out[1]

    def _class_names(self) -> tuple[str, ...]:
        return self._classes

    def blocks(self) -> Iterator[list[Item]]:
        for path in (self._train_images, self._test_images):
            with _idx(path, 3) as (file, (count, height, width)):
                for start in range(0, count, _BLOCK):
                    rows = min(_BLOCK, count - start)
                    data = _exactly(file, rows * height * width, path)
                    yield list(np.frombuffer(data, np.uint8).reshape(rows, height, width))

    def read(self, index: int) -> Item:
        for path in (self._train_images, self._test_images):
            with _idx(path, 3) as (file, (count, height, width)):
                if index < count:
                    file.seek(16 + index * height * width)
                    data = _exactly(file, height * width, path)
                    return np.frombuffer(data, np.uint8).reshape(height, width)
                index -= count
        raise IndexError("index is beyond the last image")


@contextlib.contextmanager
def _idx(path: Path, dimensions: int) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """An idx file of bytes, opened behind its header: two zeros, the type 8, the number of dimensions, their sizes."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            head = _exactly(file, 4 + 4 * dimensions, path)
            if head[:4] != bytes((0, 0, 8, dimensions)):
                raise DataError(f"{path}: not an idx file of bytes with {dimensions} dimensions")
            yield file, tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read ({error})") from error


def _exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise DataError(f"{path}: truncated")
    return data


# Finding and fetching


def _cifar_folder(source: str, layout: _Cifar, folder: Path | None, downloads: Path, progress: Progress | None) -> Path:
    """The folder of the .bin files, which are extracted from the archive if need be."""
    stem = layout.archive.name.removesuffix(".tar.gz")
    inner = stem.replace("-binary", "-batches-bin") if stem == "cifar-10-binary" else stem
    extracted = downloads / stem
    wanted = (*layout.train, layout.test, layout.class_file)
    for place in [folder, folder / inner] if folder else [extracted]:
        if all((place / file).is_file() for file in wanted):
            for file, size in layout.sizes().items():
                if (place / file).stat().st_size != size:
                    raise DataError(f"{place / file}: has {(place / file).stat().st_size} bytes instead of {size}")
            return place
    if folder is None:
        archive = fetch(layout.archive, downloads, f"{source}:FOLDER", progress)
    else:
        archive = folder / layout.archive.name
        if not archive.is_file():
            pickled = any(
                (folder / p).exists() for p in ("cifar-10-batches-py", "data_batch_1", "cifar-100-python", "meta")
            )
            why = " (it has the pickled version, which Kitae does not read)" if pickled else ""
            raise DataError(f"{source}: {layout.archive.name} or its .bin files are not in this folder{why}")
        if extracted.is_dir():
            return _cifar_folder(source.partition(":")[0], layout, None, downloads, progress)
        _check(archive, layout.archive)
    _extract(archive, {**layout.sizes(), layout.class_file: None}, extracted)
    return extracted


def _extract(archive: Path, wanted: dict[str, int | None], target: Path) -> None:
    """Extract only the wanted members into `target`, atomically."""
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}.tmp")
    with storage_errors(target.parent):
        try:
            temporary.mkdir(parents=True)
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    name = member.name.rsplit("/", 1)[-1]
                    stream = tar.extractfile(member) if member.isfile() and name in wanted else None
                    if stream is None or (wanted[name] is not None and wanted[name] != member.size):
                        continue
                    with stream, (temporary / name).open("wb") as out:
                        shutil.copyfileobj(stream, out, _CHUNK)
                        out.flush()
                        os.fsync(out.fileno())
            missing = [name for name in wanted if not (temporary / name).exists()]
            if missing:
                raise DataError(f"{archive}: has no {missing[0]}")
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was first, with the same content
                    raise
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{archive}: a broken archive ({error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _idx_files(
    source: str, name: str, idx: _Idx, folder: Path | None, downloads: Path, progress: Progress | None
) -> list[Path]:
    own = downloads / name
    places = [folder, folder / "raw", folder / "MNIST" / "raw", folder / "FashionMNIST" / "raw"] if folder else []
    for place in places or [*map(Path, idx.folders), own]:
        files = [_existing(place, download.name) for download in idx.downloads]
        if all(files):
            return cast(list[Path], files)
    if folder is not None:
        wanted = ", ".join(download.name for download in idx.downloads)
        raise DataError(f"{source}: the folder must hold {wanted} (or the same without .gz)")
    return [fetch(download, own, f"{source}:FOLDER", progress) for download in idx.downloads]


def _existing(folder: Path, name: str) -> Path | None:
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, plain.replace("-idx", ".idx")):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def fetch(download: Download, folder: Path, alternative: str, progress: Progress | None = None) -> Path:
    """Download a file into `folder` unless it is there; it is only saved if its hash is right.

    Args:
        alternative: the `data.source` to use instead once the user has the file.

    Raises:
        DataError: no network, a wrong hash, a full disk or no permission; says where to put the file by hand.
    """
    target = folder / download.name
    if target.is_file() and target.stat().st_size == download.size:
        _check(target, download)  # it may have been put there by hand
        return target
    temporary = folder / f".{download.name}-{uuid.uuid4().hex}.tmp"
    by_hand = (
        f"get {download.url} elsewhere and put it into {folder}, or into a FOLDER and set data.source={alternative}"
    )
    with storage_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as out:
                try:
                    digest = _copy(download, out, progress)
                except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                    reason = error.reason if isinstance(error, urllib.error.URLError) else error
                    raise DataError(f"{download.name} cannot be downloaded ({reason}): {by_hand}") from error
                out.flush()
                os.fsync(out.fileno())
            if digest != download.sha256:
                raise DataError(f"{download.name}: the download's SHA-256 is wrong, nothing was saved: {by_hand}")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


def _copy(download: Download, out: Any, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    request = urllib.request.Request(download.url, headers={"User-Agent": "kitae"})
    done = 0
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        while chunk := response.read(_CHUNK):
            done += len(chunk)
            if done > download.size:  # not the file: do not fill the disk with it
                return ""
            digest.update(chunk)
            out.write(chunk)
            if progress is not None:
                progress(done, download.size)
    return digest.hexdigest()


def _check(path: Path, download: Download) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != download.sha256:
        raise DataError(f"{path}: SHA-256 is not that of the original archive, get {download.url} again")
