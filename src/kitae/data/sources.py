"""Data sources by name, and folders of images.

    fashion-mini        7,000 images of clothing in 10 classes, embedded in the package
    photos-mini         600 photographs of waste in 6 classes, embedded in the package
    folder:PATH         one folder per class, or train, val and test folders of those
    parquet:PATH        a Parquet file or a folder of them
    csv:PATH            a CSV file of paths and labels
    webdataset:SHARDS   tar files of samples, here or on the network (see `shards`)
    cifar10, cifar100   their binary archives
    fashion-mnist, mnist

`NAME:PATH` reads `cifar10` and the like from the folder PATH, which already contains their files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kitae.data.archives import open_archive
from kitae.data.base import SPLIT_ALIASES, TRAIN, FileSource, Progress, Source, Table, composed, name_key
from kitae.data.csv_source import CsvSource
from kitae.data.groups import by_paths
from kitae.data.parquet import ParquetSource
from kitae.data.shards import ShardSource
from kitae.data.spec import DataSpec
from kitae.errors import DataError, did_you_mean
from kitae.files import user_path
from kitae.folders import kind_of, written_by_us
from kitae.preprocess import image_files, is_hidden, is_image, visible_files

GROUP_PREFIX = "group="
_RESULTS = {"predictions.parquet", "runs.parquet", "effects.parquet", "front.parquet"}  # in folders that Kitae wrote


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        open: makes the source, from the name, what follows the colon, the spec, and `progress` of `open_source`.
        takes: what must follow the colon; PATH is a file or folder of this machine.
        ending: a file with this ending is of this kind.
        groups: whether `data.groups` may be set.
    """

    open: Callable[[str, str, DataSpec, Progress | None], Source]
    takes: Literal["", "PATH", "SHARDS"] = ""
    ending: str = ""
    groups: bool = False


def open_source(spec: DataSpec, progress: Progress | None = None) -> Source:
    """The source that `spec.source` names.

    Args:
        spec: the `data` section of a recipe.
        progress: called with (bytes done, bytes in all) while something is downloaded.

    Raises:
        DataError: the name is unknown, the path is missing, a download fails, or `groups` names nothing of the source.
    """
    name, colon, path = spec.source.partition(":")
    if name not in SOURCES:
        gone = spec.source and not colon and not os.path.exists(user_path(spec.source))
        if gone and ("/" in spec.source or Path(spec.source).suffix):
            raise DataError(f"{spec.source}: no such file or folder")
        missing = f"{spec.source}: no such file or folder, and" if gone else "data.source:"
        raise DataError(f"{missing} no source is called {name!r}: {_suggestion(spec.source)}")
    kind = SOURCES[name]
    if spec.groups is not None and not kind.groups:
        raise DataError(f"data.groups: {name} has neither columns nor folders to take groups from; set it to null")
    if kind.takes == "PATH" and not path:
        raise DataError(f"data.source {spec.source!r} needs a path: {name}:PATH")
    return kind.open(name, path, spec, progress)


