"""Twins of `kernels.resize`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kitae.augment.twins.numbers import Numbers

Tensor = torch.Tensor


def triangle_weights(size: int, new: int) -> tuple[NDArray[np.float32], int]:
    """The integer weights of `kernels.resize.triangle_weights` as a dense matrix float32 [new, size], and their
    precision."""
    scale = size / new
    support = max(scale, 1.0)
    centre = scale * (np.arange(new) + 0.5)
    begin = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), size)
    j = np.arange(size)
    w = np.maximum(1.0 - np.abs((j - centre[:, None] + 0.5) * (1.0 / support)), 0.0)
    w[(j < begin[:, None]) | (j >= end[:, None])] = 0.0
    w = (w.astype(np.float32) * (1.0 / w.sum(1, keepdims=True))).astype(np.float64)
    precision = 0
    while precision < 22 and int(0.5 + w.max() * (1 << (precision + 1))) < (1 << 15):
        precision += 1
    return np.floor(w.astype(np.float32).astype(np.float64) * (1 << precision) + 0.5).astype(np.float32), precision


def resized_crop(x: Tensor, a: Numbers) -> Tensor:
    """Integer weights times levels stay below 2**24, so float32 products and sums are exact, in any order."""
    n, c = x.shape[:2]
    new_h, new_w = int(a.args[0, 4]), int(a.args[0, 5])
    out = torch.empty(n, c, new_h, new_w, dtype=torch.uint8, device=x.device)
    for i, (top, left, h, w) in enumerate(a.args[:, :4].astype(np.int64).tolist()):
        v = x[i, :, top : top + h, left : left + w].float()
        for axis, (size, new) in enumerate(((w, new_w), (h, new_h))):
            if size != new:
                weights, precision = triangle_weights(size, new)
                matrix = torch.from_numpy(weights).to(x.device)
                v = v @ matrix.T if axis == 0 else matrix @ v
                v = ((v + float(1 << (precision - 1))) / float(1 << precision)).floor().clamp(0, 255)
        out[i] = v.to(torch.uint8)
    return out
