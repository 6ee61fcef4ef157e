"""The public surface is a list, and the list is kept."""

from __future__ import annotations

import kitae

PUBLIC = [
    "KitaeError",
    "Plots",
    "Recipe",
    "Run",
    "__version__",
    "augment",
    "check",
    "compress",
    "export",
    "keyed",
    "load",
    "report",
    "runtime",
    "search",
    "study",
    "train",
]


def test_public_names() -> None:
    assert sorted(kitae.__all__) == PUBLIC


def test_every_public_name_is_there() -> None:
    assert all(getattr(kitae, name) is not None for name in PUBLIC)


def test_dir_lists_them() -> None:
    assert set(PUBLIC) <= set(dir(kitae))


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(kitae, "registry")
