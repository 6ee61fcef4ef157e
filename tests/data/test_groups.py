"""Groups by columns, folders, regular expressions and equal pixels, and what each says where it fits nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitae.data.base import Source
from kitae.data.groups import HASH_BYTES, by_paths, components, first_alike, pixel_hash
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.recipe import Recipe
from tests.images import write_folder
from tests.refusals import refused

PATHS = ["a/p1/1.png", "a/p1/2.png", "a/p2/1.png", "b/p1/3.png", "b/4.png", "b/5.png"]


def sizes(source: Source) -> list[int]:
    """Images of each group, the smallest first."""
    assert source.table.groups is not None
    return sorted(np.unique(source.table.groups, return_counts=True)[1].tolist())


def folder(root: Path) -> DataSpec:
    for path in PATHS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return DataSpec(source=f"folder:{root}")


def listed(root: Path) -> DataSpec:
    folder(root)
    lines = [f"{path},{path[0]},{'x' if place < 3 else 'y'}" for place, path in enumerate(PATHS)]
    (root / "list.csv").write_text("\n".join(["path,label,Day", *lines]))
    return DataSpec(source=f"csv:{root / 'list.csv'}")


def table(root: Path, **more: Sequence[object]) -> DataSpec:
    columns = {"image": [b"x"] * 6, "label": [0, 0, 0, 1, 1, 1], **more}
    pyarrow.parquet.write_table(pa.table(columns), root / "d.parquet")
    return DataSpec(source=f"parquet:{root / 'd.parquet'}")


def grouped(spec: DataSpec, rule: str) -> Source:
    return open_source(spec.model_copy(update={"groups": rule}))


def test_a_folder_of_classes(tmp_path: Path) -> None:
    spec = folder(tmp_path)
    assert open_source(spec).table.groups is None
    assert sizes(grouped(spec, "parent")) == [1, 1, 1, 3], "p1 of both classes is one; an image in no folder is alone"
    assert sizes(grouped(spec, r"(\d)\.png")) == [1, 1, 1, 1, 2]
    assert grouped(spec, "parent").fingerprint() != open_source(spec).fingerprint()
    rules = [
        ("patient", "neither a column"), ("(x", "nor a regular expression"),
        ("(x{99999999999})", "number is too large"),
        ("(p.)/", r"b/4\.png, 2"),
    ]  # fmt: skip
    for rule, words in rules:
        with pytest.raises(DataError, match=rf"data\.groups: .*{words}"):
            grouped(spec, rule).table.groups  # noqa: B018
    write_folder(tmp_path / "flat")
    with pytest.raises(DataError, match="no class folder has images in subfolders"):
        grouped(DataSpec(source=f"folder:{tmp_path / 'flat'}"), "parent").table.groups  # noqa: B018


def test_a_folder_with_splits_of_its_own(tmp_path: Path) -> None:
    for path in ("train/a/p1/1.png", "train/a/p1/2.png", "train/b/3.png", "test/a/p2/4.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    assert sizes(grouped(DataSpec(source=f"folder:{tmp_path}"), "parent")) == [1, 1, 2]


def test_a_csv_file(tmp_path: Path) -> None:
    spec = listed(tmp_path)
    assert sizes(grouped(spec, "day")) == [3, 3]
    assert sizes(grouped(spec, "parent")) == [1, 1, 2, 2]
    assert sizes(grouped(spec, "^(.)")) == [3, 3]
    (tmp_path / "list.csv").write_text("path,label,day\na/p1/1.png,a,1\nb/4.png,b,\n")
    with pytest.raises(DataError, match=r"b/4\.png: has no day"):
        grouped(spec, "day").table.groups  # noqa: B018


def test_a_parquet_file(tmp_path: Path) -> None:
    spec = table(tmp_path, patient=[1, 1, 2, 2, 3, 3], group=list("aabbab"), path=PATHS)
    assert sizes(open_source(spec)) == [3, 3]
    assert sizes(grouped(spec, "patient")) == [2, 2, 2]
    assert sizes(grouped(spec, "parent")) == [1, 1, 2, 2]
    windows = table(tmp_path, path=[path.replace("/", "\\") for path in PATHS])
    assert sizes(grouped(windows, "parent")) == [1, 1, 2, 2]
    with pytest.raises(DataError, match="no column `path`"):
        grouped(table(tmp_path), "parent").table.groups  # noqa: B018


def test_a_patient_is_one_group_in_files_with_other_types(tmp_path: Path) -> None:
    """As pandas writes a column of integers from which it has dropped an empty cell."""
    for name, patients in (("train", [7, 7, 8, 8, 9, 9]), ("test", [9.0, 9.0, 10.0, 10.0, 11.0, 11.0])):
        (tmp_path / name).mkdir()
        table(tmp_path / name, group=patients)
    source = open_source(DataSpec(source=f"parquet:{tmp_path}"))
    assert sizes(source) == [2, 2, 2, 2, 4]
    table(tmp_path, group=[1.0, 1.0, float("nan"), float("nan"), 2.0, 2.0])
    spec = DataSpec(source=f"parquet:{tmp_path / 'd.parquet'}")
    refused(DataError, r"d\.parquet:2: has no group .*2 such", lambda: open_source(spec).table)


def test_sources_without_columns_or_folders_say_so() -> None:
    refused(DataError, r"data\.groups: cifar10 has neither", open_source, DataSpec(source="cifar10", groups="parent"))


def test_a_folder_is_one_group_however_it_is_written() -> None:
    groups = by_paths(
        ["p1/1.png", "./p1/2.png", "p1//3.png", "x/../p1/4.png", "p2/5.png", "6.png", "./7.png"], "parent"
    )
    assert groups.tolist() == [groups[0]] * 4 + [groups[4]] + [groups[5]] * 2
    assert len(set(groups.tolist())) == 3
    assert groups[0] == by_paths(["p1/1.png"], "parent")[0]
    assert by_paths(["./p1/1.png"], "parent")[0] != groups[0], "splits that were drawn earlier stay as they are"


def test_an_expression_may_name_the_group_anywhere() -> None:
    groups = by_paths(["x/video12_frame3.jpg", "y/video12_frame9.jpg", "y/video1_frame3.jpg"], r"video(\d+)_")
    assert groups[0] == groups[1] != groups[2]


def test_recipes_without_groups_keep_their_fingerprint() -> None:
    recipe = Recipe.load("fashion-mini")
    assert "groups" not in recipe.to_yaml()
    assert recipe.override("data.groups=parent").fingerprint != recipe.fingerprint


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
def test_chains_of_equal_images_and_groups_end_at_the_first_image(pairs: list[tuple[int, int]]) -> None:
    twins, groups = np.array(pairs).T
    of = list(range(len(pairs)))
    for _ in pairs:
        of = [min(of[j] for j, two in enumerate(pairs) if one[0] == two[0] or one[1] == two[1]) for one in pairs]
    assert components(twins, groups).tolist() == of
    assert components(twins, None).tolist() == [twins.tolist().index(one) for one in twins]


@given(st.lists(st.integers(0, 5), max_size=40))
def test_the_first_image_with_the_same_pixels(images: list[int]) -> None:
    hashes = b"".join(pixel_hash(bytes([image])) for image in images)
    alike = first_alike(np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES))
    assert alike.tolist() == [images.index(image) for image in images]
