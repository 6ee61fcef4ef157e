"""CIFAR and idx files, made small here; downloads from a server in this process. No network is needed."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shutil
import ssl
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest

from kitae.data import archives
from kitae.data.archives import Download, fetch
from kitae.data.base import TEST, TRAIN
from kitae.data.check import check
from kitae.data.download import DownloadError, chunks
from kitae.data.fix import suffix_of
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import DataError
from tests.data.servers import serving
from tests.refusals import refused

TRAIN_ROWS, TEST_ROWS = 12, 7  # in each file


# CIFAR


def cifar_files(name: str) -> tuple[dict[str, bytes], list[np.ndarray], list[int]]:
    """The .bin files, the pixels [32, 32, 3] and the (fine) labels, train first."""
    rng = np.random.default_rng(0)
    layout = archives._CIFAR[name]
    classes = 10 if name == "cifar10" else 100
    files: dict[str, bytes] = {}
    pixels, labels = [], []
    for file in (*layout.train, layout.test):
        content = b""
        for _ in range(TEST_ROWS if file == layout.test else TRAIN_ROWS):
            image = rng.integers(0, 256, (32, 32, 3), np.uint8)
            label = int(rng.integers(classes))
            coarse = bytes([label // 5]) if layout.label_bytes == 2 else b""
            content += coarse + bytes([label]) + image.transpose(2, 0, 1).tobytes()
            pixels.append(image)
            labels.append(label)
        files[file] = content
    files[layout.class_file] = "\n".join(f"class {i}" for i in range(classes)).encode() + b"\n\n"
    return files, pixels, labels


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Shrinks the layout of one of the two; writes its archive to tmp_path/www and its files to tmp_path/files."""
    name: str = request.param
    layout = archives._CIFAR[name]
    files, _, _ = cifar_files(name)
    for folder in ("www", "files"):
        (tmp_path / folder).mkdir()
    archive = tmp_path / "www" / layout.archive.name
    with tarfile.open(archive, "w:gz") as tar:
        for file, content in {**files, "readme.html": b"x"}.items():
            info = tarfile.TarInfo(f"inner/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            (tmp_path / "files" / file).write_bytes(content)
    data = archive.read_bytes()
    download = replace(layout.archive, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    small = replace(layout, archive=download, rows=TRAIN_ROWS, test_rows=TEST_ROWS)
    monkeypatch.setitem(archives._CIFAR, name, small)
    return name


def check_cifar(name: str, source_name: str) -> None:
    source = open_source(DataSpec(source=source_name))
    _, pixels, labels = cifar_files(name)
    assert source.table.labels.tolist() == labels
    assert source.table.classes[3] == "class 3"
    assert len(source.table.classes) == (10 if name == "cifar10" else 100)
    assert source.table.splits.tolist() == [TRAIN] * (len(labels) - TEST_ROWS) + [TEST] * TEST_ROWS
    read = list(source.images())
    assert all((a == b).all() for a, b in zip(read, pixels, strict=True))
    assert source.table.names[0] == "train/00000"
    assert source.table.names[-1] == f"test/{TEST_ROWS - 1:05d}"
    assert len(source.fingerprint()) == 32


@pytest.mark.parametrize("folder", ["files", "www"])
def test_cifar_from_its_files_or_its_archive(cifar: str, folder: str, tmp_path: Path) -> None:
    check_cifar(cifar, f"{cifar}:{tmp_path / folder}")


def test_a_published_set_is_not_sent_to_data_fix(cifar: str, tmp_path: Path) -> None:
    source = open_source(DataSpec(source=f"{cifar}:{tmp_path / 'files'}"))
    report = check(source)
    assert not report.fixable
    assert not any("data fix" in line for line in report.lines())
    refused(DataError, "only a folder, a CSV file or a Parquet source can be fixed", suffix_of, source)
    copies = replace(report, excluded={0: "a copy"}, counts={"train": {"class 0": 5, "class 1": 6}})
    assert not any("data fix" in line for line in copies.lines())
    assert any("data fix" in line for line in replace(copies, fixable=True).lines())


def test_cifar_downloads_once(cifar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = archives._CIFAR[cifar]
    seen: list[tuple[int, int]] = []
    with serving(tmp_path / "www") as url:
        local = replace(layout, archive=replace(layout.archive, url=f"{url}/{layout.archive.name}"))
        monkeypatch.setitem(archives._CIFAR, cifar, local)
        open_source(DataSpec(source=cifar), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (layout.archive.size, layout.archive.size)
    check_cifar(cifar, cifar)  # the server is gone


def test_cifar_wrong_files_are_explained(cifar: str, tmp_path: Path) -> None:
    archive = tmp_path / "www" / archives._CIFAR[cifar].archive.name
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    changed = DataSpec(source=f"{cifar}:{archive.parent}")
    refused(DataError, r"its SHA-256 is wrong; download", lambda: open_source(changed).table)
    test = tmp_path / "files" / archives._CIFAR[cifar].test
    test.write_bytes(test.read_bytes()[:-1])
    cut = DataSpec(source=f"{cifar}:{test.parent}")
    refused(DataError, r"\.bin: has \d+ bytes instead of \d+", lambda: open_source(cut).table)
    (tmp_path / "empty").mkdir()
    empty = DataSpec(source=f"{cifar}:{tmp_path / 'empty'}")
    refused(DataError, r"or its \.bin files are not in this folder$", open_source, empty)


def test_the_pickled_cifar_is_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "exploded",)

    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="pickled version, which Kitae does not read"):
        open_source(DataSpec(source=f"cifar10:{tmp_path / 'py'}"))
    assert not (tmp_path / "exploded").exists()


# idx


def idx_files(folder: Path, gzipped: bool = True, size: int = 9, seed: int = 1) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays = []
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, size, size), np.uint8)
        labels = rng.permutation(count).astype(np.uint8) % 10
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if gzipped else ''}"
            path.write_bytes(gzip.compress(content) if gzipped else content)
            arrays.append(array)
    return arrays


