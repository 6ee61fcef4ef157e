"""Write a copy of a data set without the unreadable images, label conflicts and copies that a check found.

The source is not changed. A folder or a CSV file becomes a CSV file of the images that are kept, a Parquet source
becomes one Parquet file; `kitae train` takes both. The images keep their keys, so most of those that were drawn for
test are drawn again; a class with fewer images holds out fewer.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kitae.data.base import KEY, SPLIT_NAMES, TRAIN, Source, Table
from kitae.data.check import CheckReport
from kitae.data.parquet import ParquetSource
from kitae.data.sources import path_of
from kitae.errors import DataError, require
from kitae.files import is_formula, replacing, user_path, write_atomically

_ROWS = 128  # written at once


@dataclass(frozen=True)
class Fixed:
    """What was written."""

    path: Path
    kept: int  # images
    left_out: tuple[tuple[str, str], ...]  # name and reason of the others
    classes: int  # that have images
    lost: tuple[str, ...]  # classes that have none


def suffix_of(source: Source) -> str:
    """`.csv` or `.parquet`: what `fix` writes for a source. Raises DataError: a published set or shards."""
    if source.fixed_as is None:
        raise DataError(f"{source.name}: only a folder, a CSV file or a Parquet source can be fixed")
    return source.fixed_as


def check_out(source: Source, out: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a file that `fix` cannot write.

    Raises:
        DataError: it exists or has another ending, or is one of the source's own; or see `suffix_of`.
    """
    path, ending = user_path(out), suffix_of(source)
    if path.suffix.lower() != ending:
        raise DataError(f"{path}: must end in {ending}, the format written for {source.name}")
    root = path_of(source.name)
    if root is not None and root.exists():
        inside = isinstance(source, ParquetSource) and root.resolve() in path.resolve().parents  # it would be read too
        if inside or (path.exists() and path.samefile(root)):
            raise DataError(f"{path}: is a part of {source.name}, which is not changed; choose another --out")
    if os.path.exists(path) and not overwrite:
        raise DataError(f"{path}: exists; add --overwrite, or choose another --out")


def fix(source: Source, report: CheckReport, out: str | Path, *, overwrite: bool = False) -> Fixed:
    """Write the images of a source that `report`, what `check` found in it, does not exclude.

    Raises:
        DataError: see `check_out`; or nothing is left to write.
    """
    check_out(source, out, overwrite=overwrite)
    path = user_path(out)
    kept = [row for row in range(len(source)) if row not in report.excluded]
    if not kept:
        raise DataError(
            f"{source.name}: no image is left, so nothing was written; `kitae data check` says what is wrong with them"
        )
    if isinstance(source, ParquetSource):
        _write_parquet(source, kept, path)
    else:
        _write_csv(source, kept, path)
    left_out = tuple((source.table.names[row], reason) for row, reason in sorted(report.excluded.items()))
    table = source.table
    remaining = set(table.labels[kept].tolist())
    lost = tuple(table.classes[label] for label in sorted(set(table.labels.tolist()) - remaining))
    return Fixed(path, len(kept), left_out, len(remaining), lost)


def _more(table: Table, kept: list[int]) -> dict[str, list[Any]]:
    """The columns of a new file beside images, labels and paths."""
    columns: dict[str, list[Any]] = {}
    if (table.splits != TRAIN).any():
        columns["split"] = [SPLIT_NAMES[code] for code in table.splits[kept]]
    if table.groups is not None:
        columns["group"] = table.groups[kept].tolist()
    return {**columns, KEY: table.keys[kept].tolist()}


def _write_csv(source: Source, kept: list[int], path: Path) -> None:
    table, files = source.table, list(source.images())
    paths, labels = [], [table.classes[label] for label in table.labels[kept]]
    resolved = functools.cache(Path.resolve)  # `..` leaves the folder that a link leads to, not the link
    for row, label in zip(kept, labels, strict=True):
        file = files[row]
        assert isinstance(file, Path)
        name = os.path.relpath(resolved(file.parent) / file.name, resolved(path.parent))
        unicode = name.encode("utf-8", "replace").decode("utf-8") == name
        if not unicode or name != name.strip() or any(character in name for character in "\r\n"):
            raise DataError(f"{file}: its name cannot be written to a CSV file; rename it")
        if label != label.strip():  # would become the class without the spaces
            raise DataError(f"{source.name}: the class {label!r} begins or ends with a space; rename its folder")
        # Else a folder called `~` would be read as the home folder, and a spreadsheet would run the others as formulas.
        paths.append(f"./{name}" if name.startswith("~") or is_formula(name) else name)
    columns = {"path": paths, "label": labels, **_more(table, kept)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomically(path, text.getvalue().encode("utf-8"))


def _write_parquet(source: ParquetSource, kept: list[int], path: Path) -> None:
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    table, more = source.table, _more(source.table, kept)
    # Integers keep the order of the classes, which is not that of their names. A class without images is left out.
    numbers, used = source.numbers_labels, np.unique(table.labels[kept])
    places = np.searchsorted(used, table.labels[kept]).tolist()
    classes = [table.classes[label] for label in used]
    whole: dict[str, list[Any]] = {"label": places if numbers else [classes[place] for place in places]}
    whole |= {"path": [table.names[row] for row in kept], **more}
    kinds = {name: pa.string() if isinstance(column[0], str) else pa.int64() for name, column in whole.items()}
    schema = pa.schema({"image": pa.binary(), **kinds}, {"classes": json.dumps(classes)} if numbers else None)
    wanted = set(kept)
    images = (image for row, image in enumerate(source.images()) if row in wanted)
    try:
        with replacing(path) as file, pq.ParquetWriter(file, schema, compression="none") as writer:
            for start in range(0, len(kept), _ROWS):
                part = {name: column[start : start + _ROWS] for name, column in whole.items()}
                part["image"] = list(itertools.islice(images, _ROWS))
                writer.write_table(pa.table(part, schema=schema))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); the previous file is kept") from error
