"""What holds in every test: an error for the user is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from kitae.errors import KitaeError


@pytest.fixture(autouse=True, scope="session")
def _errors_are_one_line() -> Iterator[None]:
    def checked(self: KitaeError, *args: object) -> None:
        Exception.__init__(self, *args)
        own = sys._getframe(1).f_globals["__name__"].startswith("kitae.")  # tests may raise what they like
        assert not own or not any("\n" in arg for arg in args if isinstance(arg, str)), f"several lines: {args}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KitaeError, "__init__", checked)
        yield
