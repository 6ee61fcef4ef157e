"""Kitae: from a folder of images to a small, fast, trusted classifier, with every technique's contribution measured.

    import kitae as kt
    run = kt.train(kt.Recipe.load("fashion-mini"))
    print(run.evaluation()["test"]["accuracy"])

Names are imported when they are first used, so `import kitae` is instant and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kitae import augment as augment
    from kitae import keyed as keyed
    from kitae import runtime as runtime
    from kitae.data.check import check as check
    from kitae.errors import KitaeError as KitaeError
    from kitae.experiments.search import search as search
    from kitae.experiments.study import study as study
    from kitae.loading import load as load
    from kitae.pipelines.compress import compress as compress
    from kitae.pipelines.export import export as export
    from kitae.pipelines.robustness import robustness as robustness
    from kitae.pipelines.train import train as train
    from kitae.recipe import Recipe as Recipe
    from kitae.reporting.page import report as report
    from kitae.reporting.plots import Plots as Plots
    from kitae.run import Run as Run

__version__ = "0.1.0"

# Public name -> (module, attribute); None is the module itself. tests/test_public_surface.py holds the same list.
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "KitaeError": ("kitae.errors", "KitaeError"),
    "Plots": ("kitae.reporting.plots", "Plots"),
    "Recipe": ("kitae.recipe", "Recipe"),
    "Run": ("kitae.run", "Run"),
    "augment": ("kitae.augment", None),
    "check": ("kitae.data.check", "check"),
    "compress": ("kitae.pipelines.compress", "compress"),
    "export": ("kitae.pipelines.export", "export"),
    "keyed": ("kitae.keyed", None),
    "load": ("kitae.loading", "load"),
    "report": ("kitae.reporting.page", "report"),
    "robustness": ("kitae.pipelines.robustness", "robustness"),
    "runtime": ("kitae.runtime", None),
    "search": ("kitae.experiments.search", "search"),
    "study": ("kitae.experiments.study", "study"),
    "train": ("kitae.pipelines.train", "train"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kitae' has no attribute {name!r}")
    from kitae.errors import require

    module, attribute = _PUBLIC[name]
    loaded = require(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
