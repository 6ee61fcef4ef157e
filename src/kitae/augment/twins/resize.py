"""Twins of `kernels.resize`."""

from __future__ import annotations

import torch
from torch import Tensor

from kitae.augment.twins.numbers import Numbers

_CHUNK = 1 << 23  # weights that are made at a time: 64 MB in float64


def _triangle_weights(offset: Tensor, size: Tensor, side: int, new: int) -> tuple[Tensor, Tensor]:
    """The integer weights of `kernels.resize.triangle_weights`, for windows of images of `side` pixels.

    Args:
        offset, size: float64 [n, 1, 1], where each window begins, and its pixels.

    Returns:
        float32 [n, new, side], zero outside of the window, and 2 ** precision, float32 [n, 1, 1, 1].
    """
    scale = size / new
    support = scale.clamp(min=1.0)
    centre = scale * (torch.arange(new, device=size.device, dtype=torch.float64).view(1, -1, 1) + 0.5)
    begin = (centre - support + 0.5).trunc().clamp(min=0.0)
    end = torch.minimum((centre + support + 0.5).trunc(), size)
    j = torch.arange(side, device=size.device, dtype=torch.float64) - offset
    w = (1.0 - ((j - centre + 0.5) * (1.0 / support)).abs()).clamp(min=0.0)
    w = torch.where((j >= begin) & (j < end), w, 0.0)
    w = (w.float().double() * (1.0 / w.sum(2, keepdim=True))).float().double()
    powers = 2.0 ** torch.arange(1, 23, device=size.device, dtype=torch.float64)
    fits = (0.5 + w.amax((1, 2)).unsqueeze(1) * powers).trunc() < 2**15  # rises with the power, so counting them does
    one = 2.0 ** fits.sum(1).double().view(-1, 1, 1)
    return (w * one + 0.5).floor().float(), one.float().unsqueeze(1)


def resized_crop(x: Tensor, a: Numbers) -> Tensor:
    """Two products with sparse matrices, kept dense: of all samples at once, whatever their windows.

    Integer weights times levels stay below 2**24, so float32 products and sums are exact, in any order.
    """
    n, c, height, width = x.shape
    new = int(a.args[0, 4]), int(a.args[0, 5])
    windows = torch.from_numpy(a.args[:, :4]).to(x.device).view(n, 4, 1, 1)
    out = torch.empty(n, c, *new, dtype=torch.uint8, device=x.device)
    chunk = max(1, _CHUNK // max(height * new[0], width * new[1]))
    for start in range(0, n, chunk):
        top, left, tall, wide = windows[start : start + chunk].unbind(1)
        weights, one = _triangle_weights(left, wide, width, new[1])
        v = _levels(x[start : start + chunk].float() @ weights.mT.unsqueeze(1), one)
        weights, one = _triangle_weights(top, tall, height, new[0])
        out[start : start + chunk] = _levels(weights.unsqueeze(1) @ v, one).to(torch.uint8)
    return out


def _levels(sums: Tensor, one: Tensor) -> Tensor:
    return ((sums + one / 2) / one).floor().clamp(0, 255)
