"""Twins of `kernels.color`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kitae.augment.twins.numbers import Numbers, level


def _grey(x: Tensor) -> Tensor:
    """Floored grey, float32 [n, 1, H, W]."""
    levels = x.float()  # uint8 times a number would have torch's default type, which users set
    r, g, b = (levels[:, c : c + 1] for c in range(3))
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()  # add with alpha is a fused multiply-add


def _blend(x: Tensor, other: Tensor, a: Numbers) -> Tensor:
    return level(x.float() * a[0] + other * a.float32(1.0 - a.host(0)))


def brightness(x: Tensor, a: Numbers) -> Tensor:
    return level(x.float() * a[0])


def contrast(x: Tensor, a: Numbers) -> Tensor:
    grey = _grey(x) if x.shape[1] == 3 else x
    total = grey.to(torch.int64).sum((1, 2, 3), keepdim=True)
    return _blend(x, total.float() / float(x.shape[2] * x.shape[3]), a)


def saturation(x: Tensor, a: Numbers) -> Tensor:
    return x if x.shape[1] == 1 else _blend(x, _grey(x), a)


def grayscale(x: Tensor, a: Numbers) -> Tensor:
    return x if x.shape[1] == 1 else _grey(x).to(torch.uint8).expand(-1, 3, -1, -1)


def hue(x: Tensor, a: Numbers) -> Tensor:
    """The same integers as the compiled kernel, where they are explained."""
    if x.shape[1] == 1:
        return x
    i = x.to(torch.int32) << 5
    r, g, b = i[:, 0:1], i[:, 1:2], i[:, 2:3]
    high, low = i.amax(1, keepdim=True), i.amin(1, keepdim=True)
    d = high - low
    h = torch.where(high == g, b - r + 2 * d, r - g + 4 * d)
    h = torch.where(high == r, g - b + torch.where(g < b, 6 * d, 0), h)
    turn = a.host(0)
    parts = np.rint(49152.0 * (turn - np.floor(turn))).astype(np.int64) % 49152
    turned = ((d.long() << 3) * a.column(parts)) >> 16
    h = h - (6 * d - turned.to(torch.int32))
    h = torch.where(h < 0, h + 6 * d, h)
    out = []
    for offset in (5, 3, 1):
        k = h + offset * d
        k = torch.where(k >= 6 * d, k - 6 * d, k)
        k = torch.minimum(torch.minimum(k, (4 * d - k).clamp(min=0)), d)
        out.append(((high - k) * 2056) >> 16)
    return torch.cat(out, 1).to(torch.uint8)


def invert(x: Tensor, a: Numbers) -> Tensor:
    return ~x


def posterize(x: Tensor, a: Numbers) -> Tensor:
    return x & ((0xFF << (8 - a.integer(0))) & 0xFF).to(torch.uint8)


def solarize(x: Tensor, a: Numbers) -> Tensor:
    return torch.where(x.float() >= a[0], ~x, x)
