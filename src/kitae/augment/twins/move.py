"""Twins of `kernels.move`."""

from __future__ import annotations

import torch
from torch import Tensor

from kitae.augment.twins.numbers import Numbers


def crop(x: Tensor, a: Numbers) -> Tensor:
    n, c, h, w = x.shape
    rows, columns = int(a.args[0, 2]), int(a.args[0, 3])
    mode = a.integer(4)
    y = a.integer(0) + torch.arange(rows, device=x.device).view(1, 1, -1, 1)
    z = a.integer(1) + torch.arange(columns, device=x.device).view(1, 1, 1, -1)
    outside = ((y < 0) | (y >= h) | (z < 0) | (z >= w)) & (mode == 0)

    def fold(i: Tensor, size: int) -> Tensor:
        mirrored = i.abs()
        mirrored = torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)
        return torch.where(mode == 1, mirrored, i).clamp(0, size - 1)

    index = (fold(y, h) * w + fold(z, w)).expand(n, c, rows, columns)
    out = x.reshape(n, c, h * w).gather(2, index.reshape(n, c, -1)).view(n, c, rows, columns)
    return torch.where(outside, a.fill(5, c).to(torch.uint8), out)


def horizontal_flip(x: Tensor, a: Numbers) -> Tensor:
    return x.flip(3)


def vertical_flip(x: Tensor, a: Numbers) -> Tensor:
    return x.flip(2)


def covered(x: Tensor, a: Numbers) -> Tensor:
    """Which pixels the box of an erasing step covers: bool [n, 1, H, W]."""
    h, w = x.shape[2:]
    y = torch.arange(h, device=x.device).view(1, 1, -1, 1)
    z = torch.arange(w, device=x.device).view(1, 1, 1, -1)
    top, left = a.integer(0), a.integer(1)
    return (y >= top) & (y < top + a.integer(2)) & (z >= left) & (z < left + a.integer(3))


def erase(x: Tensor, a: Numbers) -> Tensor:
    return torch.where(covered(x, a), a.fill(4, x.shape[1]).to(torch.uint8), x)
