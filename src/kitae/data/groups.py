"""Groups of images that belong together: by `data.groups` (a column, folders, paths), equal pixels, or fold."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.data.base import is_key, name_key
from kitae.errors import DataError

PARENT = "parent"
"""The rule that takes the folder of a file."""
HASH_BYTES = 16


def by_values(values: Sequence[object], names: Sequence[str], rule: str, *, fixed: bool = False) -> NDArray[np.int64]:
    """A group for each value of a column: int64 [N].

    Args:
        values: N cells; 7 and 7.0 are equal. names: N names of the images, for messages.
        fixed: the column may hold groups as `data fix` writes them, which are kept.

    Raises:
        DataError: a cell that is empty or NaN.
    """
    # In one file of several, a column of integers may be of floats, because of an empty cell that it had.
    mixed = {int, float} <= set(map(type, values))
    whole = [int(value) if mixed and isinstance(value, float) and value.is_integer() else value for value in values]
    missing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in whole]
    texts = ["" if gone else str(value).strip() for value, gone in zip(whole, missing, strict=True)]
    if "" in texts:
        raise DataError(f"{names[texts.index('')]}: has no {rule} (data.groups), {texts.count('')} such image(s)")
    numbers = fixed and all(map(is_key, texts))
    return np.array([int(text) if numbers else name_key(text) for text in texts], np.int64)


def by_paths(paths: Sequence[str], rule: str, inside: int = 0) -> NDArray[np.int64]:
    """A group for each path: int64 [N].

    Args:
        paths: N, with `/` between their parts.
        rule: `parent`, or a regular expression that is searched in the path and whose first group names the group.
        inside: number of leading parts of a path that do not count as its folder: the class, and the split before it.
            An image directly in a class folder is a group of its own.

    Raises:
        DataError: a rule that is neither, a path that the expression does not match, or no image in such a folder.
    """
    if rule == PARENT:
        folders = ["/".join(path.split("/")[inside:-1]) for path in paths]
        if inside and not any(folders):
            raise DataError("data.groups: parent, but no class folder has images in subfolders; set it to null")
        # `./p1` and `p1` are one folder: it has the name that it is first written with.
        written: dict[str, str] = {}
        folders = [written.setdefault(posixpath.normpath(folder), folder) for folder in folders]
        pairs = zip(paths, folders, strict=True)
        return np.array([name_key(folder if folder or not inside else f"\0{path}") for path, folder in pairs], np.int64)
    try:
        pattern = re.compile(rule)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"data.groups: {rule!r} is neither a column nor a regular expression ({error})") from error
    if not pattern.groups:
        raise DataError(
            f"data.groups: {rule!r} is neither a column, nor parent, nor a regular expression with a group, such as "
            r"'(patient\d+)'"
        )
    found = [match.group(1) if (match := pattern.search(path)) else None for path in paths]
    missed = [path for path, name in zip(paths, found, strict=True) if not name]
    if missed:
        raise DataError(f"data.groups: {rule!r} names no group in {missed[0]}, {len(missed)} such path(s)")
    return np.array([name_key(str(name)) for name in found], np.int64)


def together(
    groups: NDArray[np.int64] | None, rows: NDArray[np.int64], twins: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Which images must stay in one split: int64 [len(rows)], equal for images that are equal, in one group, or linked
    by a chain of these; None if every image stands alone.

    Args:
        groups: int64 [N], of all images. rows: the images in question.
        twins: int64 [N], equal for equal images, see `first_alike`; None to ignore equal images.
    """
    groups = None if groups is None else np.asarray(groups)[rows]
    if twins is None:
        return groups
    same = twins[rows]
    if groups is None and len(np.unique(same)) == len(same):
        return None
    return components(same, groups)


def assign_folds(
    labels: NDArray[np.int64],
    keys: NDArray[np.int64],
    folds: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """A fold for each image, stratified by class, with each group in one fold: int64 [n] in [0, folds)."""
    order = keyed.shuffled(seed, 0, keys, keyed.SLOT_FOLDS)
    fold = np.empty(len(labels), dtype=np.int64)
    if groups is None:
        by_class = order[np.argsort(labels[order], kind="stable")]
        fold[by_class] = np.arange(len(labels)) % folds  # dealt across classes, so that no fold gets all remainders
        return fold
    names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # Not a table of groups and classes: with one pair of equal images, nearly every image is a group of its own.
    inside = np.split(labels[np.argsort(member, kind="stable")], np.cumsum(sizes)[:-1])
    totals = np.bincount(labels)
    # The images of a fold count as a class does, or the remainders would all be in one fold.
    share = np.append(totals, len(labels)) / folds
    filled = np.zeros((folds, len(share)))
    first = np.full(len(names), len(labels))
    np.minimum.at(first, member[order], np.arange(len(labels)))
    chosen = np.empty(len(names), dtype=np.int64)
    # The largest first, while every fold has room; equal ones in keyed order.
    for group in np.lexsort((first, -sizes)):
        counts = np.append(np.bincount(inside[group], minlength=len(totals)), sizes[group])
        after = filled + counts
        cost = (((after - share) / np.maximum(share, 1)) ** 2).sum(axis=1) - (
            ((filled - share) / np.maximum(share, 1)) ** 2
        ).sum(axis=1)
        chosen[group] = int(cost.argmin())
        filled[chosen[group]] += counts
    return chosen[member]


def components(twins: NDArray[np.int64], groups: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """For each image the first one that is equal, or of one group, or linked by a chain of these: int64 [n]."""
    if groups is None:
        return first_equal(twins)
    rows = np.arange(len(twins))
    return linked(np.r_[rows, rows], np.r_[first_equal(twins), first_equal(groups)], len(twins))


def linked(one: NDArray[np.int64], other: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """For each of `count` images the first one that a chain of the pairs (one[i], other[i]) links it to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = coo_array((np.ones(len(one), np.bool_), (one, other)), shape=(count, count))
    return first_equal(connected_components(pairs, directed=False)[1])


def first_equal(values: NDArray[Any]) -> NDArray[np.int64]:
    """For each of n values the position of the first one that equals it: int64 [n]."""
    _, first, member = np.unique(values, return_index=True, return_inverse=True)
    return first[member]


def pixel_hash(pixels: bytes | memoryview, about: str = "") -> bytes:
    """BLAKE2b over an image's pixels, 16 bytes.

    Args:
        pixels: in one fixed order and colour mode.
        about: text that distinguishes images with the same bytes, such as their size.
    """
    digest = hashlib.blake2b(about.encode(), digest_size=HASH_BYTES)
    digest.update(pixels)
    return digest.digest()


def first_alike(hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each image, the first image with the same hash (possibly itself): uint8 [N, 16] to int64 [N]."""
    return first_equal(np.ascontiguousarray(hashes).view(f"V{HASH_BYTES}").ravel())
