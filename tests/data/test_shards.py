"""Shards: what is read and what is refused, images and crops, the cache of indexes and of downloads."""

from __future__ import annotations

import importlib
import io
import json
import os
import socket
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest.mock import Mock

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray
from PIL import Image

from kitae.augment.ops.geometry import RandomResizedCrop
from kitae.crops import EncodedCrop, PictureCrop
from kitae.data import remote as remote_module
from kitae.data import shards as module
from kitae.data import store as store_module
from kitae.data.ahead import ReadAhead
from kitae.data.base import TEST, TRAIN, VAL
from kitae.data.check import check
from kitae.data.encoded import Encoded
from kitae.data.loader import ImageSet
from kitae.data.order import Blocks
from kitae.data.parallel import DecodeMemory
from kitae.data.remote import ShardCache
from kitae.data.shards import expand, find_shards
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.data.store import Store, find_store, open_store
from kitae.errors import DataError, MissingExtraError
from kitae.preprocess import PreprocessRules, decode, windowed
from kitae.preprocess.pixels import own_memory
from tests.data.servers import Server, serving
from tests.data.shard_files import Sample, image, pack, packed, samples, shards
from tests.images import encode, turned_by
from tests.memory import needs_status
from tests.refusals import refused


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def opened(source: str, cache: str, **fields: Any) -> Store:
    return open_store(DataSpec(source=source, cache=cache, **{"image_size": 8, "channels": 3, **fields}))


def one(folder: Path, *files: tuple[str, bytes]) -> str:
    return f"webdataset:{pack(folder / 'set-0.tar', files)}"


PNG = encode(image(0, 0))
REPACK = "get or pack the shard again"


def test_patterns(tmp_path: Path) -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    path = str(pack(tmp_path / "a[1]" / "set-[0].tar", samples(0, 4)))
    assert find_shards(path) == [path]
    shards(tmp_path, 3)
    found = find_shards(f"{tmp_path}/set-[01].tar::{tmp_path}/set-2.tar")
    assert [Path(path).name for path in found] == ["set-0.tar", "set-1.tar", "set-2.tar"]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("a-{0..1.tar", r"braces must be \{000\.\.099\} or \{a,b\}, each closed"),
        ("a-{3..1}.tar", r"\{3\.\.1\} must count up"),
        ("a-{0..99999999}.tar", "must count up, to 100,000 shards at most"),
        ("pipe:cat x.tar", "would run a program, which Kitae does not allow; give paths or URLs"),
        ("pipe:rm -rf {0..1}", "would run a program"),
        ("file:///x.tar", r"is of scheme 'file'; give paths or URLs \(http, https, s3"),
        ("memory://x.tar", "is of scheme 'memory'; give paths or URLs"),
        ("gs:x", "is of scheme 'gs'; give paths or URLs"),
        ("https://host/x-*.tar", r"`\*` is for paths; name the shards of a URL with \{000\.\.099\}"),
        ("s3://bucket/train-*.tar", r"`\*` is for paths; name the shards of a URL"),
        ("no/such-{0..3}.tar", r"no/such-0\.tar: no such shard; give tar files, as in train-\{000\.\.099\}\.tar"),
        ("no/*.tar", r"no/\*\.tar: no such shard; give tar files"),
        ("", r"webdataset: needs shards, as in webdataset:train-\{000\.\.099\}\.tar"),
        ("a.tar::", "webdataset: needs shards, as in"),
    ],
)
def test_patterns_that_name_no_shard(patterns: str, words: str) -> None:
    refused(DataError, rf"^data\.source: .*{words}", open_source, DataSpec(source=f"webdataset:{patterns}"))


