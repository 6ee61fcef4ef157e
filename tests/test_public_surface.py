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
    assert set(PUBLIC) <= set(dir(kitae))
    assert all(getattr(kitae, name) is not None for name in PUBLIC)
    assert not hasattr(kitae, "registry")
