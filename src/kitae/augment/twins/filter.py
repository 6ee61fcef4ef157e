"""Twins of `kernels.filter`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.augment.twins.numbers import Numbers, level


def autocontrast(x: Tensor, a: Numbers) -> Tensor:
    f = x.float()
    low, high = f.amin((2, 3), keepdim=True), f.amax((2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, torch.ones_like(high), (high - low) * float(np.float32(1.0 / 255.0)))
    return torch.where(flat, x, level((f - low) / scale))


def equalize(x: Tensor, a: Numbers) -> Tensor:
    n, c, h, w = x.shape
    flat = x.reshape(n * c, h * w).long()
    counts = torch.zeros(n * c, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    before = counts.cumsum(1) - counts
    last = (counts > 0).long().mul(torch.arange(256, device=x.device)).amax(1, keepdim=True)
    step = (h * w - counts.gather(1, last)) // 255
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    table[:, 0] = 0
    return torch.where((step == 0).view(n, c, 1, 1), x, table.gather(1, flat).to(torch.uint8).view(n, c, h, w))


def sharpness(x: Tensor, a: Numbers) -> Tensor:
    if x.shape[2] <= 2 or x.shape[3] <= 2:
        return x
    i = x.to(torch.int32)
    column = i[:, :, :-2] + i[:, :, 1:-1] + i[:, :, 2:]
    own = i[:, :, 1:-1, 1:-1]
    total = column[..., :-2] + column[..., 1:-1] + column[..., 2:] + own * 4
    smooth = (total * 40330 + 262144) >> 19
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = level(own.float() + (smooth - own).float() * a.float32(1.0 - a.host(0)))
    return out


def gaussian_weights(size: int, sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """The kernels of torchvision: float32 [n, size]."""
    limit = (size - 1) / (2.0 * np.sqrt(2.0))
    points = np.zeros(1) if size == 1 else -limit + 2.0 * limit * np.arange(size) / (size - 1)
    w = np.exp(-((points / sigma[:, None]) ** 2))
    return np.asarray(w / w.sum(1, keepdims=True), np.float32)


def gaussian_blur(x: Tensor, a: Numbers) -> Tensor:
    out = torch.empty_like(x)
    sizes = a.args[:, :2].astype(np.int64)
    for kx, ky in np.unique(sizes, axis=0).tolist():
        rows = np.flatnonzero((sizes == (kx, ky)).all(1))
        pick = torch.from_numpy(rows).to(x.device)
        wx = torch.from_numpy(gaussian_weights(kx, a.host(2)[rows])).to(x.device)
        wy = torch.from_numpy(gaussian_weights(ky, a.host(3)[rows])).to(x.device)
        f = torch.nn.functional.pad(x[pick].float(), (kx // 2, kx // 2, ky // 2, ky // 2), mode="reflect")
        h, w = x.shape[2:]
        total = torch.zeros_like(f[:, :, :h])
        for t in range(ky):
            total += f[:, :, t : t + h] * wy[:, t].view(-1, 1, 1, 1)
        across = torch.zeros_like(total[..., :w])
        for t in range(kx):
            across += total[..., t : t + w] * wx[:, t].view(-1, 1, 1, 1)
        out[pick] = across.round_().clamp_(0, 255).to(torch.uint8)
    return out
