"""The base class of data sources, which give encoded images and labels."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.console import printable
from kitae.errors import DataError

Item = bytes | Path | NDArray[Any]  # encoded bytes, a file to decode, or pixels [H, W] or [H, W, C]
Progress = Callable[[int, int], None]  # (done, total): images, or bytes while something is downloaded

KEY = "kitae_key"  # the column of a file that `data fix` wrote: the keys of the images in the data it was made from

TRAIN, VAL, TEST = 0, 1, 2
SPLIT_NAMES = ("train", "val", "test")
# The names that folders, files and split columns use for the three splits, here and on the hubs.
SPLIT_ALIASES = {
    "train": TRAIN, "training": TRAIN,
    "val": VAL, "valid": VAL, "validation": VAL, "dev": VAL,
    "test": TEST, "testing": TEST,
}  # fmt: skip


class Names(Sequence[str]):
    """N names in two arrays, which may lie on disk, so that any number of them needs no memory."""

    def __init__(self, text: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        self.text, self.starts = text, starts

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names one after the other, in UTF-8."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]  # or IndexError
        return self.text[self.starts[place] : self.starts[place + 1]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Table:
    """What a source, and its store, know about N images apart from the pixels.

    Attributes:
        classes: the K class names; a label is a position in them.
        labels: int64 [N] in [0, K).
        splits: uint8 [N] of TRAIN, VAL, TEST; all TRAIN where the source has no split of its own.
        names: N names for messages and reports: a path below the source, or a row.
        keys: int64 [N], distinct numbers that identify an image for the splits: the row, or a hash of the name, so that
            adding a file does not reshuffle the others.
        groups: int64 [N], equal where images belong together (one patient, one scene); None without groups.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    names: Sequence[str]
    keys: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not self.classes or not len(self.labels):
            raise DataError("there are no images")
        # Names may differ only in the spaces around them, or in bytes that are not UTF-8.
        twice, times = Counter(printable(name).strip() for name in self.classes).most_common(1)[0]
        if times > 1:
            raise DataError(f"two classes are shown as {twice!r} without the spaces around them; rename or unite them")
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if bad.size:
            raise DataError(
                f"{self.names[int(bad[0])]}: label {self.labels[bad[0]]} is out of range, "
                f"there are {len(self.classes)} classes (0 to {len(self.classes) - 1}); {bad.size} such images"
            )

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Some of the images."""
        names = [self.names[row] for row in rows.tolist()]
        return Table(self.classes, self.labels[rows], self.splits[rows], names, self.keys[rows], self.groups_of(rows))

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The groups of some of the images: int64 [len(rows)]; None without groups."""
        return None if self.groups is None else np.asarray(self.groups[rows])


class Source(ABC):
    """A source of labelled images. Opening it is cheap: labels are read on first use, pixels when iterated.

    Attributes:
        fixed_as: the ending of the file that `data fix` writes for it; None where it cannot.

    Args:
        name: what errors call it.
        rule: how groups are found, see `DataSpec.groups`.
    """

    fixed_as: ClassVar[str | None] = None

    def __init__(self, name: str, rule: str | None = None) -> None:
        self.name, self.rule = name, rule

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the images and labels come from."""

    @abstractmethod
    def load_table(self) -> Table:
        """Read labels, splits and names."""

    @abstractmethod
    def images(self) -> Iterator[Item]:
        """All images in order."""

    def some(self, count: int) -> Iterator[Item]:
        """A sample of `count` images, or of fewer, for facts that need not be exact; here the first ones."""
        return itertools.islice(self.images(), count)

    def identity(self) -> dict[str, Any]:
        """Options that change what is read from the same files."""
        return {}

    def ignored(self) -> list[str]:
        """Ignored files that may have been meant as images."""
        return []

    @property
    def problems(self) -> list[str]:
        """What is wrong with the samples that are left out, each line beginning with `NAME: `."""
        return []

    def fingerprint(self) -> str:
        """Hash of every file's path, size and modification time and of the options: 32 hexadecimal digits.

        Raises:
            DataError: a file is gone.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([type(self).__name__, self.identity(), self.rule], sort_keys=True).encode())
        for path in self.files():
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error
            digest.update(f"\0{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @cached_property
    def table(self) -> Table:
        """Labels, splits, names, groups: read on first use."""
        try:
            return self.load_table()
        except DataError as error:
            if str(error).startswith(self.name):
                raise
            raise DataError(f"{self.name}: {error}") from error

    def __len__(self) -> int:
        return len(self.table.labels)


class FileSource(Source):
    """A source whose images are files. Subclasses set `_files`, the path of each image in order."""

    fixed_as = ".csv"
    _files: list[Path]

    def images(self) -> Iterator[Item]:
        return iter(self._files)

    def some(self, count: int) -> Iterator[Item]:
        """A keyed sample, as random access to files costs nothing."""
        return (self._files[row] for row in keyed.permutation(0, 0, len(self._files), keyed.SLOT_LIMIT)[:count])


def composed(text: str) -> str:
    """The name in Unicode's NFC. An archive made on a Mac may have it in NFD, which looks the same but is not equal."""
    return unicodedata.normalize("NFC", text)


def numbered(labels: Sequence[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The sorted classes of N labels, which are all text or all integers; and their places: int64 [N]."""
    labels = [composed(label) if isinstance(label, str) else label for label in labels]
    distinct = sorted(set(labels))
    place = {label: number for number, label in enumerate(distinct)}
    return tuple(map(str, distinct)), np.array([place[label] for label in labels], np.int64)


def given_keys(values: Sequence[Any], names: Sequence[str]) -> NDArray[np.int64]:
    """The keys of N images in a column `KEY`; where it is empty, of their names. Raises DataError: one is not a key."""
    texts = ["" if value is None else str(value) for value in values]
    for text, name in zip(texts, names, strict=True):
        if text and not is_key(text):
            raise DataError(f"{name}: {KEY} must be an integer from 0 on, not {text!r}; remove it to split anew")
    return np.array([int(text) if text else name_key(name) for text, name in zip(texts, names, strict=True)], np.int64)


def is_key(text: str) -> bool:
    """Whether it is a number in [0, 2**63)."""
    return len(text) < 20 and text.isascii() and text.isdecimal() and int(text) < 1 << 63


def name_key(name: str) -> int:
    """A number in [0, 2**63) that identifies a name, in NFC or NFD: its BLAKE2b hash."""
    digest = hashlib.blake2b(composed(name).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
