"""The decoded store: right pixels, complete or not at all, flat in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kitae.data import build as build_module
from kitae.data import store as store_module
from kitae.data.build import MANIFEST
from kitae.data.loader import ImageSet
from kitae.data.parallel import DecodeMemory
from kitae.data.pictures import Pictures
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.data.store import Names, Store, open_store
from kitae.errors import DataError, KitaeError
from kitae.files import cache_folder
from kitae.folders import lock
from kitae.preprocess import PreprocessRules, decode, probe
from kitae.preprocess import picture as picture_of
from tests.images import encode, picture, turned_by, write_folder, write_parquet
from tests.memory import anonymous_memory, needs_status
from tests.refusals import refused

Maker = Callable[..., Path]


def stores(cache: Path) -> list[Path]:
    """Finished stores."""
    return sorted(p for p in (cache / "stores").iterdir() if p.is_dir() and not p.name.startswith("."))


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "stores").glob(".*"))


@pytest.fixture
def pets(make_folder: Maker) -> Path:
    """12 small images of two classes."""
    return make_folder("cats", "dogs")


def of(folder: Path, **fields: Any) -> DataSpec:
    return DataSpec(source=f"folder:{folder}", **fields)


def in_parquet(folder: Path, *images: np.ndarray, **fields: Any) -> DataSpec:
    """Images with the labels 0, 1, 0, ... in one file, which is written anew each time."""
    table = {"image": [encode(image) for image in images], "label": [number % 2 for number in range(len(images))]}
    pq.write_table(pa.table(table), folder / "x.parquet")
    return DataSpec(source=f"parquet:{folder / 'x.parquet'}", **fields)


def whole(spec: DataSpec) -> Pictures:
    images = open_store(spec).images
    assert isinstance(images, Pictures)
    return images


# What is in it


def test_a_folder_becomes_a_store(pets: Path, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    store = open_store(of(pets), lambda done, total: seen.append((done, total)))
    assert isinstance(store.images, np.memmap)
    assert store.images.shape == (12, 3, 16, 16)
    assert store.images.dtype == np.uint8
    assert not store.images.flags.writeable
    for row, name in enumerate(store.names):
        assert (store.images[row] == decode(pets / name, store.rules)).all()
    assert store.labels.tolist() == [0] * 6 + [1] * 6
    assert store.labels.dtype == np.int64
    assert store.classes == ("cats", "dogs")
    assert store.rules == PreprocessRules(16, 3, "crop")
    assert store.groups is None
    assert store.skipped == ()
    assert len(store) == 12
    assert seen[-1] == (12, 12)
    assert stores(cache) == [store.path]
    assert leftovers(cache) == []


def test_equal_images_are_known(pets: Path) -> None:
    shutil.copy(pets / "cats" / "003.png", pets / "dogs" / "x.png")
    Image.open(pets / "cats" / "003.png").save(pets / "dogs" / "y.bmp")
    (pets / "cats" / "000.png").write_bytes(b"broken")
    store = open_store(of(pets, on_corrupt="skip"))
    names = list(store.names)
    same = [row for row, name in enumerate(names) if name in ("cats/003.png", "dogs/x.png", "dogs/y.bmp")]
    expected = [same[0] if row in same else row for row in range(len(names))]
    assert store.twins.tolist() == expected
    assert store.hashes.shape == (13, 16)


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(pets: Path) -> None:
    before = open_store(of(pets, on_corrupt="skip"))
    (pets / "cats" / "gone.png").symlink_to(pets / "nowhere.png")
    refused(DataError, r"cats/gone\.png: .*on_corrupt=skip", open_store, of(pets))
    store = open_store(of(pets, on_corrupt="skip"))
    assert [name for name, _ in store.skipped] == ["cats/gone.png"]
    assert list(store.names) == list(before.names)
    assert store.path != before.path


def test_an_image_is_not_left_out_once_there_is_permission_to_read_it(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which changes neither its size nor its time."""
    (pets / "list.csv").write_text(
        "path,label\n" + "".join(f"{p},{p.parent.name}\n" for p in sorted(pets.rglob("*.png")))
    )
    last, read, access = sorted(pets.rglob("*.png"))[-1], Image.open, os.access

    def opening(file: Any, *args: Any, **options: Any) -> Any:
        if file == last:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return read(file, *args, **options)

    for source in (f"folder:{pets}", f"csv:{pets / 'list.csv'}"):
        spec = DataSpec(source=source, image_size=16, on_corrupt="skip")
        with monkeypatch.context() as patched:  # nothing keeps the superuser from reading
            patched.setattr(Image, "open", opening)
            patched.setattr(os, "access", lambda file, mode: file != last and access(file, mode))
            assert [Path(name).name for name, _ in open_store(spec).skipped] == [last.name]
        assert open_store(spec).skipped == ()


