"""A CSV file of paths and labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kitae.data.check import check
from kitae.data.fix import fix
from kitae.data.sources import open_source, source_of
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import DataError
from tests.images import encode
from tests.refusals import refused


def images(folder: Path, count: int = 6) -> list[str]:
    (folder / "images").mkdir(parents=True)
    names = [f"images/{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode(np.full((8, 8, 3), 40 * number, np.uint8)))
    return names


def write(folder: Path, *lines: str) -> DataSpec:
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return DataSpec(source=f"csv:{folder / 'labels.csv'}", cache=str(folder / "cache"))


def test_rows_become_images_with_labels_splits_and_groups(tmp_path: Path) -> None:
    names = images(tmp_path)
    lines = [f"{name},{'cat' if n % 2 else 'dog'},{'test' if n > 3 else ''},{n // 2}" for n, name in enumerate(names)]
    source = open_source(write(tmp_path, "Path,Label,split,group", *lines))
    assert source.table.classes == ("cat", "dog")
    assert source.table.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert source.table.splits.tolist() == [0, 0, 0, 0, 2, 2]
    assert source.table.groups is not None
    assert np.unique(source.table.groups, return_inverse=True)[1].reshape(3, 2).std(axis=1).max() == 0
    assert len(set(source.table.groups.tolist())) == 3
    store = open_store(DataSpec(source=source.name, cache=str(tmp_path / "cache")))
    assert [int(np.asarray(store.images[row]).max()) for row in range(3)] == [0, 40, 80]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ("file,kind", "images/0.png,a"),
            r"no column 'label' or 'class' or .*label_column\); its columns are file, kind",
        ),
        (("images/0.png,a",), r"columns are images/0\.png, a; name it in the first line, or set data\.image_column"),
        (("path,label", "images/0.png,a", "images/9.png,b", "8.png,b"), r"line 3.*9\.png, and 1 more; .*data fix"),
        (("path;label", "images/0.png;a"), "separated by ';'"),
        (("path;label", "images/0.png;a, b"), "separated by ';'"),
        (("path,label", "images/0.png,"), "line 2"),
        (("path,label", "", "images/0.png,a", "", "9.png,b"), r"line 5.*9\.png"),
        (("path,label", "images/0.png,a", f"{'long' * 100}.png,b"), "line 3"),
        (("path,label", "images/0.png,a", "~no-such-user/here.png,b"), "line 3.*~no-such-user"),
        (("path,label,split", "images/0.png,a,maybe"), "maybe"),
        (("Path,label,path", "images/0.png,a,images/1.png"), "'Path' and 'path'.*rename"),
        (("path,label,split,split", "images/0.png,a,train,test"), "'split' and 'split'.*rename"),
        (("path,label", "images/0.png,dog, small", "images/1.png,dog, big"), "line 2 has more cells.*small.*quotes"),
        (("path,label", "images/0.png,a", 'images/1.png,"b', "images/2.png,b"), "row after line 2 is not CSV.*close"),
        (("path,label,note", 'images/0.png,a,"x', 'images/1.png,b,"y"', "images/2.png,b,"), "row after line 1"),
        (("",), "path"),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    images(tmp_path)
    with pytest.raises(DataError, match=words):
        open_source(write(tmp_path, *lines)).table  # noqa: B018


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    names = images(tmp_path, 4)
    lines = [f"{name},{'cat' if n % 2 else 'dog'},{'tabby' if n > 1 else 'pug'},x.png" for n, name in enumerate(names)]
    spec = write(tmp_path, "Photo,label,Breed,path", *lines)
    chosen = spec.model_copy(update={"image_column": "photo", "label_column": "breed"})
    source = open_source(chosen)
    assert list(source.table.names) == names
    assert source.table.classes == ("pug", "tabby")
    assert source.table.labels.tolist() == [0, 0, 1, 1]
    other = open_source(chosen.model_copy(update={"label_column": "label"}))
    assert other.table.classes == ("cat", "dog")
    assert other.fingerprint() != source.fingerprint()
    missing = chosen.model_copy(update={"label_column": "bred"})
    refused(
        DataError, r"no column 'bred' \(data\.label_column\); its columns are Photo, label, Breed", open_source, missing
    )
    fixed = fix(source, check(source, chosen), tmp_path / "fixed.csv")
    assert open_source(DataSpec(source=f"csv:{fixed.path}")).table.classes == ("pug", "tabby")


def test_paths_that_were_written_on_windows_are_found(tmp_path: Path) -> None:
    images(tmp_path, 2)
    (tmp_path / r"images\1.png").write_bytes(encode(np.full((8, 8, 3), 200, np.uint8)))
    source = open_source(write(tmp_path, "path,label", r"images\0.png,a", r"images\1.png,b"))
    store = open_store(DataSpec(source=source.name, cache=str(tmp_path / "cache")))
    assert [int(np.asarray(store.images[row]).max()) for row in range(2)] == [0, 200], "the second has such a name"
    assert list(source.table.names) == [r"images\0.png", r"images\1.png"], "so the splits are those of Windows"
    nowhere = write(tmp_path, "path,label", r"images\9.png,a")
    refused(DataError, r"line 2: there is no file .*9\.png", open_source, nowhere)


def test_a_line_ends_where_the_file_says(tmp_path: Path) -> None:
    """Other programs write captions, in which str.splitlines sees further line ends."""
    images(tmp_path)
    spec = write(tmp_path, "path , label,caption", "images/0.png,a,one\u2028two", 'images/1.png,b,"three\nfour"')
    assert open_source(spec).table.classes == ("a", "b")


def test_empty_cells_may_follow_the_last_column(tmp_path: Path) -> None:
    images(tmp_path)
    assert open_source(write(tmp_path, "path,label", "images/0.png,a,", 'images/1.png, "b, c",, ')).table.classes == (
        "a", "b, c",
    )  # fmt: skip


def test_other_labels_make_another_store_even_at_the_same_size_and_time(tmp_path: Path) -> None:
    images(tmp_path, 2)
    spec = write(tmp_path, "path,label", "images/0.png,cat", "images/1.png,dog")
    file, first = tmp_path / "labels.csv", open_store(spec)
    was = file.stat()
    write(tmp_path, "path,label", "images/0.png,dog", "images/1.png,cat")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size
    assert (first.labels.tolist(), open_store(spec).labels.tolist()) == ([0, 1], [1, 0])


def test_labels_that_change_while_they_are_read_do_not_stay_in_the_cache(tmp_path: Path) -> None:
    images(tmp_path, 2)
    spec = write(tmp_path, "path,label", "images/0.png,cat", "images/1.png,dog")
    read = open_source(spec)
    write(tmp_path, "path,label", "images/0.png,dog", "images/1.png,cat")
    assert read.fingerprint() != open_source(spec).fingerprint()


def test_a_path_is_recognised_by_what_it_is(tmp_path: Path) -> None:
    write(tmp_path, "path,label")
    assert source_of(tmp_path / "labels.csv").startswith("csv:")
    assert source_of(tmp_path).startswith("folder:")
    (tmp_path / "part.parquet").touch()
    assert source_of(tmp_path).startswith("parquet:")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    assert source_of(tmp_path).startswith("parquet:")
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "0.png")
    assert source_of(tmp_path).startswith("folder:"), "a table that lies in a folder of classes"
    for wrong in ("missing", "labels.txt", "~no-such-user/here", "long" * 100):
        (tmp_path / "labels.txt").touch()
        refused(DataError, wrong, source_of, tmp_path / wrong)


def test_the_folder_of_a_run_is_no_data_but_a_recipe_may_lie_beside_some(tmp_path: Path) -> None:
    for name in ("run/recipe.yaml", "run/predictions.parquet", "small/compression.json", "small/figures/filters.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    refused(DataError, "is the folder of a run, not data; give the folder of its images", source_of, tmp_path / "run")
    refused(DataError, "is the folder of a compression, not data", source_of, tmp_path / "small")
    (tmp_path / "run" / "train.parquet").touch()
    assert source_of(tmp_path / "run").startswith("parquet:")


def test_missing_files_are_findings_of_a_check_and_left_out_by_a_fix(tmp_path: Path) -> None:
    names = images(tmp_path)
    lines = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    spec = write(tmp_path, "path,label", *lines, "images/none.png,a")
    report = check(spec)
    assert [name for name, _ in report.unreadable] == ["images/none.png"]
    fixed = fix(open_source(spec.model_copy(update={"on_corrupt": "skip"})), report, tmp_path / "fixed.csv")
    assert fixed.kept == 6
    assert len(open_source(spec.model_copy(update={"source": f"csv:{fixed.path}"}))) == 6
