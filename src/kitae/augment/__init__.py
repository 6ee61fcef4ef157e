"""Augmentation: every op per sample on a whole uint8 batch, keyed, one definition for CPU and GPU.

Reading order: `ops/base` (what an op is) and its neighbours (the ops), `spec` (what a recipe may contain), `plan`
(programs), `mix`, `engine` (`Augment`), then the executors `cpu` (with `kernels/`) and `batched` (with `twins/`),
`functional`, `tta`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Augment": "engine",
    "CustomOp": "ops",
    "Op": "ops",
    "Draw": "ops",
    "Program": "plan",
    "AugmentSpec": "spec",
    "MixSpec": "spec",
    "OPS": "ops",
}

__all__ = ["OPS", "Augment", "AugmentSpec", "CustomOp", "Draw", "MixSpec", "Op", "Program", "functional", "tta"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return sorted(__all__)