def test_a_store_of_shards_is_what_decoding_gives(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(shards(tmp_path), cache)
    assert len(store) == 60
    assert store.classes == ("0", "1")
    assert np.array_equal(store.labels, np.arange(60) % 2)
    assert store.names[0] == "set-0.tar/00000"
    assert store.images.shape == (60, 3, 8, 8)
    rows = np.array([59, 0, 17])
    expected = [decode(encode(image(row, row % 2)), store.rules) for row in rows.tolist()]
    assert np.array_equal(store.images[rows], np.stack(expected))
    assert np.array_equal(store.images[17], expected[2])
    assert not list((Path(cache) / "stores").glob("*/images.u8"))
    asked: list[float] = []
    monkeypatch.setattr(store_module, "ShardCache", lambda folder, limit: asked.append(limit))
    assert find_store(store.fingerprint, DataSpec(cache=cache, shard_cache_gb=200)) is not None
    assert asked == [200e9], "a larger cache of shards is not cut"


def test_labels_in_json_and_other_files_beside_them(tmp_path: Path, cache: str) -> None:
    files = [
        ("a/x.png", PNG), ("a/x.JSON", b'{"label": "dog", "more": 1}'), ("a/x.pkl", b"\x80never read"),
        ("a/y.seg.png", PNG), ("a/y.png", encode(image(1, 1))), ("a/y.json", b'{"label": "cat"}'),
    ]  # fmt: skip
    store = opened(one(tmp_path, *files), cache)
    assert store.classes == ("cat", "dog")
    assert store.labels.tolist() == [1, 0]
    assert list(store.names) == ["set-0.tar/a/x", "set-0.tar/a/y"]


def test_names_of_shards_say_their_split(tmp_path: Path, cache: str) -> None:
    shards(tmp_path, 2, name="train")
    pack(tmp_path / "val-0.tar", samples(900, 3))
    pack(tmp_path / "test" / "0.tar", samples(950, 2))
    source = f"webdataset:{tmp_path}/train-{{0..1}}.tar::{tmp_path}/val-0.tar::{tmp_path}/test/0.tar"
    assert opened(source, cache).splits.tolist() == [TRAIN] * 30 + [VAL] * 3 + [TEST] * 2
    odd = pack(tmp_path / "more.tar", samples(990, 2))
    for other, words in (
        (f"{source}::{odd}", r"more\.tar .*name all after splits, or none"),
        (f"webdataset:{tmp_path}/val-0.tar", r"data\.source: has .*val-0\.tar, but no train shards; add them"),
    ):
        refused(DataError, words, opened, other, cache)


JSON = r"/x\.json: must be an object whose field `label` is a name of at most 255 characters or an integer"
WHOLE = packed(samples(0, 15))
with tarfile.open(fileobj=io.BytesIO(WHOLE)) as _tar:
    FIRST_LABEL, BORDER = (_tar.getmembers()[place].offset for place in (1, 4))


def sized(size: int) -> bytes:
    """A shard whose first label says that it has this size."""
    content = bytearray(WHOLE)
    header = content[FIRST_LABEL : FIRST_LABEL + 512]
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80  # a binary number
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    content[FIRST_LABEL : FIRST_LABEL + 512] = header
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([("x.png", PNG)], r"/x: has no label; add a \.cls .* or a \.json with a field `label`"),
        ([("x.cls", b"1")], r"/x: has no image \(\.bmp, .*data\.on_corrupt=skip"),
        ([("x.png", PNG), ("x.cls", b"dog")], r"/x\.cls: must hold an integer in .*; put names into a \.json"),
        ([("x.png", PNG), ("x.cls", b"-1")], r"/x\.cls: must hold an integer in \[0, 2"),
        ([("x.png", PNG), ("x.json", b'{"class": 1}')], JSON),
        ([("x.png", PNG), ("x.json", b"[" * 100_000)], JSON),
        ([("x.png", PNG), ("x.json", b'{"label": null}')], JSON),
        ([("x.png", PNG), ("x.json", b'{"label": true}')], JSON),
        ([("x.png", PNG), ("x.json", b'{"label": " "}')], JSON),
        ([("x.png", PNG), ("x.json", b'{"label": "\\ud83d"}')], JSON),
        ([("x.png", PNG), ("x.json", json.dumps({"label": "x" * 256}).encode())], JSON),
        ([("x.png", PNG), ("x.json", b'{"label": 1}'.ljust(1 << 21))], JSON),
        ([("x.png", PNG), ("x.jpg", PNG), ("x.cls", b"1")], "/x: has two files .* or two images"),
        ([("x.png", PNG), ("y.png", PNG), ("x.cls", b"1")], ": the files of 'x' are not next to each other; sort"),
        ([("x.1.png", PNG), ("x.1.cls", b"1")], r"/x\.1\.png: belongs to a sample 'x', .* that has no image; pack it"),
        ([*samples(0, 2), ("a.b/x.1.png", PNG)], r"/a\.b/x\.1\.png: belongs to a sample 'a\.b/x'"),
        ([("readme.txt", b"hello")], ": has no samples; expected images"),
        ([("x.png", PNG), ("x.json", b'{"label": "dog"}')], " are of different kinds: integers in one, names in the"),
        (b"\x1f\x8b compressed", r": is compressed, .*; unpack it \(gunzip\)"),
        (b"hello, this is no tar file" * 99, rf": not a tar file .*; {REPACK}"),
        (WHOLE[: len(WHOLE) // 2], rf": truncated.*; {REPACK}"),
        (WHOLE[:700], rf": truncated.*; {REPACK}"),
        (WHOLE[:BORDER], rf": truncated, damaged or .* at byte .*; {REPACK}"),
        (sized(-512), rf": not a tar file \(the size of '00000\.cls' is negative\); {REPACK}"),
        (sized(2**80), rf": not a tar file .*; {REPACK}"),
        (b"", rf": not a tar file \(empty file\); {REPACK}"),
    ],
)
def test_an_unusable_shard_is_named(content: list[Sample] | bytes, words: str, tmp_path: Path, cache: str) -> None:
    source = shards(tmp_path, 2)
    (tmp_path / "set-1.tar").write_bytes(content if isinstance(content, bytes) else packed(content))
    refused(DataError, rf"set-1\.tar{words}", opened, source, cache)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_samples_that_are_links_are_not_lost_without_a_word(kind: bytes, tmp_path: Path, cache: str) -> None:
    """As GNU tar packs files with several names."""
    source, links = shards(tmp_path, 1), tmp_path / "set-0.tar"
    with tarfile.open(links, "a") as tar:
        for ending in ("png", "cls"):
            member = tarfile.TarInfo(f"x.{ending}")
            member.type, member.linkname = kind, f"00003.{ending}"
            tar.addfile(member)
    words = r"set-0\.tar/x: its \.(png|cls) is a link or a sparse file; pack the file itself"
    refused(DataError, words, opened, source, cache)
    store = opened(source, cache, on_corrupt="skip")
    assert len(store) == 15
    assert [name for name, _ in store.skipped] == ["set-0.tar/x"]
    with tarfile.open(links, "w") as tar:
        tar.addfile(member)
    refused(DataError, f"none of the samples can be used; the first: {words}", opened, source, cache, on_corrupt="skip")


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_a_damaged_or_cut_header_loses_no_images_without_a_word(tmp_path: Path, cache: str, on_corrupt: str) -> None:
    source = one(tmp_path, *samples(0, 3), ("empty.txt", b""), *samples(3, 1))
    path = tmp_path / "set-0.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar.getmembers()]
    for header in headers[2:]:
        cut = [whole[: header + more] for more in (1, 200, 511)]
        overwritten = (bytes([whole[header] ^ 1]), bytes(512))
        for content in (*cut, *(whole[:header] + new + whole[header + len(new) :] for new in overwritten)):
            path.write_bytes(content)
            refused(DataError, rf"set-0\.tar: .*{REPACK}", opened, source, cache, on_corrupt=on_corrupt)
    path.write_bytes(whole)
    assert len(opened(source, cache, on_corrupt=on_corrupt)) == 4


def test_the_zeros_at_the_end_of_a_tar_file(tmp_path: Path) -> None:
    """One block or more, and nothing else."""
    path = pack(tmp_path / "set-0.tar", samples(0, 4))
    files = path.read_bytes().rstrip(b"\0")
    files += bytes(-len(files) % 512)
    for blocks in (1, 2, 3000):
        path.write_bytes(files + bytes(512 * blocks))
        assert len(module.scan(io.BytesIO(path.read_bytes()), "set-0.tar").keys) == 4
    for end in (b"", bytes(100), bytes(1024) + b"something else", bytes(1024) + files):
        cut = io.BytesIO(files + end)
        refused(DataError, rf"^set-0\.tar: .* at byte [\d,]+; {REPACK}", module.scan, cut, "set-0.tar")


def test_unreadable_images_are_an_error_or_left_out(tmp_path: Path, cache: str) -> None:
    broken = [("bad.png", PNG[:60]), ("bad.cls", b"0"), ("bare.png", PNG)]
    source = one(tmp_path, *samples(0, 6), *broken)
    refused(DataError, r"set-0\.tar/bare: .*data\.on_corrupt=skip", opened, source, cache)
    store = opened(source, cache, on_corrupt="skip")
    assert len(store) == 6
    assert [name for name, _ in store.skipped] == ["set-0.tar/bare", "set-0.tar/bad"]
    store = opened(one(tmp_path, *samples(0, 6), *broken[:2]), cache)
    refused(DataError, r"set-0\.tar/bad: cannot be decoded", lambda: store.images[np.array([6])])


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_the_depth_is_that_of_all_images(tmp_path: Path, cache: str, on_corrupt: str) -> None:
    """Some images of 12 bits after many of 8, which need not be decoded for it."""
    files = samples(0, 6)
    for number in range(6, 12):
        levels = np.random.default_rng(number).integers(0, 4000, (12, 12)).astype(np.uint16)
        files += [(f"{number:05d}.png", encode(levels)), (f"{number:05d}.cls", str(number % 2).encode())]
    source = one(tmp_path, *files)
    store = opened(source, cache, on_corrupt=on_corrupt)
    assert store.rules.depth == 12
    assert store.images[np.array([8])].mean() > 90  # a sixteenth of that by the high bytes
    assert check(source).depth == 12
    assert opened(source, cache, on_corrupt=on_corrupt, depth=16).rules.depth == 16
    files[-2] = (files[-2][0], files[-2][1][:80])
    source = one(tmp_path / "cut", *files)
    if on_corrupt == "error":
        refused(DataError, r"set-0\.tar/00011: .*data\.on_corrupt=skip", opened, source, cache)
    else:
        assert len(opened(source, cache, on_corrupt=on_corrupt)) == 11


def test_samples_that_are_left_out_are_findings_of_a_check(tmp_path: Path) -> None:
    report = check(one(tmp_path, ("no label.png", PNG), *samples(0, 20)))
    assert report.images == 20
    assert not report.ok
    (name, reason), *more = report.unreadable
    assert (name, more) == ("set-0.tar/no label", [])
    assert "has no label" in reason


def test_equal_files_are_twins_and_equal_ends_are_not(tmp_path: Path, cache: str) -> None:
    noise = [np.random.default_rng(seed).bytes(3000) for seed in (0, 1)]
    files = [("a.png", PNG), ("a.cls", b"0"), ("b.png", PNG), ("b.cls", b"1")]
    for name, data in zip("cd", noise, strict=True):  # the same size and last bytes
        files += [(f"{name}.png", data + b"z" * 1024), (f"{name}.cls", b"0")]
    assert opened(one(tmp_path, *files), cache).twins.tolist() == [0, 0, 2, 3]


def test_a_shard_is_indexed_once_until_it_changes(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []
    original = module.scan
    monkeypatch.setattr(module, "scan", lambda path, name: (scanned.append(name), original(path, name))[1])
    source = shards(tmp_path, 3)
    first = opened(source, cache)
    opened(source, cache, image_size=6)  # another store of the same shards
    assert len(scanned) == 3
    pack(tmp_path / "set-1.tar", samples(500, 5))
    second = opened(source, cache)
    assert scanned[3:] == ["set-1.tar"]
    assert len(second) == 35
    assert first.fingerprint != second.fingerprint
    for file in (Path(cache) / "shards" / "index").iterdir():
        with np.load(file, allow_pickle=False) as arrays:
            assert json.loads(arrays["text"].tobytes())["keys"]
        file.write_bytes(b"damaged")
    assert len(open_source(DataSpec(source=source, cache=cache))) == 35


def test_a_disk_that_gives_less_than_it_is_asked_for_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(range(200)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 7), at))
    cache = ShardCache(tmp_path, 0)
    assert cache.read(str(tmp_path / "x.tar"), 10, 50) == bytes(range(10, 60))
    refused(DataError, r"x\.tar: was changed or truncated", cache.read, str(tmp_path / "x.tar"), 190, 50)


