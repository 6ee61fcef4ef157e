"""Folders that Kitae owns: a run, a study, a search, a compression.

One process at a time writes to such a folder. Files that Kitae did not write are never touched: a folder that contains
any is refused. Names that start with a dot are ignored (the lock, temporary files, files of file managers).
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kitae.errors import KitaeError, RecipeError
from kitae.files import unwritable, user_path

_ASIDE, _ATTEMPT, _DISCARDED = ".replaced.tmp", ".attempt.tmp", ".discarded.tmp"
LOCK = ".lock"
"""The name of the lock file."""
RUNS = "runs"
"""The folder that runs, studies and searches are written to where no `--out` is given."""

REPORT = "report.html"
"""The page that `kitae report` writes into a folder."""

Kind = Literal["run", "study", "search", "compression"]
SIGNS: dict[Kind, str] = {
    "run": "recipe.yaml", "study": "study.yaml", "search": "search.yaml", "compression": "compression.json",
}  # fmt: skip
"""The file that tells what a folder is."""
_OVERRIDE = re.compile(r"(name|data|augment|model|train|evaluate|study)(\.\w+)*=")


def out_folder(out: str | os.PathLike[str]) -> Path:
    """The folder that a caller names.

    Raises:
        RecipeError: it is an override, meant for another argument, and would name a folder.
        KitaeError: it is not a path.
    """
    if isinstance(out, str) and _OVERRIDE.match(out):
        raise RecipeError(f"out: {out!r} is an override, not a folder; give it as set={out!r}")
    return user_path(out)


@dataclass(frozen=True)
class Owned:
    """One kind of folder.

    Attributes:
        kind: its name in messages.
        names: the files and folders that may be in it.
        error: the type of error to raise.
        first: the file that is written first and removed last; without it, no file in the folder counts as Kitae's.
        last: a file that is written last, and is as good a sign as `first`.
        work: glob patterns of what is there once there is work to lose.
    """

    kind: str
    names: tuple[str, ...]
    error: type[KitaeError]
    first: str
    last: str | None = None
    work: tuple[str, ...] = ()

    def check(self, folder: Path) -> None:
        """Refuse a folder that holds files of others, or cannot be made. One that does not exist yet is fine.

        Raises:
            KitaeError: of type `error`; it names what is in the way.
        """
        if problem := unwritable(folder / self.first):  # a folder that exists, or the last one above it that does
            raise self.error(f"{folder}: {problem}; choose another --out")
        signs = (self.first, self.last or self.first)
        ours = self.names if any((folder / sign).is_file() for sign in signs) else ()
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in names if name not in ours and not name.startswith(".")]
        if foreign and foreign[0] in self.names:
            raise self.error(f"{folder}: holds {foreign[0]} but no {signs[-1]}; choose another --out")
        if foreign:
            raise self.error(f"{folder}: holds files that no {self.kind} wrote ({foreign[0]}); choose another --out")

    def remove(self, folder: Path) -> None:
        """Remove what is ours and nothing else; `first` last, so that an interrupted removal can be completed."""
        for name in sorted(self.names, key=lambda name: name == self.first):
            target = folder / name
            shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink(missing_ok=True)

    def set_aside(self, folder: Path, *, replace: bool, finished: bool) -> None:
        """Move Kitae's files aside, until `bring_back` or `discard_aside`.

        If a killed process moved only some of them, those are brought back first. If there are files aside already,
        the files in the folder are from an attempt to replace them that was not completed. They are removed, or with
        work in them set aside too, in place of an earlier attempt.

        Args:
            finished: whether the files in the folder are complete. A process that was killed when they were did not
                remove those aside, which they have replaced.
        """
        aside = _top(folder)
        if aside is not None and not (aside / self.first).exists():
            self.bring_back(folder)
        elif finished:
            self.discard_aside(folder)
        if not replace or not (folder / self.first).exists():
            return
        aside = folder / _ASIDE
        if aside.is_dir():
            if not self.has_work(folder):
                self.remove(folder)
                return
            aside = folder / _ATTEMPT
            _discard(aside)
        aside.mkdir()
        for name in sorted(self.names, key=lambda name: name == self.first):
            if (old := folder / name).exists():
                old.rename(aside / name)

    def write_first(self, folder: Path, write: Callable[[], None]) -> None:
        """Write the first file; if that fails, bring back what was set aside for it."""
        try:
            write()
        except BaseException:
            self.bring_back(folder)
            raise

    def has_work(self, folder: Path) -> bool:
        """Whether there is work to lose in the folder."""
        return any(any(folder.glob(pattern)) for pattern in self.work)

    def has_aside(self, folder: Path) -> bool:
        """Whether all of Kitae's files were set aside."""
        return (folder / _ASIDE / self.first).exists()

    def bring_back(self, folder: Path) -> None:
        """Undo the last `set_aside`; does nothing if there are no files aside."""
        aside = _top(folder)
        if aside is not None:
            for old in sorted(aside.iterdir(), key=lambda old: old.name != self.first):
                old.rename(folder / old.name)
            aside.rmdir()

    def undo(self, folder: Path, made: Iterable[Path]) -> None:
        """Undo a start: remove what is ours and bring back what was set aside.

        Args:
            made: folders that the start made, the innermost first; they are removed if they are empty.
        """
        self.remove(folder)
        (folder / LOCK).unlink(missing_ok=True)
        self.bring_back(folder)
        with suppress(OSError):
            for empty in made:
                empty.rmdir()

    def discard_aside(self, folder: Path) -> None:
        """Remove the files aside."""
        for name in (_ATTEMPT, _ASIDE):
            _discard(folder / name)

    @contextmanager
    def locked(self, folder: Path, *, check: bool = False) -> Iterator[None]:
        """Create the folder if necessary, and lock it for this process. The lock ends with the process; its file stays.

        If an error occurs before the first file is written, the new folder is removed.

        Args:
            check: `check` the folder first, so that no lock is left in one that is not ours.

        Raises:
            KitaeError: of type `error`: another process writes to it, or it cannot be made.
        """
        if check:
            self.check(folder)
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch()
        except OSError as error:
            raise self.error(f"{folder}: cannot be used as --out ({error.strerror})") from error
        try:
            with lock(folder / LOCK, wait=False) as state:
                if state == "busy":
                    busy = "another process is writing to this folder; wait until it has ended, or choose another --out"
                    raise self.error(f"{folder}: {busy}")
                try:
                    yield
                except BaseException:
                    if made and list(folder.glob("*")) == [folder / LOCK]:
                        shutil.rmtree(folder)
                    raise
        finally:
            with suppress(OSError):  # the folder may be gone
                (folder / LOCK).touch()  # some versions of filelock remove it


