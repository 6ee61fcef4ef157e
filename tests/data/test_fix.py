"""What a check found is left out of the file that `fix` writes, and training takes that file."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kitae.data.check import SAME, check
from kitae.data.fix import fix
from kitae.data.sources import open_source, source_of
from kitae.data.spec import DataSpec
from kitae.data.splits import divide
from kitae.errors import DataError
from tests.data.test_check import photo, report_of
from tests.images import encode
from tests.refusals import refused

Maker = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cats and dogs: an unreadable image, a copy, a JPEG copy, and one picture in both classes."""
    root = tmp_path / "photos, mine"
    for place, name in enumerate(("cats", "dogs")):
        (root / name).mkdir(parents=True)
        for number in range(15):
            (root / name / f"{number:02}.png").write_bytes(encode(photo(15 * place + number)))
    (root / "cats" / "broken.png").write_bytes(b"no image")
    (root / "cats" / "copy.png").write_bytes((root / "cats" / "03.png").read_bytes())
    (root / "dogs" / "again.jpg").write_bytes(encode(photo(15 + 4), "JPEG", quality=95))
    (root / "dogs" / "conflict.png").write_bytes((root / "cats" / "05.png").read_bytes())
    return root


def test_a_folder_becomes_a_csv_file(folder: Path, tmp_path: Path) -> None:
    source = open_source(DataSpec(source=f"folder:{folder}"))
    report = check(source)
    assert not report.ok
    written = fix(source, report, tmp_path / "lists" / "fixed.csv")
    why = dict(written.left_out)
    assert why.pop("cats/broken.png") == "unreadable"
    assert "in conflict" in why.pop("cats/05.png")
    assert "in conflict" in why.pop("dogs/conflict.png")
    assert len([name for name in ("cats/03.png", "cats/copy.png") if name in why]) == 1
    assert len([name for name in ("dogs/04.png", "dogs/again.jpg") if name in why]) == 1
    assert len(why) == 2
    assert written.kept == 29
    again = check(DataSpec(source=f"csv:{written.path}"))
    assert again.ok
    assert (again.images, again.excluded) == (29, {})
    assert list(again.counts["train"]) == ["cats", "dogs"]


def test_classes_that_are_lost_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dogs", folder / "hounds")
    source = open_source(DataSpec(source=f"folder:{folder}"))
    written = fix(source, check(source), tmp_path / "fixed.csv")
    assert (written.classes, written.lost) == (1, ("dogs", "hounds"))


def test_a_conflict_names_an_image_of_another_class(folder: Path, tmp_path: Path) -> None:
    (folder / "cats" / "06.png").write_bytes((folder / "cats" / "05.png").read_bytes())
    source = open_source(DataSpec(source=f"folder:{folder}"))
    why = dict(fix(source, check(source), tmp_path / "fixed.csv").left_out)
    for name in ("cats/05.png", "cats/06.png"):
        assert "in conflict with dogs/conflict.png" in why[name]


def test_only_copies_of_what_stays_are_left_out(tmp_path: Path) -> None:
    """In a slow film many pictures are copies of the next one, but the last is none of the first."""
    film = [encode(Image.blend(photo(90), photo(91), place / 19)) for place in range(20)]
    others = [encode(photo(number)) for number in range(40)]
    report = report_of(tmp_path, [*film, *others], [*[0] * 19, 1, *[0, 1] * 20])
    copies = [{one.name for one in pair.images} for pair in report.near if pair.similarity >= SAME]
    for row, why in report.excluded.items():
        other = why.split()[3]  # a copy of OTHER, or in conflict with OTHER
        assert {str(row), other} in copies, f"{row}: {why}"
    assert "in conflict with 19" in report.excluded[18]
    assert all({int(name) for name in pair} & report.excluded.keys() for pair in copies)


def test_splits_are_kept_and_the_test_copy_stays(tmp_path: Path) -> None:
    images = [encode(photo(number)) for number in range(24)]
    images[20] = images[2]
    splits = ["train"] * 16 + ["val"] * 2 + ["test"] * 6
    report = report_of(tmp_path, images, [0, 1] * 12, splits)
    source = open_source(DataSpec(source=f"parquet:{tmp_path / 'x.parquet'}"))
    written = fix(source, report, tmp_path / "fixed.parquet")
    assert [name for name, _ in written.left_out] == ["2"]
    again = open_source(DataSpec(source=f"parquet:{written.path}"))
    assert again.table.splits.tolist() == [code for row, code in enumerate(source.table.splits.tolist()) if row != 2]
    assert again.table.classes == source.table.classes
    assert Image.open(io.BytesIO(next(again.images()))).size == (64, 64)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.parquet", "x.parquet"]


