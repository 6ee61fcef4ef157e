"""Every op by its name, and every step by its code: of the classes in `geometry`, `color`, `noise` and `policies`."""

from __future__ import annotations

from typing import Any

from kitae.augment.ops import base, color, geometry, noise, policies
from kitae.augment.ops.base import CUSTOM, NOP, Op, Site, Step
from kitae.augment.ops.custom import CustomOp, Draw, TransformOp

__all__ = ["OPS", "STEPS", "CustomOp", "Draw", "Op", "Site", "Step", "TransformOp"]


def _ops() -> dict[str, type[Op]]:
    found: dict[str, type[Op]] = {}
    for module in (geometry, color, noise, policies):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Op) and value.name and value.__module__ == module.__name__:
                assert value.name not in found, f"two ops are called {value.name}"
                found[value.name] = value
    return found


OPS: dict[str, type[Op]] = _ops()


def _steps() -> dict[int, Step]:
    found = {NOP: Step(NOP, "move.planar"), CUSTOM: CustomOp.writes[0]}
    for op in OPS.values():
        for step in op.writes:
            assert found.setdefault(step.code, step) == step, f"two steps have code {step.code}"
    return found


STEPS: dict[int, Step] = _steps()


def __getattr__(name: str) -> Any:
    for module in (base, geometry, color, noise, policies):
        if name in vars(module):
            return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
