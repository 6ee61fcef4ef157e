"""What every error that a user can cause has in common, in one place for all tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kitae.errors import KitaeError


def refused(
    error: type[KitaeError], words: str, call: Callable[..., object], /, *args: Any, **options: Any
) -> KitaeError:
    """`call(*args, **options)` raises exactly that error: one clear line in which the pattern `words` is found."""
    with pytest.raises(KitaeError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert error in (type(caught.value), KitaeError), f"{type(caught.value).__name__}: {message}"
    assert re.search(words, message), message
    assert len(message.splitlines()) == 1, message
    assert not re.search(r"Traceback|<[\w.]+ object at 0x|^\w*Error\b", message), message
    return caught.value


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Nothing in the folder is another afterwards: no file made, removed or written."""

    def files() -> dict[Path, int | None]:
        return {path: path.stat().st_mtime_ns if path.is_file() else None for path in folder.rglob("*")}

    before = files()
    yield
    assert files() == before
