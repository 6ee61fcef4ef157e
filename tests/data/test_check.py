"""The data check: what is broken, doubled, leaked or labelled twice, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from kitae.data import near
from kitae.data.check import CheckReport, Duplicates, check
from kitae.data.parallel import DecodeMemory
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.data.splits import divide
from kitae.errors import DataError, KitaeError
from kitae.recipe import assignment
from tests.images import encode, write_folder
from tests.refusals import refused

check_module = importlib.import_module("kitae.data.check")


def photo(seed: int, side: int = 64) -> Image.Image:
    """Something like a photograph: blobs of colour at every scale, the larger the stronger."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((side, side, 3))
    for cells in (2, 4, 8, 16, 32, 64):
        octave = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += (np.asarray(octave.resize((side, side), Image.Resampling.BICUBIC)) - 127.5) / cells**0.7
    return Image.fromarray(np.clip(pixels / 2 + 120, 0, 255).astype(np.uint8))


def report_of(tmp_path: Path, images: list[bytes], labels: list[int], splits: list[str] | None = None) -> CheckReport:
    columns = {"image": images, "label": labels, "path": [f"{i}" for i in range(len(images))]}
    if splits is not None:
        columns["split"] = splits
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    return check(DataSpec(source=f"parquet:{tmp_path / 'x.parquet'}"))


@pytest.fixture(scope="module")
def distinct() -> list[bytes]:
    return [encode(photo(seed)) for seed in range(60)]


def pairs(found: tuple[Duplicates, ...]) -> list[tuple[str, ...]]:
    return [tuple(image.name for image in group.images) for group in found]


def test_what_is_no_source_is_named() -> None:
    refused(DataError, "check takes a source, its name or a path, not NoneType", check, None)
    refused(DataError, "threads: -1 must be at least 1", check, "fashion-mini:", threads=-1)


def test_sound_data_is_ok(tmp_path: Path, distinct: list[bytes]) -> None:
    report = report_of(tmp_path, distinct, [0, 1, 2] * 20)
    assert report.ok
    assert check(tmp_path / "x.parquet", planned=False).to_dict() == {
        **report.to_dict(),
        "source": f"parquet:{tmp_path / 'x.parquet'}",
    }
    assert report.images == 60
    assert report.counts == {
        "train": {"0": 14, "1": 14, "2": 14}, "val": {"0": 2, "1": 2, "2": 2}, "test": {"0": 4, "1": 4, "2": 4},
    }  # fmt: skip
    assert report.sizes == {"64 x 64": 60}
    assert report.modes == {"RGB": 60}
    assert report.exact == report.near == report.unreadable == report.problems == ()


def test_exact_duplicates_whatever_the_format(tmp_path: Path, distinct: list[bytes]) -> None:
    images, grey = list(distinct), photo(100).convert("L")
    images[10] = images[3]
    images[20] = encode(photo(3), "TIFF")
    images[30] = encode(photo(3), "WEBP", lossless=True)
    report = report_of(tmp_path, [*images, encode(grey), encode(grey.convert("RGB"))], [0, 1] * 31)
    assert pairs(report.exact) == [("3", "10", "20", "30"), ("60", "61")]
    assert pairs(report.label_conflicts) == [("3", "10", "20", "30"), ("60", "61")]
    assert report.modes == {"RGB": 61, "L": 1}
    assert not report.ok


def test_near_duplicates(tmp_path: Path, distinct: list[bytes]) -> None:
    copies = [
        encode(photo(5), "JPEG", quality=40),
        encode(photo(6).resize((40, 40), Image.Resampling.BICUBIC)),
        encode(ImageEnhance.Brightness(photo(7)).enhance(1.15)),
        encode(photo(8).convert("L")),
    ]
    report = report_of(tmp_path, [*distinct, *copies, distinct[0], distinct[1]], [0, 1] * 33)
    assert sorted(pairs(report.near)) == [("5", "60"), ("6", "61"), ("7", "62"), ("8", "63")]
    assert all(near.SIMILARITY <= found.similarity <= 1 for found in report.near)
    assert pairs(report.exact) == [("0", "64"), ("1", "65")]


