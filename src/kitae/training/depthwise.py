"""Depthwise convolutions in bfloat16 on a CPU, with fast gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from kitae.native import depthwise
from kitae.native.threads import prepare, share_parts

_PARTS = 64  # of a batch, for threads to take; a constant, so that no result depends on how many there are
_LIBRARY_KERNEL, _LIBRARY_MAPS = 3, range(8, 33)  # whose gradient of the weights oneDNN computes faster
_SHARED = 200_000  # multiply-adds, some 30 microseconds; less is not worth waking threads

Pair = tuple[int, int]


class DepthwiseGradients(TorchFunctionMode):
    """Within this context, depthwise convolutions of a forward pass in bfloat16 autocast get gradients of our own.

    The forward pass is torch's, in bfloat16. So are gradients that oneDNN computes fast; the others come from the
    kernels of `native.depthwise`, which sum in float32. Convolutions with several outputs per channel, or with padding
    by name, are computed in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        prepare(depthwise.input_gradient, depthwise.weight_gradient)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.conv2d and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            return _convolve(*args, **kwargs)
        return function(*args, **kwargs)


def depthwise_layers(model: nn.Module) -> list[nn.Conv2d]:
    """Convolutions with a group for each input channel."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The same arguments as torch.conv2d."""
    if groups == 1 or weight.shape[1] > 1 or not (input.requires_grad or weight.requires_grad):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if input.dim() != 4 or len(weight) > groups or isinstance(padding, str):
        with torch.autocast("cpu", enabled=False):
            return torch.conv2d(input.float(), weight, bias, stride, padding, dilation, groups)
    made: Tensor = _Depthwise.apply(input, weight, bias, _pair(stride), _pair(padding), _pair(dilation))
    return made


def _pair(value: Any) -> Pair:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return int(both[0]), int(both[-1])


class _Depthwise(torch.autograd.Function):
    """[N, C, H, W] and [C, 1, kernel height, kernel width] to [N, C, P, Q], bfloat16, the channels last in memory."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        images = input.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(images, weight)
        ctx.settings, ctx.dtype = (stride, padding, dilation), input.dtype
        rounded = None if bias is None else bias.to(torch.bfloat16)
        return torch.conv2d(images, weight.to(torch.bfloat16), rounded, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, _, dilation = ctx.settings
        gradient = gradient.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        shape = shape_of(gradient, images, weight, ctx.settings)
        simple = dilation == (1, 1)
        for_input = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            if simple and stride == (1, 1):
                for_input = _library(gradient, images, weight, ctx.settings, 0)
            else:
                for_input = input_gradient(gradient, images, weight, shape)
            for_input = for_input.to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            if simple and max(weight.shape[2:]) <= _LIBRARY_KERNEL and min(gradient.shape[2:]) in _LIBRARY_MAPS:
                for_weight = _library(gradient, images, weight, ctx.settings, 1)
            else:
                for_weight = weight_gradient(gradient, images, weight, shape)
            for_weight = for_weight.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum((0, 2, 3), dtype=torch.float32)
        return for_input, for_weight, for_bias, None, None, None


def _library(gradient: Tensor, images: Tensor, weight: Tensor, settings: tuple[Pair, Pair, Pair], which: int) -> Tensor:
    """Torch's own gradient of the input (0) or of the weights (1), bfloat16."""
    stride, padding, dilation = settings
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, images, weight.to(torch.bfloat16), None, stride, padding, dilation, False, [0, 0], len(weight),
        [which == 0, which == 1, False],
    )[which]  # fmt: skip
    return found


def shape_of(gradient: Tensor, images: Tensor, weight: Tensor, settings: tuple[Pair, Pair, Pair]) -> NDArray[np.int64]:
    """What the kernels must know, see `native.depthwise`; `settings` are stride, padding and dilation."""
    sizes = images.shape[1:], gradient.shape[2:], weight.shape[2:], *settings
    return np.array([number for pair in sizes for number in pair], np.int64)


def input_gradient(gradient: Tensor, images: Tensor, weight: Tensor, shape: NDArray[np.int64]) -> Tensor:
    """The gradient of the input, from that of the output; both bfloat16 with the channels last.

    Only the shape of `images` matters.
    """
    out = torch.empty_like(images, memory_format=torch.channels_last)
    weight = weight.detach().float()[:, 0].permute(1, 2, 0).contiguous()
    # An image is a part, since nothing is summed over images.
    rows = torch.empty(len(images), images.shape[1] * images.shape[3], dtype=torch.float32, device=images.device)
    _run(depthwise.input_gradient, (gradient, weight, out), shape, rows)
    return out


def weight_gradient(gradient: Tensor, images: Tensor, weight: Tensor, shape: NDArray[np.int64]) -> Tensor:
    """The gradient of the weights, float32 [C, 1, h, w], from that of the output and the images.

    Both are bfloat16 with the channels last.
    """
    parts = min(_PARTS, len(images))
    totals = torch.zeros(parts, *weight.shape[2:], len(weight), dtype=torch.float32, device=images.device)
    _run(depthwise.weight_gradient, (gradient, images, gradient), shape, totals)
    return totals.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous()


def _run(kernel: Callable[..., Any], values: Sequence[Tensor], shape: NDArray[np.int64], area: Tensor) -> None:
    """A kernel on the images of a batch; `area` has a row for each part."""
    count = len(values[0])
    channels, _, _, tall, wide, *sizes = shape.tolist()[:7]
    work = count * channels * tall * wide * math.prod(sizes)
    first, second, third = (value.data_ptr() for value in values)
    share_parts(
        kernel, (first, second, third, shape.ctypes.data), count, len(area), (area.data_ptr(), 4 * area.stride(0)),
        torch.get_num_threads() if work >= _SHARED else 1,
    )  # fmt: skip
