"""Sources by name, folders of images, and the embedded data set."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import sys
import unicodedata
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kitae.data.base import TEST, TRAIN, VAL, Table, name_key
from kitae.data.check import check
from kitae.data.csv_source import CsvSource
from kitae.data.sources import FolderSource, open_source, source_named, source_of
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.preprocess import PreprocessRules, decode, list_images
from tests.images import encode, picture, write_parquet
from tests.refusals import refused

Maker = Callable[..., Path]


def folder_source(root: Path) -> FolderSource:
    source = open_source(DataSpec(source=f"folder:{root}"))
    assert isinstance(source, FolderSource)
    return source


# The embedded data set


def test_fashion_mini_is_what_its_script_chose() -> None:
    """The digest that scripts/make_fashion_mini.py printed: the pixels and labels are those of Fashion-MNIST."""
    source = open_source(DataSpec())
    assert len(source) == 7000
    assert np.bincount(source.table.labels[source.table.splits == TRAIN]).tolist() == [600] * 10
    assert np.bincount(source.table.labels[source.table.splits == TEST]).tolist() == [100] * 10
    assert source.table.classes[0] == "T-shirt/top"
    assert source.table.classes[9] == "Ankle boot"
    digest = hashlib.sha256()
    rules = PreprocessRules(28, 1)
    for data, label in zip(source.images(), source.table.labels, strict=True):
        digest.update(decode(data, rules).tobytes() + bytes([label]))
    assert digest.hexdigest() == "331c4b435742e2312af751e190bf631f2bd7fad69432e94886ca0c2887f0b422"


def test_fashion_mini_is_small_and_its_licence_travels_with_it() -> None:
    assets = resources.files("kitae.data") / "assets"
    with resources.as_file(assets / "fashion-mini.parquet") as path:
        assert path.stat().st_size < 4_000_000
        assert pq.read_schema(path).names == ["image", "label", "class_name", "split", "path"]
    notice = (assets / "fashion-mini.LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "MIT License" in notice


def test_photos_mini_is_whole_photographs_and_its_licence_travels_with_it() -> None:
    assets = resources.files("kitae.data") / "assets"
    with resources.as_file(assets / "photos-mini.parquet") as path:
        assert path.stat().st_size < 5_000_000
    source = open_source(DataSpec(source="photos-mini"))
    assert source.table.classes == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert np.bincount(source.table.labels).tolist() == [100] * 6
    assert np.bincount(source.table.splits).tolist() == [480, 0, 120]
    with Image.open(io.BytesIO(next(source.images()))) as image:
        assert sorted(image.size) == [160, 213]
    notice = (assets / "photos-mini.LICENSE").read_text()
    assert "Copyright (c) 2017 Gary Thung" in notice
    assert "MIT License" in notice


# Names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fasion-mini", "did you mean fashion-mini"),
        ("cifar", "did you mean cifar10"),
        (
            "imagenet",
            "sources are fashion-mini, photos-mini, folder:PATH, parquet:PATH, csv:PATH, webdataset:SHARDS, cifar10",
        ),
        ("", "the sources are"),
        ("nowhere", "nowhere: no such file or folder, and no source is called"),
        ("folder", "needs a path: folder:PATH"),
        ("folder:", "needs a path: folder:PATH"),
        ("parquet", "needs a path"),
        ("fashion-mini:somewhere", "takes no path"),
        ("folder:/no/such/place", "folder:/no/such/place: no such folder"),
        ("parquet:/no/such/place", "no such file or folder"),
        ("cifar10:/no/such/place", "no such folder"),
    ],
)
def test_wrong_names_are_explained(name: str, words: str) -> None:
    refused(DataError, words, open_source, DataSpec(source=name))


def test_a_bare_path_gets_the_right_suggestion(tmp_path: Path, make_folder: Maker) -> None:
    root = make_folder("a", "b")
    refused(DataError, f"did you mean folder:{root}", open_source, DataSpec(source=str(root)))
    (tmp_path / "photos.v1").symlink_to(root)
    words = r"^data\.source: no source is called .*photos\.v1': did you mean folder:"
    refused(DataError, words, open_source, DataSpec(source=str(tmp_path / "photos.v1")))
    (tmp_path / "x.parquet").touch()
    refused(DataError, "did you mean parquet:", open_source, DataSpec(source=str(tmp_path / "x.parquet")))


# Folders


def test_one_folder_a_class(make_folder: Maker) -> None:
    source = folder_source(make_folder("cats", "dogs"))
    assert source.table.classes == ("cats", "dogs")
    assert source.table.labels.tolist() == [0] * 6 + [1] * 6
    assert source.table.splits.tolist() == [TRAIN] * 12
    assert source.table.names[0] == "cats/000.png"
    assert source.table.groups is None
    assert len(set(source.table.keys.tolist())) == 12
    assert list(source.images()) == [source.root / name for name in source.table.names]


def test_what_is_not_an_image_is_passed_over(make_folder: Maker) -> None:
    root = make_folder("cats", "dogs")
    (root / "cats" / "notes.txt").write_text("hello")
    (root / "cats" / ".hidden.png").write_bytes(b"")
    (root / "cats" / ".thumbnails").mkdir()
    (root / "cats" / ".thumbnails" / "1.png").write_bytes(b"")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "README.md").write_text("hello")
    (root / "dogs" / "LOUD.JPG").write_bytes(encode(picture(0, 0), "JPEG"))
    source = folder_source(root)
    assert source.table.classes == ("cats", "dogs")
    assert sorted(source.table.names) == sorted(
        [f"{c}/{i:03d}.png" for c in ("cats", "dogs") for i in range(6)] + ["dogs/LOUD.JPG"]
    )


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN"])
def test_images_in_folders_of_the_system_are_none_of_the_data(make_folder: Maker, name: str) -> None:
    """Thumbnails would be near copies of the images, perhaps in another split; deleted images a class of their own."""
    root = make_folder("cats", "dogs", name, f"cats/{name}/000.png.thumbs")
    source = folder_source(root)
    assert source.table.classes == ("cats", "dogs")
    assert len(source) == 12


def test_nested_files_and_linked_folders_belong_to_the_class(make_folder: Maker, tmp_path: Path) -> None:
    root = make_folder("cats/2023/may", "dogs")
    (root / "birds").symlink_to(make_folder("x", name="elsewhere") / "x", target_is_directory=True)
    source = folder_source(root)
    assert source.table.classes == ("birds", "cats", "dogs")
    assert "cats/2023/may/000.png" in source.table.names
    assert "birds/000.png" in source.table.names


def test_links_to_folders_are_followed_at_any_depth_and_circles_end(make_folder: Maker, tmp_path: Path) -> None:
    root = make_folder("cats", "dogs")
    (root / "cats" / "more").symlink_to(make_folder("x", name="elsewhere") / "x", target_is_directory=True)
    (root / "dogs" / "all").symlink_to(root, target_is_directory=True)
    source = folder_source(root)
    assert "cats/more/000.png" in source.table.names
    assert np.bincount(source.table.labels)[0] == 12
    assert len(source) == 12 + 6 + 12  # dogs/all holds cats, and dogs once
    assert not source.ignored()


def test_folders_that_link_to_each_other_in_too_many_ways_are_refused(
    make_folder: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitae.preprocess.files._MOST_CROSSED", 100)  # for the time of the test
    names = "abcdefghijkl"  # with 12 folders, each link is reached in more than ten million ways
    root = make_folder(*names)
    for one, other in itertools.permutations(names, 2):
        (root / one / f"to-{other}").symlink_to(root / other, target_is_directory=True)
    refused(DataError, "links lead to each other's folders in too many ways; remove", folder_source, root)


def test_folders_may_be_nested_more_deeply_than_calls(make_folder: Maker) -> None:
    root = make_folder("cats", "dogs")
    folder, made = root / "cats", []
    for _ in range(sys.getrecursionlimit() + 10):
        folder = Path(f"{folder}/d")
        folder.mkdir()
        made.append(folder)
    try:
        assert len(folder_source(root)) == 12
    finally:  # shutil.rmtree calls itself for each folder
        for folder in reversed(made):
            folder.rmdir()


@pytest.mark.parametrize("link", ["train/emus", "test"])
def test_a_class_or_a_split_that_is_a_link_to_nothing_is_refused(make_folder: Maker, tmp_path: Path, link: str) -> None:
    """The disk that it leads to may not be mounted."""
    root = make_folder("train/cats", "train/dogs")
    (root / link).symlink_to(tmp_path / "unmounted", target_is_directory=True)
    (root / "LICENSE.txt").symlink_to(tmp_path / "unmounted" / "LICENSE.txt")
    refused(DataError, rf"{Path(link).name}'.* is a link to nothing", folder_source, root)


def test_a_link_to_itself_is_an_image_that_cannot_be_read(make_folder: Maker) -> None:
    root = make_folder("cats", "dogs")
    for name in ("cats/self.png", "dogs/self"):
        (root / name).symlink_to(Path(name).name)
    source = folder_source(root)
    assert len(source) == 13
    assert check(source).excluded == {6: "unreadable"}
    assert source.ignored() == ["dogs/self"]


def test_a_name_that_is_too_long_is_no_file() -> None:
    long = "a" * 300
    for source in (*(f"{kind}:{long}" for kind in ("folder", "parquet", "csv", "mnist", "cifar10")), f"{long}/a"):
        assert source_named(source) == source
        refused(DataError, r"no such file|no such folder|File name too long", open_source, DataSpec(source=source))
    refused(DataError, "no such file or folder", list_images, [long])


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "dev")])
def test_folders_of_splits(make_folder: Maker, names: tuple[str, ...]) -> None:
    source = folder_source(make_folder(*(f"{split}/{label}" for split in names for label in ("a", "b"))))
    assert source.table.classes == ("a", "b")
    assert source.table.splits.tolist() == np.repeat([TRAIN, VAL, TEST][: len(names)], 12).tolist()
    assert source.table.labels.tolist() == ([0] * 6 + [1] * 6) * len(names)


def test_classes_of_splits_may_have_names_of_images(make_folder: Maker) -> None:
    source = folder_source(make_folder(*(f"{split}/{label}" for split in ("train", "val") for label in ("a.png", "b"))))
    assert source.table.classes == ("a.png", "b")
    assert source.table.splits.tolist() == [TRAIN] * 12 + [VAL] * 12


def test_a_class_that_two_systems_wrote_differently_is_one_class(make_folder: Maker) -> None:
    composed, decomposed = (unicodedata.normalize(form, "が") for form in ("NFC", "NFD"))
    assert composed != decomposed
    root = make_folder(f"train/{decomposed}", "train/b", f"val/{composed}", "val/b")
    source = folder_source(root)
    assert source.table.classes == ("b", composed)
    assert source.table.labels.tolist() == [0] * 6 + [1] * 6 + [0] * 6 + [1] * 6
    rows = [f"train/{decomposed}/000.png,{decomposed}", f"val/{composed}/000.png,{composed}", "train/b/000.png,b"]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert CsvSource(root / "list.csv").table.labels.tolist() == [1, 1, 0]
    assert name_key(f"{composed}.png") == name_key(f"{decomposed}.png"), "its images are drawn for the same split"


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (("bus", "train"), ("bus", "train")),
        (("bus/group=1", "train/group=1", "train/group=2"), ("bus", "train")),
        (("bus", "train/group=1", "train/group=2"), ("bus", "train")),
        (("control/group=1", "test/group=1"), ("control", "test")),
        (("latest/2021", "trainers/2021", "valley/2021"), ("latest", "trainers", "valley")),
        (("bus stop", "test tube", "train station"), ("bus stop", "test tube", "train station")),
    ],
)
def test_a_class_may_be_called_as_a_split(
    make_folder: Maker, folders: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    assert folder_source(make_folder(*folders)).table.classes == classes


def test_the_root_of_a_data_set_of_the_hub_names_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("# Pets")
    (root / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    refused(
        DataError, rf"has no class folders, but Parquet files in {root}/data; give parquet:{root}", folder_source, root
    )
    for split in ("train", "test"):
        (tmp_path / "split" / split).mkdir(parents=True)
        (tmp_path / "split" / split / "0000.parquet").write_bytes(b"PAR1")
    refused(DataError, rf"Parquet files in .*train; give parquet:{tmp_path}/split", folder_source, tmp_path / "split")


def test_groups_are_marked_folders(make_folder: Maker) -> None:
    source = folder_source(make_folder("a/group=anna", "b/group=anna/x", "b/group=ben", "b"))
    groups = dict(zip(source.table.names, source.table.groups.tolist(), strict=True))  # type: ignore[union-attr]
    assert groups["a/group=anna/000.png"] == groups["a/group=anna/005.png"] == groups["b/group=anna/x/000.png"]
    assert groups["b/group=ben/000.png"] != groups["a/group=anna/000.png"]
    assert len(set(groups.values())) == 2 + 6  # images outside any group are alone


@pytest.mark.parametrize(
    ("folders", "empty", "words"),
    [
        ((), ("cats",), "class 'cats' has no images"),
        (("cats",), ("dogs",), "class 'dogs' has no images in .*dogs"),
        (("train/a",), ("train/b",), "class 'b' has no images"),
        (("train/a", "test/a", "test/c"), (), "class 'c' of test is not in train"),
        (("train/a", "test/a", "more/a"), (), r"may be splits or classes \(test, train\); call splits train, val and"),
        (("train", "test", "more"), (), r"may be splits or classes \(test, train\)"),
        (("train/a", "train/b", "eval/a", "eval/b"), (), r"may be splits or classes \(train\)"),
        (("train_images/a", "val/a", "val/b"), (), r"may be splits or classes \(train_images, val\)"),
        (("eval/a", "test/a", "training_set/a"), (), r"may be splits or classes \(test, training_set\)"),
        (("test1", "train/a", "train/b"), (), r"may be splits or classes \(test1, train\)"),
        (("training_set/a", "training_set/b", "test_set/a"), (), r"classes \(test_set, training_set\)"),
        (("seg_train/seg_train/a", "seg_test/seg_test/a", "seg_pred"), (), r"classes \(seg_test, seg_train\)"),
        (("TrainData", "ValidationData"), (), r"may be splits or classes \(TrainData, ValidationData\)"),
        (("bus/city", "train/steam", "train/fast"), (), r"may be splits or classes \(train\).*or rename the classes"),
        (("test/a", "val/a"), (), "no train folder"),
        (("images/a", "images/b"), (), r"has only the folder 'images'.*give .*images"),
        (("train/a", "train/b", "test", "test/a"), (), "test must have its images in one folder per class"),
        (("train/a", "train/b"), ("test",), "test must have .* or remove the folder if a split is to be held out"),
        ((), (".",), "no class folders"),
    ],
)
def test_wrong_folders_are_explained(
    make_folder: Maker, tmp_path: Path, folders: tuple[str, ...], empty: tuple[str, ...], words: str
) -> None:
    root = make_folder(*folders)
    for folder in empty:
        (root / folder).mkdir(parents=True, exist_ok=True)
    refused(DataError, words, folder_source, root)


def test_images_without_class_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(picture(0, 0)))
    refused(DataError, r"no class folders.*expected one folder of images per class", folder_source, tmp_path)
    refused(DataError, "not a folder", folder_source, tmp_path / "a.png")


def test_fingerprint_follows_the_files(make_folder: Maker) -> None:
    root = make_folder("cats", "dogs")
    before = folder_source(root).fingerprint()
    assert before == folder_source(root).fingerprint()
    target = root / "cats" / "000.png"
    stat = target.stat()
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = folder_source(root).fingerprint()
    (root / "cats" / "new.png").write_bytes(target.read_bytes())
    added = folder_source(root).fingerprint()
    target.rename(root / "dogs" / "moved.png")
    moved = folder_source(root)
    assert len({before, touched, added, moved.fingerprint()}) == 4
    (root / "dogs" / "moved.png").unlink()
    refused(DataError, r"moved\.png: No such file", moved.fingerprint)


def test_keys_of_a_folder_follow_the_names_not_the_places(make_folder: Maker) -> None:
    root = make_folder("cats", "dogs")
    before = dict(zip(folder_source(root).table.names, folder_source(root).table.keys.tolist(), strict=True))
    (root / "cats" / "0000.png").write_bytes((root / "cats" / "000.png").read_bytes())
    after = dict(zip(folder_source(root).table.names, folder_source(root).table.keys.tolist(), strict=True))
    assert before.items() <= after.items()


# Labels


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (("x", "y"), [0, 2, -1], r"b\.png: label 2 is out of range, there are 2 classes \(0 to 1\); 2 such"),
        (("x", "x"), [0, 1, 1], "two classes are shown as 'x'"),
        (("caf\udce9", "caf\udce8"), [0, 1, 1], "two classes are shown as 'caf\ufffd'"),
        (("x", "y"), [], "no images"),
    ],
)
def test_labels_and_classes_that_cannot_be(classes: tuple[str, ...], labels: list[int], words: str) -> None:
    count, names = len(labels), ["a.png", "b.png", "c.png"][: len(labels)]
    splits = np.zeros(count, np.uint8)
    refused(DataError, words, Table, classes, np.array(labels, np.int64), splits, names, np.arange(count))


# Loose images


def test_list_images(make_folder: Maker, tmp_path: Path) -> None:
    root = make_folder("cats", "dogs", count=2)
    (root / "notes.txt").write_text("hello")
    odd = tmp_path / "photo"
    odd.write_bytes(b"")
    assert list_images([root]) == [root / c / f"00{i}.png" for c in ("cats", "dogs") for i in range(2)]
    assert list_images([odd, str(root / "cats"), odd]) == [odd, root / "cats/000.png", root / "cats/001.png", odd]
    refused(DataError, "none: no such file or folder", list_images, [tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    refused(DataError, "empty: no images in this folder", list_images, [tmp_path / "empty"])


def test_what_kitae_wrote_beside_the_classes_is_no_class(make_folder: Callable[..., Path]) -> None:
    root = make_folder("cat", "dog", "runs/photos/figures")
    (root / "runs" / "photos" / "recipe.yaml").write_text("name: photos")
    (root / "mine").mkdir()
    (root / "mine" / "study.yaml").write_text("study: {}")
    source = FolderSource(root)
    assert source.table.classes == ("cat", "dog")
    (root / "dog" / "recipe.yaml").write_text("bread: flour")
    assert FolderSource(root).table.classes == ("cat", "dog"), "a folder with images of its own is a class"
    (root / "runs" / "photos" / "recipe.yaml").unlink()
    assert FolderSource(make_folder("runs", "walks", name="sports")).table.classes == ("runs", "walks")


@pytest.mark.parametrize("folders", [("train/cat", "train/dog", "test/cat"), ("cat/mon", "cat/tue", "dog/mon")])
def test_predictions_beside_class_folders_at_any_depth(make_folder: Maker, folders: tuple[str, ...]) -> None:
    root = make_folder(*folders)
    write_parquet(root / "predictions.parquet", train=2, test=1, classes=2)
    assert source_of(root) == f"folder:{root}"


def test_predictions_of_a_run_beside_parquet_files_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_parquet(tmp_path / "images" / "a.parquet", train=2, test=1, classes=2)
    run = tmp_path / "images" / "runs" / "images"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: images")
    (run / "predictions.parquet").write_bytes((tmp_path / "images" / "a.parquet").read_bytes())
    (tmp_path / "images" / "recipe.yaml").write_text("name: beside the images")
    assert len(open_source(DataSpec(source=f"parquet:{tmp_path / 'images'}"))) == 6


def test_the_current_folder_is_named_for_commands_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    for given, meant in ((".", "photos"), ("./", "photos"), ("..", ""), ("cats/..", "photos")):
        assert source_of(given) == f"folder:{tmp_path.resolve() / meant}"
    assert source_of("../photos/") == "folder:../photos/"


def test_a_tar_file_is_answered_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    refused(DataError, rf"a\.tar: tar files are given as webdataset:{tmp_path}/a\.tar", source_of, tmp_path / "a.tar")