class FolderSource(FileSource):
    """`ROOT/CLASS/**/IMAGE`, or `ROOT/{train,val,test}/CLASS/**/IMAGE`.

    The second layout is assumed if every sub-folder has a split's name (train, training; val, valid, validation, dev;
    test, testing) and one is train; their images must be in class folders. Hidden files and folders are ignored, and so
    are files without an image's extension.
    Images below a folder `group=NAME` (inside a class) belong to group NAME, in all classes and splits, unless `groups`
    has another rule (see `DataSpec.groups`).
    """

    def __init__(self, root: str | Path, groups: str | None = None) -> None:
        """Lists the files. Raises DataError: no such folder, no class folders, a class or a split without images
        or behind a link to nothing.
        """
        super().__init__(f"folder:{root}", groups)
        self.root = user_path(root)
        if not os.path.isdir(self.root):
            found = os.path.exists(self.root)
            raise DataError(f"{self.name}: not a folder" if found else f"{self.name}: no such folder")
        self._files = []
        self._labels: list[int] = []
        self._splits: list[int] = []
        self._classes = self._scan()
        # A link to nothing is an image that cannot be read, not a folder that cannot be opened.
        self._gone = {path for path in self._files if not os.path.exists(path)}

    def _scan(self) -> tuple[str, ...]:
        codes = {folder: SPLIT_ALIASES.get(folder.name.lower()) for folder in _subfolders(self.root)}
        _check_links(self.root, self.name)
        named = sorted((code, folder) for folder, code in codes.items() if code is not None)
        train = [folder for code, folder in named if code == TRAIN]
        odd = [folder for folder, code in codes.items() if code is None]
        if named and odd:
            self._check_names([folder for _, folder in named], train, odd)
        if not named:
            self._check_words(odd)
        if named and not odd and not train:
            raise DataError(f"{self.name}: has a folder {named[0][1].name!r} but no train folder; add one")
        parts = named if train and not odd else [(TRAIN, self.root)]
        self._inside = 1 if parts[0][1] == self.root else 2
        found = {composed(folder.name) for code, part in parts if code == TRAIN for folder in _subfolders(part)}
        names = sorted(found)
        if not names:
            loose = len(image_files(parts[0][1]))
            if not loose and any(parts[0][1].glob("*.parquet")):  # as the hub converts data sets to Parquet
                raise DataError(
                    f"{self.name}: has no class folders, but Parquet files in {parts[0][1]}; give parquet:{self.root}"
                )
            held = f"{loose:,} images, but no class folders" if loose else "no class folders"
            raise DataError(
                f"{self.name}: {held} in {parts[0][1]}; expected one folder of images per class, or a CSV file of "
                "paths and labels"
            )
        inside = _subfolders(parts[0][1])[0]
        if len(names) == 1 and len(_subfolders(inside)) > 1 and not _has_images(inside):
            raise DataError(
                f"{self.name}: has only the folder {names[0]!r}, which has folders of its own; give {inside}"
            )
        numbers = {name: number for number, name in enumerate(names)}
        for code, part in parts:
            before = len(self._files)
            folders = _subfolders(part)
            _check_links(part, self.name)
            for folder in folders:
                if (name := composed(folder.name)) not in found:
                    raise DataError(
                        f"{self.name}: class {folder.name!r} of {part.name} is not in train; add it there, or remove it"
                    )
                images = image_files(folder)
                if not images and code == TRAIN:
                    if any(folder.glob("*.parquet")):  # as data sets of the Hugging Face hub have it
                        raise DataError(
                            f"{self.name}: has no class folders, but Parquet files in {folder}; give {folder}"
                        )
                    raise DataError(
                        f"{self.name}: class {folder.name!r} has no images in {folder}; add some, or remove the folder"
                    )
                self._files += images
                self._labels += [numbers[name]] * len(images)
                self._splits += [code] * len(images)
            if part != self.root:
                _check_part(part, self.name, empty=len(self._files) == before)
        return tuple(names)

    def _check_names(self, named: list[Path], train: list[Path], odd: list[Path]) -> None:
        """Refuse folders that were meant as splits, but would all become classes since some have other names."""
        if train and len(named) > 1:  # one alone may be a class of vehicles
            splits = ", ".join(folder.name for folder in named)
            raise DataError(
                f"{self.name}: has splits ({splits}) and a folder {odd[0].name!r} beside them; rename or move it"
            )
        for split in named:
            classes = _nested(split)
            alike = [folder for folder in odd if classes & _nested(folder)]
            if alike and train:
                raise DataError(
                    f"{self.name}: {alike[0].name!r} has class folders of train, but is not named after a split; "
                    "rename it to val or test"
                )
            if alike:
                likely = max(alike, key=lambda folder: "train" in folder.name.lower()).name
                raise DataError(
                    f"{self.name}: {likely!r} has class folders of {split.name}, but there is no train folder; rename "
                    f"{likely!r} to train, or {split.name!r} if both are classes"
                )
        # A class of vehicles with folders of its own usually has more classes beside it than folders in it.
        if train and len(_nested(train[0])) > len(odd) and not _has_images(train[0]):
            loose = next((folder.name for folder in odd if _has_images(folder)), None)
            if loose is not None:
                raise DataError(
                    f"{self.name}: {loose!r} has images outside class folders, beside {train[0].name}; move it "
                    f"elsewhere (kitae predict classifies its images), or rename {train[0].name!r} if both are classes"
                )

    def _check_words(self, folders: list[Path]) -> None:
        """Refuse folders such as training_set and test_set, which would be two classes that mix all of the data's."""
        spoken = {folder: _split_in(folder.name) for folder in folders}
        trains = [folder for folder in folders if spoken[folder] == TRAIN]
        others = [folder for folder in folders if spoken[folder] not in (None, TRAIN)]
        for train, held in itertools.product(trains, others):
            if None not in spoken.values() or _nested_twice(train) & _nested_twice(held):
                raise DataError(
                    f"{self.name}: {train.name!r} and {held.name!r} seem to be splits; call the folders train, val and "
                    "test, with one folder of images per class in each, or give a CSV file of paths and labels"
                )

    def files(self) -> list[Path]:
        return [path for path in self._files if path not in self._gone]

    def ignored(self) -> list[str]:
        taken = set(self._files)
        return sorted(p.relative_to(self.root).as_posix() for p in visible_files(self.root) if p not in taken)

    def identity(self) -> dict[str, object]:
        gone = sorted(path.relative_to(self.root).as_posix() for path in self._gone)
        return {"root": str(self.root.absolute()), "classes": self._classes, **({"gone": gone} if gone else {})}

    def load_table(self) -> Table:
        names = [path.relative_to(self.root).as_posix() for path in self._files]
        keys = np.array([name_key(name) for name in names], dtype=np.int64)
        return Table(
            classes=self._classes,
            labels=np.array(self._labels, dtype=np.int64),
            splits=np.array(self._splits, dtype=np.uint8),
            names=names,
            keys=keys,
            groups=_marked_groups(names, keys) if self.rule is None else by_paths(names, self.rule, self._inside),
        )