@pytest.mark.parametrize(
    ("name", "gzipped", "inner"), [("mnist", True, ""), ("mnist", False, "MNIST/raw"), ("fashion-mnist", True, "")]
)
def test_idx_from_a_folder(tmp_path: Path, name: str, gzipped: bool, inner: str) -> None:
    train, train_labels, test, test_labels = idx_files(tmp_path / "idx" / inner, gzipped)
    source = open_source(DataSpec(source=f"{name}:{tmp_path / 'idx'}"))
    assert source.table.labels.tolist() == [*train_labels.tolist(), *test_labels.tolist()]
    assert source.table.splits.tolist() == [TRAIN] * 20 + [TEST] * 10
    assert (np.stack(list(source.images())) == [*train, *test]).all()  # type: ignore[arg-type]
    assert source.table.classes[:2] == (("0", "1") if name == "mnist" else ("T-shirt/top", "Trouser"))


def test_two_sets_in_the_folders_of_torchvision_are_told_apart(tmp_path: Path) -> None:
    folders = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
    pixels = {name: idx_files(tmp_path / folder / "raw", seed=i)[0] for i, (name, folder) in enumerate(folders.items())}
    for name, folder in folders.items():
        for given in (tmp_path, tmp_path / folder / "raw"):
            source = open_source(DataSpec(source=f"{name}:{given}"))
            assert (next(source.images()) == pixels[name][0]).all()  # type: ignore[union-attr]
        for other in folders:
            refused(DataError, "the folder must hold", open_source, DataSpec(source=f"{other}:{tmp_path / folder}"))
    shutil.rmtree(tmp_path / "MNIST")
    refused(DataError, "the folder must hold", open_source, DataSpec(source=f"mnist:{tmp_path}"))


def test_a_folder_that_was_given_for_the_wrong_set_is_read_again_for_the_right_one(tmp_path: Path) -> None:
    idx_files(tmp_path / "idx")
    wrong, right = (open_store(DataSpec(source=f"{name}:{tmp_path / 'idx'}")) for name in ("mnist", "fashion-mnist"))
    assert wrong.fingerprint != right.fingerprint
    assert (wrong.classes[0], right.classes[0]) == ("0", "T-shirt/top")


def idx(*numbers: int, data: bytes) -> bytes:
    """A gzipped idx file with these numbers in its header."""
    return gzip.compress(bytes([0, 0, 8, *numbers]) + data, mtime=0)


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
CUT = idx(3, 0, 0, 0, 20, 0, 0, 0, 9, 0, 0, 0, 9, data=np.random.default_rng(0).bytes(20 * 9 * 9))[:-300]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (IMAGES, b"not gzip", "train-images-idx3-ubyte.gz: cannot be read"),
        (LABELS, idx(3, data=bytes(30)), "not an idx file of bytes with 1"),
        (LABELS, idx(1, 0, 0, 0, 20, data=bytes(19)), "must have the 20 bytes that its header names"),
        (LABELS, idx(1, data=bytes(2)), "not an idx file of bytes with 1"),
        (IMAGES, idx(3, *b"\xff\xff\xff\xff\0\0\0\x1c\0\0\0\x1c", data=bytes(9)), "must have the 3,367,254,359,280"),
        (LABELS, idx(1, 0, 0, 0, 4, data=bytes(4)), "has 20 images.*4 labels"),
        ("t10k-labels-idx1-ubyte.gz", idx(1, 0, 0, 0, 10, data=b"\x0b" * 10), "label 11 is out of range"),
        (IMAGES, CUT, "train-images.*(must have|cannot be read)"),
        (IMAGES, None, r"the folder must hold train-images-idx3-ubyte\.gz"),
    ],
)
def test_wrong_idx_files_are_explained(tmp_path: Path, file: str, content: bytes | None, words: str) -> None:
    idx_files(tmp_path / "idx")
    (tmp_path / "idx" / file).unlink() if content is None else (tmp_path / "idx" / file).write_bytes(content)

    def read() -> None:
        source = open_source(DataSpec(source=f"mnist:{tmp_path / 'idx'}"))
        assert len(source.table.labels) == len(list(source.images()))

    refused(DataError, words, read)