def test_names_that_are_empty_become_rows(tmp_path: Path) -> None:
    """The hub writes an empty path where images had none."""
    images = [{"bytes": encode(picture(i % 2, i, (16, 16))), "path": ""} for i in range(4)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), tmp_path / "x.parquet")
    store = open_store(DataSpec(source=f"parquet:{tmp_path / 'x.parquet'}"))
    assert list(store.names) == [f"x.parquet:{row}" for row in range(4)]


def test_it_is_built_once(pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(of(pets))
    monkeypatch.setattr(store_module, "build", None)
    second = open_store(of(pets))
    assert second.fingerprint == first.fingerprint
    assert (second.images == first.images).all()
    assert list(second.names) == list(first.names)


def test_groups_splits_and_keys_are_kept(make_folder: Maker) -> None:
    spec = of(make_folder("train/a/group=x", "train/b", "val/a", "test/b"))
    source, store = open_source(spec), open_store(spec, rules=PreprocessRules(8, 1))
    assert store.groups is not None
    assert store.groups.tolist() == source.table.groups.tolist()  # type: ignore[union-attr]
    assert store.splits.tolist() == source.table.splits.tolist()
    assert store.keys.tolist() == source.table.keys.tolist()


# Sizes and channels found out


def test_grey_sources_get_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    assert open_store(DataSpec()).images.shape == (7000, 1, 28, 28)
    grey, colour = np.ascontiguousarray(picture(0, 0)[..., 0]), picture(0, 0)
    for images, given, found in (
        ([grey] * 4, None, 1), ([grey, grey, grey, colour], None, 3),
        ([grey, grey, grey, colour], 1, 1), ([grey] * 4, 3, 3),
    ):  # fmt: skip
        assert open_store(in_parquet(tmp_path, *images, channels=given)).rules.channels == found


def test_mixed_sizes_ask_for_a_size(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos")
    refused(DataError, r"64 x 48 \(class 0/0\.jpg\) and 48 x 64 .*: set data\.image_size", open_store, of(root))
    for resize in ("crop", "squash", "pad"):
        assert open_store(of(root, image_size=20, resize=resize)).rules.resize == resize


def test_a_common_size_that_is_not_square_is_the_network_s(tmp_path: Path) -> None:
    store = open_store(in_parquet(tmp_path, picture(0, 0, (20, 30)), picture(1, 0, (20, 30))))
    assert store.rules.size == (20, 30)
    assert isinstance(store.images, np.ndarray)
    assert (store.images[1] == picture(1, 0, (20, 30)).transpose(2, 0, 1)).all()


# Whole pictures


def large_folder(root: Path) -> Path:
    """Landscape and portrait photographs, with EXIF orientation, grey and alpha among them, and a small one."""
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = root / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        size = ((90, 160), (150, 100), (40, 30), (200, 200))[number % 4]
        image = Image.fromarray(rng.integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)).resize(size[::-1])
        if number == 4:
            image.putalpha(200)
            image.save(folder / f"{number}.png")
        elif number == 5:
            image.convert("L").save(folder / f"{number}.jpg")
        else:
            image.save(folder / f"{number}.jpg", exif=turned_by(6 if number == 3 else 1), quality=95)
    return root


def test_whole_pictures_are_kept(tmp_path: Path) -> None:
    root = large_folder(tmp_path / "photos")
    store, pictures = open_store(of(root, image_size=32)), whole(of(root, image_size=32))
    assert store.rules == PreprocessRules(32, 3, store_size=72)
    assert pictures.shape == (12, 3, 32, 32)
    assert pictures[:].dtype == np.uint8
    sizes = dict(zip(store.names, zip(pictures.heights.tolist(), pictures.widths.tolist(), strict=True), strict=True))
    assert sizes["class 0/0.jpg"] == (72, 128)  # 90 x 160
    assert sizes["class 1/1.jpg"] == (108, 72)  # 150 x 100
    assert sizes["class 0/2.jpg"] == (40, 30)  # never enlarged
    assert sizes["class 1/3.jpg"] == (72, 72)
    for row, name in enumerate(store.names):
        pixels, _ = picture_of(root / name, store.rules)
        assert (pictures.whole(row) == pixels).all()
        assert (pictures[row] == decode(root / name, store.rules)).all()
        assert (pictures.sums[row] == [pixels.sum((1, 2)), np.square(pixels, dtype=np.int64).sum((1, 2))]).all()
    assert (pictures[[3, 0]] == np.stack([pictures[3], pictures[0]])).all()
    assert (pictures[2:4] == pictures[np.array([2, 3])]).all()
    assert pictures[np.zeros(0, np.int64)].shape == (0, 3, 32, 32)
    assert pictures.nbytes == sum(3 * height * width for height, width in sizes.values())
    assert open_store(of(root, image_size=32)).path == store.path


def test_the_size_of_whole_pictures_can_be_given(tmp_path: Path) -> None:
    root = large_folder(tmp_path / "photos")
    pictures = whole(of(root, image_size=32, store_size=40))
    assert min(pictures.heights[0], pictures.widths[0]) == 40
    spec = of(root, image_size=(32, 64), store_size=32)
    assert open_store(spec).rules == PreprocessRules((32, 64), 3, store_size=32)
    wide = whole(spec)
    assert wide.shape[1:] == (3, 32, 64)
    assert (wide.heights[0], wide.widths[0]) == (36, 64)
    with pytest.raises(ValueError, match="store_size: must be at least image_size"):
        DataSpec(image_size=32, store_size=31)


def test_pictures_of_the_network_s_size_are_kept_whole_for_a_crop(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        Image.fromarray(picture("ab".index(label), 0, (96, 96), 2)).save(root / label / "0.png")
    spec = of(root, image_size=96, crop_pct=0.875)
    assert whole(spec).whole(0).shape == (3, 96, 96)
    store = open_store(spec)
    assert (store.images[0] == decode(root / store.names[0], PreprocessRules(96, 3, crop_pct=0.875))).all()
    assert store.path != open_store(of(root, image_size=96)).path
    with pytest.raises(ValueError, match="crop_pct: must be 1"):
        DataSpec(crop_pct=0.9, resize="pad")


def test_tiny_pictures_and_those_of_the_network_s_size_are_one_array(tmp_path: Path) -> None:
    def of_sizes(*sizes: tuple[int, int], image_size: int | None) -> DataSpec:
        images = (picture(0, number, size) for number, size in enumerate(sizes))
        return in_parquet(tmp_path, *images, image_size=image_size)

    for one, other, image_size in (
        ((80, 80), (80, 80), 80), ((80, 96), (80, 96), None), ((64, 40), (20, 64), 32), ((64, 40), (80, 80), 80),
    ):  # fmt: skip
        assert isinstance(open_store(of_sizes(one, other, image_size=image_size)).images, np.ndarray)
    # One larger picture, the last one: whole pictures for all.
    pictures = whole(of_sizes(*[(32, 32)] * 300, (65, 32), image_size=32))
    assert (pictures[0] == picture(0, 0, (32, 32)).transpose(2, 0, 1)).all()


def test_of_tiny_colour_pictures_few_headers_are_read(
    make_folder: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They take a third of the time of decoding. A larger picture that comes later still keeps all of them whole."""
    read: list[object] = []
    monkeypatch.setattr(build_module, "probe", lambda item: (read.append(item), probe(item))[1])
    root = make_folder("cats", "dogs", count=400)
    spec = DataSpec(source=f"folder:{root}", image_size=32)
    assert isinstance(open_store(spec).images, np.ndarray)
    assert 0 < len(read) <= 400, "the portions that threads had begun, of 800"
    Image.new("RGB", (100, 70)).save(root / "dogs" / "last.png")
    store = open_store(spec)
    assert isinstance(store.images, Pictures)
    assert store.rules == PreprocessRules(32, 3, store_size=72)
    assert store.images.whole(len(store) - 1).shape == (3, 70, 100)


def test_room_is_asked_for_what_is_kept(make_folder: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every picture at the network's size, as the first, a tiny one, suggests."""
    root = make_folder("cats", "dogs")
    Image.new("RGB", (100, 70)).save(root / "dogs" / "last.png")
    free = shutil.disk_usage(root)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert isinstance(open_store(DataSpec(source=f"folder:{root}", image_size=200)).images, Pictures)


def test_fixed_rules_leave_nothing_to_find_out(tmp_path: Path) -> None:
    spec = of(large_folder(tmp_path / "photos"), image_size=32)
    old = open_store(spec, rules=PreprocessRules(32, 3))
    assert isinstance(old.images, np.ndarray)
    assert old.rules.version == 1
    new = open_store(spec, rules=PreprocessRules(32, 3, store_size=72))
    assert isinstance(new.images, Pictures)
    assert new.fingerprint == open_store(spec).fingerprint


def test_equal_pictures_of_one_size_only_are_equal(tmp_path: Path) -> None:
    flat = [np.full(size, 9, np.uint8) for size in ((70, 80), (80, 70), (70, 80))]
    assert open_store(in_parquet(tmp_path, *flat, image_size=32)).twins.tolist() == [0, 1, 0]


def test_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    spec = of(large_folder(tmp_path / "photos"), image_size=32)
    store, pictures, rows = open_store(spec), whole(spec), np.array([1, 4, 5, 7])
    mean, std = ImageSet(pictures, rows, store.labels, store.classes).statistics()
    pixels = np.concatenate([pictures.whole(row).reshape(3, -1) for row in rows], axis=1) / 255
    assert np.allclose(mean, pixels.mean(1))
    assert np.allclose(std, pixels.std(1))


def laplacian_energy(images: np.ndarray) -> float:
    p = images.astype(np.float64).mean(axis=1)
    edges = 4 * p[:, 1:-1, 1:-1] - p[:, :-2, 1:-1] - p[:, 2:, 1:-1] - p[:, 1:-1, :-2] - p[:, 1:-1, 2:]
    return float(np.square(edges).mean())


def test_what_an_evaluation_sees_is_as_sharp_as_from_the_files() -> None:
    rows = np.arange(0, 600, 6)
    for size in (40, 64):
        pictures = whole(DataSpec(source="photos-mini", image_size=size))
        assert min(pictures.heights.min(), pictures.widths.min()) < 160  # reduced
        at_once = open_store(DataSpec(source="photos-mini"), rules=PreprocessRules(size, 3))
        ratio = laplacian_energy(pictures[rows]) / laplacian_energy(np.array(at_once.images[rows]))
        assert 0.9 < ratio < 1.1


def test_large_images_take_turns() -> None:
    memory, inside, most = DecodeMemory(100), 0, 0
    lock = threading.Lock()

    def enter(size: int) -> None:
        nonlocal inside, most
        with memory.reserved(size):
            with lock:
                inside += size
                most = max(most, inside)
            time.sleep(0.01)
            with lock:
                inside -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, [40, 30, 60, 100, 10, 50] * 4))
        assert 60 <= most <= 100
        list(pool.map(enter, [500, 20]))  # larger than all there is: alone
    assert most == 500


def test_memory_for_decoding_is_asked_for_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    taken = DecodeMemory.reserved

    def spied(self: Any, size: int) -> Any:
        asked.append(size)
        return taken(self, size)

    monkeypatch.setattr(DecodeMemory, "reserved", spied)
    for number, options in enumerate(({}, {"progressive": True}, {"format": "PNG"})):
        (tmp_path / "photos" / f"{number}").mkdir(parents=True)
        file = tmp_path / "photos" / f"{number}" / "large.jpg"
        Image.new("RGB", (1000, 800)).save(file, **{"format": "JPEG", **options})
    open_store(of(tmp_path / "photos", image_size=64))
    # JPEG is read at half its size, progressive JPEG needs all coefficients besides.
    assert sorted(asked) == [12 * 500 * 400, 12 * 500 * 400 + 6 * 1000 * 800, 12 * 1000 * 800]


# Depth


def deep_folder(root: Path, *highest: int) -> Path:
    """16-bit images of two classes, with these highest levels."""
    for number, level in enumerate(highest):
        folder = root / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        levels = np.linspace(0, level, 64).astype(np.uint16).reshape(8, 8)
        Image.fromarray(levels).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("highest", "depth"), [((200, 90), 8), ((200, 1000), 10), ((4000, 1000, 200), 12), ((4096, 100), 16)]
)
def test_all_images_of_a_set_have_one_depth(tmp_path: Path, highest: tuple[int, ...], depth: int) -> None:
    root = deep_folder(tmp_path / "deep", *highest)
    store = open_store(of(root))
    assert store.rules.depth == depth
    by_name = dict(zip(store.names, store.images, strict=True))
    for number, level in enumerate(highest):
        assert by_name[f"class {number % 2}/{number}.png"].max() == level >> depth - 8
    assert open_store(of(root)).path == store.path
    assert PreprocessRules.from_dict(store.rules.to_dict()) == store.rules
    for given in ({8, 10, 12, 16} - {depth}) if depth == 12 else ():
        other = open_store(of(root, depth=given))
        assert other.path != store.path
        assert other.images.max() == min(4000 >> given - 8, 255)