@pytest.mark.parametrize("groups", [None, r"(\d)\."])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_images_that_are_drawn_stay(folder: Path, tmp_path: Path, kind: str, groups: str | None) -> None:
    """Only broken images are left out here; a class with as many images holds out as many."""
    for name in ("cats/copy.png", "cats/05.png", "dogs/again.jpg", "dogs/conflict.png", "dogs/05.png"):
        (folder / name).unlink()
    (folder / "cats" / "broken.png").rename(folder / "cats" / "99.png")
    given = f"folder:{folder}"
    if kind == "parquet":
        files = sorted(folder.rglob("*.png"))
        columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
        columns["path"] = [file.name for file in files]
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        given = f"parquet:{tmp_path / 'x.parquet'}"
    spec = DataSpec(source=given, groups=groups)
    source = open_source(spec)
    report = check(source, spec)
    written = fix(source, report, tmp_path / f"fixed{source.fixed_as}")
    assert written.kept == 28
    again = open_source(DataSpec(source=source_of(written.path)))
    table = source.table.take(np.array([row for row in range(len(source)) if row not in report.excluded]))
    for seed in range(3):
        before, after = (divide(one, DataSpec(split_seed=seed)) for one in (table, again.table))
        assert [part.tolist() for part in before[:3]] == [part.tolist() for part in after[:3]]
    second = fix(again, check(again), tmp_path / f"second{source.fixed_as}")
    assert open_source(DataSpec(source=source_of(second.path))).table.keys.tolist() == table.keys.tolist()


def test_a_key_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    source = open_source(DataSpec(source=f"folder:{folder}"))
    path = fix(source, check(source), tmp_path / "fixed.csv").path
    lines = path.read_text().splitlines()
    more = lines[1].rpartition(",")[0]
    path.write_text("\n".join([*lines, f"{more},"]))  # a row that was added
    assert len(set(open_source(DataSpec(source=f"csv:{path}")).table.keys.tolist())) == 30
    path.write_text("\n".join([*lines, f"{more},-3"]))
    with pytest.raises(DataError, match="kitae_key must be an integer from 0 on, not '-3'"):
        _ = open_source(DataSpec(source=f"csv:{path}")).table


def test_integer_labels_of_a_parquet_file_stay(tmp_path: Path) -> None:
    images = [encode(photo(number)) for number in range(36)]
    images[4] = b"broken"
    report = report_of(tmp_path, images, [number % 12 for number in range(36)])
    source = open_source(DataSpec(source=f"parquet:{tmp_path / 'x.parquet'}"))
    path = fix(source, report, tmp_path / "fixed.parquet").path
    assert pq.read_table(path)["label"].to_pylist() == [number % 12 for number in range(36) if number != 4]
    assert open_source(DataSpec(source=f"parquet:{path}")).table.classes == tuple(map(str, range(12)))


def test_what_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    source = open_source(DataSpec(source=f"folder:{folder}"))
    report = check(source)
    refused(DataError, r"fixed\.parquet", fix, source, report, tmp_path / "fixed.parquet")
    (tmp_path / "there.csv").write_text("mine")
    refused(DataError, r"there\.csv: exists", fix, source, report, tmp_path / "there.csv")
    assert (tmp_path / "there.csv").read_text() == "mine"
    fix(source, report, tmp_path / "there.csv", overwrite=True)
    assert "path,label" in (tmp_path / "there.csv").read_text()


def test_the_source_is_not_changed(tmp_path: Path) -> None:
    """Its other columns would be lost, and a file in a folder of Parquet files would be read with them."""
    images = [encode(photo(number)) for number in range(6)]
    (tmp_path / "files").mkdir()
    (tmp_path / "0.png").write_bytes(images[0])
    (tmp_path / "a.csv").write_text("path,label,patient\n0.png,x,7\n")
    (tmp_path / "link.csv").symlink_to("a.csv")
    report = report_of(tmp_path / "files", images, [0, 1] * 3)
    for source, outs in (
        ("csv:a.csv", ("a.csv", "link.csv")),
        ("parquet:files/x.parquet", ("files/x.parquet",)),
        ("parquet:files", ("files/x.parquet", "files/new/y.parquet")),
    ):
        kind, _, path = source.partition(":")
        opened = open_source(DataSpec(source=f"{kind}:{tmp_path / path}"))
        for out in outs:
            refused(DataError, "is a part of", fix, opened, report, tmp_path / out, overwrite=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cats/\udcff.png", "its name cannot be written to a CSV file; rename it"),  # it would not be read as UTF-8
        ("owls /00.png", "the class 'owls ' begins or ends with a space"),
    ],
    ids=["name", "class"],
)
def test_what_a_csv_file_cannot_hold_is_refused(name: str, words: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "cats" / "00.png").rename(folder / name)
    source = open_source(DataSpec(source=f"folder:{folder}"))
    refused(DataError, words, fix, source, check(source), tmp_path / "fixed.csv")
    assert not (tmp_path / "fixed.csv").exists()


@pytest.mark.parametrize("name", ["~", "=1+1"])
def test_a_folder_called_like_the_home_folder_or_a_formula(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number in range(4):
        file = tmp_path / name / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photo(number)))
    source = open_source(DataSpec(source=f"folder:{tmp_path / name}"))
    written = fix(source, check(source), tmp_path / "fixed.csv")
    assert f"\n./{name}/a" in written.path.read_text()
    assert len(open_source(DataSpec(source=f"csv:{written.path}"))) == 4


def test_a_file_in_a_linked_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "away" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away" / "out")
    monkeypatch.chdir(tmp_path)
    source = open_source(DataSpec(source=f"folder:{folder.name}"))
    written = fix(source, check(source), "link/fixed.csv")
    for path in (written.path, tmp_path / "far" / "away" / "out" / "fixed.csv"):
        assert len(open_source(DataSpec(source=f"csv:{path}"))) == 29
