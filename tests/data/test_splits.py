"""Splits: stratified, keyed, grouped, and a test that stays closed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitae.data.base import TEST, TRAIN, VAL, Table, name_key
from kitae.data.groups import assign_folds
from kitae.data.loader import ImageSet
from kitae.data.spec import DataSpec
from kitae.data.splits import Splits, TestClosedError, divide, make_splits
from kitae.data.store import open_store
from kitae.errors import DataError
from tests.refusals import refused


@dataclass(frozen=True, eq=False, kw_only=True)
class Fake(Table):
    """A store as far as splitting looks at it."""

    twins: np.ndarray
    fingerprint: str = "f"


def fake(
    labels: Any, splits: Any = None, groups: Any = None, keys: Any = None, classes: tuple[str, ...] | None = None,
    twins: Any = None,
) -> Any:  # fmt: skip
    labels = np.asarray(labels)
    count = len(labels)
    return Fake(
        classes or tuple(f"class {i}" for i in range(int(labels.max()) + 1)),
        labels,
        np.zeros(count, np.uint8) if splits is None else np.asarray(splits, np.uint8),
        [f"{i}.png" for i in range(count)],
        np.arange(count) if keys is None else np.asarray(keys),
        None if groups is None else np.asarray(groups),
        twins=np.arange(count) if twins is None else np.asarray(twins),
    )


def spec(**fields: Any) -> DataSpec:
    return DataSpec(**fields)


def test_rows(splits: Splits) -> np.ndarray:
    return splits.open_test(lambda: None)


test_rows.__test__ = False  # type: ignore[attr-defined]


def parts(splits: Splits) -> list[np.ndarray]:
    """The rows of train, val and test."""
    return [splits.train, splits.val, test_rows(splits)]


def share(labels: np.ndarray, rows: np.ndarray) -> list[int]:
    return np.bincount(labels[rows], minlength=int(labels.max()) + 1).tolist()


# What is held out


def test_everything_is_in_one_split_and_classes_keep_their_shares() -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 10])
    splits = make_splits(fake(labels), spec(val_fraction=0.1, test_fraction=0.2))
    assert np.sort(np.concatenate(parts(splits))).tolist() == list(range(len(labels)))
    assert share(labels, test_rows(splits)) == [200, 20, 2]
    assert share(labels, splits.val) == [80, 8, 1]
    assert all((np.diff(rows) > 0).all() and rows.dtype == np.int64 for rows in parts(splits))
    assert splits.test_count == 222
    assert splits.unused == 0


def test_the_sources_own_splits_are_used() -> None:
    labels = np.tile([0, 1], 50)
    own = np.repeat([TRAIN, VAL, TEST], [60, 20, 20])
    splits = make_splits(fake(labels, own), spec())
    assert [rows.tolist() for rows in parts(splits)] == [[*range(60)], [*range(60, 80)], [*range(80, 100)]]
    only_test = make_splits(fake(labels, np.repeat([TRAIN, TEST], [80, 20])), spec(val_fraction=0.25))
    assert test_rows(only_test).tolist() == list(range(80, 100))
    assert share(labels, only_test.val) == [10, 10]
    assert only_test.val.max() < 80
    only_val = make_splits(fake(labels, np.repeat([TRAIN, VAL], [80, 20])), spec(test_fraction=0.25))
    assert only_val.val.tolist() == list(range(80, 100))
    assert share(labels, test_rows(only_val)) == [10, 10]


@pytest.mark.parametrize("groups", [None, np.arange(600) // 3])
def test_seeds_decide_and_another_val_seed_tests_with_the_same(groups: Any) -> None:
    data = fake(np.repeat([0, 1, 2], 200), groups=groups)
    before, same, other = (make_splits(data, spec(val_seed=seed)) for seed in (None, 0, 1))
    assert all(np.array_equal(*rows) for rows in zip(parts(before), parts(same), strict=True))
    assert np.array_equal(test_rows(before), test_rows(other))
    assert len(np.intersect1d(before.val, other.val)) < len(before.val) / 2
    assert not np.intersect1d(other.val, np.concatenate([other.train, test_rows(other)])).size
    assert not np.array_equal(test_rows(before), test_rows(make_splits(data, spec(split_seed=1))))


def test_recipes_without_a_val_seed_are_what_they_were_before_there_was_one() -> None:
    assert "val_seed" not in spec().model_dump(mode="json")
    assert spec(val_seed=3).model_dump(mode="json")["val_seed"] == 3
    assert DataSpec.model_validate(spec(val_seed=3).model_dump(mode="json")) == spec(val_seed=3)


def test_the_choice_is_not_a_run_of_rows_and_val_is_independent_of_test() -> None:
    """The images just above the threshold for test are no more likely than others to be validation."""
    labels = np.zeros(20_000, np.int64)
    labels[::2] = 1
    first = make_splits(fake(labels), spec(val_fraction=0.5, test_fraction=0.5))
    without_test = make_splits(fake(labels, np.where(np.arange(20_000) == 0, TEST, TRAIN)), spec(val_fraction=0.5))
    both = np.intersect1d(test_rows(first), without_test.val)
    assert abs(len(both) - 5000) < 5 * np.sqrt(5000)
    assert abs(np.mean(first.train < 10_000) - 0.5) < 0.03


def test_adding_an_image_moves_few_others() -> None:
    names = [f"cats/{i}.png" for i in range(500)] + [f"dogs/{i}.png" for i in range(500)]
    labels = np.repeat([0, 1], 500)
    before = make_splits(fake(labels, keys=[name_key(name) for name in names]), spec())
    longer = ["cats/0000.png", *names]
    after = make_splits(fake([0, *labels], keys=[name_key(name) for name in longer]), spec())
    moved = {names[row] for row in before.val} ^ {longer[row] for row in after.val}
    assert len(moved) <= 4


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=6), st.floats(0.01, 0.6), st.floats(0.01, 0.6), st.integers(0, 9)
)
def test_any_class_of_three_or_more_is_in_every_split(
    counts: list[int], val_fraction: float, test_fraction: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    splits = make_splits(fake(labels), spec(val_fraction=val_fraction, test_fraction=test_fraction, split_seed=seed))
    shares = [share(labels, rows) for rows in parts(splits)]
    assert np.sum(shares, axis=0).tolist() == counts
    assert np.min(shares) >= 1


# Groups


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(0, 9), st.integers(2, 4))
def test_groups_never_cross(group_count: int, seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, group_count, 600) * 1_000_003
    labels = rng.integers(0, classes, 600)
    splits = make_splits(fake(labels, groups=groups), spec(split_seed=seed))
    sides = [set(groups[rows].tolist()) for rows in parts(splits)]
    assert sum(map(len, sides)) == len(set.union(*sides)), "no group is on two sides"
    assert np.bincount(labels[splits.train], minlength=classes).min() >= 1
    assert sum(map(len, parts(splits))) == 600


def test_grouped_splits_are_nearly_stratified() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 5)
    labels = np.repeat(rng.choice(3, 400, p=[0.7, 0.2, 0.1]), 5)
    splits = make_splits(fake(labels, groups=groups), spec(val_fraction=0.1, test_fraction=0.2))
    counts = np.bincount(labels)
    assert np.abs(np.array(share(labels, test_rows(splits))) - 0.2 * counts).max() <= 5
    assert np.abs(np.array(share(labels, splits.val)) - 0.08 * counts).max() <= 5


def test_a_class_in_one_group_is_split_as_its_source_says() -> None:
    labels, groups = np.repeat([0, 1], [60, 10]), np.r_[np.arange(60), np.full(10, 99)]
    own = np.r_[np.repeat([TRAIN, VAL, TEST], [40, 10, 10]), np.full(10, TRAIN)]
    assert share(labels, make_splits(fake(labels, own, groups=groups), spec()).train)[1] == 10


def test_groups_are_counted_in_each_split() -> None:
    groups = np.repeat(np.arange(20), 6)
    splits = make_splits(fake(np.tile([0, 1], 60), groups=groups), spec())
    assert splits.group_counts(groups) == {"train": 14, "val": 2, "test": 4}


@pytest.mark.parametrize("count", [4, 5, 6])
def test_a_few_large_groups_are_split_all_the_same(count: int) -> None:
    """No whole group is near to 10 % or 20 % of the images: the nearest is taken."""
    labels = np.tile([0, 1], 50 * count)
    splits = make_splits(fake(labels, groups=np.repeat(np.arange(count), 100)), spec())
    assert (len(splits.val), len(test_rows(splits))) == (100, 100)
    assert len(splits.train) == 100 * (count - 2)


# Folds


def test_folds_are_stratified_and_keyed() -> None:
    labels = np.repeat(np.arange(3), [50, 21, 4])
    keys = np.arange(75) * 7
    fold = assign_folds(labels, keys, 5, 0)
    assert np.ptp(np.bincount(fold)) <= 1
    for label in range(3):
        assert np.ptp(np.bincount(fold[labels == label], minlength=5)) <= 1
    order = np.random.default_rng(0).permutation(75)
    again = assign_folds(labels[order], keys[order], 5, 0)
    assert (again != fold[order]).mean() < 1e-9
    assert (assign_folds(labels, keys, 5, 1) != fold).any()


def test_a_group_is_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 200)
    labels = (groups % 3).astype(np.int64)
    fold = assign_folds(labels, np.arange(200), 4, 0, groups)
    assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))
    for label in range(3):
        shares = np.bincount(fold[labels == label], minlength=4)
        assert shares.min() > 0.4 * shares.max()


def test_folds_of_many_classes_and_groups_take_little_memory() -> None:
    """Equal images alone make a group of every image: a table of groups and classes would be 128 MB here."""
    labels = np.arange(4000)
    tracemalloc.start()
    try:
        fold = assign_folds(labels, labels, 2, 0, labels)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert np.bincount(fold).tolist() == [2000, 2000]


def all_folds(data: Any, folds: int, **fields: Any) -> list[Splits]:
    return [make_splits(data, spec(folds=folds, fold=fold, **fields)) for fold in range(1, folds + 1)]


@pytest.mark.parametrize("groups", [None, np.arange(300) // 3])
def test_every_image_is_in_one_fold_and_all_are_trained_on_in_the_end(groups: Any) -> None:
    labels = np.repeat([0, 1, 2], 100)
    given = np.repeat([TRAIN, VAL, TEST, TRAIN], [60, 30, 60, 150])
    data = fake(labels, given, groups=groups)
    made = all_folds(data, 4)
    tested = [test_rows(fold) for fold in made]
    pool = np.flatnonzero(given != TEST)
    assert np.sort(np.concatenate(tested)).tolist() == pool.tolist()
    for fold, test in zip(made, tested, strict=True):
        together = np.concatenate([fold.train, fold.val, test])
        assert np.sort(together).tolist() == pool.tolist()
        assert min(share(labels, fold.train)) > 10
        if groups is not None:
            assert not np.isin(groups[test], groups[fold.train]).any()
            assert not np.isin(groups[fold.val], groups[fold.train]).any()
    assert np.ptp([len(test) for test in tested]) <= (1 if groups is None else 6)
    whole = make_splits(data, spec(folds=4))
    assert (whole.train.tolist(), len(whole.val)) == (pool.tolist(), 0)
    assert test_rows(whole).tolist() == np.flatnonzero(given == TEST).tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(2, 5))
def test_equal_images_and_groups_together_share_a_fold(seed: int, folds: int) -> None:
    """The union of the two: a chain of a group, an equal image in another one, and so on, is never torn."""
    rng = np.random.default_rng(seed)
    labels, groups, twins = rng.integers(0, 2, 200), rng.integers(0, 80, 200), np.arange(200)
    for one, other in rng.integers(0, 200, (15, 2)):
        twins[max(one, other)] = twins[min(one, other)]
    for first in (groups, None):
        for fold in all_folds(fake(labels, groups=first, twins=twins), folds, split_seed=seed):
            side = np.zeros(200, np.int64)
            side[fold.val], side[test_rows(fold)] = 1, 2
            for relation in (twins, groups) if first is not None else (twins,):
                assert all(len(np.unique(side[relation == one])) == 1 for one in np.unique(relation))


def test_four_hundred_small_classes_fill_all_folds() -> None:
    labels, twins = np.repeat(np.arange(400), 4), np.arange(1600)
    twins[1] = 0
    sizes = [len(test_rows(fold)) for fold in all_folds(fake(labels, twins=twins), 5)]
    assert max(sizes) - min(sizes) <= 3


def test_a_fold_is_one_of_the_folds() -> None:
    for wrong in ({"fold": 1}, {"folds": 3, "fold": 4}):
        with pytest.raises(ValueError, match=r"fold: . must be one of the folds"):
            spec(**wrong)


# Equal images


def sides(parts: tuple[np.ndarray, np.ndarray, np.ndarray, int], count: int) -> np.ndarray:
    codes = np.full(count, -1)
    for code, rows in zip((TRAIN, VAL, TEST), parts, strict=False):
        codes[rows] = code
    return codes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equal_images_share_a_split_and_no_other_image_moves(data: st.DataObject) -> None:
    count = data.draw(st.integers(40, 200))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    labels = rng.integers(0, 3, count)
    own = np.zeros(count, np.uint8)
    for code, kept in ((VAL, data.draw(st.booleans())), (TEST, data.draw(st.booleans()))):
        if kept:
            own[rng.choice(count, count // 6, replace=False)] = code
    twins = np.arange(count)
    for _ in range(data.draw(st.integers(0, 20))):
        one, other = rng.integers(0, count, 2)
        twins[twins == twins[other]] = twins[one]
    _, first, member = np.unique(twins, return_index=True, return_inverse=True)
    twins = first[member]
    images = fake(labels, own)
    before, after = (sides(divide(images, spec(), found), count) for found in (None, twins))
    alone = np.bincount(twins, minlength=count)[twins] == 1
    assert (before == after)[alone].all()
    assert (after == own)[own != TRAIN].all()
    free = own == TRAIN
    for unit in np.unique(twins):
        assert len(set(after[free & (twins == unit)].tolist())) <= 1
    assert np.array_equal(np.unique(after), np.unique(before))


def test_shares_stay_where_every_image_comes_twice() -> None:
    labels = np.tile(np.repeat([0, 1], 200), 2)
    train, val, test, _ = divide(fake(labels), spec(), np.tile(np.arange(400), 2))
    assert not np.intersect1d(train % 400, test % 400).size
    assert not np.intersect1d(train % 400, val % 400).size
    assert abs(len(test) - 160) < 40
    assert abs(len(val) - 64) < 30


def test_equal_images_of_two_groups_bring_the_groups_together() -> None:
    labels, groups = np.tile([0, 1], 60), np.arange(120) // 4
    plain = sides(divide(fake(labels, groups=groups), spec()), 120)
    train, test = (int(np.flatnonzero(plain == code)[0]) for code in (TRAIN, TEST))
    twins = np.arange(120)
    twins[max(train, test)] = min(train, test)
    after = sides(divide(fake(labels, groups=groups), spec(), twins), 120)
    assert after[train] == after[test]
    assert all(len(set(after[groups == group].tolist())) == 1 for group in range(30))
    others = (groups != groups[train]) & (groups != groups[test])
    assert (after == plain)[others].all()


def test_no_class_loses_its_last_training_image_to_its_twin() -> None:
    labels = np.r_[np.zeros(40, np.int64), np.ones(4, np.int64)]
    twins = np.r_[np.arange(40), np.full(4, 40)]
    for seed in range(10):
        train, _, _, _ = divide(fake(labels), spec(split_seed=seed), twins)
        assert np.bincount(labels[train], minlength=2)[1] == 4


def test_limit_takes_the_same_others() -> None:
    labels = np.tile([0, 1, 2], 100)
    twins = np.arange(300)
    plain = divide(fake(labels), spec(limit=90))
    val, left = int(plain[1][0]), int(np.setdiff1d(np.arange(300), np.concatenate(plain[:3]))[0])
    for one, other in ((val, int(plain[0][0])), (val, left)):
        found = twins.copy()
        found[max(one, other)] = min(one, other)
        train, _, _, unused = divide(fake(labels), spec(limit=90), found)
        assert len(train) == 90
        assert len(np.setdiff1d(plain[0], [*train, one, other])) == 0
        assert abs(unused - plain[3]) <= 1


def test_copies_across_the_sources_own_splits_are_counted() -> None:
    labels = np.tile([0, 1], 50)
    own = np.repeat([TRAIN, VAL, TEST], [60, 20, 20])
    twins = np.arange(100)
    # Two of a training image, two of a validation image, one of another test image.
    twins[[85, 86, 90, 91, 95]] = [5, 5, 65, 65, 94]
    twins[70] = 7
    splits = make_splits(fake(labels, own, twins=twins), spec())
    assert splits.duplicates(twins) == {"images": 10, "groups": 4, "val": 1, "test": 4}
    rows = test_rows(splits)
    assert rows[splits.copies(twins, rows)].tolist() == [85, 86, 90, 91]
    alone = np.arange(100)
    assert splits.duplicates(alone) == {"images": 0, "groups": 0, "val": 0, "test": 0}


# limit


def test_limit_keeps_proportions_and_smaller_ones_are_contained() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 20])
    data = fake(labels, np.r_[np.zeros(900), np.zeros(10), np.full(5, VAL), np.full(5, TEST)])
    previous: set[int] = set()
    for limit in (3, 10, 91, 455, 910):
        splits = make_splits(data, spec(limit=limit))
        assert len(splits.train) == limit
        assert splits.unused == 910 - limit
        assert previous <= set(splits.train.tolist())
        previous = set(splits.train.tolist())
        counts = np.array(share(labels, splits.train))
        assert counts.min() >= 1
        assert np.abs(counts - limit * np.array([600, 300, 10]) / 910).max() <= 1.5
        assert splits.val.tolist() == list(range(910, 915))


# Errors


SIX, A_AND_B = [0, 0, 0, 1, 1, 1], np.repeat([0, 1], 50)
OF_A_GROUP = fake([0, 1, 0, 1], [TRAIN, TRAIN, TEST, TEST], groups=[1, 2, 3, 2])
FOLD_OF_A_GROUP = fake([0, 0, 1, 1], [TRAIN, TRAIN, TRAIN, TEST], groups=[1, 2, 3, 3])
ONE_GROUP_OF_B = fake(np.repeat([0, 1], [60, 10]), groups=np.r_[np.arange(60), np.full(10, 99)])
# A black frame of each patient makes one group of all.
ROWS = np.arange(72)
LINKED = fake(ROWS // 6 % 2, groups=ROWS // 6, twins=np.where(ROWS % 6 == 0, 0, ROWS))


@pytest.mark.parametrize(
    ("data", "fields", "words"),
    [
        (fake([0] * 9, classes=("cats",)), {}, r"only one class \('cats'\)"),
        (fake([0, 0, 2, 2], classes=("a", "b", "c")), {}, "class .b. has no training image; add .* the class$"),
        (fake([0] * 9, classes=("a", "b", "c")), {}, r"class 'b' \(and 1 other class\) has no training image"),
        (fake([0, 0, 1], [TRAIN, TRAIN, TEST]), {}, "class 'class 1' has no training image"),
        (fake([0, 1], [TEST, TEST]), {}, r"class 'class 0' \(and 1 other class\) has no training image"),
        (fake([0, 1]), {}, "no test image can be held out of 2 images: each class needs 3"),
        (fake([0, 1, 0, 1]), {}, "no test image can be held out of 4 images"),
        (fake([0, 1, 0, 1], [TRAIN, TRAIN, TEST, TEST]), {}, "no val image can be held out of 4 images"),
        (fake(SIX, groups=[5] * 6), {}, r"data\.groups: class 'class 0' \(and 1 other class\) is in a single group"),
        (fake(SIX, groups=[5, 6] * 3), {}, "no test image can be held out of 6 images: .* in 3 groups"),
        (ONE_GROUP_OF_B, {}, r"data\.groups: class 'class 1' is in a single group"),
        (OF_A_GROUP, {}, r"1\.png \(train\) and 3\.png \(test\) are of the same group"),
        (LINKED, {}, r"held out of 72 images: .* not all linked by identical images \(kitae data fix"),
        (fake(A_AND_B), {"limit": 73}, r"data\.limit 73 is more than the 72 training images after the split; lower it"),
        (fake(A_AND_B), {"limit": 1}, r"data\.limit 1 is too small for the classes; set it to 2 or more"),
        (fake(SIX), {"folds": 7}, r"7 is more than the 6 images; set it to 6"),
        (fake(SIX, groups=[1, 1, 2, 1, 2, 2]), {"folds": 3}, "3 is more than the 2 groups of images; set it to 2"),
        (fake([0, 0, 0, 0, 1]), {"folds": 2}, r"class 'class 1' has all its images in one fold.*add images$"),
        (fake([0] * 8 + [1] * 4, groups=[0, 1, 2, 3] * 2 + [9] * 4), {"folds": 3}, "'class 1' .* of other groups"),
        (FOLD_OF_A_GROUP, {"folds": 2}, "are of the same group"),
    ],
)
def test_what_cannot_be_split_is_explained(data: Any, fields: dict[str, Any], words: str) -> None:
    for fold in (None, 1) if "folds" in fields else (None,):
        refused(DataError, words, make_splits, data, spec(**fields, fold=fold))


# The test stays closed


def test_test_rows_are_opened_and_counted() -> None:
    splits, openings = make_splits(fake(np.tile([0, 1], 50)), spec()), Mock()
    with pytest.raises(OSError, match="no space"):  # where an opening cannot be written down, nothing opens
        splits.open_test(Mock(side_effect=OSError("no space left")))
    with pytest.raises(TestClosedError):
        splits.guard(np.setdiff1d(np.arange(100), [*splits.train, *splits.val]))
    rows = splits.open_test(openings)
    assert len(rows) == splits.test_count == 20
    assert splits.open_test(openings).tolist() == rows.tolist()
    assert openings.call_count == 2
    rows[:] = 0
    assert test_rows(splits).max() > 0  # a copy


def test_no_test_image_is_gathered_before_the_opening() -> None:
    store = open_store(DataSpec())
    splits = make_splits(store, DataSpec())
    images = ImageSet(store.images, splits.train, store.labels, store.classes, guard=splits.guard)
    images.gather(images.order(0, 0)[:64])
    images.gather(splits.val)
    closed = np.flatnonzero(store.splits == TEST)
    for rows in (closed[:1], closed, np.r_[splits.train[:3], closed[-1:]], closed[:1] | (3 << 32)):
        with pytest.raises(TestClosedError):
            images.gather(rows)
    pixels, labels = images.gather(splits.open_test(lambda: None))
    assert len(pixels) == len(labels) == 1000
    assert "_test" not in repr(splits)


# On disk


def test_save_and_load(tmp_path: Path) -> None:
    splits = make_splits(fake(np.tile([0, 1], 50)), spec(limit=40))
    splits.save(tmp_path / "splits.npz")
    loaded = Splits.load(tmp_path / "splits.npz")
    assert [rows.tolist() for rows in parts(loaded)] == [rows.tolist() for rows in parts(splits)]
    assert loaded.fingerprint == "f"
    assert loaded.unused == splits.unused == 32
    assert [path.name for path in tmp_path.iterdir()] == ["splits.npz"]


def objects(path: Path) -> None:
    rows = np.array([{"a": 1}], dtype=object)
    np.savez(path, train=rows, val=rows, test=rows, fingerprint=np.array("f"), unused=np.array(0))


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:300]), lambda path: path.write_text("hello"),
        lambda path: np.savez(path, train=np.zeros(3)), objects,
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "splits.npz"
    make_splits(fake(np.tile([0, 1], 50)), spec()).save(path)
    damage(path)
    refused(DataError, r"splits\.npz: (no such file|not a splits file)", Splits.load, path)
