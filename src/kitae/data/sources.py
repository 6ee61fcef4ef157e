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
        # A link to nothing is an image that cannot be read, not a folder that cannot be opened. Nor must a store that
        # lacks an image without permission be taken once it has been given, which changes neither size nor time.
        self._gone = {path for path in self._files if not os.access(path, os.R_OK)}

    def _parts(self) -> list[tuple[int, Path]]:
        """Each split and the folder of its classes: the root, as train, unless all folders have the names of splits."""
        folders = _subfolders(self.root)
        _check_links(self.root, self.name)
        codes = {folder: SPLIT_ALIASES.get(folder.name.lower()) for folder in folders}
        named = sorted((code, folder) for folder, code in codes.items() if code is not None)
        if not named or len(named) < len(folders):
            self._check_classes(folders)
            return [(TRAIN, self.root)]
        if TRAIN not in dict(named):
            raise DataError(f"{self.name}: has a folder {named[0][1].name!r} but no train folder; add one")
        return named

    def _check_classes(self, folders: list[Path]) -> None:
        """Refuse folders such as train_images and test_images, which would be two classes that mix all of the data's.

        A class may be called train or test as long as it has no folders inside, but for groups.
        """
        spoken = {folder: _split_in(folder.name) for folder in folders}
        exact = [folder for folder in folders if folder.name.lower() in SPLIT_ALIASES]
        codes = set(spoken.values())
        both = TRAIN in codes and len(codes - {None}) > 1
        likely = [folder for folder, code in spoken.items() if code is not None] if both else exact
        if any(map(_is_divided, likely)) or (both and (len(exact) > 1 or None not in codes)):
            names = ", ".join(folder.name for folder in likely)
            raise DataError(
                f"{self.name}: has folders that may be splits or classes ({names}); call splits train, val and test, "
                "with one folder of images per class in each and no other folder beside them, or rename the classes"
            )

    def _scan(self) -> tuple[str, ...]:
        parts = self._parts()
        first = parts[0][1]
        self._inside = 1 if first == self.root else 2
        names = sorted({composed(one.name) for code, part in parts if code == TRAIN for one in _subfolders(part)})
        if not names:
            loose = len(image_files(first))
            if not loose:
                self._refuse_parquet(first)
            held = f"{loose:,} images, but no class folders" if loose else "no class folders"
            raise DataError(
                f"{self.name}: {held} in {first}; expected one folder of images per class, or a CSV file of paths and "
                "labels"
            )
        inside = _subfolders(first)[0]
        if len(names) == 1 and len(_subfolders(inside)) > 1 and not _has_images(inside):
            raise DataError(
                f"{self.name}: has only the folder {names[0]!r}, which has folders of its own; give {inside}"
            )
        numbers = {name: number for number, name in enumerate(names)}
        for code, part in parts:
            before = len(self._files)
            _check_links(part, self.name)
            for folder in _subfolders(part):
                if (name := composed(folder.name)) not in numbers:
                    raise DataError(
                        f"{self.name}: class {folder.name!r} of {part.name} is not in train; add it there, or remove it"
                    )
                images = image_files(folder)
                if not images and code == TRAIN:
                    self._refuse_parquet(folder)
                    raise DataError(
                        f"{self.name}: class {folder.name!r} has no images in {folder}; add some, or remove the folder"
                    )
                self._files += images
                self._labels += [numbers[name]] * len(images)
                self._splits += [code] * len(images)
            if part != self.root and (_has_images(part) or len(self._files) == before):  # or they would be ignored
                raise DataError(
                    f"{self.name}: {part.name} must have its images in one folder per class; move them, or remove the "
                    "folder if a split is to be held out of train"
                )
        return tuple(names)

    def _refuse_parquet(self, folder: Path) -> None:
        """Data sets of the Hugging Face hub have Parquet files where others have folders of images."""
        if any(folder.glob("*.parquet")):
            raise DataError(
                f"{self.name}: has no class folders, but Parquet files in {folder}; give parquet:{self.root}"
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


def _check_links(folder: Path, name: str) -> None:
    """Refuse links to nothing that may have led to a class or a split, which would be missing without a word."""
    for link in sorted(folder.iterdir()):
        if link.is_symlink() and not (link.suffix or is_hidden(link.name) or os.path.exists(link)):
            raise DataError(
                f"{name}: {link.name!r} in {folder} is a link to nothing; restore what it leads to, or remove the link"
            )


def _has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself, not in one inside it."""
    return any(is_image(entry.name) and not entry.is_dir() for entry in folder.iterdir())


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
        return [path for path in found if not written_by_us(path) or _has_images(path)]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error


def _is_divided(folder: Path) -> bool:
    """Whether there are folders in a class or a split, other than those that mark groups of a class."""
    return any(not inner.name.startswith(GROUP_PREFIX) for inner in _subfolders(folder))


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
    if given.name in ("", ".."):  # `.`, which is another folder for a command that is given elsewhere
        path = given = given.resolve()
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
    if given.suffix.lower() == ".tar":
        raise DataError(f"{path}: tar files are given as webdataset:{path}, several as webdataset:a-{{000..099}}.tar")
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