def test_images_of_8_bits_have_the_rules_and_fingerprint_they_always_had(pets: Path) -> None:
    store = open_store(of(pets))
    assert store.rules.to_dict() == {"image_size": 16, "channels": 3, "resize": "crop", "version": 1}
    assert store.fingerprint == "3883ac872f8d0d163b68899d90194876"
    assert "depth" not in DataSpec().model_dump(mode="json")


# What it depends on


def test_a_changed_file_or_rule_makes_a_new_store(pets: Path, cache: Path) -> None:
    first = open_store(of(pets))
    assert open_store(of(pets, image_size=8)).images.shape == (12, 3, 8, 8)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(pets / "cats" / "000.png")
    second = open_store(of(pets))
    assert second.images[0].max() == 0
    assert first.fingerprint != second.fingerprint
    assert len(stores(cache)) == 3


def test_the_fingerprint_is_of_the_content(pets: Path, tmp_path: Path) -> None:
    """The same data elsewhere, or touched, is the same data; another label is not."""
    first = open_store(of(pets))
    there = shutil.copytree(pets, tmp_path / "copy")
    copy = open_store(of(there))
    assert copy.path != first.path
    assert copy.fingerprint == first.fingerprint
    (there / "cats" / "000.png").rename(there / "dogs" / "moved.png")
    assert open_store(of(there)).fingerprint != first.fingerprint
    assert open_store(of(pets, image_size=8)).fingerprint != first.fingerprint


