"""A folder that Kitae owns: one writer at a time, and nothing of others is touched."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from pathlib import Path
from unittest.mock import Mock

import filelock
import pytest

import kitae
from kitae.errors import KitaeError, RecipeError, TrainingError
from kitae.folders import LOCK, Owned, kind_of, known_kind, lock, out_folder
from kitae.recipe import Recipe
from tests.refusals import refused

OWNED = Owned("study", ("study.yaml", "runs", "table"), TrainingError, first="study.yaml")


def filled(folder: Path, *more: str) -> Path:
    folder.mkdir()
    for name in ("study.yaml", "table", *more):
        (folder / name).write_text(name)
    (folder / "runs").mkdir()
    return folder


@pytest.mark.parametrize("name", ["notes.txt", "runs2"])
def test_files_of_others_are_named_and_kept(tmp_path: Path, name: str) -> None:
    folder = filled(tmp_path / "s", name, ".DS_Store")
    refused(TrainingError, name, OWNED.check, folder)
    OWNED.remove(folder)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted([".DS_Store", name])


@pytest.mark.parametrize("call", ["train", "study", "search"])
def test_an_override_in_the_place_of_the_folder_is_refused(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "label-smoothing" if call == "study" else "fashion-mini"
    refused(RecipeError, r"set='train\.epochs=5'", getattr(kitae, call), asked, "train.epochs=5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("section", Recipe.model_fields)
def test_an_override_of_every_section_is_known_as_one(section: str) -> None:
    refused(RecipeError, "is an override, not a folder", out_folder, f"{section}.field=1")
    refused(RecipeError, "is an override, not a folder", out_folder, f"{section}={{}}")
    assert out_folder(f"runs/{section}=1") == Path(f"runs/{section}=1")


def test_without_its_first_file_nothing_is_ours(tmp_path: Path) -> None:
    OWNED.check(tmp_path / "missing")
    folder = filled(tmp_path / "s", ".DS_Store")
    OWNED.check(folder)
    (folder / "study.yaml").unlink()
    refused(TrainingError, "runs but no study", OWNED.check, folder)
    Owned("run", OWNED.names, TrainingError, first="study.yaml", last="table").check(folder)
    with pytest.raises(TrainingError, match="runs but no end"):
        Owned("run", OWNED.names, TrainingError, first="study.yaml", last="end").check(folder)


def test_the_first_file_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr("kitae.folders.shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            OWNED.remove(folder)
    OWNED.check(folder)
    OWNED.remove(folder)
    assert list(folder.iterdir()) == []


def hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    with OWNED.locked(folder):
        ready.set()
        multiprocessing.Event().wait(60)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(TrainingError, match=r"another process.*; wait until it has ended, or choose another"),
        OWNED.locked(tmp_path),
    ):
        pass
    process.kill()
    process.join()
    with OWNED.locked(tmp_path), pytest.raises(TrainingError, match="another process"), OWNED.locked(tmp_path):
        pass
    with OWNED.locked(tmp_path):
        assert (tmp_path / LOCK).is_file()


def test_the_file_of_the_lock_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows that a folder is Kitae's, but some versions of filelock remove it."""
    honest = filelock.FileLock.release

    def release(self: filelock.FileLock, force: bool = False) -> None:
        honest(self, force)
        Path(self.lock_file).unlink(missing_ok=True)

    monkeypatch.setattr(filelock.FileLock, "release", release)
    with pytest.raises(KeyboardInterrupt), OWNED.locked(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / LOCK).is_file()


@pytest.mark.parametrize("case", ["made", "there before", "with a file", "held by another"])
def test_a_folder_made_for_an_error_is_removed(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "s"
    if case == "there before":
        folder.mkdir()
    with pytest.raises(TrainingError, match="wrong"), OWNED.locked(folder):  # noqa: PT012
        if case == "with a file":
            (folder / "table").touch()
        elif case == "held by another":
            with pytest.raises(TrainingError, match="another process"), OWNED.locked(folder):
                pass
            assert folder.is_dir()
        raise TrainingError("wrong")
    assert folder.is_dir() == (case in ("there before", "with a file"))


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelock.FileLock, "acquire", Mock(side_effect=NotImplementedError))
    with OWNED.locked(tmp_path):
        pass


@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_is_unknown_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))))
    states: list[str] = []

    def enter() -> None:
        with lock(tmp_path / "lock", wait=wait) as state:
            states.append(state)

    thread = threading.Thread(target=enter, daemon=True)  # since it may wait for ever
    thread.start()
    thread.join(5)
    assert states == ["unknown"]
    with OWNED.locked(tmp_path / "new"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(TrainingError, "file", OWNED.check, tmp_path / "file")
    refused(TrainingError, "file is a file, not a folder; choose another --out", OWNED.check, tmp_path / "file/new/s")
    with pytest.raises(TrainingError, match="cannot be used as --out"), OWNED.locked(tmp_path / "file" / "s"):
        pass


def test_only_the_folder_itself_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted folder often lies in one that is not."""
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "read-only" and access(path, mode))
    mounted = tmp_path / "read-only" / "mounted"
    mounted.mkdir(parents=True)
    OWNED.check(mounted)
    refused(TrainingError, "read-only cannot be written to; choose another --out", OWNED.check, mounted.parent / "new")


def test_a_folder_is_of_the_kind_that_wrote_it(tmp_path: Path) -> None:
    from kitae.experiments.folder import STUDY_FOLDER
    from kitae.experiments.search import SEARCH_FOLDER
    from kitae.pipelines.compress import COMPRESSION
    from kitae.run import RUN_FOLDER

    for owned in (RUN_FOLDER, STUDY_FOLDER, SEARCH_FOLDER, COMPRESSION):
        folder = tmp_path / owned.kind
        folder.mkdir()
        assert kind_of(folder) is None
        (folder / (owned.last or owned.first)).touch()
        assert kind_of(folder) == known_kind(folder) == owned.kind
    for wrong, why in ((tmp_path, "search.yaml or compression.json"), (tmp_path / ("x" * 300), "no such folder")):
        assert kind_of(wrong) is None
        refused(KitaeError, rf"not a folder of a run.*{why}", known_kind, wrong)
