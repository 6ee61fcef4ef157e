"""What holds in every test: an error for the user is one line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kitae.errors import KitaeError


@pytest.fixture(autouse=True, scope="session")
def _errors_are_one_line() -> Iterator[None]:
    def checked(self: KitaeError, *args: object) -> None:
        Exception.__init__(self, *args)
        assert not any("\n" in arg for arg in args if isinstance(arg, str)), f"several lines: {args}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KitaeError, "__init__", checked)
        yield
