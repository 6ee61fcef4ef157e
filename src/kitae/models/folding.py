"""Folds BatchNorm into the convolutions before it, for networks that only run in eval mode."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kitae.modes import evaluating

_CLOSE = 1e-3
"""Largest difference of the outputs, as a share of their largest value; rounding makes some 1e-6."""


def folded(model: nn.Module, outputs: Callable[[nn.Module], Tensor]) -> nn.Module:
    """A copy of a network in which a convolution and the BatchNorm after it are one convolution; or the network itself.

    It is for eval mode. Its outputs differ by rounding. A convolution is left as it is if anything but one BatchNorm
    reads its output, which is found out by a run. If the outputs of network and copy differ by more than rounding,
    since a network computes something of its own with these layers, it is returned as it is.

    Args:
        outputs: runs a network, in float32, on some images: floats of any shape.
    """
    with evaluating(model), torch.no_grad():
        with _Reads(model) as reads:
            expected = outputs(model)
        pairs = reads.pairs()
        if not pairs:
            return model
        smaller = copy.deepcopy(model).requires_grad_(False).eval()
        for convolution, norm in pairs:
            _fold(smaller, convolution, norm)
        try:
            found = outputs(smaller)
        except Exception:  # such as a network that reads its BatchNorms' attributes
            return model
        close = found.shape == expected.shape and (found - expected).abs().max() <= _CLOSE * expected.abs().max()
        return smaller if close else model


class _Reads(TorchFunctionMode):
    """Which convolutions of a run a single BatchNorm reads, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._calls: dict[str, int] = defaultdict(int)
        self._made: dict[int, tuple[str, Tensor]] = {}  # id -> convolution and its output, which is kept alive
        self._readers: dict[str, set[str | None]] = defaultdict(set)  # convolution -> BatchNorms; None: anything else
        self._inside: str | None = None  # the BatchNorm that runs
        self._handles: list[Any] = []

    def __enter__(self) -> _Reads:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Conv2d) and not hasattr(module, "parametrizations"):
                self._handles.append(module.register_forward_hook(self._convolved(name)))
            elif _without_norm(module) is not None:
                self._handles.append(module.register_forward_pre_hook(self._entered(name)))
                self._handles.append(module.register_forward_hook(self._left))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self._made:
                self._readers[self._made[id(value)][0]].add(self._inside)
        return func(*args, **(kwargs or {}))

    def pairs(self) -> list[tuple[str, str]]:
        """(convolution, BatchNorm) by name; both ran once."""
        once = {name for name, count in self._calls.items() if count == 1}
        alone = [(name, reader) for name, readers in self._readers.items() for reader in readers if len(readers) == 1]
        return [(name, norm) for name, norm in alone if norm is not None and {name, norm} <= once]

    def _convolved(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._calls[name] += 1
            self._made[id(output)] = name, output

        return hook

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._calls[name] += 1
            self._inside = name

        return hook

    def _left(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside = None


def _without_norm(module: nn.Module) -> nn.Module | None:
    """What stays of a BatchNorm once its convolution has done its work; None for other modules."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return None
    if type(module) is nn.BatchNorm2d:
        return nn.Identity()
    if type(module).__name__ == "BatchNormAct2d":  # timm's, with an activation inside
        return nn.Sequential(*(module.get_submodule(name) for name in ("drop", "act")))
    return None


def _fold(model: nn.Module, convolution: str, norm: str) -> None:
    layer, after = model.get_submodule(convolution), model.get_submodule(norm)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    rest = _without_norm(after)
    assert rest is not None
    model.set_submodule(convolution, fuse_conv_bn_eval(layer, after))
    model.set_submodule(norm, rest.eval())
