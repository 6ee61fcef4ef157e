"""Machine code that is kept on disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from numba.core.caching import IndexDataCacheFile

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


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_file_is_written_anew(ending: str, tmp_path: Path, compilations: Callable[[], int]) -> None:
    assert [compilations(), compilations()] == [1, 0]
    (file,) = tmp_path.glob(f"*.{ending}")
    for size in (0, 20):
        file.write_bytes(file.read_bytes()[:size])
        assert [compilations(), compilations()] == [1, 0]


def test_a_full_disk_keeps_nothing(compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IndexDataCacheFile, "save", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert [compilations(), compilations()] == [1, 1]