def test_threads_do_not_change_it(make_folder: Maker, tmp_path: Path) -> None:
    root = make_folder("a", "b", count=50)
    one, four = (open_store(of(root, image_size=8, cache=str(tmp_path / f"{n}")), threads=n) for n in (1, 4))
    assert one.path != four.path
    assert one.fingerprint == four.fingerprint


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder("given") == Path("given")
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("KITAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "kitae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "kitae"
    assert cache_folder("~/x") == tmp_path / "home" / "x"


def test_a_user_without_a_home_folder_is_told_to_name_one(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container that runs under a number of its own."""
    for name in ("HOME", "KITAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    refused(DataError, r"no home folder.*set data\.cache or KITAE_CACHE to a folder", open_store, of(pets))
    assert open_store(of(pets, cache=str(pets.parent / "mine"))).path.is_relative_to(pets.parent / "mine")


# Broken images


def test_broken_images_are_named_or_left_out_when_asked(pets: Path, cache: Path) -> None:
    (pets / "cats" / "002.png").write_bytes(b"this is no image")
    (pets / "dogs" / "004.jpg").write_bytes(encode(picture(0, 0, (16, 16)), "JPEG")[:-60])
    refused(DataError, r"cats/002\.png: not an image.*data.on_corrupt=skip", open_store, of(pets, image_size=16))
    assert stores(cache) == leftovers(cache) == []
    for _ in range(2):
        store = open_store(of(pets, on_corrupt="skip"))  # the size is found out from the others
        assert [name for name, _ in store.skipped] == ["cats/002.png", "dogs/004.jpg"]
        assert "truncated" in store.skipped[1][1]
        assert len(store.images) == len(store.labels) == len(store.names) == len(store.keys) == 11
        assert "cats/002.png" not in list(store.names)
        assert store.labels.tolist() == [0] * 5 + [1] * 6
        assert (store.images[2] == decode(pets / store.names[2], store.rules)).all()
    assert len(stores(cache)) == 1


def test_the_reason_does_not_repeat_the_name_whatever_is_in_it(pets: Path) -> None:
    for name in ("two\nlines.png", "spaces\u3000\u202f.png", "raw\udcff.png"):
        (pets / "cats" / name).write_bytes(b"")
    assert {why for _, why in open_store(of(pets, on_corrupt="skip")).skipped} == {"the file is empty"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), r"cannot be read now \(Too many open files\); try again"),
        (OSError(errno.EIO, "Input/output error"), r"cannot be read now \(Input/output error\); try again, or remove"),
        (MemoryError(), "not enough memory to decode it"),
    ],
)
def test_an_error_of_the_machine_leaves_no_image_out(
    pets: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    """The store would lack a sound image ever after."""
    last, read = sorted(pets.rglob("*.png"))[-1], Image.open

    def opening(file: Any, *args: Any, **options: Any) -> Any:
        if file == last:
            raise error
        return read(file, *args, **options)

    spec = DataSpec(source=f"folder:{pets}", image_size=16, on_corrupt="skip")
    monkeypatch.setattr(Image, "open", opening)
    refused(KitaeError, f"{last.name}: {words}", open_store, spec)
    monkeypatch.undo()
    assert open_store(spec).skipped == ()


def test_only_broken_images(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "1.png").write_bytes(b"nothing")
    for size in ({}, {"image_size": 8}):
        spec = of(tmp_path / "photos", on_corrupt="skip", **size)
        refused(DataError, "none of its 2 images can be read", open_store, spec)


def test_files_that_change_while_they_are_read(pets: Path, cache: Path) -> None:
    def disturb(done: int, total: int) -> None:
        os.utime(pets / "cats" / "000.png", ns=(0, time.time_ns()))

    refused(DataError, "files changed while they were read", open_store, of(pets), disturb)
    assert stores(cache) == leftovers(cache) == []


def test_an_exception_of_the_caller_leaves_nothing(pets: Path, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_store(of(pets), Mock(side_effect=KeyboardInterrupt))
    assert stores(cache) == leftovers(cache) == []


# A store that cannot be trusted


@pytest.mark.parametrize(
    ("large", "file", "size"),
    [
        (False, "images.u8", 1000), (False, "names.utf8", None), (False, "manifest.json", None),
        (False, "manifest.json", 20), (False, "manifest.json", "another format"),
        (True, "images.u8", 100), (True, "sizes.i64", 100), (True, "sums.i64", None),
    ],
)  # fmt: skip
def test_a_damaged_store_is_built_anew(
    pets: Path, tmp_path: Path, cache: Path, large: bool, file: str, size: int | str | None
) -> None:
    spec = of(large_folder(tmp_path / "large"), image_size=32) if large else of(pets)
    store = open_store(spec)
    expected, manifest = store.images[:].copy(), json.loads((store.path / "manifest.json").read_text())
    if size is None:
        (store.path / file).unlink()
    elif isinstance(size, str):
        (store.path / file).write_text(json.dumps({**manifest, "format": 0}))
    else:
        os.truncate(store.path / file, size)
    again = open_store(spec)
    assert again.path == store.path
    assert (again.images[:] == expected).all()
    assert json.loads((store.path / "manifest.json").read_text()) == manifest
    assert stores(cache) == [store.path]
    assert leftovers(cache) == []


# Kills and races. The children run this code, which stops where it is told to.

CHILD = """
import sys, time
from pathlib import Path
from kitae.data import build, store
from kitae.data.spec import DataSpec

source, stage = sys.argv[1:3]

def stop():
    print("now", flush=True)
    time.sleep(120)

progress = None
write, rename = build._write, Path.rename
if stage == "images":
    progress = lambda done, total: stop()
elif stage == "manifest":
    def cut(path, data):
        if path.name == "manifest.json":
            path.write_bytes(data[:50])
            stop()
        write(path, data)
    build._write = cut
elif stage == "rename":
    Path.rename = lambda self, target: stop()
elif stage == "no locks":
    import filelock
    def acquire(self, **options):
        raise NotImplementedError
    filelock.FileLock.acquire = acquire
result = store.open_store(DataSpec(source=source, image_size=16), progress)
print(result.fingerprint, int(result.images[:].sum(dtype="uint64")))
"""


def child(folder: Path, stage: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, f"folder:{folder}", stage]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def stopped(folder: Path, stage: str) -> Iterator[None]:
    """A process that builds the store of a folder up to a stage, and is killed at the end."""
    with child(folder, stage) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("stage", ["images", "manifest", "rename"])
def test_a_kill_in_the_middle_leaves_nothing_that_is_trusted(pets: Path, cache: Path, stage: str) -> None:
    with stopped(pets, stage):
        pass
    assert stores(cache) == []
    assert len(leftovers(cache)) == 1
    store = open_store(of(pets, image_size=16))
    assert all((store.images[row] == decode(pets / name, store.rules)).all() for row, name in enumerate(store.names))
    assert leftovers(cache) == []


def test_what_a_killed_build_left_is_removed_by_the_next_build(pets: Path, make_folder: Maker, cache: Path) -> None:
    other = make_folder("x", "y", name="other")
    with stopped(pets, "images"):
        open_store(of(other))
        assert len(leftovers(cache)) == 1  # still being built by a living process
    open_store(of(other, image_size=8))
    assert leftovers(cache) == []


@pytest.mark.parametrize("stage", ["none", "no locks", "whole pictures"])
def test_processes_that_prepare_at_once_end_well(make_folder: Maker, tmp_path: Path, cache: Path, stage: str) -> None:
    large = stage == "whole pictures"
    folder = large_folder(tmp_path / "large") if large else make_folder("cats", "dogs", count=150)
    processes = [child(folder, stage) for _ in range(2)]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    store = open_store(of(folder, image_size=16))
    assert isinstance(store.images, Pictures) == large
    assert outputs == {f"{store.fingerprint} {int(store.images[:].sum(dtype=np.uint64))}\n"}
    assert stores(cache) == [store.path]
    assert leftovers(cache) == []


# Disks


def used_at(store: Store, seconds: float) -> None:
    os.utime(store.path / MANIFEST, (seconds, seconds))


def bytes_of(store: Store) -> int:
    return sum(file.stat().st_size for file in store.path.iterdir())


def bytes_removed(store: Store) -> int:
    size = bytes_of(store)
    shutil.rmtree(store.path)
    return size


def test_the_least_recently_used_stores_make_room(pets: Path, cache: Path) -> None:
    old, middle, new = (open_store(of(pets, image_size=size)) for size in (8, 9, 10))
    for seconds, store in enumerate((old, middle, new)):
        used_at(store, 1000 + seconds)
    assert open_store(of(pets, image_size=8)).path == old.path  # used just now
    pixels = new.images[:].copy()
    limit = bytes_of(old) + bytes_removed(open_store(of(pets, image_size=11)))
    last = open_store(of(pets, image_size=11, store_cache_gb=limit / 1e9))
    assert set(stores(cache)) == {old.path, last.path}
    assert leftovers(cache) == []
    assert (new.images == pixels).all()  # what is open stays readable
    assert (open_store(of(pets, image_size=10)).images == pixels).all()  # and is decoded again when it is needed


def test_the_store_in_use_may_be_larger_than_the_limit(pets: Path, cache: Path) -> None:
    open_store(of(pets, image_size=8))
    store = open_store(of(pets, store_cache_gb=1e-9))
    assert len(store) == 12
    assert stores(cache) == [store.path]


def test_stores_take_half_of_the_free_disk_at_most(pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (open_store(of(pets, image_size=size)) for size in (8, 9))
    used_at(first, 1000)
    room = 2 * (bytes_of(second) + bytes_removed(open_store(of(pets, image_size=10))))

    def usage(path: Path) -> Any:
        files = (file for folder in stores(cache) for file in folder.iterdir())
        return SimpleNamespace(free=room - sum(file.stat().st_size for file in files))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    opened = open_store(of(pets, image_size=10))
    assert set(stores(cache)) == {second.path, opened.path}


def test_a_store_that_another_process_makes_is_not_removed(pets: Path, cache: Path) -> None:
    first = open_store(of(pets, image_size=8))
    with lock(first.path.with_suffix(".lock")):
        second = open_store(of(pets, image_size=9, store_cache_gb=1e-9))
    assert set(stores(cache)) == {first.path, second.path}


def test_only_finished_stores_are_removed_to_make_room(pets: Path, cache: Path) -> None:
    own = open_store(of(pets, image_size=8)).path.parent / "mine"
    being_built = own.with_name(f".{'0' * 20}-12345678.tmp")  # its last file is the manifest
    for folder in (own, being_built):
        folder.mkdir()
        (folder / MANIFEST).write_text("{}")
    with lock(own.with_name(f"{'0' * 20}.lock")):
        open_store(of(pets, image_size=9, store_cache_gb=1e-9))
    assert own.exists()
    assert being_built.exists()


def test_a_store_that_cannot_be_removed_does_not_count_as_room(
    pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (open_store(of(pets, image_size=size)) for size in (8, 9))
    used_at(first, 1000)
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if path == first.path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    limit = bytes_of(second) + bytes_removed(open_store(of(pets, image_size=10)))
    last = open_store(of(pets, image_size=10, store_cache_gb=limit / 1e9))
    assert set(stores(cache)) == {first.path, last.path}


def test_a_cache_is_shared_with_a_user_whose_locks_cannot_be_taken(
    pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = open_store(of(pets, image_size=8))
    touch = Path.touch

    def touched(path: Path) -> None:
        if path.name in ("room.lock", f"{theirs.path.name}.lock"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        touch(path)

    monkeypatch.setattr(Path, "touch", touched)
    ours = open_store(of(pets, image_size=9, store_cache_gb=1e-9))
    assert set(stores(cache)) == {theirs.path, ours.path}


def test_a_store_of_which_half_was_removed_is_swept(pets: Path, cache: Path) -> None:
    first = open_store(of(pets, image_size=8))
    first.path.rename(first.path.with_name(f".{first.path.name}-old.tmp"))
    open_store(of(pets, image_size=9))
    assert leftovers(cache) == []


def test_a_disk_without_room_is_told_before_decoding(pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match="the disk is full, 0 MB are needed"):
        open_store(of(pets), lambda done, total: pytest.fail("decoded"))
    assert stores(cache) == []


def test_a_write_that_really_fails(pets: Path, cache: Path) -> None:
    """The kernel refuses to grow a file beyond the process's limit, as it does beyond a quota."""
    pytest.importorskip("resource")
    code = CHILD.replace(
        "result =", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\nresult ="
    )
    code = code.replace("result =", "from kitae.errors import DataError\ntry:\n  result =", 1)
    code = code.replace("print(result", "except DataError as error: sys.exit(f'said: {error}')\nprint(result")
    command = [sys.executable, "-c", code, f"folder:{pets}", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("said: ")
    assert "the disk is full" in done.stderr
    assert stores(cache) == leftovers(cache) == []


def test_a_cache_that_cannot_be_written_is_one_line(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be written.*data\.cache or KITAE_CACHE"):
        open_store(of(pets, cache=str(tmp_path / "file")))


def test_a_ready_store_opens_in_a_cache_that_cannot_be_written(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(of(pets))
    denied = Mock(side_effect=PermissionError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr(Path, "mkdir", denied)
    monkeypatch.setattr(store_module, "lock", denied)
    assert len(open_store(of(pets))) == 12


# Memory


def test_names_are_a_sequence() -> None:
    texts = ["a", "", "ünï/cödé.png", "bad \udcff byte"]
    names = Names.of(texts)
    assert list(names) == texts
    assert names[-1] == texts[-1]
    assert names[1:3] == texts[1:3]
    assert len(names) == 4
    with pytest.raises(IndexError):
        names[4]


@needs_status
def test_an_open_store_takes_no_memory(tmp_path: Path) -> None:
    """64 MB of pixels, all read through the mapping: they are the page cache's, not ours."""
    path = write_parquet(tmp_path / "x.parquet", train=20, test=0, classes=2)
    store = open_store(DataSpec(source=f"parquet:{path}"))
    big = tmp_path / "big"
    shutil.copytree(store.path, big)
    row = store.images[0].tobytes()
    count = (64 << 20) // len(row)
    (big / "images.u8").write_bytes(row * count)
    manifest = json.loads((big / "manifest.json").read_text())
    for name, item in (
            ("labels.i64", 8), ("keys.i64", 8), ("splits.u8", 1), ("names.i64", 8), ("hashes.u8", 16)
        ):  # fmt: skip
        os.truncate(big / name, item * (count + (name == "names.i64")))
        manifest["files"][name] = (big / name).stat().st_size
    manifest["files"]["images.u8"] = (big / "images.u8").stat().st_size
    (big / "manifest.json").write_text(json.dumps({**manifest, "count": count}))
    before = anonymous_memory()
    opened = store_module._load(big, 1e9)
    assert isinstance(opened, Store)
    assert int(opened.images.view(np.ndarray).sum(dtype=np.uint64)) == int(store.images[0].sum(dtype=np.uint64)) * count
    assert int(np.asarray(opened.labels).sum()) == int(store.labels.sum())
    assert anonymous_memory() - before < 8 << 20
