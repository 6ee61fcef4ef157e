"""Atomic writes, and the JSON files that Kitae keeps."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from kitae.errors import DataError, KitaeError, one_line

_READABLE_BYTES = 10_000_000  # above, JSON is written without indentation, or a confusion matrix fills the disk
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CURE = "set data.cache or KITAE_CACHE to a folder"


def cache_folder(given: str | None = None) -> Path:
    """`given` (data.cache), else $KITAE_CACHE, else $XDG_CACHE_HOME/kitae, else ~/.cache/kitae. Not created.

    Raises:
        DataError: none of these is set, and the user has no home folder.
    """
    if chosen := given or os.environ.get("KITAE_CACHE"):
        return user_path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "kitae"
    except RuntimeError as error:
        # As in a container that runs under a number of its own.
        raise DataError(f"this user has no home folder, so there is no place for the cache: {_CURE}") from error


@contextlib.contextmanager
def storage_errors(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the body into a DataError that names the cache folder and the remedy. `needed`: bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            wanted = f", {needed / 1e6:,.0f} MB are needed" if needed else ""
            raise DataError(
                f"{folder}: the disk is full{wanted}; free some space or {_CURE} on another disk"
            ) from error
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}): {_CURE} elsewhere") from error


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder among the system's temporary files, removed when the body ends.

    Raises:
        KitaeError: that place is full, or cannot be written to.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="kitae.") as name:
            yield Path(name)
    except OSError as error:
        why = error.strerror or error
        raise KitaeError(f"no temporary files can be written ({why}); set TMPDIR to a folder with room") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to. It replaces `path` when the body ends, and is removed if that fails. Creates parent folders.

    Raises:
        OSError: the disk is full, or writing is not allowed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed in `replacing` left beside `path`; nobody may be writing it now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content, or leave it unchanged. Creates parent folders.

    Raises:
        KitaeError: the disk is full, or writing is not allowed.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise KitaeError(f"{path}: cannot be written ({error.strerror}); the previous file is kept") from error


def require_format(value: Mapping[str, Any], known: int, path: Path, error: type[KitaeError]) -> None:
    """Refuse a file of a newer version, whose fields may mean something else.

    Raises:
        KitaeError: of type `error`.
    """
    given = value.get("format", known)
    if not isinstance(given, int) or given > known:
        raise error(f"{path}: was written by a newer version of Kitae (format {given}, not {known}); upgrade kitae")


_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.,]*$)")  # a signed number is none


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would run this cell of a CSV file."""
    return _FORMULA.match(text) is not None


MODEL_FACTS = ("classes", "preprocess", "mean", "std", "temperature")
"""The fields of model.json that are needed to predict."""


def require_model_facts(facts: Mapping[str, Any], known: int, path: Path, error: type[KitaeError]) -> None:
    """Refuse a model.json of a newer version, or with values that no model has, such as those of a careless edit.

    Raises:
        KitaeError: of type `error`; it names the field.
    """
    require_format(facts, known, path, error)

    def numbers(values: Any, above: float) -> bool:
        real = isinstance(values, list) and all(type(one) in (int, float) and above < one < 1e30 for one in values)
        return real and len(values) in (1, 3)  # as there are channels

    classes = facts["classes"]
    fits = {
        "classes": isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes),
        "preprocess": isinstance(facts["preprocess"], dict),
        "mean": numbers(facts["mean"], -1e30),
        "std": numbers(facts["std"], 0) and len(facts["std"]) == len(facts["mean"]),
        "temperature": numbers([facts["temperature"]], 0),
    }
    if wrong := next((name for name, fit in fits.items() if not fit), None):
        raise error(f"{path}: is damaged ({wrong} is {str(facts[wrong])[:50]}); copy it again, or train again")


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path with `~` expanded. Unlike `Path.expanduser`, it leaves a `~` that names no user as it is.

    Raises:
        KitaeError: it is not a path, or empty.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):  # an empty one would be the current folder
        given = type(path).__name__ if path != "" else "an empty text"
        raise KitaeError(f"a path is needed, a text or a pathlib.Path, not {given}")
    return Path(os.path.expanduser(path))


def unwritable(path: Path) -> str | None:
    """Why a file or folder cannot be made at a path, below the last folder on it that exists; None where it can."""
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))  # the others will be made
    if not os.path.isdir(folder):
        return f"{folder} is a file, not a folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written to"


def with_name(path: Path) -> Path:
    """The path, resolved if it ends in `.` or `..`."""
    return path.resolve() if path.name in ("", "..") else path


def read_json(path: Path, *keys: str, error: type[KitaeError] = KitaeError) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        keys: what it must have.
        error: the type of error to raise.

    Raises:
        KitaeError: of type `error`: it cannot be read, or is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: is damaged (not JSON)") from problem
    if not isinstance(value, dict):
        raise error(f"{path}: is damaged (not a JSON object)")
    lacking = [key for key in keys if key not in value]
    if lacking:
        raise error(f"{path}: is damaged (it has no {lacking[0]})")
    return value


def read_json_lines(path: Path, *, error: type[KitaeError] = KitaeError) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one in each line; none if there is no file.

    Raises:
        KitaeError: of type `error`: it is damaged.
    """
    if not path.is_file():
        return []
    try:
        values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: is damaged (a line is not JSON)") from problem
    if not all(isinstance(value, dict) for value in values):
        raise error(f"{path}: is damaged (a line is not a JSON object)")
    return values


def plain(value: Any) -> Any:
    """A value converted for JSON: NaN to null, NumPy numbers to Python's, paths to text, objects to their fields."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):  # a recipe
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line_yaml(value: Any) -> str:
    """A value as `--set` takes it: YAML on one line, so text that would be read as a number or a list is quoted."""
    import yaml  # which an exported file's runtime does not need

    flow = yaml.safe_dump(plain(value), default_flow_style=True, width=1 << 30, allow_unicode=True)
    return str(flow).removesuffix("...\n").strip()


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically. NaN and infinity are not JSON and raise ValueError."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    # Indented, a confusion matrix of 10,000 classes would take gigabytes of memory.
    if (
        len(text) <= _READABLE_BYTES
        and len(readable := json.dumps(value, indent=2, allow_nan=False)) <= _READABLE_BYTES
    ):
        text = readable
    write_atomically(path, f"{text}\n".encode())


def write_json_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object in each line, atomically. NaN and infinity are not JSON and raise ValueError."""
    write_atomically(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode())


def read_parquet(path: Path, *, error: type[KitaeError] = KitaeError) -> Any:
    """The pyarrow Table of a file.

    Raises:
        KitaeError: of type `error`: it cannot be read, or is damaged.
    """
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(path.read_bytes()))  # it only opens paths in UTF-8
    except (OSError, pyarrow.ArrowException) as problem:
        raise error(f"{path}: is damaged ({one_line(problem)}); copy it again, or delete it") from problem


def write_parquet(table: Any, path: Path) -> None:
    """Write a pyarrow Table, atomically."""
    import io

    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())
