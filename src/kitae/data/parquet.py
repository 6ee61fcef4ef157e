"""Images in Parquet files: our own layout and the one image data sets on the Hugging Face hub have.

    image       encoded bytes, or a struct with `bytes` (and `path`); `img` is taken where there is no `image`
    label       int or string; `labels` and `fine_label` are taken where there is no `label`
    class_name  optional, string: the name of each int label
    split       optional, string: train, val or test (or validation, valid, dev, ...; an empty one is train); without
                the column the file names tell (`train-00000-of-00004.parquet`), or else the folders, the inner ones
                first (`test/0000.parquet`)
    group       optional, int or string: equal values stay together in a split (`data.groups` takes another column,
                or a rule for `path`)
    path        optional, string: names the image in messages and reports
    kitae_key   optional, int: written by `kitae data fix`, so that mostly the same images are drawn for test

Class names come from the schema's metadata (the hub's ClassLabel, or a JSON list `classes`), else from `class_name`,
else from the labels themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import KEY, SPLIT_ALIASES, TRAIN, Item, Source, Table, composed, given_keys, numbered
from kitae.data.groups import PARENT, by_paths, by_values
from kitae.errors import DataError, one_line, require
from kitae.files import user_path
from kitae.folders import written_by_us
from kitae.preprocess import visible_files

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 128  # that are read at once, at most
_SOME_BYTES = 256 << 20  # that are read for a sample, about
_SPLIT_IN_NAME = re.compile(rf"(?:^|[_.\-])({'|'.join(SPLIT_ALIASES)})(?=[_.\-]|$)", re.IGNORECASE)

T = TypeVar("T")


class ParquetSource(Source):
    """One Parquet file, or all `*.parquet` below a folder in the order of their paths.

    Hidden files and folders are skipped, and links to folders followed, as among images.
    """

    fixed_as = ".parquet"

    def __init__(
        self,
        path: str | Path,
        name: str = "",
        image_column: str = "image",
        label_column: str = "label",
        groups: str | None = None,
    ) -> None:
        """Finds the files. Raises DataError: there is no such file, no Parquet file, or a folder cannot be read."""
        super().__init__(name or f"parquet:{path}", groups)
        self._pa = require("pyarrow")
        self._pq = require("pyarrow.parquet")
        self._wanted = {"image_column": image_column, "label_column": label_column}
        self._group = None if groups == PARENT else groups or "group"
        root = user_path(path)
        if os.path.isdir(root):
            self._files = sorted(
                p
                for p in visible_files(root)
                if p.suffix.lower() == ".parquet" and (p.parent == root or not written_by_us(p.parent))
            )
            self._root: Path | None = root
            if not self._files:
                raise DataError(f"{self.name}: no .parquet files in this folder")
        elif os.path.exists(root):
            self._files, self._root = [root], None
        else:
            raise DataError(f"{self.name}: no such file or folder")

    def files(self) -> list[Path]:
        return self._files

    def identity(self) -> dict[str, Any]:
        # The splits depend on the names below the folder, which a single file does not have.
        below = None if self._root is None else [str(path.relative_to(self._root)) for path in self._files]
        return {**self._wanted, "files": below}

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[Any]:
        """An opened file; errors of reading it name it."""
        try:
            with self._pq.ParquetFile(path, memory_map=True, pre_buffer=False, buffer_size=1 << 20) as file:
                yield file
        except self._pa.ArrowException as error:
            raise DataError(
                f"{path}: not a Parquet file, or a broken one ({one_line(error)}); download or write it again"
            ) from error
        except UnicodeEncodeError as error:
            raise DataError(f"{path}: its path is not UTF-8, so it cannot be read as Parquet; rename it") from error
        except OSError as error:
            raise DataError(f"{path}: {one_line(error)}") from error

    def _column(self, path: Path, schema: Any, which: str) -> str:
        wanted = self._wanted[which]
        names: list[str] = schema.names
        usual = _IMAGE_COLUMNS if which == "image_column" else _LABEL_COLUMNS
        for candidate in usual if wanted == usual[0] else (wanted,):
            if candidate in names:
                _check_single(path, names, candidate)
                return candidate
        raise DataError(f"{path}: no column {wanted!r} (data.{which}); its columns are {', '.join(names) or 'none'}")

    def _image_column(self, path: Path, schema: Any) -> tuple[str, list[str]]:
        """The image column, and the fields of its structs, if it holds any."""
        types = self._pa.types
        column = self._column(path, schema, "image_column")
        kind = schema.field(column).type
        fields = [kind.field(i).name for i in range(kind.num_fields)] if types.is_struct(kind) else []
        held = kind.field("bytes").type if fields.count("bytes") == 1 else kind
        # Never text: it would be opened as the path of a file.
        if not (types.is_binary(held) or types.is_large_binary(held) or types.is_fixed_size_binary(held)):
            raise DataError(f"{path}: column {column!r} holds {kind}; expected encoded bytes, or a struct with `bytes`")
        return column, fields

    @property
    def numbers_labels(self) -> bool:
        """Whether the labels are integers, not text."""
        path = self._files[0]
        with self._reading(path) as file:
            schema = file.schema_arrow
            return bool(self._pa.types.is_integer(schema.field(self._column(path, schema, "label_column")).type))

    def images(self) -> Iterator[Item]:
        return itertools.chain.from_iterable(map(self._images, self._files))

    def _images(self, path: Path, groups: list[int] | None = None) -> Iterator[Item]:
        """Of one file, or some of its row groups."""
        with self._reading(path) as file:
            column, fields = self._image_column(path, file.schema_arrow)
            meta = file.metadata
            size = sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
            rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES * meta.num_rows // max(size, 1)))
            leaf = f"{column}.bytes" if fields else column
            for batch in file.iter_batches(batch_size=rows, row_groups=groups, columns=[leaf]):
                for value in batch.column(0).to_pylist():
                    yield (value["bytes"] if fields and value else value) or b""

    def some(self, count: int) -> Iterator[Item]:
        """Spread over the files, their row groups, and the rows of these as far as `_SOME_BYTES` go."""
        groups: list[tuple[Path, int, int, int]] = []
        for path in _spread(self._files, count):
            with self._reading(path) as file:
                found = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
            groups += [(path, g, group.num_rows, group.total_byte_size) for g, group in enumerate(found)]
        groups = _spread([group for group in groups if group[2]], count)
        each = -(-count // max(len(groups), 1))
        share = min(1.0, _SOME_BYTES / max(1, sum(size for *_, size in groups)))
        for path, group, rows, _ in groups:
            step = max(1, int(share * rows / each))
            yield from itertools.islice(self._images(path, [group]), 0, each * step, step)

    def load_table(self) -> Table:
        times = Counter(path.name for path in self._files)
        files = [self._load_file(path, alone=times[path.name] == 1) for path in self._files]
        for kind in ("class_name", "group", KEY):
            lacking = [path for path, (columns, _) in zip(self._files, files, strict=True) if kind not in columns]
            if 0 < len(lacking) < len(files):
                name = self._group if kind == "group" else kind
                raise DataError(
                    f"{lacking[0]}: no column {name!r}, which other files have; add it, or leave this file out"
                )
        kinds = ("label", "class_name", "split", "group", "name", "path", KEY)
        whole = {kind: [value for columns, _ in files for value in columns.get(kind, ())] for kind in kinds}
        if not whole["label"]:
            raise DataError("there are no images")
        known = [(path, names) for path, (_, names) in zip(self._files, files, strict=True) if names is not None]
        classes, labels = _classes(whole["label"], whole["class_name"], known, whole["name"])
        return Table(
            classes=classes,
            labels=labels,
            splits=np.array(whole["split"], dtype=np.uint8),
            names=whole["name"],
            keys=given_keys(whole[KEY], whole["name"]) if whole[KEY] else np.arange(len(labels), dtype=np.int64),
            groups=self._groups(whole),
        )

    def _groups(self, columns: dict[str, list[Any]]) -> NDArray[np.int64] | None:
        if columns["group"]:
            return by_values(columns["group"], columns["name"], self.rule or "group", fixed=bool(columns[KEY]))
        if self.rule is None:
            return None
        if not any(columns["path"]):
            raise DataError(f"data.groups: {self.rule!r} is not a column, and there is no column `path` to search")
        return by_paths([str(path or "").replace("\\", "/") for path in columns["path"]], self.rule)

    def _load_file(self, path: Path, alone: bool) -> tuple[dict[str, list[Any]], tuple[str, ...] | None]:
        """Everything but the images, and the class names in the metadata. `alone`: no other file has its name."""
        with self._reading(path) as file:
            schema = file.schema_arrow
            image, fields = self._image_column(path, schema)
            if fields and _is_null(file.metadata, f"{image}.bytes"):
                raise DataError(
                    f"{path}: column {image!r} has no bytes in any row, only paths, which are not followed; write the "
                    "images into the file, or give their folder"
                )
            label = self._column(path, schema, "label_column")
            kinds = ("class_name", "split", "path", KEY)
            columns = {kind: kind for kind in kinds if kind in schema.names and kind != label}
            columns["label"] = label
            if self._group is not None and self._group in schema.names:
                columns["group"] = self._group
            _check_single(path, schema.names, *columns.values())
            nested = "path" not in schema.names and "path" in fields
            table = file.read(columns=sorted({*columns.values(), *([f"{image}.path"] if nested else [])}))
        found = {kind: _listed(path, table, column) for kind, column in columns.items()}
        if nested:
            found["path"] = [row and row["path"] for row in _listed(path, table, image)]
        if "class_name" in found:
            if None in found["class_name"]:
                raise DataError(f"{path}: row {found['class_name'].index(None)} has no class_name")
            found["class_name"] = [str(name) for name in found["class_name"]]
        found.setdefault("path", [None] * table.num_rows)
        called = path.name if alone or self._root is None else path.relative_to(self._root).as_posix()
        names = [f"{called}:{row}" if name in (None, "") else str(name) for row, name in enumerate(found["path"])]
        splits = self._splits(path, found.get("split"), table.num_rows)
        return {**found, "name": names, "split": splits}, _metadata_classes(schema, label)

    def _splits(self, path: Path, values: list[Any] | None, count: int) -> list[int]:
        if values is None:
            parts = path.relative_to(self._root).parts if self._root else ()
            # The name of the file says more than that of its folder: consider `train_test_split/test.parquet`.
            found = next((match for part in reversed(parts) if (match := _SPLIT_IN_NAME.search(part))), None)
            return [SPLIT_ALIASES[found.group(1).lower()] if found else TRAIN] * count
        names = ["" if value is None else str(value).strip().lower() for value in values]
        wrong = next((row for row, name in enumerate(names) if name and name not in SPLIT_ALIASES), None)
        if wrong is not None:
            raise DataError(
                f"{path}: unknown split {values[wrong]!r} in row {wrong}; valid: {', '.join(SPLIT_ALIASES)}"
            )
        return [SPLIT_ALIASES.get(name, TRAIN) for name in names]


def _check_single(path: Path, names: list[str], *columns: str) -> None:
    twice = next((column for column in columns if names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has {names.count(twice)} columns {twice!r}; remove or rename one")


def _listed(path: Path, table: Any, column: str) -> list[Any]:
    try:
        values: list[Any] = table.column(column).to_pylist()
    except (ArithmeticError, ValueError) as error:  # text that is not UTF-8, or a time out of Python's range
        raise DataError(f"{path}: column {column!r} cannot be read ({one_line(error)}); write it again") from error
    return values


def _is_null(metadata: Any, leaf: str) -> bool:
    """Whether there are rows, and no row has a value in this column, by the statistics of the file."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(metadata.num_columns)]
    mine = [chunk for chunk in chunks if chunk.path_in_schema == leaf and chunk.num_values]
    return bool(mine) and all(c.statistics is not None and c.statistics.null_count == c.num_values for c in mine)