def _top(folder: Path) -> Path | None:
    """Where files were set aside last; None if there are none aside."""
    return next((aside for name in (_ATTEMPT, _ASIDE) if (aside := folder / name).is_dir()), None)


def _discard(aside: Path) -> None:
    """Remove files aside. They are renamed first, since a partial set would be brought back."""
    gone = aside.with_name(_DISCARDED)
    shutil.rmtree(gone, ignore_errors=True)
    if aside.is_dir():
        aside.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[Literal["held", "busy", "unknown"]]:
    """An exclusive lock on a file, which is made if necessary; the system frees it when the process ends.

    Yields:
        held; busy: another process holds it (never with `wait`); unknown: the file system has no locks, as some network
        disks.

    Raises:
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout  # of the extra `train`; the runtime of an exported file has none

    path.touch()
    # On a file system without locks, filelock would take the file that was just made for another process's lock;
    # older versions raise an error.
    known = inspect.signature(FileLock).parameters
    options: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    held = FileLock(path, thread_local=False, **options)
    state: Literal["held", "busy", "unknown"] = "held"
    try:
        held.acquire(blocking=wait)
    except Timeout:
        state = "busy"
    except (NotImplementedError, OSError):
        state = "unknown"
    try:
        yield state
    finally:
        held.release()


def default_folder(name: str, *, new: bool = True) -> Path:
    """runs/NAME; for a new run runs/NAME-2 and so on where that exists."""
    base = Path(RUNS) / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    if not new or not base.exists():
        return base
    others = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in others if not folder.exists())


def kind_of(folder: str | Path) -> Kind | None:
    """What Kitae wrote into a folder; None if nothing, or if there is no such folder."""
    # Unlike `Path.is_file`, False for a name that is too long.
    return next((kind for kind, sign in SIGNS.items() if os.path.isfile(os.path.join(folder, sign))), None)


def known_kind(folder: str | Path) -> Kind:
    """As `kind_of`, for a folder that must be one of Kitae's.

    Raises:
        KitaeError: there is no such folder, or Kitae did not write it.
    """
    if (kind := kind_of(folder)) is not None:
        return kind
    raise KitaeError(f"{folder}: not a folder of a run, a study, a search or a compression ({why_not(folder, *SIGNS)})")


def why_not(folder: str | Path, *kinds: Kind) -> str:
    """Why a path is not a folder of these kinds, in words."""
    if os.path.isdir(folder):
        other = kind_of(folder)
        needed = " or ".join(SIGNS[kind] for kind in kinds)
        return f"it has no {needed}" if other is None else f"it is the folder of a {other}"
    if not os.path.isfile(folder):
        return "there is no such folder"
    home = Path(folder).parent
    return f"it is a file of a {kind}; give the folder, {home}" if (kind := kind_of(home)) in kinds else "it is a file"


def written_by_us(folder: Path) -> bool:
    """Whether a folder among images is one that Kitae wrote, or the `runs` that holds some."""
    inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()] if folder.name == RUNS else []
    return any(kind_of(place) for place in (folder, *inside))
