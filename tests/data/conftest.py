"""Every test has a cache of its own, and small sources made on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images import picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; nothing of the user's own is read or written."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KITAE_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the servers of tests."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` small PNG files into each of the given folders below tmp_path/photos."""

    def make(*folders: str, count: int = 6, size: int = 16, name: str = "photos") -> Path:
        root = tmp_path / name
        for label, folder in enumerate(folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = picture(label, number, (size, size))
                Image.fromarray(np.ascontiguousarray(pixels)).save(root / folder / f"{number:03d}.png")
        return root

    return make