def _spread(whole: list[T], count: int) -> list[T]:
    """`count` of a list at even distances; all if there are fewer."""
    return [whole[place * len(whole) // count] for place in range(count)] if len(whole) > count else whole


def _classes(
    values: list[Any], class_names: list[str], known: list[tuple[Path, tuple[str, ...]]], names: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes and labels. `known`: files and the class names in their metadata, if they have any."""
    kinds = {type(value) for value in values}
    empty = next((row for row, value in enumerate(values) if value is None or not str(value).strip()), None)
    if empty is not None:
        raise DataError(f"{names[empty]}: has no label; add it, or leave the row out")
    if kinds == {str}:
        return numbered(values)
    if kinds != {int}:
        shown = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"labels must be int or string, not {shown} (data.label_column)")
    wrong = [row for row, value in enumerate(values) if not 0 <= value < 1 << 63]
    if wrong:
        raise DataError(
            f"{names[wrong[0]]}: label {values[wrong[0]]} is out of range "
            f"({len(wrong)} such labels; some hub data sets hide their test labels this way); leave these rows out"
        )
    given: tuple[str, ...] = known[0][1] if known else ()
    other = next((path for path, own in known if own != given), None)
    if other is not None:
        raise DataError(
            f"{other}: its metadata names other classes than that of {known[0][0]}, or in another order; write both "
            "with the same names"
        )
    named = dict(enumerate(given))
    for label, name, image in zip(values, map(composed, class_names), names, strict=False):  # or no class names
        if named.setdefault(label, name) != name:
            where = "in the metadata" if label < len(given) else "elsewhere"
            raise DataError(
                f"{image}: label {label} is called {name!r} here and {named[label]!r} {where}; correct one of them"
            )
    if given:
        return given, np.array(values, np.int64)
    classes, labels = numbered(values)
    return tuple(named.get(int(number), number) for number in classes), labels


def _metadata_classes(schema: Any, label: str) -> tuple[str, ...] | None:
    metadata = {key.decode(errors="replace"): value for key, value in (schema.metadata or {}).items()}
    try:
        if "huggingface" in metadata:
            feature = json.loads(metadata["huggingface"])["info"]["features"][label]
            names = feature["names"] if feature["_type"] == "ClassLabel" else None
        else:
            names = json.loads(metadata["classes"])
        json.dumps(names, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(composed, names))
