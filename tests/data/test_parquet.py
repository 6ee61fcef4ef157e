"""Parquet files: our own layout, the hub's, and wrong ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kitae.data.base import TEST, TRAIN, VAL
from kitae.data.parquet import ParquetSource
from kitae.data.sources import open_source, source_of
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from tests.images import encode, picture
from tests.refusals import refused


def image(label: int, number: int = 0) -> bytes:
    return encode(picture(label, number, (16, 16)))


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, **options)
    return path


def six(labels: Any = (0, 1, 2, 0, 1, 2), **more: Any) -> dict[str, Any]:
    return {"image": [image(i) for i in range(6)], "label": list(labels), **more}


def test_our_own_layout(tmp_path: Path) -> None:
    more = {
        "class_name": pa.array(["cat", "dog", "emu"] * 2).dictionary_encode(), "path": [f"{i}.png" for i in range(6)],
        "split": ["train", "train", "train", "val", "test", "test"], "group": [7, 7, 8, 9, 10, 10],
    }  # fmt: skip
    source = open_source(DataSpec(source=f"parquet:{write(tmp_path / 'x.parquet', six(**more), row_group_size=2)}"))
    assert isinstance(source, ParquetSource)
    assert source.table.classes == ("cat", "dog", "emu")
    assert source.table.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.table.splits.tolist() == [TRAIN] * 3 + [VAL] + [TEST] * 2
    assert list(source.table.names) == [f"{i}.png" for i in range(6)]
    assert source.table.groups is not None
    assert len(set(source.table.groups.tolist())) == 4
    assert list(source.images()) == [image(i) for i in range(6)]


@pytest.mark.parametrize(
    ("columns", "classes", "labels"),
    [
        (six(class_name=[10, 20, 30] * 2), ("10", "20", "30"), [0, 1, 2, 0, 1, 2]),
        (six(("dog", "cat", "emu", "emu", "cat", "dog")), ("cat", "dog", "emu"), [1, 0, 2, 2, 0, 1]),
        (six((30, 10, 20, 10, 20, 30)), ("10", "20", "30"), [2, 0, 1, 0, 1, 2]),
    ],
)
def test_labels(columns: dict[str, Any], classes: tuple[str, ...], labels: list[int], tmp_path: Path) -> None:
    table = ParquetSource(write(tmp_path / "x.parquet", columns)).table
    assert (table.classes, table.labels.tolist()) == (classes, labels)


def test_class_names_must_be_those_of_the_metadata(tmp_path: Path) -> None:
    """Labels may have been numbered anew, and the metadata of the old ones kept."""
    metadata = {"classes": json.dumps(["emu", "dog", "cat"])}
    path = write(tmp_path / "x.parquet", six(class_name=["emu", "dog", "cat"] * 2), metadata)
    assert ParquetSource(path).table.classes == ("emu", "dog", "cat")
    write(path, six(class_name=["cat", "dog", "emu"] * 2), metadata)
    refused(
        DataError, r"x\.parquet:0: label 0 is called 'cat' here and 'emu' in the m", lambda: ParquetSource(path).table
    )


def test_classes_that_differ_only_in_spaces_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", six(("cat", "dog", "cat ", "dog", "cat", "dog")))
    words = "two classes are shown as 'cat' without the spaces around them; rename or unite them"
    refused(DataError, words, lambda: ParquetSource(path).table)


def test_the_hubs_layout(tmp_path: Path) -> None:
    """A folder of split files, images in a struct, class names in the schema's metadata."""
    feature = {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"img": {"_type": "Image"}, "label": feature}}})}
    for file, start in (
        ("train-00000-of-00002", 0),
        ("train-00001-of-00002", 10),
        ("validation-00000-of-00001", 20),
        ("test-0-of-1", 30),
    ):
        structs = [{"bytes": image(start + i), "path": f"{start + i}.png" if start else None} for i in range(3)]
        write(tmp_path / "hub" / "data" / f"{file}.parquet", {"img": structs, "label": [0, 1, 1]}, metadata)
    source = ParquetSource(tmp_path / "hub")
    assert source.table.classes == ("cat", "dog", "emu")  # also the one without images: a later check names it
    names = dict(zip(source.table.names, source.table.splits.tolist(), strict=True))
    assert names["11.png"] == TRAIN
    assert names["21.png"] == VAL
    assert names["31.png"] == TEST
    assert names["train-00000-of-00002.parquet:2"] == TRAIN
    images = list(source.images())
    assert sorted(images) == sorted(image(start + i) for start in (0, 10, 20, 30) for i in range(3))
    assert images[list(source.table.names).index("32.png")] == image(32)