def test_likenesses_on_one_background_are_not_duplicates(tmp_path: Path) -> None:
    """Whitening: thousands of garments on black look alike, and only few are the same."""
    seen: list[tuple[int, int]] = []
    sheet = tmp_path / "out" / "sheet.png"
    report = check(DataSpec(), progress=lambda done, total: seen.append((done, total)), sheet=sheet)
    assert 10 < len(report.near) < 100
    assert not report.exact
    assert all(duplicates.similarity >= near.SIMILARITY for duplicates in report.near)
    assert report.doubtful_labels
    assert not report.label_conflicts, "only alike"
    assert report.verdict == report.lines()[-1] == "ready"
    assert report.ok
    assert seen[-1] == (7000, 7000)
    assert len(seen) > 10
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width >= 8 * 64
        assert image.height >= 10 * 64
        assert len(image.convert("L").getcolors() or []) > 50


def test_duplicates_across_splits_are_told_apart(tmp_path: Path, distinct: list[bytes]) -> None:
    images = list(distinct)
    images[41], images[42], images[59] = images[1], images[2], encode(photo(4), "JPEG", quality=60)
    splits = ["train"] * 42 + ["val"] * 3 + ["test"] * 15
    report = report_of(tmp_path, images, [0, 1, 2] * 20, splits)
    assert pairs(report.exact) == [("1", "41"), ("2", "42")]
    assert pairs(report.across_splits) == [("2", "42"), ("4", "59")]
    assert [image.split for image in report.across_splits[1].images] == ["train", "test"]
    assert not report.ok


def test_across_splits_that_training_would_make(tmp_path: Path) -> None:
    """Without splits in the source, those that training would hold out count: equal images share one, like ones not."""
    images = [encode(photo(i % 100)) for i in range(200)]
    images += [encode(photo(i), "JPEG", quality=60) for i in range(100)]
    report = report_of(tmp_path, images, [0, 1] * 150)
    assert len(report.exact) == 100
    assert not [group for group in report.exact if group.across_splits]
    assert 20 < len(report.across_splits) < 80


def test_the_command_that_corrects_keeps_the_groups(make_folder: Callable[..., Path]) -> None:
    root = make_folder("a/anna", "a/ben", "b/cleo", "b/dora")
    shutil.copyfile(root / "a" / "ben" / "000.png", root / "a" / "ben" / "copy.png")
    for groups, options in ((None, ""), ("parent", " --set data.groups=parent")):
        report = check(DataSpec(source=f"folder:{root}", groups=groups))
        assert any(cure.startswith(f"kitae data fix folder:{root}{options} writes") for cure in report.cures)


def test_nothing_is_to_be_fixed_where_nothing_would_be_left(tmp_path: Path, distinct: list[bytes]) -> None:
    """The same folder was copied twice, under two names: `kitae data fix` would refuse."""
    report = report_of(tmp_path, [*distinct[:8], *distinct[:8]], [0] * 8 + [1] * 8)
    assert len(report.excluded) == 16
    assert report.cures == ["label conflicts: correct the labels; training would learn both"]
    report = report_of(tmp_path, [*distinct[:8], *distinct[:7], distinct[8]], [0] * 8 + [1] * 8)
    assert any("kitae data fix" in cure for cure in report.cures)


def test_the_command_that_corrects_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """`--set` takes YAML: a pattern that begins with a bracket, or a column called 2024, needs quotes there."""
    images = [*(encode(photo(i)) for i in range(7)), b"broken"]
    columns = {"image": images, "2024": [0, 1] * 4, "path": list("aabbccdd")}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    for groups in (r"(\w)", r"[a-c]*(\w)", r"(\w)|: (.)"):
        report = check(DataSpec(source=f"parquet:{tmp_path / 'x.parquet'}", label_column="2024", groups=groups))
        command = next(cure for cure in report.cures if cure.startswith("kitae data fix")).partition(" writes")[0]
        given = shlex.split(command)[4:]
        assert dict(map(assignment, given[1::2])) == {"data.label_column": "2024", "data.groups": groups}


def test_the_check_takes_turns_with_large_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    held: list[int] = []
    taken, look = DecodeMemory.reserved, check_module._look

    @contextlib.contextmanager
    def spied(self: DecodeMemory, size: int) -> Iterator[None]:
        asked.append(size)
        with taken(self, size):
            held.append(size)
            yield
            held.remove(size)

    def looked(*image: Any) -> Any:
        assert held, "released before the image was looked at"
        return look(*image)

    monkeypatch.setattr(DecodeMemory, "reserved", spied)
    monkeypatch.setattr(check_module, "_look", looked)
    for number, options in enumerate(({}, {"progressive": True})):
        (tmp_path / f"{number}").mkdir(parents=True)
        Image.new("RGB", (1000, 800)).save(tmp_path / f"{number}" / "large.jpg", **options)
    assert check(tmp_path, threads=1).images == 2
    assert sorted(asked) == [12 * 1000 * 800, 18 * 1000 * 800]