def test_a_compressed_file_is_not_unpacked_beyond_what_its_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idx_files(tmp_path / "idx")
    (tmp_path / "idx" / LABELS).write_bytes(idx(1, 0, 0, 0, 20, data=bytes(50_000_000)))
    sizes: list[int] = []
    read = gzip.GzipFile.read

    def noted(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        data = read(file, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", noted)
    source = open_source(DataSpec(source=f"mnist:{tmp_path / 'idx'}"))
    refused(DataError, "train-labels.* must have the 20 bytes that its header names", lambda: source.table)
    assert 0 < sum(sizes) < 10_000


# Downloads


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Download]:
    (tmp_path / "www").mkdir()
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "www" / "file.gz").write_bytes(content)
    with serving(tmp_path / "www") as url:
        yield Download(f"{url}/file.gz", len(content), hashlib.sha256(content).hexdigest())


def test_fetch_keeps_what_is_right(remote: Download, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / ".file.gz.0123abcd.tmp").write_bytes(b"the first half")  # of a process that was killed
    path = fetch(remote, folder, "x:FOLDER")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == remote.sha256
    assert [p.name for p in folder.iterdir()] == ["file.gz"]
    before = path.stat().st_mtime_ns
    assert fetch(replace(remote, url="http://127.0.0.1:1/file.gz"), folder, "x:FOLDER").stat().st_mtime_ns == before
    path.write_bytes(bytes(remote.size))  # a file put there by hand is checked like a download
    refused(DataError, r"its SHA-256 is wrong; download .* again", fetch, remote, folder, "x:FOLDER")
    words = r"cannot be written.*set data\.cache or KITAE_CACHE"
    refused(DataError, words, fetch, remote, path / "downloads", "x")


def test_processes_that_start_together_download_once(
    remote: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    second = threading.Event()

    def noted(url: str) -> Iterator[bytes]:
        asked.append(url)
        if len(asked) == 2:
            second.set()
        second.wait(0.5)  # for the other one, which must not come
        return chunks(url)

    monkeypatch.setattr(archives, "chunks", noted)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(remote, tmp_path / "downloads", "x"), range(2)))
    assert asked == [remote.url]
    assert paths == [tmp_path / "downloads" / "file.gz"] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "SHA-256 is wrong"),
        ({"size": 10}, "SHA-256 is wrong"),  # longer than it should be: not read to the end
        ({"url": "http://127.0.0.1:1/file.gz"}, "cannot be downloaded"),
        ({"url": "http://no-such-host.invalid/file.gz"}, "cannot be downloaded"),
        ({"url": "nothing.gz"}, r"nothing\.gz cannot be downloaded \(HTTP Error 404: File not found\)"),
        ({"url": "cut.gz"}, r"cannot be downloaded \(.*EOF occurred"),
    ],
)
def test_fetch_keeps_nothing_else(
    remote: Download, tmp_path: Path, change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise ssl.SSLEOFError("EOF occurred in violation of protocol")

    if change.get("url") == "cut.gz":
        monkeypatch.setattr(urllib.request, "urlopen", cut)
    wrong, folder = replace(remote, **change), tmp_path / "downloads"
    wrong = replace(wrong, url=urljoin(remote.url, wrong.url))
    words = rf"{words}.*put it into {folder}.*data\.source=cifar10:FOLDER"
    refused(DataError, words, fetch, wrong, folder, "cifar10:FOLDER")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("source", ["cifar10", "mnist", "fashion-mnist:"])
def test_without_a_network_a_source_with_a_folder_is_proposed(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a source with a colon, which tells it from the recipe of that name."""

    def none(url: str) -> Iterator[bytes]:
        raise DownloadError("no network")

    monkeypatch.setattr(archives, "chunks", none)
    named = rf"set data\.source={source.rstrip(':')}:FOLDER$"
    refused(DataError, named, open_source, DataSpec(source=source, cache=str(tmp_path)))