def test_splits_are_in_the_names_of_files_and_folders_or_in_a_column(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train" / "0000.parquet", six())
    write(tmp_path / "set" / "test.parquet" / "part-0.parquet", six())  # a folder named like a file
    assert sorted(ParquetSource(tmp_path / "set").table.splits.tolist()) == [TRAIN] * 6 + [TEST] * 6
    assert ParquetSource(tmp_path / "set").table.names[0] == "part-0.parquet:0"
    write(tmp_path / "set" / "val" / "0000.parquet", six())
    names = ParquetSource(tmp_path / "set").table.names
    assert [names[0], names[6], names[17]] == ["part-0.parquet:0", "train/0000.parquet:0", "val/0000.parquet:5"]
    path = write(tmp_path / "mine" / "test.parquet", six())
    assert ParquetSource(path).table.splits.tolist() == [TRAIN] * 6, "one file is train whatever its name"
    # By its name it is a test split in the folder: they must not share a store.
    assert ParquetSource(path).fingerprint() != ParquetSource(path.parent).fingerprint()
    columns = six(split=[None, "", " Test ", "val", "test", None])
    columns["image"][2] = None  # an unreadable image, which keeps its place
    source = ParquetSource(write(tmp_path / "x.parquet", columns))
    assert source.table.splits.tolist() == [TRAIN, TRAIN, TEST, VAL, TEST, TRAIN]
    assert list(source.images())[2] == b""


def test_the_name_of_a_file_or_of_the_inner_folder_decides_on_its_split(tmp_path: Path) -> None:
    for file in ("train_test_split/test.parquet", "train_test_split/train.parquet", "train_test_split/val/0.parquet"):
        write(tmp_path / "set" / file, six())
    assert ParquetSource(tmp_path / "set").table.splits.tolist() == [TEST] * 6 + [TRAIN] * 6 + [VAL] * 6


def test_files_are_found_in_a_folder_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    for file in ("train.parquet", "test.PARQUET"):
        write(tmp_path / "set" / file, six())
    assert sorted(ParquetSource(tmp_path / "set").table.splits.tolist()) == [TRAIN] * 6 + [TEST] * 6
    (tmp_path / "set" / "train.parquet").unlink()
    assert source_of(tmp_path / "set") == f"parquet:{tmp_path / 'set'}"


def test_links_are_followed_and_none_is_left_out_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train" / "0000.parquet", six())
    write(tmp_path / "set" / ".hidden" / "0000.parquet", six())
    write(tmp_path / "elsewhere" / "0000.parquet", six())
    (tmp_path / "set" / "test").symlink_to(tmp_path / "elsewhere")
    assert sorted(ParquetSource(tmp_path / "set").table.splits.tolist()) == [TRAIN] * 6 + [TEST] * 6
    (tmp_path / "set" / "train" / "0001.parquet").symlink_to(tmp_path / "gone.parquet")
    refused(DataError, r"train/0001\.parquet", lambda: ParquetSource(tmp_path / "set").table)


def test_other_column_names(tmp_path: Path) -> None:
    data = six()
    path = write(tmp_path / "x.parquet", {"picture": data["image"], "kind": data["label"]})
    source = ParquetSource(path, image_column="picture", label_column="kind")
    assert list(source.images()) == data["image"]
    path = write(tmp_path / "y.parquet", {"img": data["image"], "fine_label": data["label"]})
    assert ParquetSource(path).table.labels.tolist() == data["label"]


def test_classes_in_the_metadata_set_the_range(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", six(), {"classes": '["cat", "dog"]'})
    with pytest.raises(DataError, match=r"x\.parquet:2: label 2 is out of range, there are 2 classes"):
        _ = ParquetSource(path).table.labels
    path = write(tmp_path / "y.parquet", six(), {"classes": "[1, 2", "huggingface": "{}"})
    assert ParquetSource(path).table.classes == ("0", "1", "2")


def test_metadata_that_no_decoder_can_read_name_no_classes(tmp_path: Path) -> None:
    assert ParquetSource(write(tmp_path / "x.parquet", six(), {"classes": "[" * 100_000})).table.classes == tuple("012")


def test_files_must_number_their_classes_alike(tmp_path: Path) -> None:
    for name, metadata in (("test", '["cat", "dog", "fox"]'), ("train", '["cat", "dog", "fox"]'), ("zoo", None)):
        write(tmp_path / f"{name}.parquet", six(), metadata and {"classes": metadata})
    assert ParquetSource(tmp_path).table.classes == ("cat", "dog", "fox")  # the file without names follows the others
    write(tmp_path / "train.parquet", six(), {"classes": '["dog", "cat", "fox"]'})
    words = r"train\.parquet: its metadata names other classes than that of .*test\.parquet, or in another order; write"
    refused(DataError, words, lambda: ParquetSource(tmp_path).table)


def in_memory(table: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


ONLY_PATHS = pa.array([{"path": "x.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXT_BYTES = pa.array([{"bytes": "/etc/hostname"}], pa.struct([("bytes", pa.string())]))
NOT_UTF8 = pa.array([b"caf\xe9"]).view(pa.string())
LABELS_TWICE = pa.Table.from_arrays([[b"x"], [0], [0]], names=["image", "label", "label"])
IMAGES_TWICE = pa.Table.from_arrays([[b"x"], [b"x"], [0]], names=["image", "image", "label"])
WHOLE = in_memory(pa.table(six()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"picture": [b"x"], "label": [0]}, r"no column 'image' \(data.image_column\); its columns are picture, label"),
        ({"image": [b"x"], "kind": [0]}, r"no column 'label' \(data.label_column\); its columns are image, kind"),
        ({"image": ["x.png"], "label": [0]}, "column 'image' holds string; expected encoded bytes"),
        ({"image": [{"path": "x.png"}], "label": [0]}, "column 'image' holds struct"),
        ({"image": TEXT_BYTES, "label": [0]}, "column 'image' holds struct"),
        ({"image": ONLY_PATHS, "label": [0]}, "no bytes in any row, only paths, .*; write the images"),
        ({"image": [b"x", b"x"], "label": [0, -1]}, ":1: label -1 is out of range"),
        ({"image": [b"x", b"x"], "label": [0, None]}, ":1: has no label; add it, or leave the row out"),
        ({"image": [b"x", b"x"], "label": ["a", " "]}, ":1: has no label; add it"),
        ({"image": [b"x"], "label": [0.5]}, "labels must be int or string, not float"),
        ({"image": [b"x"], "label": NOT_UTF8}, "column 'label' cannot be read .*utf-8.*write it again"),
        ({"image": [b"x"], "label": pa.array([2**62], pa.duration("s"))}, "column 'label' cannot be read"),
        ({"image": [b"x"], "label": pa.array([2**64 - 1], pa.uint64())}, "out of range"),
        ({"image": [b"x"], "label": [0], "split": ["holdout"]}, "unknown split 'holdout' in row 0; valid: train"),
        ({"image": [b"x"], "label": [0], "split": [["train"]]}, r"unknown split \['train'\] in row 0"),
        ({"image": [b"x", b"y"], "label": [0, 1], "group": ["a", None]}, ":1: has no group"),
        ({"image": [b"x", b"y"], "label": [0, 1], "class_name": ["a", None]}, "row 1 has no class_name"),
        ({"image": [b"x", b"y"], "label": [0, 0], "class_name": ["a", "b"]}, "0 is called 'b' here and 'a' elsewhere"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "there are no images"),
        (in_memory(LABELS_TWICE), "has 2 columns 'label'; remove or rename one"),
        (in_memory(IMAGES_TWICE), "has 2 columns 'image'; remove or rename one"),
        (b"hello", "not a Parquet file"),
        (b"", "not a Parquet file"),
        (WHOLE[: len(WHOLE) // 2], "not a Parquet file, or a broken one"),
    ],
)
def test_wrong_tables_are_explained(tmp_path: Path, content: dict[str, Any] | bytes, words: str) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content if isinstance(content, bytes) else in_memory(pa.table(content)))
    refused(DataError, rf"x\.parquet.*{words}", lambda: [ParquetSource(path).table, *ParquetSource(path).images()])


def test_a_path_that_is_not_utf8_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", six()).rename(tmp_path / "\udcff.parquet")
    refused(DataError, r"\.parquet: its path is not UTF-8.*rename it", lambda: ParquetSource(path).table)


def test_damaged_pages_are_a_dataerror(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "whole.parquet", six(), compression="zstd").read_bytes())
    whole[4:400] = bytes(396)
    (tmp_path / "bad.parquet").write_bytes(whole)
    refused(DataError, r"bad\.parquet", list, ParquetSource(tmp_path / "bad.parquet").images())


def test_files_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", six())
    write(tmp_path / "set" / "b.parquet", {"picture": [b""], "label": [0]})
    refused(DataError, r"b\.parquet: no column 'image'", lambda: ParquetSource(tmp_path / "set").table)
    write(tmp_path / "set" / "b.parquet", six(group=[1] * 6))
    lacking = "no column 'group', which other files have"
    refused(DataError, rf"a\.parquet: {lacking}", lambda: ParquetSource(tmp_path / "set").table)
    write(tmp_path / "set" / "a.parquet", six(group=[1] * 6))
    write(tmp_path / "set" / "b.parquet", six())
    refused(DataError, rf"b\.parquet: {lacking}", lambda: ParquetSource(tmp_path / "set").table)
    (tmp_path / "nothing").mkdir()
    refused(DataError, r"no \.parquet files", ParquetSource, tmp_path / "nothing")


def test_large_images_come_whole_and_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big = [rng.bytes(2 << 20) for _ in range(8)]
    path = write(tmp_path / "x.parquet", {"image": big, "label": [0, 1] * 4}, compression="none")
    assert list(ParquetSource(path).images()) == big


def test_columns_change_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", six(other=[1, 0] * 3))
    assert ParquetSource(path).fingerprint() != ParquetSource(path, label_column="other").fingerprint()
