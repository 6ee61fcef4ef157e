"""After channels were removed: let the layers compute again what they computed before, without training.

Every convolution and linear layer gets the weights with which its outputs, from the inputs that are left, come closest
to those of the network before (least squares, as in He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", ICCV 2017), and every BatchNorm the statistics that its inputs now have. Both happen in one pass: a layer is
solved when the images arrive at it, so it also corrects what the layers before it could not.

Statistics are moved by what pruning has changed on these images, not measured anew: those of a network that was
fine-tuned with frozen statistics are not those of its data, and it depends on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kitae.compression.counting import others
from kitae.compression.least_squares import (
    RIDGE,
    Batches,
    can_be_solved,
    first_images,
    inputs_at,
    outputs_at,
    places_of,
)
from kitae.modes import convolutions_in_float32, evaluating

_ROUNDING = 1e-5  # differences of outputs below it, as a share of the largest, are rounding


def reconstruct(
    original: nn.Module,
    smaller: nn.Module,
    removed: Mapping[str, Sequence[int]],
    batches: Batches,
    *,
    weights: bool = True,
) -> None:
    """Change the weights and BatchNorm statistics of a pruned network, so that it computes what it did before.

    Solved are 2d convolutions that pad with zeros, plain or depthwise, and linear layers, each used once in a pass.

    Args:
        original: the network before; not changed.
        smaller: changed in place; its mode is kept. On the same device.
        removed: the output channels that `smaller` lost, by layer and norm, as in `channels.Pruned`.
        batches: *training* images, of which as many are used as fit, see `first_images`.
        weights: False only corrects the statistics.
    """
    before = _Before()
    with evaluating(original), evaluating(smaller), torch.no_grad(), convolutions_in_float32():
        images = first_images(batches, original)
        with ExitStack() as hooks:
            for name, module in original.named_modules():
                if _is_norm(module):
                    hooks.callback(module.register_forward_hook(partial(before.note_norm, name)).remove)
                elif weights and can_be_solved(module):
                    hooks.callback(module.register_forward_hook(partial(before.note_layer, name)).remove)
            original(images)
        with ExitStack() as hooks:
            for name, module in smaller.named_modules():
                if before.calls[name] != 1:
                    continue
                gone = removed.get(name, ())
                if name in before.statistics:
                    mean, variance = before.statistics[name]
                    kept = others(gone, len(mean))
                    correct = partial(_move, mean[kept], variance[kept])
                else:
                    places, outputs = before.outputs.pop(name)
                    # A norm after a convolution corrects the means; after a classifier there is none.
                    centred = module.bias is not None or (isinstance(module, nn.Conv2d) and bool(before.statistics))
                    correct = partial(_solve, places, outputs[:, others(gone, outputs.shape[1])], centred)
                hooks.callback(module.register_forward_pre_hook(correct).remove)
            smaller(images)


class _Before:
    """What the network computed before channels were removed.

    Attributes:
        calls: how often each module was called.
        statistics: mean and variance of the inputs of each norm.
        outputs: of each layer, positions, and its outputs there [rows, width].
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def note_norm(self, name: str, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls[name] += 1
        self.statistics[name] = _statistics(inputs[0])

    def note_layer(self, name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls[name] += 1
        places = places_of(layer, output)
        self.outputs[name] = places, outputs_at(layer, output, places)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of [N, C, ...]."""
    variance, mean = torch.var_mean(values.float().transpose(0, 1).flatten(1), dim=1, correction=0)
    return mean, variance


def _move(old_mean: Tensor, old_variance: Tensor, norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Move a norm's statistics by what has changed."""
    mean, variance = _statistics(inputs[0])
    norm.running_mean += mean - old_mean
    norm.running_var *= (variance + norm.eps) / (old_variance + norm.eps)


def _solve(places: Tensor, wanted: Tensor, centred: bool, layer: Any, inputs: tuple[Tensor, ...]) -> None:
    """Give a layer the weights whose outputs are closest to `wanted`. `centred`: means are corrected elsewhere."""
    x = inputs_at(layer, inputs[0], places)
    groups = getattr(layer, "groups", 1)  # each solves its own outputs
    width = len(layer.weight) // groups
    x = x.reshape(len(x), groups, -1).transpose(0, 1)  # [groups, rows, features]
    weight = layer.weight.float().reshape(groups, width, -1)  # [groups, width, features]
    missing = wanted.reshape(-1, groups, width).transpose(0, 1) - x @ weight.mT
    if layer.bias is not None:
        missing = missing - layer.bias.reshape(groups, 1, width)
    if missing.abs().max() <= _ROUNDING * wanted.abs().max():
        return  # nothing was lost
    x_mean, missing_mean = (values.mean(1, keepdim=True) * centred for values in (x, missing))
    x, missing = x - x_mean, missing - missing_mean
    gram, product = ((x.mT @ other / x.shape[1]).cpu().double() for other in (x, missing))
    hold = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)
    reached = hold > 0  # else nothing arrives
    hold = torch.where(reached, hold, 1.0)
    factor, failed = torch.linalg.cholesky_ex(gram + hold[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype))
    change = torch.cholesky_solve(product, factor).mT
    usable = reached & (failed == 0) & change.isfinite().flatten(1).all(1)
    change = torch.where(usable[:, None, None], change, 0.0).to(weight.device, weight.dtype)
    layer.weight += change.reshape(layer.weight.shape).to(layer.weight.dtype)
    if layer.bias is not None:
        moved = (missing_mean - x_mean @ change.mT) * usable.to(weight.device)[:, None, None]
        layer.bias += moved.reshape(-1).to(layer.bias.dtype)
