"""The folder of a study or a search: for one process at a time, and only what is its own is touched in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitae.errors import TrainingError
from kitae.files import lock_folder

# Goes up when the same recipe and seed begin to give another run. 2: initial weights are keyed by parameter names.
# 3: an epoch drops its short last batch, ties of epochs go to the lower loss, mixing draws one lambda per batch.
NUMERICS = 3


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone."""
    lock = lock_folder(folder, TrainingError, "another process is at work in this folder")
    try:
        yield
    finally:
        os.close(lock)


def check_owned(folder: Path, begun: str, written: Sequence[str], what: str) -> None:
    """Refuse a folder that holds what no study (or search) wrote.

    Args:
        begun: the file that is written first; without it nothing else in the folder is ours.
        written: the names of all that may be.
        what: study or search.

    Raises:
        TrainingError: names what is in the way.
    """
    known = written if (folder / begun).is_file() else ()
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    strangers = [name for name in names if name not in known]
    if strangers:
        whose = f"which no {what} wrote" if known else f"and no {what}"
        raise TrainingError(f"{folder}: holds {strangers[0]} {whose}; choose another --out")


def remove_owned(folder: Path, begun: str, written: Sequence[str]) -> None:
    """Remove a study (or search), and nothing that it did not write; arguments as of `check_owned`."""
    if not (folder / begun).is_file():
        return
    # The file that says whose folder it is goes last: if this is cut, the next start can finish it.
    for name in (*(name for name in written if name != begun), begun):
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def check_numerics(folder: Path, written: Mapping[str, Any]) -> None:
    """Refuse to add runs to those of a version whose runs of the same recipe and seed are others.

    Args:
        written: what was written down before the first run.

    Raises:
        TrainingError: it was another version's.
    """
    if written.get("numerics", 1) != NUMERICS:
        raise TrainingError(
            f"{folder}: was started by a version of Kitae that trains the same recipe otherwise, so its runs and new "
            "ones cannot be compared; choose another --out, or --overwrite"
        )


def first_difference(before: Any, now: Any, path: str) -> str:
    """Where two nested values first differ, and how: `base.train.epochs was 10, is 77`; empty where they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*now, *before)):
            if name not in before or name not in now:
                return f"{path}.{name} was {'not there' if name not in before else 'there'} when it was begun"
            if found := first_difference(before[name], now[name], f"{path}.{name}"):
                return found
        return ""
    return "" if before == now else f"{path} was {str(before)[:80]}, is {str(now)[:80]}"
