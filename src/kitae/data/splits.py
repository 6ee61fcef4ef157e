"""The split of images into train, validation and test.

The source's own validation and test splits are used if it has them; missing ones are held out from train, class by
class. The choice is keyed by (`split_seed`, the image's key), for validation by `val_seed` if given, so it is the same
everywhere, and adding files to a folder moves few of the others. Images of one group are never in two splits, and
neither are images with the same pixels, unless the source's own splits separate them.

Test rows are not an attribute: `Splits.open_test(counter)` returns them and calls the counter first, so that every
opening is counted. Until then `Splits.guard`, passed to an `ImageSet`, prevents test images from being gathered.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.data.base import SPLIT_NAMES, TEST, TRAIN, VAL, Table
from kitae.data.groups import assign_folds, components, first_equal, together
from kitae.data.spec import DataSpec
from kitae.data.store import Store
from kitae.errors import DataError, RecipeError
from kitae.files import write_atomically

Rows = NDArray[np.int64]

_ENOUGH = 150  # validation images, for a reliable choice


class TestClosedError(RuntimeError):
    """A test image was requested before the test was opened: a bug in the caller, which would invalidate the result."""

    __test__ = False  # not a test case, despite the name


@dataclass(frozen=True, eq=False)
class Splits:
    """Rows of a store, sorted, with no row in two splits.

    Its methods take `twins`, `groups` and `labels` of the whole store, int64 [M]: see `Store` and `Table`.

    Attributes:
        train: int64 rows; after `data.limit`.
        val: int64 rows.
        fingerprint: of the store that the rows belong to.
        unused: how many training rows `data.limit` left out.
    """

    train: Rows
    val: Rows
    fingerprint: str
    _test: Rows = field(repr=False)
    unused: int = 0
    _openings: list[None] = field(default_factory=list, repr=False, init=False)

    @property
    def test_count(self) -> int:
        """How many test images there are; reading the number does not open the test."""
        return len(self._test)

    def open_test(self, counter: Callable[[], None]) -> Rows:
        """The test rows: int64. `counter` is called first to record the opening; if it raises, test stays closed."""
        counter()
        self._openings.append(None)
        return self._test.copy()

    def rows(self, split: str, counter: Callable[[], None]) -> Rows:
        """The rows of `train`, `val` or `test`, int64; test is opened as by `open_test`.

        Raises:
            RecipeError: there are none.
        """
        rows = dict(self._parts)[split]
        if not len(rows):
            raise RecipeError(
                f"split: the run has no {split} images (data.folds); see out_of_fold in its evaluation.json"
            )
        return self.open_test(counter) if split == "test" else rows

    @property
    def held_out(self) -> str:
        """A hash of which rows are validation and which are test, and of how many rows there are, 32 hex digits.

        Unlike the fingerprint it does not depend on the size that the images were decoded to.
        """
        digest = hashlib.blake2b(digest_size=16)
        counts = len(self.train) + self.unused, len(self.val), len(self._test)
        digest.update(json.dumps(counts).encode() + self.val.tobytes() + self._test.tobytes())
        return digest.hexdigest()

    def guard(self, rows: Rows) -> None:
        """Raise TestClosedError if one of these store rows is a test image and the test has not been opened."""
        if not self._openings and len(self._test):
            place = np.minimum(np.searchsorted(self._test, rows), len(self._test) - 1)
            if (self._test[place] == rows).any():
                raise TestClosedError("a test image was asked for before the test was opened")

    def copies(self, twins: NDArray[np.int64], rows: Rows) -> NDArray[np.bool_]:
        """Which of these test rows have the same pixels as a training or validation image: bool [len(rows)]."""
        return np.isin(twins[rows], twins[np.concatenate([self.train, self.val])])

    @property
    def _parts(self) -> tuple[tuple[str, Rows], ...]:
        return ("train", self.train), ("val", self.val), ("test", self._test)

    def absent(self, labels: NDArray[np.int64], classes: int) -> dict[str, list[int]]:
        """The classes without any image in each split that is not empty."""
        return {
            name: np.flatnonzero(np.bincount(labels[rows], minlength=classes) == 0).tolist()
            for name, rows in self._parts
            if len(rows)
        }

    def group_counts(self, groups: NDArray[np.int64]) -> dict[str, int]:
        """How many groups there are in each split, for evaluation.json."""
        return {name: len(np.unique(groups[rows])) for name, rows in self._parts}

    def duplicates(self, twins: NDArray[np.int64]) -> dict[str, int]:
        """How many images of the store have the same pixels as another one, for evaluation.json.

        Returns:
            `images` that are in a `groups` of equal ones; `val`: validation images with the pixels of a training image;
            `test`: test images with the pixels of a training or validation image.
        """
        counts = np.bincount(twins, minlength=1)
        counts = counts[counts > 1]
        return {
            "images": int(counts.sum()),
            "groups": len(counts),
            "val": int(np.isin(twins[self.val], twins[self.train]).sum()),
            "test": int(self.copies(twins, self._test).sum()),
        }

    def save(self, path: str | Path) -> None:
        """Write to an .npz file, atomically; no pickle in it.

        Raises:
            KitaeError: a full disk or no permission; a file that was there before stays as it was.
        """
        buffer = io.BytesIO()
        np.savez(
            buffer, train=self.train, val=self.val, test=self._test, fingerprint=self.fingerprint, unused=self.unused
        )
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Splits:
        """Read what `save` wrote. Raises DataError: no such file, or not one that `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as data:
                rows = [data[name] for name in ("train", "val", "test")]
                if any(r.dtype != np.int64 or r.ndim != 1 for r in rows):
                    raise ValueError("rows must be int64")
                return cls(rows[0], rows[1], str(data["fingerprint"]), rows[2], int(data["unused"]))
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a splits file, or a broken one ({error})") from error


def enough_to_choose(table: Table, spec: DataSpec) -> DataSpec:
    """The spec with the `val_fraction` of a planned run: some 150 images, but between a tenth and a fifth of them."""
    pool = int((table.splits != TEST).sum())
    if spec.folds is not None:
        pool = round(pool * (1 - 1 / spec.folds))
    elif pool == len(table.labels):
        pool = round(pool * (1 - spec.test_fraction))
    share = min(0.2, max(0.1, _ENOUGH / max(pool, 1)))
    return spec.model_copy(update={"val_fraction": round(share, 3)})


def make_splits(store: Store, spec: DataSpec) -> Splits:
    """Split a store. Arguments and errors as `divide`."""
    train, val, test, unused = divide(store, spec, store.twins)
    return Splits(train, val, store.fingerprint, test, unused)


def divide(table: Table, spec: DataSpec, twins: NDArray[np.int64] | None = None) -> tuple[Rows, Rows, Rows, int]:
    """The rows of train, validation and test, and how many training rows `limit` leaves out.

    Of each class with n images in train, round(n * fraction) are held out, at least one if n allows it and never all.
    First test (if the source has none), then validation from the rest, then `limit` is applied to the rest. Images
    with the same pixels that were drawn into several splits then move to one of them; all other images stay.

    With `folds`, everything except the source's own test split is one pool. `fold` is the part of it used as test, and
    validation is held out from the others; without `fold` the whole pool is train, and there is no validation.

    Args:
        table: of a source or a store.
        spec: `val_fraction`, `test_fraction`, `split_seed`, `val_seed`, `limit`, `folds` and `fold`.
        twins: for each image the first row with the same pixels; None if unknown.

    Raises:
        DataError: fewer than two classes, a class without a training image, a split that would be empty, a group on
            two sides of the source's own splits, fewer groups than splits, a class in one group, a limit below the
            number of classes or above the images there are.
    """
    labels, classes = table.labels, table.classes
    if len(classes) < 2:
        raise DataError(f"there is only one class ({classes[0]!r}), a classifier needs two or more")
    if spec.folds is not None:
        return _folded(table, spec, spec.folds, twins)
    parts = {code: np.flatnonzero(table.splits == code) for code in (TRAIN, VAL, TEST)}
    _check_classes(labels[parts[TRAIN]], classes)
    _check_groups(table, table.splits)
    made = [code for code in (VAL, TEST) if not len(parts[code])]
    if table.groups is not None and made:
        pool = parts[TRAIN]
        _check_room(labels[pool], table.groups[pool], classes, 1 + len(made))
    draws = ((TEST, spec.test_fraction, spec.split_seed), (VAL, spec.val_fraction, _val_seed(spec)))
    for code, fraction, seed in draws:
        if not len(parts[code]):
            leave = 2 if code == TEST and not len(parts[VAL]) else 1  # validation wants an image of its own, too
            parts[TRAIN], parts[code] = _hold_out(table, parts[TRAIN], fraction, seed, code, leave)
    drawn = parts[TRAIN]
    parts = parts if twins is None else _united(parts, table, twins)
    for code in (TEST, VAL):
        if not len(parts[code]):
            raise DataError(
                f"no {SPLIT_NAMES[code]} image can be held out of {len(labels)} images: each class needs 3 images or "
                "more, in 3 groups with data.groups, and not all linked by identical images (kitae data fix "
                "writes the data without copies)"
            )
    train = _limited(table, parts[TRAIN], drawn, spec)
    return train, parts[VAL], parts[TEST], len(parts[TRAIN]) - len(train)


def _folded(table: Table, spec: DataSpec, folds: int, twins: NDArray[np.int64] | None) -> tuple[Rows, Rows, Rows, int]:
    """`divide` into folds; images that are equal or of one group are in the same fold and split."""
    labels, classes = table.labels, table.classes
    given = table.splits == TEST
    _check_groups(table, np.where(given, TEST, TRAIN).astype(np.uint8))
    pool, test = np.flatnonzero(~given), np.flatnonzero(given)
    _check_classes(labels[pool], classes)
    units = together(table.groups, pool, twins)
    found = len(pool) if units is None else len(np.unique(units))
    what = "images" if units is None else "groups of images"
    if found < folds:
        raise DataError(f"data.folds: {folds} is more than the {found} {what}; set it to {found} or less")
    part = assign_folds(labels[pool], table.keys[pool], folds, spec.split_seed, units)
    counts = np.bincount(labels[pool] * folds + part, minlength=len(classes) * folds).reshape(-1, folds)
    whole = np.flatnonzero(counts.max(axis=1) == counts.sum(axis=1))
    if whole.size:
        raise DataError(
            f"data.folds: class {classes[whole[0]]!r}{_others(whole)} has all its images in one fold, so the model "
            f"tested on that fold cannot learn it; add images{'' if table.groups is None else ' of other groups'}"
        )
    if units is not None:
        groups = np.full(len(labels), -1, np.int64)
        groups[pool] = units
        table = replace(table, groups=groups)
    train, val = pool, np.empty(0, np.int64)
    if spec.fold is not None:
        test = pool[part == spec.fold - 1]
        train, val = _hold_out(table, pool[part != spec.fold - 1], spec.val_fraction, _val_seed(spec), VAL, 1)
        if not len(val):
            raise DataError(f"data.folds: {len(pool)} images are too few: no val image can be held out of {len(train)}")
    kept = _limited(table, train, train, spec)
    return kept, val, test, len(train) - len(kept)


def _val_seed(spec: DataSpec) -> int:
    return spec.split_seed if spec.val_seed is None else spec.val_seed


def _united(parts: dict[int, Rows], table: Table, twins: NDArray[np.int64]) -> dict[int, Rows]:
    """The splits with equal images in one split; only images that were drawn into a split, or left in train, move.

    A set of equal images moves to the split of the one with the lowest key, which keeps the held-out shares even if
    most images have copies. With groups, all images of groups that share an image move together. The source's own
    validation and test images stay where they are.
    """
    codes = np.full(len(twins), -1, np.int64)
    for code, rows in parts.items():
        codes[rows] = code
    movable = np.flatnonzero(table.splits == TRAIN)
    units = components(twins[movable], None if table.groups is None else table.groups[movable])
    first = np.full(len(movable), 3, np.int64)
    last = np.full(len(movable), -1, np.int64)
    np.minimum.at(first, units, codes[movable])
    np.maximum.at(last, units, codes[movable])
    torn = np.flatnonzero((first < last)[units])
    if not torn.size:
        return parts
    labels, keys = table.labels, table.keys
    in_train = np.bincount(labels[parts[TRAIN]], minlength=len(table.classes))
    sizes = np.bincount(codes[codes >= 0], minlength=3)
    torn = torn[np.lexsort((keys[movable[torn]], units[torn]))]
    sets = np.split(movable[torn], np.flatnonzero(np.diff(units[torn])) + 1)
    for rows in sorted(sets, key=lambda rows: int(keys[rows[0]])):  # each by key, so the lowest comes first
        sides = codes[rows]
        leaving = np.bincount(labels[rows[sides == TRAIN]], minlength=len(in_train))
        moving = np.bincount(sides, minlength=3)
        target = int(sides[0])
        if target != TRAIN and ((leaving > 0) & (leaving == in_train)).any():
            target = TRAIN  # a class would lose its last training images
        emptied = [code for code in (VAL, TEST) if code != target and 0 < moving[code] == sizes[code]]
        if emptied and not ((leaving > 0) & (leaving == in_train)).any():
            target = emptied[0]
        codes[rows] = target
        sizes -= moving
        sizes[target] += len(rows)
        in_train -= leaving
        if target == TRAIN:
            in_train += np.bincount(labels[rows], minlength=len(in_train))
    return {code: np.flatnonzero(codes == code).astype(np.int64) for code in parts}


def _hold_out(table: Table, rows: Rows, fraction: float, seed: int, code: int, leave: int) -> tuple[Rows, Rows]:
    """(kept, held out); of each class at least `leave` images are kept."""
    labels = table.labels[rows]
    counts = np.bincount(labels)
    wanted = np.floor(counts * fraction + 0.5).astype(np.int64)
    wanted = np.minimum(np.maximum(wanted, 1), np.maximum(counts - leave, 0))
    # The epoch separates the two draws: otherwise the images just above the test threshold would be validation.
    if table.groups is None:
        order = keyed.shuffled(seed, code, table.keys[rows], keyed.SLOT_SPLIT)
        chosen = _rank_in_class(labels, order) < wanted[labels]
    else:
        chosen = _choose_groups(table.groups[rows], labels, wanted, seed, code, leave)
    return rows[~chosen], rows[chosen]


def _choose_groups(
    groups: NDArray[np.int64], labels: NDArray[np.int64], wanted: NDArray[np.int64], seed: int, code: int, leave: int
) -> NDArray[np.bool_]:
    """Whole groups, in keyed order, each taken if it brings the held-out class counts closer to the target.

    If no group does, the closest one is taken, provided that training images of its classes are left.
    """
    names, member = np.unique(groups, return_inverse=True)
    inside = np.split(labels[np.argsort(member, kind="stable")], np.cumsum(np.bincount(member))[:-1])
    missing = wanted.astype(np.float64)
    left = np.bincount(labels, minlength=len(wanted))
    chosen = np.zeros(len(names), dtype=np.bool_)
    for group in keyed.shuffled(seed, code, names, keyed.SLOT_SPLIT):
        classes, counts = np.unique(inside[group], return_counts=True)
        # |missing - counts|^2 < |missing|^2, and no class loses its last training images
        nearer = float((counts * (counts - 2 * missing[classes])).sum()) < 0
        if nearer and (left[classes] - counts >= leave).all():
            chosen[group] = True
            missing[classes] -= counts
            left[classes] -= counts
    if not chosen.any() and wanted.any():
        # With a few large groups, take the one that exceeds the target least, rather than none.
        table = np.zeros((len(names), len(wanted)))
        np.add.at(table, (member, labels), 1)
        far = ((missing - table) ** 2).sum(axis=1)
        far[((left - table < leave) & (table > 0)).any(axis=1)] = np.inf
        if np.isfinite(far.min()):
            chosen[far.argmin()] = True
    return chosen[member]


def _limited(table: Table, rows: Rows, drawn: Rows, spec: DataSpec) -> Rows:
    """`spec.limit` of the rows, classes in proportion, each at least once; a larger limit contains a smaller one's.

    Args:
        drawn: the rows before equal images were united. Rows are taken in this order, so that the few images that
            moved do not change which of the others are taken.
    """
    limit = spec.limit
    if limit is None:
        return rows
    if limit > len(rows):
        raise DataError(
            f"data.limit {limit} is more than the {len(rows)} training images after the split; lower it, or set null"
        )
    if limit < len(table.classes):
        raise DataError(f"data.limit {limit} is too small for the classes; set it to {len(table.classes)} or more")
    labels = table.labels[drawn]
    order = keyed.shuffled(spec.split_seed, 0, table.keys[drawn], keyed.SLOT_LIMIT)
    # Interleave the classes in proportion: image r of the n of its class has position (r + 1/2) / n.
    turn = (_rank_in_class(labels, order) + 0.5) / np.bincount(labels)[labels]
    dealt = drawn[np.lexsort((labels, turn))]
    dealt = np.concatenate([dealt[np.isin(dealt, rows)], np.setdiff1d(rows, drawn)])
    first = np.unique(table.labels[dealt], return_index=True)[1]  # of every class, which come before all others
    return np.sort(np.concatenate([dealt[first], np.delete(dealt, first)])[:limit])


def _rank_in_class(labels: NDArray[np.int64], order: Rows) -> NDArray[np.int64]:
    """For each image its position (0, 1, ...) within its class, in `order`."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - first[labels[by_class]]
    return rank


def _check_classes(labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if empty.size:
        raise DataError(
            f"class {classes[empty[0]]!r}{_others(empty)} has no training image; add some, or remove the class"
        )


def _others(found: NDArray[np.int64]) -> str:
    """For a message that names only the first of these classes."""
    more = len(found) - 1
    return f" (and {more} other class{'es' if more > 1 else ''})" if more else ""


def _check_room(labels: NDArray[np.int64], groups: NDArray[np.int64], classes: tuple[str, ...], parts: int) -> None:
    """Refuse n images of which one group contains all of a class that has enough of them for this many parts."""
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    several = np.bincount(pairs[0], minlength=len(classes))
    alone = np.flatnonzero((several == 1) & (np.bincount(labels, minlength=len(classes)) >= parts))
    if alone.size:
        raise DataError(
            f"data.groups: class {classes[alone[0]]!r}{_others(alone)} is in a single group, so it cannot be both "
            "trained and tested; add images of another group, or use other groups"
        )


def _check_groups(table: Table, codes: NDArray[np.uint8]) -> None:
    if table.groups is None:
        return
    first = first_equal(table.groups)
    crossing = np.flatnonzero(codes != codes[first])
    if crossing.size:
        other, one = int(crossing[0]), int(first[crossing[0]])
        raise DataError(
            f"{table.names[one]} ({SPLIT_NAMES[codes[one]]}) and {table.names[other]} ({SPLIT_NAMES[codes[other]]}) "
            "are of the same group (data.groups), which must not be in two splits; move one"
        )
