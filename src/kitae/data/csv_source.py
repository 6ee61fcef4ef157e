"""A CSV file of paths and labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import SPLIT_ALIASES, TRAIN, Item, Source, Table, name_key
from kitae.data.groups import PARENT, by_paths, by_values
from kitae.errors import DataError
from kitae.files import user_path

_PATHS = ("path", "file", "filename", "image", "image_path", "filepath")
_LABELS = ("label", "class", "class_name", "category", "target")
_BLOCK = 32  # images handed to a worker at once


class CsvSource(Source):
    """Rows of a CSV file with a header: a path and a label each, and optionally a split and a group.

    The columns are found by their names, in any case: `path` (file, filename, image), `label` (class, category,
    target), `split` (train, val, test and their usual spellings) and `group`. Relative paths start at the CSV file.
    Labels are class names, even if they are numbers. `groups` names another column of groups, or a rule for the paths
    as they are written (see `DataSpec.groups`).
    """

    def __init__(self, path: str | Path, name: str = "", groups: str | None = None, *, gaps: bool = False) -> None:
        """Reads the rows.

        Args:
            gaps: accept missing image files; reading one then raises.

        Raises:
            DataError: no such file, a column or an image file is missing, an unknown split.
        """
        super().__init__(name or f"csv:{path}")
        self.path = user_path(path)
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name}: not UTF-8 text; save it as UTF-8") from error
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        try:
            numbered = [(reader.line_num, row) for row in reader]  # blank lines have a number, but no row
        except csv.Error as error:
            raise DataError(f"{self.name}: line {reader.line_num}: not CSV ({error})") from error
        self._lines = [line for line, _ in numbered]
        self._rows = [{(column or "").strip(): cell for column, cell in row.items()} for _, row in numbered]
        header = [column.strip() for column in reader.fieldnames or () if column.strip()]
        self._path, self._label = self._column(header, _PATHS), self._column(header, _LABELS)
        known = {column.lower(): column for column in header}
        self._split, self._rule = known.get("split"), groups
        self._group = known.get("group") if groups is None else None if groups == PARENT else known.get(groups.lower())
        self._files = [self._file(line, row) for line, row in zip(self._lines, self._rows, strict=True)]
        missing = [] if gaps else [row for row, path in enumerate(self._files) if not os.path.isfile(path)]
        if missing:
            more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(
                f"{self.name}: line {self._lines[missing[0]]}: there is no file {self._files[missing[0]]}{more}; "
                "correct the path, or let kitae data fix leave such lines out"
            )

    def _column(self, header: list[str], names: tuple[str, ...]) -> str:
        found = [column for name in names for column in header if column.lower() == name]
        if not found:
            if len(header) == 1 and (other := next((mark for mark in ";\t" if mark in header[0]), "")):
                raise DataError(f"{self.name}: its columns are separated by {other!r}; save it with commas")
            raise DataError(
                f"{self.name}: has no column {names[0]!r} (its columns are {', '.join(header) or 'none'}); the first "
                f"line names one of {', '.join(_PATHS)} and one of {', '.join(_LABELS)}"
            )
        return found[0]

    def _file(self, number: int, row: dict[str, Any]) -> Path:
        written = (row[self._path] or "").strip()
        if not written or not (row[self._label] or "").strip():
            raise DataError(f"{self.name}: line {number} lacks its path or its label")
        return self.path.parent / user_path(written)

    def files(self) -> list[Path]:
        return [self.path, *(path for path in self._files if os.path.isfile(path))]

    def identity(self) -> dict[str, Any]:
        return {} if self._rule is None else {"groups": self._rule}

    def load_table(self) -> Table:
        labels = [row[self._label].strip() for row in self._rows]
        classes = tuple(sorted(set(labels)))
        place = {name: number for number, name in enumerate(classes)}
        names = [row[self._path].strip() for row in self._rows]
        return Table(
            classes=classes,
            labels=np.array([place[label] for label in labels], dtype=np.int64),
            splits=np.array(
                [self._code(line, row) for line, row in zip(self._lines, self._rows, strict=True)], dtype=np.uint8
            ),
            names=names,
            keys=np.array([name_key(name) for name in names], dtype=np.int64),
            groups=self._groups(names),
        )

    def _groups(self, names: list[str]) -> NDArray[np.int64] | None:
        if self._group is not None:
            return by_values([row[self._group] for row in self._rows], names, self._group)
        return None if self._rule is None else by_paths([name.replace("\\", "/") for name in names], self._rule)

    def _code(self, number: int, row: dict[str, Any]) -> int:
        written = "" if self._split is None else (row[self._split] or "").strip().lower()
        if not written:
            return TRAIN
        if written not in SPLIT_ALIASES:
            raise DataError(f"{self.name}: line {number}: split {written!r} must be train, val or test")
        return SPLIT_ALIASES[written]

    def blocks(self) -> Iterator[list[Item]]:
        for start in range(0, len(self._files), _BLOCK):
            yield list(self._files[start : start + _BLOCK])