def whole_picture_crop(store: Store, op: RandomResizedCrop) -> tuple[PictureCrop, EncodedCrop]:
    """Crops of the same images, decoded at their own size in a buffer, and encoded in shards."""

    class Buffer:
        def __init__(self) -> None:
            images = store.images
            assert isinstance(images, Encoded)
            pixels = [np.asarray(Image.open(io.BytesIO(images.bytes_of(row)))) for row in range(len(store))]
            planar = [np.ascontiguousarray(p.transpose(2, 0, 1)) for p in pixels]
            self.pixels = np.concatenate([p.ravel() for p in planar])
            self.starts = np.cumsum([0, *(p.size for p in planar)])
            self.heights, self.widths = (np.array([p.shape[k] for p in planar]) for k in (1, 2))
            self.shape = images.shape

    assert isinstance(store.images, Encoded)
    return PictureCrop(op, Buffer(), 1), EncodedCrop(op, store.images, 2)


def test_random_crops_are_those_of_a_store_of_whole_pictures(tmp_path: Path, cache: str) -> None:
    store = opened(shards(tmp_path), cache)
    rows = np.arange(60)
    index = rows + (np.arange(60) % 2 << 32)
    for scale in ((0.08, 1.0), (0.5, 0.6)):
        whole, cut = whole_picture_crop(store, RandomResizedCrop(scale=scale))
        expected, out = whole(rows, index, 5, 3), cut(rows, index, 5, 3)
        assert out.shape == (60, 3, 8, 8)
        assert np.array_equal(out, expected)
        assert not np.array_equal(out, cut(rows, index, 5, 4))
        part = cut(rows[20:23], index[20:23], 5, 3)
        assert np.array_equal(part, out[20:23])


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_of_a_copy_is_the_same(mode: str, channels: Literal[1, 3], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    data = encode(Image.fromarray(noise).convert(mode))

    def read() -> NDArray[np.uint8]:
        with windowed(data, lambda *_: (3, 5, 20, 31), (8, 8), PreprocessRules(8, channels)) as pixels:
            return np.array(pixels)

    viewed = read()
    monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    copied = read()
    assert copied.shape == (20, 31, channels)
    assert np.array_equal(viewed, copied)


def test_an_image_in_several_pieces_of_memory_is_copied() -> None:
    assert own_memory(Image.new("RGB", (5000, 1200))) is None
    small = own_memory(Image.new("RGB", (50, 12), (1, 2, 3)))
    assert small is not None
    assert small.shape == (12, 50, 3)
    assert (small == (1, 2, 3)).all()


@pytest.mark.parametrize("turn", [False, True])
def test_a_large_jpeg_is_read_at_reduced_scale_and_looks_the_same(turn: bool) -> None:
    y, x = np.mgrid[0:400, 0:600]
    smooth = np.stack([x * 255 // 600, y * 255 // 400, (x + y) % 256 // 2 + 60], axis=-1).astype(np.uint8)
    upright = np.rot90(smooth, -1) if turn else smooth
    top, left, height, width = (101, 40, 444, 320) if turn else (40, 101, 320, 444)

    def window(*shape: int) -> tuple[int, int, int, int]:
        assert shape == upright.shape[:2]
        return top, left, height, width

    data = encode(smooth, "JPEG", quality=95, **({"exif": turned_by(6)} if turn else {}))
    with windowed(data, window, (32, 32), PreprocessRules(32)) as view:
        pixels = np.array(view)
    assert 2 * 32 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= 444 / 4 + 1
    out = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((32, 32), Image.Resampling.BILINEAR))
    box = (left, top, left + width, top + height)
    expected = Image.fromarray(upright).crop(box).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(out.astype(int) - np.asarray(expected)).mean() < 2.5


def test_large_images_of_shards_ask_for_memory(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    held = 0
    taken = DecodeMemory.reserved

    @contextmanager
    def spied(self: DecodeMemory, size: int) -> Iterator[None]:
        nonlocal held
        with taken(self, size):
            asked.append(size)
            held += size
            yield
            held -= size

    monkeypatch.setattr(DecodeMemory, "reserved", spied)
    large = np.zeros((800, 1000, 3), np.uint8)
    files = [("0.png", encode(large)), ("0.cls", b"0"), ("1.jpg", encode(large, "JPEG")), ("1.cls", b"1")]
    images = opened(one(tmp_path, *files), cache).images
    assert isinstance(images, Encoded)
    asked.clear()
    assert images[:].shape == (2, 3, 8, 8)
    assert asked == [12 * 800 * 1000], "of a JPEG less is decoded"
    asked.clear()
    inside = []
    images.cut(np.arange(2), (600, 600), lambda *_: (0, 0, 600, 600), lambda *_: inside.append(held), threads=1)
    assert asked == inside == [12 * 800 * 1000] * 2, "held until the window is used"
    assert held == 0


def test_epochs_of_shards_do_not_depend_on_how_they_are_read(tmp_path: Path, cache: str) -> None:
    store = opened(shards(tmp_path, 6), cache)
    assert isinstance(store.images, Encoded)
    blocks = Blocks(store.images.of, 24, lanes=2, batch=8)
    plain, ahead = (
        ImageSet(store.images, np.arange(90), store.labels, store.classes, blocks=blocks, ahead=reader)
        for reader in (None, ReadAhead(store.images))
    )
    order = plain.order(1, 2)
    assert sorted(order) == list(range(90))
    assert np.array_equal(order, ahead.order(1, 2))
    for start in range(0, 90, 9):
        part = order[start : start + 9]
        for mine, other in zip(plain.gather(part, epoch=2), ahead.gather(part, epoch=2), strict=True):
            assert np.array_equal(mine, other)


def test_statistics_are_those_of_the_images(tmp_path: Path, cache: str) -> None:
    store = opened(shards(tmp_path), cache)
    images = ImageSet(store.images, np.arange(60), store.labels, store.classes)
    mean, deviation = images.statistics()
    pixels = store.images[:] / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(deviation, pixels.std(axis=(0, 2, 3)), atol=1e-9)


def read_ahead(
    images: Any, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: np.ndarray | None = None
) -> list[tuple[str, int, int]]:
    """(file, offset, size) of what is read when images of the first window are used."""
    read: list[tuple[str, int, int]] = []
    monkeypatch.setattr(ShardCache, "read", lambda self, *place: read.append((Path(place[0]).name, *place[1:])))
    ahead, rows = ReadAhead(images), np.arange(len(images)) if rows is None else rows
    ahead.begin(rows, windows.astype(np.int32))
    ahead.reached(rows[:1])
    ahead.reached(rows[:1])
    for thread in threading.enumerate():
        if thread.name == "kitae-ahead":
            thread.join()
    return read


def test_windows_are_read_before_they_are_used(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(shards(tmp_path), cache)
    read = read_ahead(store.images, np.arange(60) // 15, monkeypatch)
    assert [file for file, _, _ in read] == ["set-0.tar", "set-1.tar"]


def test_ranges_that_nearly_touch_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = 1 << 19  # bytes of an image
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(9, 1, 512, 1024))
    read = read_ahead(images, np.array([0, 2, 0, 2, 2, 2, 2, 0, 0]), monkeypatch)
    assert read == [("images", 0, 3 * half), ("images", 7 * half, 2 * half)]


def test_images_that_come_again_are_read_where_they_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `balance: sampler`."""
    size = 1 << 21
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(4, 1, 1024, 2048))
    read = read_ahead(images, np.array([0, 0, 1, 2]), monkeypatch, np.array([0, 3, 1, 0]))
    assert read == [("images", 0, size), ("images", 3 * size, size), ("images", size, size)]


# URLs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(address, folder that it serves, paths that were asked for)."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as address:
        yield address, folder, Server.asked


@pytest.fixture
def bucket() -> Iterator[type[MemoryFileSystem]]:
    """What fsspec takes for s3:// meanwhile."""

    class Bucket(MemoryFileSystem):  # type: ignore[misc]
        protocol = "s3"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket
    importlib.import_module("fsspec.registry")._registry.pop("s3")  # fsspec.registry is a copy


def test_shards_from_urls_are_those_from_files(server: tuple[str, Path, list[str]], cache: str, tmp_path: Path) -> None:
    address, folder, asked = server
    here = opened(shards(folder), cache)
    there = opened(f"webdataset:{address}/set-{{0..3}}.tar", str(tmp_path / "other"))
    assert there.fingerprint == here.fingerprint
    assert np.array_equal(there.images[:], here.images[:])
    assert len(asked) == 4


def test_shards_from_urls_are_downloaded_several_at_a_time(cache: str, tmp_path: Path) -> None:
    both, first = threading.Barrier(2, timeout=20), iter(range(2))

    class Handler(Server):
        def do_GET(self) -> None:  # noqa: N802
            if next(first, None) is not None:
                both.wait()  # fails if the first request is alone
            super().do_GET()

    source = shards(tmp_path / "served")
    with serving(tmp_path / "served", Handler) as address:
        there = opened(f"webdataset:{address}/set-{{0..3}}.tar", cache, shard_cache_gb=1e-9)  # none is kept for long
    assert there.fingerprint == opened(source, str(tmp_path / "other")).fingerprint


def test_an_interrupted_download_stops(server: tuple[str, Path, list[str]], cache: str) -> None:
    address, folder, _ = server
    shards(folder)

    spec = DataSpec(source=f"webdataset:{address}/set-{{0..3}}.tar", cache=cache)
    source = module.ShardSource(spec, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        _ = source.indexes
    refused(DataError, r"set-0\.tar\?again: .*\(stopped\)", source.cache.open, f"{address}/set-0.tar?again")
    assert len(module.ShardSource(spec).indexes) == 4


def test_a_download_that_ends_early_is_not_kept(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kitae.data.download._WAITS", ())

    class Handler(Server):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Length", "2000")
            self.end_headers()
            self.wfile.write(bytes(1500))

    with serving(handler=Handler) as address:
        refused(DataError, "closed 500 bytes early", opened, f"webdataset:{address}/set-0.tar", cache)
    assert not list((Path(cache) / "shards" / "remote").glob("*.tar"))


def test_shards_from_a_bucket(cache: str, tmp_path: Path, bucket: type[MemoryFileSystem]) -> None:
    here = opened(shards(tmp_path / "files"), cache)
    for file in (tmp_path / "files").iterdir():
        bucket().pipe_file(f"s3://data/{file.name}", file.read_bytes())
    there = opened("webdataset:s3://data/set-{0..3}.tar", str(tmp_path / "other"))
    assert there.fingerprint == here.fingerprint
    assert np.array_equal(there.images[:], here.images[:])
    absent = r"s3://data/set-9\.tar: cannot be downloaded \(there is no such file\); check the address"
    refused(DataError, absent, opened, "webdataset:s3://data/set-9.tar", cache)


def test_a_bucket_needs_its_library(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    library = r"^gs://data/set-0\.tar: Please install gcsfs"
    refused(MissingExtraError, library, opened, "webdataset:gs://data/set-0.tar", cache)


def test_many_threads_index_with_a_small_cache(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shards(tmp_path / "files", 24, 4)
    here = opened(source, str(tmp_path / "other"))
    monkeypatch.setattr(
        "kitae.data.remote.chunks", lambda url: iter([(tmp_path / "files" / url.rpartition("/")[2]).read_bytes()])
    )
    there = opened("webdataset:https://x/set-{0..23}.tar", cache, shard_cache_gb=1e-9)
    assert there.fingerprint == here.fingerprint


def test_the_cache_of_urls_is_bounded(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, folder, asked = server
    shards(folder)
    size = (folder / "set-0.tar").stat().st_size
    cache = ShardCache(tmp_path / "bounded", 2.5 * size)
    for number in (0, 1, 2, 3, 0):
        url = f"{address}/set-{number}.tar"
        assert cache.read(url, 0, size) == (folder / f"set-{number}.tar").read_bytes()
        assert sum(path.stat().st_size for path in (tmp_path / "bounded" / "remote").glob("*.tar")) <= 2.5 * size
    assert len(asked) == 5


def test_opening_a_shard_that_is_there_does_not_list_the_others(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, asked = server
    shards(folder)
    size = (folder / "set-0.tar").stat().st_size
    cache = ShardCache(tmp_path / "bounded", 9 * size)
    for number in range(4):
        cache.read(f"{address}/set-{number}.tar", 0, 1)
    listed: list[Any] = []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *found: (listed.append(found), glob(*found))[1])
    for number in range(4):
        cache.open(f"{address}/set-{number}.tar").close()
    assert not listed
    ShardCache(tmp_path / "bounded", 1.5 * size).open(f"{address}/set-2.tar").close()
    left = list((tmp_path / "bounded" / "remote").glob("*.tar"))
    assert len(left) == 1, "a lower limit holds from the first shard on"
    assert len(asked) == 4


def test_a_shard_that_another_user_downloaded_can_be_read(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, asked = server
    shards(folder)
    ShardCache(tmp_path, 1e9).open(f"{address}/set-0.tar").close()
    monkeypatch.setattr(Path, "touch", Mock(side_effect=PermissionError(13, "Permission denied")))
    with ShardCache(tmp_path, 1e9).open(f"{address}/set-0.tar") as file:
        assert file.read() == (folder / "set-0.tar").read_bytes()
    assert len(asked) == 1
    refused(DataError, "cannot be written", ShardCache(tmp_path, 1e9).open, f"{address}/set-1.tar")


@needs_status
def test_a_shard_that_another_process_removed_is_not_kept_open(
    server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, folder, _ = server
    shards(folder)
    size = (folder / "set-0.tar").stat().st_size
    mine, other = (ShardCache(tmp_path / "shared", limit) for limit in (9 * size, 1.5 * size))

    def removed() -> int:
        files = (os.path.realpath(file) for file in Path("/proc/self/fd").iterdir())
        return sum(str(tmp_path / "shared") in file and file.endswith(" (deleted)") for file in files)

    mine.read(f"{address}/set-0.tar", 0, 1)
    other.read(f"{address}/set-1.tar", 0, 1)
    assert removed() == 1
    mine.read(f"{address}/set-2.tar", 0, 1)
    assert removed() == 0


def test_only_under_a_lock_are_unfinished_downloads_removed(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a disk has no locks, another process may be writing them."""
    address, folder, _ = server
    shards(folder)
    cache = ShardCache(tmp_path / "cache", 1e9)
    cache.open(f"{address}/set-0.tar").close()
    (shard,) = (tmp_path / "cache" / "remote").glob("*.tar")
    unfinished = shard.with_name(f".{shard.name}.12345678.tmp")
    for state in ("unknown", "held"):
        shard.unlink()
        unfinished.touch()
        monkeypatch.setattr(remote_module, "lock", lambda path, wait=True, state=state: nullcontext(state))
        cache.open(f"{address}/set-0.tar").close()
        assert unfinished.exists() == (state == "unknown")


def test_a_shard_that_has_changed_is_not_read_by_its_old_index(server: tuple[str, Path, list[str]], cache: str) -> None:
    address, folder, _ = server
    shards(folder)
    url = f"{address}/set-0.tar"
    before = opened(f"webdataset:{url}", cache)
    (folder / "set-0.tar").write_bytes((folder / "set-1.tar").read_bytes())
    remote = Path(cache) / "shards" / "remote"
    for file in remote.glob("*.tar"):  # as to make room
        file.unlink()
    again = ShardCache(Path(cache) / "shards", 1e9)
    refused(DataError, r"set-0\.tar: has changed .* delete .*\.sha256", again.read, url, 0, 10)
    for file in remote.glob("*.sha256"):
        file.unlink()
    now = opened(f"webdataset:{url}", cache)
    assert now.fingerprint != before.fingerprint
    assert list(now.names) != list(before.names)


def test_urls_that_cannot_be_had(server: tuple[str, Path, list[str]], cache: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for host in (server[0], f"http://127.0.0.1:{unused.getsockname()[1]}", "http://127.0.0.1:port"):
            refused(DataError, r"a\.tar: cannot be downloaded", opened, f"webdataset:{host}/a.tar", cache)
    assert not [name for name in os.listdir(Path(cache) / "shards" / "remote") if name.endswith((".tar", ".tmp"))]
