"""Twins of `kernels.warp`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kitae.augment.twins.numbers import Numbers


def _affine_points(x: Tensor, a: Numbers) -> tuple[Tensor, Tensor]:
    h, w = x.shape[2:]
    yc = torch.arange(h, device=x.device, dtype=torch.float32).view(1, 1, -1, 1) - 0.5 * (h - 1)
    xc = torch.arange(w, device=x.device, dtype=torch.float32).view(1, 1, 1, -1) - 0.5 * (w - 1)
    sx = (a[0] * xc + (a[1] * yc + a[2])) + 0.5 * (w - 1)
    sy = (a[3] * xc + (a[4] * yc + a[5])) + 0.5 * (h - 1)
    return sx, sy


def _perspective_points(x: Tensor, a: Numbers) -> tuple[Tensor, Tensor]:
    h, w = x.shape[2:]
    yc = torch.arange(h, device=x.device, dtype=torch.float32).view(1, 1, -1, 1) + 0.5
    xc = torch.arange(w, device=x.device, dtype=torch.float32).view(1, 1, 1, -1) + 0.5
    below = a[6] * xc + (a[7] * yc + 1.0)
    sx = (a[0] * xc + (a[1] * yc + a[2])) / below - 0.5
    sy = (a[3] * xc + (a[4] * yc + a[5])) / below - 0.5
    far = 32768.0
    return sx.nan_to_num(-far).clamp(-far, far), sy.nan_to_num(-far).clamp(-far, far)


def _nearest(x: Tensor, points: tuple[Tensor, Tensor], fill: Tensor) -> Tensor:
    n, c, h, w = x.shape
    sx, sy = (p.clamp(-1.0, side).round_() for p, side in zip(points, (w, h), strict=True))
    inside = (sx >= 0) & (sx < w) & (sy >= 0) & (sy < h)
    index = (sy.clamp(0, h - 1) * w + sx.clamp(0, w - 1)).long().expand(n, c, h, w)
    out = x.reshape(n, c, -1).gather(2, index.reshape(n, c, -1)).view(n, c, h, w)
    return torch.where(inside, out, fill.round().to(torch.uint8))


def _bilinear(x: Tensor, points: tuple[Tensor, Tensor], a: Numbers, at: int) -> Tensor:
    n, c, h, w = x.shape
    sx, sy = (p.clamp(-1.0, side) for p, side in zip(points, (w, h), strict=True))
    ix, iy = (sx + 1.0).floor(), (sy + 1.0).floor()
    fx, fy = sx - (ix - 1.0), sy - (iy - 1.0)
    padded = torch.nn.functional.pad(x, (1, 2, 1, 2))
    stride = w + 3
    index = (iy.long() * stride + ix.long()).expand(n, c, h, w).reshape(n, c, -1)
    flat = padded.reshape(n, c, -1)

    def tap(offset: int) -> Tensor:
        return flat.gather(2, index + offset).view(n, c, h, w).float()

    t0, t1, b0, b1 = tap(0), tap(1), tap(stride), tap(stride + 1)
    up = t0 + (t1 - t0) * fx
    down = b0 + (b1 - b0) * fx
    v = up + (down - up) * fy
    zero = torch.zeros((), device=x.device)
    across = torch.where((ix >= 1) & (ix <= w), 1.0 - fx, zero) + torch.where(ix < w, fx, zero)
    along = torch.where((iy >= 1) & (iy <= h), 1.0 - fy, zero) + torch.where(iy < h, fy, zero)
    filled = a.column(~np.isnan(a.host(at)))
    fill = a.fill(at, c)
    v = torch.where(filled, (v - fill) * (across * along) + fill, v)
    return v.round_().to(torch.uint8)


def affine_nearest(x: Tensor, a: Numbers) -> Tensor:
    return _nearest(x, _affine_points(x, a), a.fill(6, x.shape[1]))


def affine_bilinear(x: Tensor, a: Numbers) -> Tensor:
    return _bilinear(x, _affine_points(x, a), a, 6)


def perspective_nearest(x: Tensor, a: Numbers) -> Tensor:
    return _nearest(x, _perspective_points(x, a), a.fill(8, x.shape[1]))


def perspective_bilinear(x: Tensor, a: Numbers) -> Tensor:
    return _bilinear(x, _perspective_points(x, a), a, 8)