def _check_part(part: Path, name: str, *, empty: bool) -> None:
    """Refuse a split whose images would be ignored: it would be silently replaced by images held out of train."""
    loose = sorted(entry.name for entry in part.iterdir() if is_image(entry.name) and entry.is_file())
    if loose:
        raise DataError(
            f"{name}: {part.name} has images outside class folders ({loose[0]}); expected one folder of images "
            f"per class, as in train"
        )
    if empty:
        raise DataError(
            f"{name}: {part.name} has no images; add some, or remove the folder to hold out a split from train"
        )


def _check_links(folder: Path, name: str) -> None:
    """Refuse links to nothing that may have led to a class or a split, which would be missing without a word."""
    for link in sorted(folder.iterdir()):
        if link.is_symlink() and not (link.suffix or is_hidden(link.name) or os.path.exists(link)):
            raise DataError(
                f"{name}: {link.name!r} in {folder} is a link to nothing; restore what it leads to, or remove the link"
            )


def _has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself, not in one inside it."""
    return any(is_image(entry.name) for entry in folder.iterdir())


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
        return [path for path in found if not written_by_us(path) or _has_images(path)]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error


def _nested(folder: Path) -> set[str]:
    """The names of the folders in a class or a split, without those that mark groups of a class."""
    return {inner.name for inner in _subfolders(folder) if not inner.name.startswith(GROUP_PREFIX)}


def _nested_twice(folder: Path) -> set[str]:
    """`_nested`; of `seg_train/seg_train`, as some archives have it, that of the inner folder."""
    names = _nested(folder)
    return _nested(folder / folder.name) if names == {folder.name} else names


def _split_in(name: str) -> int | None:
    """The split that a folder's name speaks of, as training_set, TestData or seg_train do; None if none."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    found = re.search(rf"(?<![a-z])({'|'.join(SPLIT_ALIASES)})(set|data|images)?(?![a-z])", words)
    return SPLIT_ALIASES[found[1]] if found else None


