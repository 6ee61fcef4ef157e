"""Machine code that is kept on disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numba
import pytest

from kitae.native import jit
from kitae.native.link import TAKE
from kitae.native.threads import take_parts


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Asks for a kernel as a new process does; how often it was compiled for that. Files are in tmp_path."""
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(jit, "compiled", 1)  # the first one prints a line

    def ask() -> int:
        monkeypatch.setattr(jit, "_natives", {})
        before = jit.compiled
        assert jit.native(take_parts, TAKE).address
        return jit.compiled - before

    return ask


def test_a_damaged_file_is_written_anew(tmp_path: Path, compilations: Callable[[], int]) -> None:
    assert [compilations(), compilations()] == [1, 0]
    (file,) = tmp_path.iterdir()
    for size in (0, 20):
        file.write_bytes(file.read_bytes()[:size])
        assert [compilations(), compilations()] == [1, 0]


def test_a_full_disk_keeps_nothing(
    tmp_path: Path, compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert [compilations(), compilations()] == [1, 1]
    assert not list(tmp_path.iterdir())


def test_two_processors_with_one_folder_share_no_file(tmp_path: Path) -> None:
    code = "from kitae.native import jit, link, threads; jit.native(threads.take_parts, link.TAKE)"
    found: list[set[str]] = []
    for processor in ("generic", "x86-64-v2" if os.uname().machine == "x86_64" else "cortex-a72"):
        folder = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **folder}, check=True, capture_output=True)
        found.append({path.name for path in tmp_path.iterdir()})
    assert [len(names) for names in found] == [1, 2]


def test_two_versions_of_numba_with_one_folder_keep_their_files(
    compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two environments with one editable install: neither compiles anew because of the other."""
    found = []
    for version in ("1.0", "2.0", "1.0", "2.0"):
        monkeypatch.setattr(numba, "__version__", version)
        found.append(compilations())
    assert found == [1, 1, 0, 0]


def test_where_nothing_can_be_kept_each_process_compiles(
    compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "cache_folder", lambda: None)
    assert [compilations(), compilations()] == [1, 1]


def test_the_folder_is_the_first_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has no home folder, as in a container that runs under a number of its own."""
    for name in ("HOME", "KITAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    (tmp_path / "file").touch()
    for place, found in ((tmp_path, tmp_path), (tmp_path / "file" / "inside", None)):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(place))
        assert jit.cache_folder.__wrapped__() == found
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))
    assert jit.cache_folder.__wrapped__() == tmp_path / "cache" / "kernels"
