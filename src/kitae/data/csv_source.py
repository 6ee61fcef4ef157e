"""A CSV file of paths and labels."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import KEY, SPLIT_ALIASES, TRAIN, FileSource, Table, given_keys, numbered
from kitae.data.groups import PARENT, by_paths, by_values
from kitae.errors import DataError
from kitae.files import user_path

_PATHS = ("path", "file", "filename", "image", "image_path", "filepath")
_LABELS = ("label", "class", "class_name", "category", "target")
_IMAGE, _LABEL = "image", "label"  # what data.image_column and data.label_column are unless another column is named


class CsvSource(FileSource):
    """Rows of a CSV file with a header: a path and a label each, and optionally a split and a group.

    The columns are found by their names, in any case: `path` (file, filename, image), `label` (class, category,
    target), `split` (train, val, test and their usual spellings) and `group`. `image_column` and `label_column` name
    other columns of paths and labels. Relative paths start at the CSV file.
    `kitae_key` is written by `kitae data fix`, so that mostly the same images are drawn for test.
    Labels are class names, even if they are numbers. `groups` names another column of groups, or a rule for the paths
    as they are written (see `DataSpec.groups`).
    """

    def __init__(
        self,
        path: str | Path,
        groups: str | None = None,
        *,
        gaps: bool = False,
        image_column: str = _IMAGE,
        label_column: str = _LABEL,
    ) -> None:
        """Reads the rows. `gaps`: accept missing image files. Raises DataError: names the line or the column."""
        super().__init__(f"csv:{path}", groups)
        self.path = user_path(path)
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name}: not UTF-8 text; save it as UTF-8") from error
        given = ("data.image_column", image_column, _IMAGE), ("data.label_column", label_column, _LABEL)
        self._named = {field: column for field, column, usual in given if column != usual}
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        # Strict, or a quote that is not closed would take the next rows into its cell in silence.
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        self._rows: list[tuple[int, dict[str, str]]] = []
        last = 0
        try:
            header = [column.strip() for column in reader.fieldnames or ()]
            self._columns = reader.fieldnames = [column.lower() for column in header]
            last = reader.line_num
            self._path = self._column(header, _PATHS, "data.image_column")
            self._label = self._column(header, _LABELS, "data.label_column")
            for row in reader:  # blank lines are not rows
                last = reader.line_num
                self._rows.append((last, self._stripped(row, last)))
        except csv.Error as error:
            raise DataError(
                f"{self.name}: the row after line {last} is not CSV ({error}); close its quotes, and double those "
                "inside a cell"
            ) from error
        self._group = (groups or "group").lower()
        for used in (self._path, self._label, "split", KEY, self._group):
            alike = [column for column in header if column.lower() == used]
            if len(alike) > 1:
                raise DataError(f"{self.name}: has the columns {' and '.join(map(repr, alike))}; remove or rename one")
        for line, row in self._rows:
            if not row[self._path] or not row[self._label]:
                raise DataError(f"{self.name}: line {line} has no path or no label; add it")
        self._files = [self._file(row[self._path]) for _, row in self._rows]
        missing = [] if gaps else [place for place, path in enumerate(self._files) if not os.path.isfile(path)]
        if missing:
            more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(
                f"{self.name}: line {self._rows[missing[0]][0]}: there is no file {self._files[missing[0]]}{more}; "
                "correct the path, or use kitae data fix to write the data without such lines"
            )

    def _stripped(self, row: dict[str | Any, Any], line: int) -> dict[str, str]:
        """Without the spaces around cells. Empty cells may follow the last column."""
        surplus = [cell for cell in row.pop(None, ()) if cell.strip()]
        if surplus:  # the label may be cut off at a comma, or be in another column
            raise DataError(
                f"{self.name}: line {line} has more cells than the header has columns ({surplus[0]!r}); put a cell "
                "that contains a comma in double quotes"
            )
        return {column: (cell or "").strip() for column, cell in row.items()}

    def _file(self, written: str) -> Path:
        file = self.path.parent / user_path(written)
        if "\\" in written and not os.path.isfile(file):  # a list that was written on Windows
            return self.path.parent / user_path(written.replace("\\", "/"))
        return file

    def _column(self, header: list[str], usual: tuple[str, ...], field: str) -> str:
        named = self._named.get(field)
        names = usual if named is None else (named.lower(),)
        found = next((name for name in names if name in self._columns), None)
        if found is None:
            if len(header) == 1 and (other := next((mark for mark in ";\t" if mark in header[0]), "")):
                raise DataError(f"{self.name}: its columns are separated by {other!r}; save it with commas")
            raise DataError(
                f"{self.name}: has no column {' or '.join(map(repr, names))} ({field}); its columns are "
                f"{', '.join(filter(None, header)) or 'none'}; name it in the first line, or set {field}"
            )
        return found

    def files(self) -> list[Path]:
        return [self.path, *(path for path in self._files if os.path.isfile(path) and os.access(path, os.R_OK))]

    def identity(self) -> dict[str, Any]:
        # A list that was written again may have its old size and time, and change while its images are looked for.
        return {"text": self._digest, **self._named}

    def load_table(self) -> Table:
        classes, labels = numbered([row[self._label] for _, row in self._rows])
        names = [row[self._path] for _, row in self._rows]
        splits = [row.get("split", "").lower() for _, row in self._rows]
        for (line, _), split in zip(self._rows, splits, strict=True):
            if split and split not in SPLIT_ALIASES:
                raise DataError(f"{self.name}: line {line}: split {split!r} must be train, val or test")
        return Table(
            classes=classes,
            labels=labels,
            splits=np.array([SPLIT_ALIASES.get(split, TRAIN) for split in splits], np.uint8),
            names=names,
            keys=given_keys([row.get(KEY, "") for _, row in self._rows], names),
            groups=self._groups(names),
        )

    def _groups(self, names: list[str]) -> NDArray[np.int64] | None:
        if self.rule != PARENT and self._group in self._columns:
            values = [row[self._group] for _, row in self._rows]
            return by_values(values, names, self._group, fixed=KEY in self._columns)
        return None if self.rule is None else by_paths([name.replace("\\", "/") for name in names], self.rule)