def _marked_groups(names: Sequence[str], keys: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Groups by folders called `group=NAME`; any other image is a group of its own."""
    groups = ["/".join(part for part in name.split("/")[:-1] if part.startswith(GROUP_PREFIX)) for name in names]
    if not any(groups):
        return None
    return np.array([name_key(group) if group else key for group, key in zip(groups, keys, strict=True)], np.int64)


def source_of(path: str | Path) -> str:
    """The data.source of a folder, a folder of Parquet files, or a file with the ending of a source.

    Raises:
        DataError: there is no such file or folder, or it is none of these, such as the folder of a run.
    """
    given = user_path(path)
    if os.path.isdir(given):
        tables = {file.name for file in given.glob("*") if file.suffix.lower() == ".parquet"}
        ours = kind_of(given) if tables <= _RESULTS else None
        # Predictions may have been written into a folder of classes, or of splits of classes. The charts of a
        # compression are no photographs.
        folders = (folder for folder in _subfolders(given) if not (ours and folder.name == "figures"))
        inside = (file for folder in folders for file in visible_files(folder))
        if not (tables or ours) or any(is_image(file.name) for file in inside):
            return f"folder:{path}"
        if ours:
            raise DataError(f"{path}: is the folder of a {ours}, not data; give the folder of its images")
        return f"parquet:{path}"
    if not os.path.exists(given):
        raise DataError(f"{path}: no such file or folder")
    names = {kind.ending: name for name, kind in SOURCES.items() if kind.ending}
    if given.suffix.lower() not in names:
        files = " or ".join(f"a {ending}" for ending in names)
        raise DataError(f"{path}: not a data source; give a folder with one folder per class, {files} file")
    return f"{names[given.suffix.lower()]}:{path}"


def path_of(source: str) -> Path | None:
    """The path of a data.source that is a folder or file on this machine; None for all others."""
    name, _, path = source.partition(":")
    return user_path(path) if path and name in SOURCES and SOURCES[name].takes == "PATH" else None


def source_named(given: str | Path) -> str:
    """The data.source of an argument: a source is returned as it is, a path becomes the source of that path."""
    is_path = str(given).partition(":")[0] not in SOURCES and os.path.exists(user_path(given))
    return source_of(given) if is_path else str(given)


def _suggestion(source: str) -> str:
    with contextlib.suppress(DataError):
        if source:
            return f"did you mean {source_of(source)}?"
    listed = ", ".join(f"{name}:{kind.takes}" if kind.takes else name for name, kind in SOURCES.items())
    return f"the sources are {listed}{did_you_mean(source.partition(':')[0].lower(), SOURCES)}"


def _embedded(name: str, path: str, spec: DataSpec, progress: Progress | None) -> Source:
    if path:
        raise DataError(f"data.source {spec.source!r}: {name} is embedded and takes no path")
    return ParquetSource(Path(__file__).parent / "assets" / f"{name}.parquet", name, groups=spec.groups)


SOURCES = {
    "fashion-mini": Kind(_embedded, groups=True),
    "photos-mini": Kind(_embedded, groups=True),
    "folder": Kind(lambda _, path, spec, __: FolderSource(path, spec.groups), "PATH", groups=True),
    "parquet": Kind(
        lambda _, path, spec, __: ParquetSource(path, spec.source, spec.image_column, spec.label_column, spec.groups),
        "PATH", ".parquet", groups=True,
    ),
    "csv": Kind(
        lambda _, path, spec, __: CsvSource(
            path, spec.groups, gaps=spec.on_corrupt == "skip", image_column=spec.image_column,
            label_column=spec.label_column,
        ),
        "PATH", ".csv", groups=True,
    ),
    "webdataset": Kind(lambda _, __, spec, progress: ShardSource(spec, progress), "SHARDS"),
    "cifar10": Kind(open_archive),
    "cifar100": Kind(open_archive),
    "fashion-mnist": Kind(open_archive),
    "mnist": Kind(open_archive),
}  # fmt: skip
"""The sources by name."""
