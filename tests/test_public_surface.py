"""The public surface is a list, and the list is kept."""

from __future__ import annotations

import subprocess
import sys

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
    "robustness",
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


def test_a_name_that_needs_a_missing_library_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import kitae as kt; kt.train"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError: torch is not installed: " in done.stderr.splitlines()[-1]
    assert "[train]" in done.stderr.splitlines()[-1]