def test_a_check_shows_its_progress_where_somebody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, int]] = []
    counter = Mock(return_value=nullcontext(lambda *images: counted.append(images)))
    monkeypatch.setattr("kitae.data.check.counter", counter)
    check(write_folder(tmp_path / "pictures", train=4, classes=2))
    counter.assert_called_once_with(None, "reading images")
    assert counted[-1] == (8, 8)


def test_the_verdict_counts_what_is_wrong(tmp_path: Path, distinct: list[bytes]) -> None:
    report = report_of(tmp_path, [*distinct, b"x", distinct[6], distinct[7]], [0] * 30 + [1] * 33)
    assert pairs(report.label_conflicts) == [("6", "61"), ("7", "62")]
    assert [image.label for image in report.label_conflicts[0].images] == ["0", "1"]
    assert report.verdict == "not ready: 1 unreadable image, 2 label conflicts"
    assert report.lines()[-1] == report.verdict
    assert any("kitae data fix parquet:" in cure for cure in report.cures)
    assert report.to_dict()["verdict"] == report.verdict


def test_duplicates_across_splits_do_not_fail_the_check(tmp_path: Path, distinct: list[bytes]) -> None:
    images = [*distinct[:20], distinct[0]]
    report = report_of(tmp_path, images, [0, 1] * 10 + [0], ["train"] * 10 + ["val"] * 4 + ["test"] * 7)
    assert report.across_splits
    assert report.ok
    assert any("across splits" in cure for cure in report.cures)


def test_the_depth_of_16_bit_images_is_found(tmp_path: Path) -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8)
    images = [encode(Image.fromarray(ramp + number)) for number in range(10)]  # all black by their high bytes
    images.append(encode(Image.fromarray(ramp + 3000)))
    report = report_of(tmp_path, images, [0, 1] * 5 + [0])
    assert (report.highest, report.depth) == (3063, 12)
    assert not report.exact
    assert report.to_dict()["depth"] == 12
    assert any("3,063" in line and "12 bits" in line for line in report.lines())
    given = check(DataSpec(source=f"parquet:{tmp_path / 'x.parquet'}", depth=10))
    assert any("higher levels become white" in line for line in given.lines())
    assert report_of(tmp_path, [encode(np.zeros((4, 4), np.uint8))] * 2, [0, 1]).depth is None


def test_unreadable_images_are_named(make_folder: Callable[..., Path]) -> None:
    root = make_folder("cats", "dogs", count=12)
    (root / "cats" / "003.png").write_bytes(b"no image")
    cut = (root / "dogs" / "004.png").read_bytes()
    (root / "dogs" / "004.png").write_bytes(cut[:-200])
    report = check(DataSpec(source=f"folder:{root}"))
    assert [name for name, _ in report.unreadable] == ["cats/003.png", "dogs/004.png"]
    assert report.images == 22
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 22
    assert not report.ok
    assert any("cats/003.png: not an image" in line for line in report.lines())
    assert any("on_corrupt=skip" in cure for cure in report.cures)
    assert any("kitae data fix" in cure for cure in report.cures)
    for path in (root / "cats").iterdir():  # a whole class: it is not to be left out
        path.write_bytes(b"no image")
    report = check(f"folder:{root}")
    assert "unreadable images: replace them" in report.cures
    assert not any("on_corrupt" in line or "data fix" in line for line in report.lines())


