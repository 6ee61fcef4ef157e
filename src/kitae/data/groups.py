"""Which images belong together, where `data.groups` says so: by a column, by their folders, or by their paths."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import name_key
from kitae.errors import DataError

PARENT = "parent"
"""The rule that takes the folder of a file."""


def by_values(values: Sequence[object], names: Sequence[str], rule: str) -> NDArray[np.int64]:
    """A group for each value of a column: int64 [N].

    Args:
        values: N cells. names: N names of the images, for messages.

    Raises:
        DataError: an empty cell.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    if "" in texts:
        raise DataError(f"{names[texts.index('')]}: has no {rule} (data.groups), {texts.count('')} such image(s)")
    return np.array([name_key(text) for text in texts], np.int64)


def by_paths(paths: Sequence[str], rule: str, inside: int = 0) -> NDArray[np.int64]:
    """A group for each path: int64 [N].

    Args:
        paths: N, with `/` between their parts.
        rule: `parent`, or a regular expression whose first group names the group of the path in which it is found.
        inside: parts of a path that are no part of its folder: the class, and the split before it. An image directly
            there is a group of its own.

    Raises:
        DataError: a rule that is neither, a path that the expression does not match, or no image in such a folder.
    """
    if rule == PARENT:
        folders = ["/".join(path.split("/")[inside:-1]) for path in paths]
        if inside and not any(folders):
            raise DataError("data.groups: parent, but all images lie directly in their class's folder, in no subfolder")
        pairs = zip(paths, folders, strict=True)
        return np.array([name_key(folder if folder or not inside else f"\0{path}") for path, folder in pairs], np.int64)
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise DataError(f"data.groups: {rule!r} is no column and no regular expression ({error})") from error
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