def test_files_that_are_passed_over_are_listed(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("cats", "dogs")
    inside = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    (folder / "loose.jpg").write_bytes(b"x")
    (inside / "notes.pdf").write_bytes(b"x")
    (inside / ".hidden.jpg").write_bytes(b"x")
    report = check(f"folder:{folder}")
    assert list(report.ignored) == [f"{inside.name}/notes.pdf", "loose.jpg"]
    assert any("ignored" in line for line in report.lines())
    assert report.to_dict()["ignored"] == list(report.ignored)


def test_what_prevents_training_is_a_problem(tmp_path: Path, distinct: list[bytes]) -> None:
    report = report_of(tmp_path, distinct[:10], [0] * 10)
    assert report.problems == ("there is only one class ('0'), a classifier needs two or more",)
    assert not report.ok


@pytest.mark.parametrize(
    ("limit", "why"), [(1, "1 is too small for the classes"), (60, "60 is more than the .* images"), (20, None)]
)
def test_a_refused_limit_is_a_problem(tmp_path: Path, distinct: list[bytes], limit: int, why: str | None) -> None:
    whole = report_of(tmp_path, distinct, [0, 1] * 30)
    report = check(DataSpec(source=whole.source, limit=limit))
    assert re.fullmatch("ready" if why is None else f"not ready: data.limit {why}.*", report.verdict)
    assert report.counts == whole.counts


def test_flat_and_broken_images_only(tmp_path: Path) -> None:
    flat = [encode(np.full((16, 16, 3), value, np.uint8)) for value in range(10, 200, 10)]
    report = report_of(tmp_path, [*flat, flat[0]], [0, 1] * 10)
    assert report.near == ()
    assert len(report.exact) == 1
    report = report_of(tmp_path, [b"x", b"y"], [0, 1])
    assert report.images == 0
    assert len(report.unreadable) == 2
    assert report.problems
    assert report.lines()


def test_threads_change_nothing(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    spec = DataSpec(source=f"folder:{make_folder('a', 'b', count=60)}")
    one = check(spec, threads=1, sheet=tmp_path / "one.png")
    four = check(open_source(spec), spec, threads=4, sheet=tmp_path / "four.png")
    assert one.to_dict() == four.to_dict()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "four.png").read_bytes()


def test_report_as_json_and_as_lines(tmp_path: Path, distinct: list[bytes]) -> None:
    report = report_of(tmp_path, [*distinct, *distinct[:8]], [0, 1] * 34)
    plain = json.loads(json.dumps(report.to_dict()))
    for found in ("counts", "sizes", "modes"):
        report.to_dict()[found].clear()
    report.to_dict()["counts"]["train"].clear()
    assert report.to_dict() == plain, "what is returned is the caller's own"
    assert plain["ok"] is True  # equal images share a split and a label here
    assert len(plain["exact_duplicates"]) == 8
    assert plain["exact_duplicates"][0]["images"][0] == {
        "name": "0",
        "class": "0",
        "split": report.exact[0].images[0].split,
    }
    lines = report.lines(examples=3)
    assert "  groups of exact duplicates: 8" in lines
    assert "    and 5 more" in lines
    assert all("\n" not in line for line in lines)


# The contact sheet


def test_contact_sheet_shows_training_images_only(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 200)).save(folder / f"{number}.png")
    spec = DataSpec(source=f"folder:{tmp_path / 'photos'}")
    check(spec, sheet=tmp_path / "sheet.png")
    table = open_source(spec).table
    trained = {int(Path(table.names[row]).stem) for row in divide(table, spec)[0]}
    with Image.open(tmp_path / "sheet.png") as image:
        shown = {colour[0] for _, colour in image.getcolors(1 << 20) or () if colour[1:] == (0, 200)}
    assert len(shown) == 16
    assert shown <= trained


def test_contact_sheet_that_cannot_be_written(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    spec = DataSpec(source=f"folder:{make_folder('a', 'b')}")
    refused(KitaeError, r"sheet\.png: cannot be written", check, spec, sheet=tmp_path / "file" / "sheet.png")


def test_a_full_disk_keeps_the_contact_sheet_of_before(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sheet.png").write_bytes(b"of before")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    spec = DataSpec(source=f"folder:{make_folder('a', 'b')}")
    refused(KitaeError, r"sheet\.png: cannot be written \(No space", check, spec, sheet=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes() == b"of before"
    assert not list(tmp_path.glob(".sheet*")), "nothing is left behind"


def test_class_names_with_markup_or_other_scripts(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder("<b>cats", "鍛え", "x" * 200)
    check(DataSpec(source=f"folder:{root}"), sheet=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


# The search for near hashes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 1000))
def test_candidates_are_all_pairs_within_7_bits(seed: int, count: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 3, np.uint64)
    hashes = centres[rng.integers(0, 3, count)]
    for _ in range(int(rng.integers(0, 12))):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64))
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_CHUNK", chunk)
        for one, other in near._candidates(hashes):
            found |= set(zip(one.tolist(), other.tolist(), strict=True))
    expected = {
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= near.HAMMING
    }
    assert found == expected


def test_the_search_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distinct: list[bytes]) -> None:
    monkeypatch.setattr(near, "_MAX_PAIRS", 10)
    images = [encode(photo(i % 10), "JPEG", quality=50 + i) for i in range(50)]
    report = report_of(tmp_path, [*images, *distinct], [0, 1] * 55)
    assert report.truncated
    assert any("stopped early" in line for line in report.lines())
